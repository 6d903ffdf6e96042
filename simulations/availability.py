"""Clients that are away or late, drawn anew for each client and phase from the run's seed."""

import functools
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedlatent.shared.errors import ConfigError

#: "away": does nothing; "late": works and pays, but its answer does not arrive in time.
Presence = Literal["here", "away", "late"]

_STREAM = 0x4156  # keeps these draws apart from all others of the seed


@dataclass(frozen=True, kw_only=True)
class Availability:
    """How reliable the clients of a simulation are.

    Attributes:
        dropout: probability that a client is away in one phase.
        late: probability that its answer comes after the deadline.

    Raises:
        ConfigError: a probability is out of range, or the two leave nobody.
    """

    dropout: float = 0.0
    late: float = 0.0

    def __post_init__(self) -> None:
        """Check both."""
        if min(self.dropout, self.late) < 0 or self.dropout + self.late >= 1:
            raise ConfigError(
                "Expected dropout and late as probabilities whose sum is below 1, got "
                f"{self.dropout:g} and {self.late:g}; lower them."
            )

    def presence(self, seed: int, site: str, phase: int) -> Presence:
        """What a client does in one phase; the same for the same arguments."""
        if not self.dropout and not self.late:
            return "here"
        draw = _draw(seed, zlib.crc32(site.encode()), phase)
        if draw < self.dropout:
            return "away"
        return "late" if draw < self.dropout + self.late else "here"


@functools.lru_cache(maxsize=2**17)
def _draw(seed: int, client: int, phase: int) -> float:
    return float(np.random.default_rng([seed, _STREAM, client, phase]).random())
