"""Flower's ``Grid`` in one process: the same ServerApp and strategy, no SuperLink and no sockets.

The deployed grid, Flower's Ray engine and this one are driven by the same server code; only who
runs a client differs. Flower's ``Grid`` is public; the two private names used here (``Run`` and
``TaskIdentity``, which ``Message`` reads) are unchanged from Flower 1.36 to 1.42.
"""

import copy
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

#: Answers one message as a node would; exceptions become error replies.
Handler = Callable[[Message], Message]

#: Answers the messages of one push together; None leaves a message to its node's handler.
BatchHandler = Callable[[Sequence[Message]], Sequence[Message | None]]

_SERVER_NODE_ID = 1
_CLIENT_RAISED = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION


class InProcessGrid(Grid):
    """Runs each node's handler when a message is pushed to it, in the order of pushing.

    Attributes:
        online: node ids that take messages; remove one to simulate a node that went away.
    """

    def __init__(self, handlers: Mapping[int, Handler], batch: BatchHandler | None = None) -> None:
        """Serve ``handlers`` by node id.

        Args:
            handlers: of every node.
            batch: sees all messages of a push before the handlers do.
        """
        self.handlers = dict(handlers)
        self._batch = batch
        self.online = set(self.handlers)
        self._replies: dict[str, Message] = {}
        self.set_run(Run.create_empty(run_id=1))

    def set_run(self, run: Run) -> None:
        """Name the run that new messages belong to."""
        self._run = run
        TaskIdentity.run_id = run.run_id
        TaskIdentity.task_id = 1
        TaskIdentity.node_id = _SERVER_NODE_ID

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Build a message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are online, sorted."""
        return sorted(self.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand each message to its node at once; returns the message ids."""
        pushed = list(messages)
        for message in pushed:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        taken = [_own(message) for message in pushed if message.metadata.dst_node_id in self.online]
        for message, reply in zip(taken, self._answers(taken), strict=True):
            reply.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            self._replies[message.metadata.message_id] = reply
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there, each handed out once."""
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull; nothing takes time here, so ``timeout`` has no effect."""
        return self.pull_messages(self.push_messages(messages))

    def _answers(self, messages: Sequence[Message]) -> Iterator[Message]:
        """A reply to each message, from the batch handler or else from its node's."""
        try:
            found = self._batch(messages) if self._batch else [None] * len(messages)
        except Exception as error:
            found = [_failure(message, error) for message in messages]
        for message, reply in zip(messages, found, strict=True):
            yield reply or self._answer(message)

    def _answer(self, message: Message) -> Message:
        try:
            return self.handlers[message.metadata.dst_node_id](message)
        except Exception as error:
            return _failure(message, error)


def _failure(message: Message, error: Exception) -> Message:
    """As Flower's own runtimes have it: a failed node, not a failed run."""
    return Message(Error(_CLIENT_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)


def _own(message: Message) -> Message:
    own = copy.copy(message)
    own.content = _own_records(message.content)
    return own


def _own_records(content: RecordDict) -> RecordDict:
    """Records of its own for each node; the immutable array payloads stay shared."""
    return RecordDict(
        {
            key: ArrayRecord(dict(value)) if isinstance(value, ArrayRecord) else copy.copy(value)
            for key, value in content.items()
        }
    )
