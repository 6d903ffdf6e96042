"""The round state machine on plain values."""

import pytest

from fedlatent.server.rounds import JoinState, Tally, Verdict
from fedlatent.shared.schedule import Phase, phases
from tests.server.federation import tiny_config


def test_phases_are_training_then_moments_then_threshold() -> None:
    """A run of R rounds has R + 2 phases with the numbers 1 to R + 2."""
    assert phases(tiny_config()) == (
        Phase(number=1, kind="train", trained=0),
        Phase(number=2, kind="train", trained=1),
        Phase(number=3, kind="moments", trained=2),
        Phase(number=4, kind="threshold", trained=2),
    )


@pytest.mark.parametrize(
    ("online", "now", "verdict"),
    [
        (3, 0.0, Verdict.GO),
        (2, 9.9, Verdict.WAIT),
        (2, 10.0, Verdict.GO),
        (1, 10.0, Verdict.FAIL),
    ],
)
def test_wait_for_nodes_is_bounded(online: int, now: float, verdict: Verdict) -> None:
    """All wanted nodes end the wait at once; at its end the quorum is enough."""
    assert JoinState(wanted=3, quorum=2, until=10.0).decide(online, now) is verdict


def test_join_never_wants_less_than_the_quorum() -> None:
    """A run that wants one node with a quorum of two waits for two."""
    assert JoinState(wanted=1, quorum=2, until=10.0).decide(1, 0.0) is Verdict.WAIT


def test_phase_ends_when_all_have_answered() -> None:
    """Good replies of all nodes close a phase before its deadline."""
    state = Tally.start([1, 2], quorum=2, until=10.0)
    state = state.reply(1, ok=True)
    assert state.decide(0.0) is Verdict.WAIT
    assert state.reply(2, ok=True).decide(0.0) is Verdict.GO


def test_deadline_closes_with_the_quorum() -> None:
    """At the deadline the quorum is enough, and the silent node is pending."""
    state = Tally.start([1, 2, 3], quorum=2, until=10.0)
    state = state.reply(1, ok=True).reply(3, ok=True)
    assert state.decide(9.0) is Verdict.WAIT
    assert state.decide(10.0) is Verdict.GO
    assert state.pending == {2}


def test_deadline_without_quorum_fails() -> None:
    """At the deadline one good reply of two needed is a failure."""
    state = Tally.start([1, 2], quorum=2, until=10.0).reply(1, ok=True)
    assert state.decide(10.0) is Verdict.FAIL


def test_fails_as_soon_as_the_quorum_is_out_of_reach() -> None:
    """Two refusals of three nodes end a phase with quorum two before the deadline."""
    state = Tally.start([1, 2, 3], quorum=2, until=10.0)
    state = state.reply(1, ok=False)
    assert state.decide(0.0) is Verdict.WAIT
    assert state.reply(2, ok=False).decide(0.0) is Verdict.FAIL


def test_first_answer_counts() -> None:
    """A second answer of a node changes nothing, so nobody is counted twice."""
    state = Tally.start([1, 2], quorum=1, until=10.0).reply(1, ok=False)
    assert state.reply(1, ok=True) == state


def test_answer_of_a_stranger_is_an_error_of_the_caller() -> None:
    """Only nodes that were asked can answer."""
    with pytest.raises(ValueError, match="node 9"):
        Tally.start([1], quorum=1, until=1.0).reply(9, ok=True)
