"""The round state machine: when one phase is over.

Values only: no files, no network, and the time is an argument. Which phases a run has says
``fedlatent.shared.schedule``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, Self

#: What a node did in a phase. "refused": a no in words by the node itself; "open": it was not
#: waited for to the end; "left out": it was not asked, since its replies misbehaved before.
SiteStatus = Literal["ok", "refused", "failed", "late", "open", "left out"]

#: Those of a node that has answered.
ANSWERED: frozenset[SiteStatus] = frozenset(("ok", "refused", "failed"))


class Verdict(Enum):
    """What to do next with a phase, or with the wait for nodes before it."""

    WAIT = "wait"
    GO = "go"  # enough: aggregate the replies, or start to ask
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class JoinState:
    """The bounded wait for nodes before a phase.

    Attributes:
        wanted: number of nodes worth waiting for.
        quorum: least number to go on with once the time is up.
        until: time at which the wait ends, in seconds of the caller's clock.
    """

    wanted: int
    quorum: int
    until: float

    def decide(self, online: int, now: float) -> Verdict:
        """Go when all wanted nodes are there, or the quorum is once the time is up."""
        if online >= max(self.wanted, self.quorum):
            return Verdict.GO
        if now < self.until:
            return Verdict.WAIT
        return Verdict.GO if online >= self.quorum else Verdict.FAIL


@dataclass(frozen=True, kw_only=True)
class RoundState:
    """Who was asked in one phase and who has answered; changed by events only.

    Attributes:
        asked: node ids that got a message.
        quorum: least number of good replies for the phase to count.
        until: the deadline, in seconds of the caller's clock.
        good: nodes whose reply passed screening.
        failed: nodes that refused, failed, or sent a reply that was dropped.
    """

    asked: frozenset[int]
    quorum: int
    until: float
    good: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()

    @classmethod
    def start(cls, asked: Iterable[int], quorum: int, until: float) -> Self:
        """A phase in which nobody has answered yet."""
        return cls(asked=frozenset(asked), quorum=quorum, until=until)

    @property
    def pending(self) -> frozenset[int]:
        """Nodes that have not answered; past the deadline, the late ones."""
        return self.asked - self.good - self.failed

    def reply(self, node: int, *, ok: bool) -> Self:
        """The state after the first answer of ``node``; a second one changes nothing.

        Raises:
            ValueError: the node was not asked.
        """
        return self.replies({node: ok})

    def replies(self, answers: Mapping[int, bool]) -> Self:
        """The state after the answers of several nodes, True where one was good.

        Raises:
            ValueError: a node was not asked.
        """
        strangers = answers.keys() - self.asked
        if strangers:
            raise ValueError(f"Expected one of the nodes asked, got node {min(strangers)}.")
        pending = self.pending
        new = {node: ok for node, ok in answers.items() if node in pending}
        return replace(
            self,
            good=self.good | {node for node, ok in new.items() if ok},
            failed=self.failed | {node for node, ok in new.items() if not ok},
        )

    def decide(self, now: float) -> Verdict:
        """Wait while the outcome is open; fail as soon as the quorum cannot be reached."""
        if len(self.good) + len(self.pending) < self.quorum:
            return Verdict.FAIL
        if self.pending and now < self.until:
            return Verdict.WAIT
        return Verdict.GO if len(self.good) >= self.quorum else Verdict.FAIL
