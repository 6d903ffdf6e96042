"""Looks at the replies of one phase without waiting for any of them.

Flower's deployed grid pulls a reply as a whole: once it is announced, ``pull_messages`` waits until
all its objects have come or the sender's push session ends, which a sender can put off for hours.
So the same runtime client is used here step by step: claim the announcement, ask for each object,
leave those that are not there for the next look, and count bytes and objects before content is
kept. Other grids (in one process, Ray's) do not wait and are asked as usual.
"""

import copy
import inspect
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from logging import getLogger
from typing import TYPE_CHECKING, Any, Protocol, cast

import httpx
from flwr.app import Array, Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_children_ids_from_object_content,
    get_object_id,
    get_object_type_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    validate_object_content,
)

from fedlatent.server.quota import ReplyQuota
from fedlatent.server.screening import ScreeningFailure
from fedlatent.shared.errors import ServiceError

if TYPE_CHECKING:
    from flwr.supercore.runtime import RuntimeHttpClient

_log = getLogger("fedlatent.server")

#: Objects that one look asks for, so that no reply keeps the others waiting.
OBJECTS_A_LOOK = 32
#: Longest wait for one answer of the SuperLink.
CALL_S = 10.0

_LEAST_CALL_S = 0.05
_SERVER_FAULT = 500  # HTTP statuses from here on say that the SuperLink failed, as when it is busy


def failure(code: str, sentence: str) -> ScreeningFailure:
    """A reply that cannot be used, by the fault of its sender."""
    return ScreeningFailure(status="failed", code=code, sentence=sentence)


UNREADABLE = failure("unreadable", "the reply could not be read; compare the software versions")


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """How much of an announced reply is here.

    Attributes:
        objects: of Flower's, as many as have come.
        of: objects that were announced.
        bytes: that have come.
    """

    objects: int
    of: int
    bytes: int


class Inbox(Protocol):
    """The replies of one phase; each is handed out once."""

    moved: bool
    """Whether some look since this was last set to False brought a part of a reply."""

    def look(self, identifier: str, until: float) -> Message | ScreeningFailure | None:
        """The reply to message ``identifier``, why it cannot be used, or None while it is not here.

        Args:
            identifier: of the message that was sent.
            until: time of the driver's clock at which the look ends.

        Raises:
            OSError, httpx.HTTPError: the link to the SuperLink is broken, which is no node's fault.
        """

    def arrived(self, identifier: str) -> Arrived | None:
        """How much of the reply is here, of one that was announced and has not been handed out."""

    def unheard(self, identifier: str) -> bool:
        """Whether the SuperLink failed to answer when last asked for this reply."""


def is_deployed(grid: Grid) -> bool:
    """Whether ``grid`` is a SuperLink's, so that its replies come from other machines.

    Flower has two grids: that of its simulation, and the other one; it is told by name here, since
    its module would cost every simulation a second to import.
    """
    own = [kind for kind in type(grid).__mro__ if kind not in Grid.__mro__]
    return any(
        kind.__module__.startswith("flwr.") and kind.__name__ != "InMemoryGrid" for kind in own
    )


def open_inbox(
    grid: Grid, quota: ReplyQuota, clock: Callable[[], float] = time.monotonic
) -> "Inbox":
    """The inbox of a phase whose replies may be as large as ``quota`` says.

    Raises:
        ServiceError: Flower's grid is not the one that this was written for.
    """
    if not is_deployed(grid):
        return GridInbox(grid)
    try:
        deployed = cast(Any, grid)
        return LinkInbox(LookingClient(deployed._runtime_client), deployed.run.run_id, quota, clock)
    except AttributeError as error:
        raise ServiceError(
            f"Expected a grid of Flower with its runtime client, got one without ({error}), whose "
            "replies could stop a run; install the pinned version of flwr."
        ) from None


class GridInbox:
    """Replies of a grid that never waits."""

    def __init__(self, grid: Grid) -> None:
        """Look into ``grid``."""
        self.moved = False
        self._grid = grid

    def look(self, identifier: str, until: float) -> Message | ScreeningFailure | None:
        """Pull the one reply, if it is there.

        Raises:
            OSError, httpx.HTTPError: the link is broken.
        """
        try:
            found = list(self._grid.pull_messages([identifier]))
        except (OSError, httpx.HTTPError):
            raise  # the link is down, and no fault of the node
        except Exception:
            _log.exception("a reply could not be read")
            return UNREADABLE
        for message in found:
            if message.metadata.reply_to_message_id == identifier:
                return message
        return None

    def arrived(self, identifier: str) -> Arrived | None:
        """Nothing comes in parts."""
        return None

    def unheard(self, identifier: str) -> bool:
        """No link, no silence."""
        return False


