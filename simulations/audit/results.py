"""What an audit finds: for each release a claim, what an attack proves, and a verdict."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

#: Share of the true epsilon that a tight attack must prove; less means too much noise.
TIGHT = 0.8

#: Told what is being done and how much of it is done (0 to 1).
Watch = Callable[[str, float], None]

Verdict = Literal["holds", "BROKEN", "TOO NOISY", "caught", "SILENT"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One attack on one kind of release.

    Attributes:
        name: of the release.
        control: a mechanism that was broken on purpose, which the attack must show.
        claimed: epsilon as the ledger states it.
        exact: smallest true epsilon of the mechanism as it is meant to be, where it is known.
        lower: what the attack proves with 95 % confidence.
        tight: the attack is the strongest there is, so it must come near ``exact``.
        draws: releases that were attacked, or canaries in one run.
        attack: in a few words.
    """

    name: str
    control: bool = False
    claimed: float
    exact: float | None = None
    lower: float
    tight: bool = False
    draws: int
    attack: str

    @property
    def limit(self) -> float:
        """What no attack may prove: the exact epsilon where it is known, else the claim."""
        return self.claimed if self.exact is None else self.exact

    @property
    def ratio(self) -> float:
        """Lower bound divided by ``limit``."""
        return self.lower / self.limit

    @property
    def verdict(self) -> Verdict:
        """Whether a claim holds, and whether a control was caught."""
        if self.control:
            return "caught" if self.lower > self.claimed else "SILENT"
        if self.ratio > 1:
            return "BROKEN"
        return "TOO NOISY" if self.tight and self.ratio < TIGHT else "holds"

    @property
    def good(self) -> bool:
        """A claim that holds, or a control that was caught."""
        return self.verdict in ("holds", "caught")

    def to_json(self) -> dict[str, object]:
        """The finding as JSON values."""
        return {
            "name": self.name,
            "control": self.control,
            "claimed_epsilon": self.claimed,
            "exact_epsilon": self.exact,
            "lower_bound": self.lower,
            "ratio": self.ratio,
            "verdict": self.verdict,
            "draws": self.draws,
            "attack": self.attack,
        }
