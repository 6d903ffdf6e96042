"""A SuperLink for tests of the inbox: Flower's own protobuf messages and objects, no network."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import httpx
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from fedlatent.simulations.grid import InProcessGrid, by_handlers


@dataclass
class Announced:
    """A reply as a node announces it, and the objects that it has uploaded so far."""

    proto: MessageProto
    tree: ObjectTree
    objects: dict[str, bytes]

    @classmethod
    def of(cls, message: Message) -> "Announced":
        """The whole reply."""
        message.metadata.__dict__["_message_id"] = message.object_id
        return cls(
            proto=message_to_proto(remove_content_from_message(message)),
            tree=get_object_tree(message),
            objects={key: one.deflate() for key, one in get_all_nested_objects(message).items()},
        )


@dataclass
class Link:
    """What the runtime client of the inbox speaks to.

    Attributes:
        announced: by the id of the message that is answered; each is claimed once, as Flower does.
        hidden: objects that are announced and not there.
        gone: objects whose upload was given up.
        faults: raised once each, by the name of the call, in their order.
        calls: names of all calls so far.
        limits: the limit of each call.
        on_call: does something at each call, such as to let time pass.
    """

    announced: dict[str, Announced] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    faults: list[tuple[str, Exception]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    on_call: Callable[[], None] = lambda: None
    limit_s: float = 0.0
    _retry_invoker: object = None
    _objects: dict[str, bytes] = field(default_factory=dict)

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        """Hand out what is announced, once."""
        self._call("PullMessages")
        found = [self.announced.pop(i) for i in request.message_ids if i in self.announced]
        for one in found:
            self._objects |= one.objects
        return PullAppMessagesResponse(
            messages_list=[one.proto for one in found],
            message_object_trees=[one.tree for one in found],
        )

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        """One object, unless it is hidden or gone."""
        self._call("PullObject")
        if request.object_id in self.gone:
            return PullObjectResponse(object_found=False, object_available=False)
        content = self._objects.get(request.object_id)
        if request.object_id in self.hidden or content is None:
            return PullObjectResponse(object_found=True, object_available=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(
        self, request: ConfirmMessageReceivedRequest
    ) -> ConfirmMessageReceivedResponse:
        """Note that a reply was received."""
        self._call("ConfirmMessageReceived")
        return ConfirmMessageReceivedResponse()

    def _unary_unary(self, *, timeout: float | None = None) -> None:
        """Flower's client sends by this; there is nothing to send here."""

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.limits.append(self.limit_s)
        self.on_call()
        if self.faults and self.faults[0][0] == name:
            raise self.faults.pop(0)[1]


class LinkGrid(HttpGrid):
    """Flower's deployed grid over a :class:`Link`; nodes answer at once, in this process.

    Attributes:
        link: the SuperLink.
        edit: changes what a node announces.
    """

    def __init__(self, local: InProcessGrid) -> None:
        """The nodes of ``local`` behind a link."""
        super().__init__("127.0.0.1:1", insecure=True, token="none")
        self.set_run(local.run)
        self.link = Link()
        self.edit: Callable[[int, Announced], None] = lambda node, announced: None
        self._local = local

    @property
    def _runtime_client(self) -> RuntimeHttpClient:
        return cast(RuntimeHttpClient, self.link)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes."""
        return self._local.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the nodes answer, and announce what they say."""
        identifiers = list(self._local.push_messages(messages))
        for reply in self._local.pull_messages(identifiers):
            announced = Announced.of(reply)
            self.edit(reply.metadata.src_node_id, announced)
            self.link.announced[reply.metadata.reply_to_message_id] = announced
        return identifiers


def status_error(status: int) -> httpx.HTTPStatusError:
    """What the client raises for an answer of this HTTP status."""
    request = httpx.Request("POST", "http://superlink/v1/runtime/pull-object")
    response = httpx.Response(status, request=request, text="database is locked")
    return httpx.HTTPStatusError("failed", request=request, response=response)


def asked(node: int, identifier: str) -> Message:
    """A message to a node, as the one that it answers."""
    InProcessGrid([node], by_handlers({}))  # says whose run it is, which messages need
    message = Message(RecordDict(), node, "train")
    message.metadata.__dict__["_message_id"] = identifier
    return message
