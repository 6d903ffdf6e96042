"""The grid in one process: lazy, in order, and never failing as a whole."""

from collections.abc import Iterator, Sequence

import pytest
from flwr.app import Message, RecordDict

from fedlatent.simulations.grid import Answers, ClientsFailed, InProcessGrid, by_handlers

NODES = (1, 2, 3)


def answer(message: Message) -> Message:
    """What a node answers by itself."""
    return Message(RecordDict(), reply_to=message)


def pushed(answers: Answers, offline: int | None = None) -> tuple[InProcessGrid, list[str]]:
    """A grid and the ids of one push to three nodes."""
    grid = InProcessGrid(NODES, answers)
    grid.online.discard(offline or 0)
    messages = [grid.create_message(RecordDict(), "train", node, "1") for node in NODES]
    return grid, list(grid.push_messages(messages))


def test_messages_to_online_nodes_come_at_once_and_some_get_no_answer() -> None:
    """A node that is offline is not asked; one whose answer is None has no reply."""
    seen: list[list[int]] = []

    def answers(messages: Sequence[Message]) -> Iterator[Message | None]:
        seen.append([message.metadata.dst_node_id for message in messages])
        yield answer(messages[0])
        yield None

    grid, ids = pushed(answers, offline=2)
    replies = list(grid.pull_messages(ids))
    assert seen == [[1, 3]]
    assert [reply.metadata.reply_to_message_id for reply in replies] == [ids[0]]
    assert not list(grid.pull_messages(ids))


def test_clients_run_when_their_reply_is_pulled() -> None:
    """Pulling one reply at a time runs one client at a time, so no reply waits for its turn."""
    done: list[int] = []

    def answers(messages: Sequence[Message]) -> Iterator[Message]:
        for message in messages:
            done.append(message.metadata.dst_node_id)
            yield answer(message)

    grid, ids = pushed(answers)
    assert done == []
    for place, identifier in enumerate(ids, start=1):
        assert len(list(grid.pull_messages([identifier]))) == 1
        assert done == list(NODES[:place])


def test_replies_pulled_in_another_order_are_those_of_their_messages() -> None:
    """The last message first: its reply is its own, and the others are still there."""
    grid, ids = pushed(lambda messages: map(answer, messages))
    for identifier in reversed(ids):
        (reply,) = grid.pull_messages([identifier])
        assert reply.metadata.reply_to_message_id == identifier


def test_a_failure_of_the_simulation_is_no_failure_of_a_node() -> None:
    """An exception outside the handlers ends the run: no server takes it for a bad reply."""

    def answers(messages: Sequence[Message]) -> Iterator[Message]:
        yield answer(messages[0])
        raise RuntimeError(f"no memory for {len(messages)}")

    grid, ids = pushed(answers)
    (first,) = grid.pull_messages(ids[:1])
    assert not first.has_error()
    with pytest.raises(ClientsFailed, match="no memory for 3") as caught:
        grid.pull_messages(ids[1:2])
    assert isinstance(caught.value.error, RuntimeError)


def test_a_handler_that_raises_fails_its_node_alone() -> None:
    """With a handler for each node the others still answer."""

    def broken(message: Message) -> Message:
        raise ValueError("no")

    grid, ids = pushed(by_handlers({1: answer, 2: broken, 3: answer}))
    assert [reply.has_error() for reply in grid.pull_messages(ids)] == [False, True, False]