class RuntimeClient(Protocol):
    """What is used of Flower's runtime client; the names are those of the protobuf service."""

    limit_s: float
    """Longest wait for the next answer."""

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        """Claim the announced replies, which are named with their objects and not brought."""

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        """Ask for one object."""

    def ConfirmMessageReceived(
        self, request: ConfirmMessageReceivedRequest
    ) -> ConfirmMessageReceivedResponse:
        """Let the SuperLink delete the objects of a reply."""


class LookingClient:
    """Flower's runtime client with a limit for each call, and one try in place of endless ones."""

    def __init__(self, client: "RuntimeHttpClient") -> None:
        """Share the connection of ``client``, which stays as it is.

        Raises:
            AttributeError: it lacks the private parts that this needs.
        """
        self.limit_s = CALL_S
        self._client = cast(Any, copy.copy(client))
        retry = copy.copy(self._client._retry_invoker)
        if retry is not None:
            if not hasattr(retry, "max_tries"):
                raise AttributeError("its retries have no max_tries")
            retry.max_tries = 1
        self._client._retry_invoker = retry
        send = self._client._unary_unary
        if "timeout" not in inspect.signature(send).parameters:
            raise AttributeError("its calls have no timeout")
        self._client._unary_unary = lambda **parts: send(**parts | {"timeout": self.limit_s})

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        """Claim the announced replies, which are named with their objects and not brought."""
        return cast(PullAppMessagesResponse, self._client.PullMessages(request))

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        """Ask for one object."""
        return cast(PullObjectResponse, self._client.PullObject(request))

    def ConfirmMessageReceived(
        self, request: ConfirmMessageReceivedRequest
    ) -> ConfirmMessageReceivedResponse:
        """Let the SuperLink delete the objects of a reply."""
        return cast(ConfirmMessageReceivedResponse, self._client.ConfirmMessageReceived(request))


