"""The grid in one process with a handler for all messages of a push."""

from collections.abc import Sequence

from flwr.app import Message, RecordDict

from simulations.grid import BatchHandler, InProcessGrid


def answer(message: Message) -> Message:
    """What a node answers by itself."""
    return Message(RecordDict(), reply_to=message)


def pushed(batch: BatchHandler, offline: int | None = None) -> tuple[list[str], list[Message]]:
    """Message ids and replies of one push to three nodes."""
    grid = InProcessGrid({node: answer for node in (1, 2, 3)}, batch=batch)
    grid.online.discard(offline or 0)
    messages = [grid.create_message(RecordDict(), "train", node, "1") for node in (1, 2, 3)]
    ids = list(grid.push_messages(messages))
    return ids, list(grid.pull_messages(ids))


def test_batch_sees_the_online_nodes_and_leaves_the_rest_to_them() -> None:
    """All messages to online nodes come at once; None leaves one to its node's handler."""
    seen: list[list[int]] = []

    def batch(messages: Sequence[Message]) -> list[Message | None]:
        seen.append([message.metadata.dst_node_id for message in messages])
        return [answer(messages[0]), None]

    ids, replies = pushed(batch, offline=2)
    assert seen == [[1, 3]]
    assert [reply.metadata.reply_to_message_id for reply in replies] == [ids[0], ids[2]]
    assert not any(reply.has_error() for reply in replies)


def test_batch_that_raises_fails_its_nodes_and_not_the_run() -> None:
    """An exception in the batch handler becomes an error reply of every node."""

    def batch(messages: Sequence[Message]) -> list[Message | None]:
        raise RuntimeError(f"no memory for {len(messages)}")

    _, replies = pushed(batch)
    assert [reply.error.reason for reply in replies] == ["RuntimeError: no memory for 3"] * 3
