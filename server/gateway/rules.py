"""What an admitted site may ask for: as itself, about its own messages, within its quota."""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.inflatable.inflatable_object import get_object_id
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from fedlatent.server.gateway.issued import Book, Issued
from fedlatent.server.gateway.refusal import Refused
from fedlatent.server.gateway.sites import Member
from fedlatent.server.home import ServerHome
from fedlatent.server.quota import ReplyQuota, load_quota

MARGIN = 2
"""So many times its planned bytes may a reply weigh before it ends."""

_TOO_MUCH = f"more than {MARGIN} x the planned bytes of a reply; it ends here"
_KIB = 1024
_FRAME = 1 * _KIB  # bytes of a push-object request beside the object
_MESSAGE = 16 * _KIB  # bytes of an announced message, which brings its content later
_OBJECT_ID = re.compile(r"[0-9a-f]{64}\Z")


def _nothing() -> None:
    """Nothing is to be undone."""


@dataclass(frozen=True)
class Note:
    """What the SuperLink's answer to a request changes here.

    Attributes:
        answered: Takes the body of an answer of status 200.
        failed: Called when there was no such answer.
    """

    answered: Callable[[bytes], None]
    failed: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Endpoint:
    """One request of the fleet API: its protobuf, and how long one can be."""

    request: type[Message]
    max_bytes: int


ENDPOINTS: dict[str, Endpoint | None] = {
    "register-node": None,  # the operator admits nodes; none registers itself
    "unregister-node": None,
    "activate-node": Endpoint(ActivateNodeRequest, 4 * _KIB),
    "deactivate-node": Endpoint(DeactivateNodeRequest, _KIB),
    "send-node-heartbeat": Endpoint(SendNodeHeartbeatRequest, _KIB),
    "pull-messages": Endpoint(PullMessagesRequest, 4 * _KIB),
    "push-messages": Endpoint(PushMessagesRequest, _KIB * _KIB),
    "get-run": Endpoint(GetRunRequest, _KIB),
    "get-fab": Endpoint(GetFabRequest, 4 * _KIB),
    "push-object": Endpoint(PushObjectRequest, 16 * _KIB * _KIB),  # Flower cuts at 5 MB
    "pull-object": Endpoint(PullObjectRequest, 4 * _KIB),
    "confirm-message-received": Endpoint(ConfirmMessageReceivedRequest, 4 * _KIB),
}
"""The whole fleet API of Flower; what has no endpoint here is refused."""