class LinkInbox:
    """Replies of a SuperLink, pulled object by object."""

    def __init__(
        self,
        client: RuntimeClient,
        flower_run: int,
        quota: ReplyQuota,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask ``client`` for the replies of Flower's run ``flower_run``."""
        self.moved = False
        self._client = client
        self._run = flower_run
        self._node = Node(node_id=SUPERLINK_NODE_ID)
        self._quota = quota
        self._clock = clock
        self._parcels: dict[str, _Parcel] = {}
        self._unheard: set[str] = set()

    def look(self, identifier: str, until: float) -> Message | ScreeningFailure | None:
        """Claim the reply once it is announced, and pull what is there of it.

        Raises:
            httpx.HTTPStatusError: the SuperLink refuses this run.
        """
        self._unheard.discard(identifier)
        try:
            found = self._look(identifier, until)
        except httpx.HTTPError as error:
            if not _is_passing(error):
                raise
            _log.info("the SuperLink did not answer, asked again soon: %s", type(error).__name__)
            self._unheard.add(identifier)
            return None
        except OSError:
            raise  # the link is down, and no fault of the node
        except Exception:
            _log.exception("a reply could not be read")
            found = UNREADABLE
        if found is not None:
            self._drop(identifier, until)
        return found

    def arrived(self, identifier: str) -> Arrived | None:
        """How much of an announced reply has come."""
        parcel = self._parcels.get(identifier)
        if parcel is None:
            return None
        came = len(parcel.contents)
        return Arrived(objects=came, of=came + len(parcel.missing), bytes=parcel.bytes)

    def unheard(self, identifier: str) -> bool:
        """Whether the SuperLink failed at the last look for this reply."""
        return identifier in self._unheard

    def _look(self, identifier: str, until: float) -> Message | ScreeningFailure | None:
        parcel = self._parcels.get(identifier)
        if parcel is None:
            tree = self._claim(identifier, until)
            if tree is None:
                return None
            parcel = self._parcels[identifier] = _Parcel(root=tree.object_id)
            wanted = _object_ids(tree, self._quota.objects)
            if wanted is None:
                return failure(
                    "size",
                    f"Expected a reply of at most {self._quota.objects} objects, got more.",
                )
            parcel.missing.extend(wanted)
        problem = self._pull(parcel, until)
        return problem or (None if parcel.missing else self._opened(identifier, parcel))

    def _claim(self, identifier: str, until: float) -> ObjectTree | None:
        """The tree of an announced reply; it is handed out once, so it is kept by the caller."""
        self._limit(until)
        answer = self._client.PullMessages(PullAppMessagesRequest(message_ids=[identifier]))
        trees: Iterable[ObjectTree] = answer.message_object_trees
        for message, tree in zip(answer.messages_list, trees, strict=True):
            if message.metadata.reply_to_message_id == identifier:
                self.moved = True
                if tree.object_id != message.metadata.message_id:
                    raise ValueError("the tree is not that of its message")
                return tree
        return None

    def _pull(self, parcel: "_Parcel", until: float) -> ScreeningFailure | None:
        """Ask for missing objects, each once at most; why the reply fails, if it does."""
        for _ in range(min(len(parcel.missing), OBJECTS_A_LOOK)):
            if self._clock() >= until:
                break
            self._limit(until)
            identifier = parcel.missing[0]
            answer = self._client.PullObject(
                PullObjectRequest(node=self._node, run_id=self._run, object_id=identifier)
            )
            if not answer.object_found:
                return failure(
                    "incomplete",
                    f"Expected all {len(parcel.contents) + len(parcel.missing)} objects of the "
                    f"reply, got {len(parcel.contents)} before the upload was given up.",
                )
            if not answer.object_available:
                parcel.missing.rotate(-1)
                continue
            content = answer.object_content
            parcel.bytes += len(content)
            if parcel.bytes > self._quota.bytes:
                return self._too_large()
            validate_object_content(content)
            if get_object_id(content) != identifier:
                raise ValueError("the object is not the one that was announced")
            self.moved = True
            parcel.contents[parcel.missing.popleft()] = content
        return None

    def _opened(self, identifier: str, parcel: "_Parcel") -> Message | ScreeningFailure:
        """The message of a whole reply."""
        if _unpacked_bytes(parcel.contents) > self._quota.bytes:
            return self._too_large()
        message = inflate_object_from_contents(parcel.root, parcel.contents)
        if not isinstance(message, Message):
            raise TypeError(f"a {type(message).__name__} is no message")
        if message.metadata.reply_to_message_id != identifier:
            raise ValueError("the message answers another one")
        message.metadata.__dict__["_message_id"] = parcel.root
        return message

    def _too_large(self) -> ScreeningFailure:
        return failure("size", f"Expected a reply of at most {self._quota.bytes} bytes, got more.")

    def _drop(self, identifier: str, until: float) -> None:
        """Forget a reply; the SuperLink may delete its objects, as it does when the run ends."""
        parcel = self._parcels.pop(identifier, None)
        if parcel is None:
            return
        self._limit(until)
        try:
            self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self._node, run_id=self._run, message_object_id=parcel.root
                )
            )
        except httpx.HTTPError as error:
            _log.info("a reply stays with the SuperLink for now: %s", type(error).__name__)

    def _limit(self, until: float) -> None:
        self._client.limit_s = max(_LEAST_CALL_S, min(CALL_S, until - self._clock()))


@dataclass(kw_only=True)
class _Parcel:
    """A reply under way: its root, the objects to ask for next, and those that have come."""

    root: str
    missing: deque[str] = field(default_factory=deque)
    contents: dict[str, bytes] = field(default_factory=dict)
    bytes: int = 0


def _object_ids(tree: ObjectTree, most: int) -> list[str] | None:
    """The different objects of a tree; None when it has more than ``most`` places."""
    found: dict[str, None] = {}
    for places, object_id in enumerate(_walk(tree), start=1):
        if places > most:
            return None
        found[object_id] = None
    return list(found)


def _walk(tree: ObjectTree) -> Iterator[str]:
    """The object ids of a tree of any depth."""
    todo = [tree]
    while todo:
        one = todo.pop()
        yield one.object_id
        todo.extend(one.children)


def _unpacked_bytes(contents: Mapping[str, bytes]) -> int:
    """Bytes of all arrays once put together: one may name the same piece any number of times."""
    total = 0
    for content in contents.values():
        if get_object_type_from_object_content(content) == Array.__qualname__:
            pieces = get_object_children_ids_from_object_content(content)
            sizes = [len(contents[piece]) for piece in pieces]
            facts = json.loads(get_object_body(content, Array))
            total += sum(sizes[number] for number in facts["arraychunk_ids"])
    return total


def _is_passing(error: httpx.HTTPError) -> bool:
    """Whether the SuperLink may answer the next time: it was busy, slow or away."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= _SERVER_FAULT
    return isinstance(error, httpx.TransportError)
