"""Faults are decided by the seed alone, and few of them already touch everything."""

import itertools
from collections import Counter

from fedlatent.simulations.chaos.plan import KEEPERS, SHARES, SIGNALS, Fault, deal
from fedlatent.simulations.chaos.stage import ROLES


def dealt(seed: int, count: int, without: tuple[str, ...] = ()) -> list[Fault]:
    """The first faults of a seed."""
    return list(itertools.islice(itertools.chain.from_iterable(deal(seed, without)), count))


def test_a_seed_deals_the_same_faults() -> None:
    """One seed, one storm; another seed, another storm."""
    assert dealt(1, 100) == dealt(1, 100)
    assert dealt(1, 100) != dealt(2, 100)


def test_forty_faults_are_of_every_kind() -> None:
    """A short storm leaves no kind out."""
    assert Counter(fault.kind for fault in dealt(0, 40)).keys() == SHARES.keys()


def test_two_hundred_faults_send_every_signal_to_every_kind_of_process() -> None:
    """All processes of both sides get all signals."""
    sent = {
        (fault.what, fault.side == "server", fault.how)
        for fault in dealt(0, 200)
        if fault.kind == "signal"
    }
    assert sent == {
        (role, host == "server", number)
        for host, roles in ROLES.items()
        for role in (*roles, *KEEPERS)
        for number in SIGNALS
    }


def test_what_cannot_be_done_here_is_left_out() -> None:
    """Kinds that the machine lacks the means for are not dealt."""
    kinds = {fault.kind for fault in dealt(0, 200, ("disk", "read-only", "clock"))}
    assert kinds == SHARES.keys() - {"disk", "read-only", "clock"}


def test_damage_to_a_file_comes_alone() -> None:
    """What is said about a damaged file must be about it, so nothing else is struck beside it."""
    volleys = list(itertools.islice(deal(0), 100))
    assert {len(one) for one in volleys if one[0].kind == "file"} == {1}
    assert {len(one) for one in volleys} == {1, 2, 3, 4, 5}