class Rules:
    """Judges requests of admitted sites by what was issued to them."""

    def __init__(self, home: ServerHome, book: Book) -> None:
        """Use the quotas that the driver writes into ``home``."""
        self._book = book
        self._quotas = Quotas(home)
        self._uploading: Counter[int] = Counter()  # bytes under way, by node
        self._answering: set[str] = set()  # messages whose reply is being announced

    @contextlib.contextmanager
    def room(self, member: Member, name: str, size: int) -> Iterator[None]:
        """Holds the place of a body of ``size`` bytes while it comes.

        Raises:
            Refused: It is a piece of a reply, but none of this site's is under way, or this would
                be too much of it; then the reply ends.
        """
        if name != "push-object":
            yield
            return
        replies = [one for one in self._book.open(member.node) if one.session and not one.ended]
        if not replies:
            raise Refused(403, "no reply of it is under way", close=True)
        left = max(MARGIN * self._quota(one).bytes - one.received for one in replies)
        if size - _FRAME > left - self._uploading[member.node]:
            for one in replies:
                self._end(one)
            raise Refused(413, _TOO_MUCH, close=True)
        self._uploading[member.node] += size
        try:
            yield
        finally:
            self._uploading[member.node] -= size

    def check(self, member: Member, name: str, body: bytes) -> Note | None:
        """Judge the body of a request to the endpoint ``name``.

        Returns:
            What to do with the SuperLink's answer, if anything.

        Raises:
            Refused: It is no such request, or asks for what is not this site's.
        """
        endpoint = ENDPOINTS[name]
        if endpoint is None:
            raise Refused(403, "only the operator does that")
        try:
            request = endpoint.request.FromString(body)
        except DecodeError:
            raise Refused(400, "the body is not the request that it should be") from None
        if isinstance(request, ActivateNodeRequest):
            if request.public_key != member.pem:
                raise Refused(403, "it names another key than it signs with")
            return None
        self._check_node(member, request)
        match request:
            case PullMessagesRequest():
                return Note(lambda answer: self._issue(member, answer))
            case PushMessagesRequest():
                return self._check_reply(member, request)
            case PushObjectRequest():
                self._check_upload(member, request)
            case PullObjectRequest():
                self._check_download(member, request)
            case ConfirmMessageReceivedRequest():
                return self._check_receipt(member, request)
            case GetRunRequest() | GetFabRequest():
                if not self._book.knows_run(member.node, request.run_id):
                    raise Refused(403, "it asks for run %s, which it was not given", request.run_id)
        return None

    def _check_node(self, member: Member, request: Message) -> None:
        if isinstance(request, DeactivateNodeRequest):
            named = request.node_id
        else:
            named = getattr(request, "node").node_id  # noqa: B009 - every other request has one
        if named != member.node:
            raise Refused(403, "it names node %s as the one that asks", named)

    def _issue(self, member: Member, answer: bytes) -> None:
        response = PullMessagesResponse.FromString(answer)
        for message, tree in zip(
            response.messages_list, response.message_object_trees, strict=True
        ):
            metadata = message.metadata
            self._book.add(
                Issued(
                    message=metadata.message_id,
                    node=member.node,
                    run=metadata.run_id,
                    expires=metadata.created_at + metadata.ttl,
                    objects=frozenset(one.object_id for one in _objects(tree)),
                )
            )

    def _check_reply(self, member: Member, request: PushMessagesRequest) -> Note:
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise Refused(
                403,
                "%d messages and %d trees, where one reply has one of each",
                len(request.messages_list),
                len(request.message_object_trees),
            )
        message, tree = request.messages_list[0], request.message_object_trees[0]
        metadata = message.metadata
        if metadata.src_node_id != member.node:
            raise Refused(403, "it names node %s as sender", metadata.src_node_id)
        if metadata.dst_node_id != SUPERLINK_NODE_ID:
            kind = "it names node %s as receiver, not the server"
            raise Refused(403, kind, metadata.dst_node_id)
        issued = self._book.find(member.node, metadata.reply_to_message_id)
        if issued is None:
            raise Refused(403, "it answers a message that it was not given")
        if metadata.run_id != issued.run:
            kind = "it answers in run %s what came in run %s"
            raise Refused(403, kind, metadata.run_id, issued.run)
        if issued.reply or issued.message in self._answering:
            raise Refused(403, "it answers one message a second time")
        numbers = (metadata.created_at, metadata.ttl, *request.clientapp_runtime_list)
        if not all(map(math.isfinite, numbers)) or len(numbers) > 3:
            raise Refused(403, "its times are no times")
        if message.ByteSize() > _MESSAGE:
            raise Refused(403, "a message of more than %d bytes beside its objects", _MESSAGE)
        if message.content.ByteSize():
            raise Refused(403, "its content stands in the message, not in objects")
        objects = [one.object_id for one in _objects(tree)]
        if tree.object_id != metadata.message_id:
            raise Refused(403, "its objects belong to another message than it names")
        if not all(map(_OBJECT_ID.match, objects)):
            raise Refused(403, "its objects have ids that are none")
        quota = self._quota(issued)
        if len(objects) > quota.objects:
            kind = "%d objects, where a reply has %d at most"
            raise Refused(403, kind, len(objects), quota.objects)
        if metadata.message_id not in _names(message, objects):
            raise Refused(403, "its id is not that of a message with these objects")
        self._answering.add(issued.message)
        return Note(
            lambda answer: self._await(issued, metadata.message_id, frozenset(objects), answer),
            lambda: self._answering.discard(issued.message),
        )

    def _await(self, issued: Issued, reply: str, objects: frozenset[str], answer: bytes) -> None:
        self._answering.discard(issued.message)
        response = PushMessagesResponse.FromString(answer)
        if not response.objects_to_push:  # not taken: the message itself is always asked for
            return
        issued.reply, issued.session = reply, response.session_id
        issued.awaited = objects & frozenset(response.objects_to_push)
        self._book.save(issued)

    def _check_upload(self, member: Member, request: PushObjectRequest) -> None:
        for one in self._book.open(member.node):
            if one.session and one.session == request.session_id:
                break
        else:
            raise Refused(403, "it brings an object of an upload that is not its own")
        if one.run != request.run_id or request.object_id not in one.awaited:
            raise Refused(403, "it brings an object that does not belong to its reply")
        if one.ended:
            raise Refused(403, "its reply has ended: %s", one.ended)
        size = len(request.object_content)
        if one.received + size > MARGIN * self._quota(one).bytes:
            self._end(one)
            raise Refused(413, _TOO_MUCH)
        self._book.count(one, size)

    def _check_download(self, member: Member, request: PullObjectRequest) -> None:
        for one in self._book.open(member.node):
            if one.run == request.run_id and request.object_id in one.objects:
                return
        raise Refused(403, "it asks for an object that it was not given")

    def _check_receipt(self, member: Member, request: ConfirmMessageReceivedRequest) -> Note:
        issued = self._book.find(member.node, request.message_object_id)
        if issued is None or issued.run != request.run_id:
            raise Refused(403, "it confirms a message that it was not given")

        def received(_answer: bytes) -> None:
            issued.objects = frozenset()
            self._book.save(issued)

        return Note(received)

    def _quota(self, issued: Issued) -> ReplyQuota:
        quota = self._quotas.of(issued.run)
        if quota is None:
            raise Refused(403, "the server expects no reply in run %s", issued.run, close=True)
        return quota

    def _end(self, one: Issued) -> None:
        one.ended = _TOO_MUCH
        self._book.save(one)


class Quotas:
    """The quotas of runs, read again whenever their files change."""

    def __init__(self, home: ServerHome) -> None:
        """Read nothing yet."""
        self._home = home
        self._known: dict[int, tuple[tuple[int, int], ReplyQuota | None]] = {}

    def of(self, run: int) -> ReplyQuota | None:
        """The quota of a reply in ``run`` now; None when the driver has written none."""
        try:
            status = self._home.quota(run).stat()
        except FileNotFoundError:
            return None
        now = (status.st_mtime_ns, status.st_ino)
        known = self._known.get(run)
        if known is None or known[0] != now:
            known = self._known[run] = (now, load_quota(self._home, run))
        return known[1]


def _objects(tree: ObjectTree) -> Iterator[ObjectTree]:
    """Every node of a tree; protobuf itself bounds how deep one is."""
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        yield one
        waiting.extend(one.children)


def _names(message: ProtoMessage, objects: Iterable[str]) -> Iterator[str]:
    """The ids that a message can have, as Flower makes them; one of the objects is its content.

    With any other id a reply could take over what belongs to another message of that id.
    """
    stated = ProtoMessage()
    stated.CopyFrom(message)
    stated.metadata.message_id = ""
    stated.ClearField("content")
    body = stated.SerializeToString(deterministic=True)
    for content in ("", *objects):
        head = HEAD_VALUE_DIVIDER.join(("Message", content, str(len(body)))).encode()
        yield get_object_id(head + HEAD_BODY_DIVIDER + body)
