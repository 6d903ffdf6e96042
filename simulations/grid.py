"""Flower's ``Grid`` in one process: the same ServerApp and strategy, no SuperLink and no sockets.

The deployed grid, Flower's Ray engine and this one are driven by the same server code; only who
runs a client differs. Flower's ``Grid`` is public; the two private names used here (``Run`` and
``TaskIdentity``, which ``Message`` reads) are unchanged from Flower 1.36 to 1.42.
"""

import copy
import uuid
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

#: Answers one message as a node would; exceptions become error replies.
Handler = Callable[[Message], Message]

_SERVER_NODE_ID = 1
_CLIENT_RAISED = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION


class InProcessGrid(Grid):
    """Runs each node's handler when a message is pushed to it, in the order of pushing.

    Attributes:
        online: node ids that take messages; remove one to simulate a node that went away.
    """

    def __init__(self, handlers: Mapping[int, Handler]) -> None:
        """Serve ``handlers`` by node id."""
        self.handlers = dict(handlers)
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
        ids = []
        for message in messages:
            identifier = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = identifier
            ids.append(identifier)
            if message.metadata.dst_node_id in self.online:
                reply = self._answer(message)
                reply.metadata.__dict__["_message_id"] = uuid.uuid4().hex
                self._replies[identifier] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there, each handed out once."""
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull; nothing takes time here, so ``timeout`` has no effect."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        own = copy.copy(message)
        own.content = _own_records(message.content)
        try:
            return self.handlers[message.metadata.dst_node_id](own)
        except Exception as error:  # as Flower's own runtimes do: a failed node, not a failed run
            return Message(
                Error(_CLIENT_RAISED, f"{type(error).__name__}: {error}"), reply_to=message
            )


def _own_records(content: RecordDict) -> RecordDict:
    """Records of its own for each node; the immutable array payloads stay shared."""
    return RecordDict(
        {
            key: ArrayRecord(dict(value)) if isinstance(value, ArrayRecord) else copy.copy(value)
            for key, value in content.items()
        }
    )
