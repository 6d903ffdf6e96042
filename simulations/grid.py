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

#: Answers all messages of a push, lazily and in their order; None for one without an answer.
Answers = Callable[[Sequence[Message]], Iterable[Message | None]]

_SERVER_NODE_ID = 1
_CLIENT_RAISED = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION


class ClientsFailed(BaseException):
    """Whatever ended the clients of a push: a failure of the simulation, and of no single node.

    No ``Exception``, since the server's loop takes those for unreadable replies and goes on.

    Attributes:
        error: what was raised.
    """

    def __init__(self, error: Exception) -> None:
        """Carry ``error`` past the server's loop."""
        super().__init__(str(error))
        self.error = error


class InProcessGrid(Grid):
    """Runs the clients when their replies are asked for, in the order of pushing.

    A driver that pulls in that order meets one reply at a time, however many clients there are.

    Attributes:
        nodes: ids of all nodes.
        online: those that take messages; remove one to simulate a node that went away.
    """

    def __init__(self, nodes: Iterable[int], answers: Answers) -> None:
        """Serve ``nodes``.

        Args:
            nodes: ids of all nodes.
            answers: what the nodes do with the messages of one push.
        """
        self.nodes = frozenset(nodes)
        self.online = set(self.nodes)
        self._answers = answers
        self._coming: dict[str, Iterator[tuple[str, Message | None]]] = {}
        self._replies: dict[str, Message | None] = {}
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
        """Take messages; returns their ids."""
        pushed = list(messages)
        for message in pushed:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        taken = [message for message in pushed if message.metadata.dst_node_id in self.online]
        coming = self._run_clients(taken)
        self._coming |= {message.metadata.message_id: coming for message in taken}
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there, each handed out once."""
        return [reply for i in list(message_ids) if (reply := self._reply(i)) is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull; nothing takes time here, so ``timeout`` has no effect."""
        return self.pull_messages(self.push_messages(messages))

    def _reply(self, identifier: str) -> Message | None:
        """Run clients until that of one message has had its turn."""
        coming = self._coming.pop(identifier, None)
        if coming is not None and identifier not in self._replies:
            for found, reply in coming:
                self._replies[found] = reply
                if found == identifier:
                    break
        return self._replies.pop(identifier, None)

    def _run_clients(self, messages: Sequence[Message]) -> Iterator[tuple[str, Message | None]]:
        """Each message's id with its reply."""
        replies = iter(self._answers(messages))
        for message in messages:
            try:
                reply = next(replies)
            except Exception as error:
                raise ClientsFailed(error) from error
            if reply is not None:
                reply.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            yield message.metadata.message_id, reply


def by_handlers(handlers: Mapping[int, Handler]) -> Answers:
    """Each node by a handler of its own, with records of its own; one that raises fails alone."""

    def answers(messages: Sequence[Message]) -> Iterator[Message]:
        for message in messages:
            try:
                yield handlers[message.metadata.dst_node_id](_own(message))
            except Exception as error:
                yield failure(message, error)

    return answers


def failure(message: Message, error: Exception) -> Message:
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
