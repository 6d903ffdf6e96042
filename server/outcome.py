"""What a node did in one phase, as the server saw it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fedlatent.server.registry import SiteRound

#: What a node did in a phase. "refused": a no in words by the node itself; "open": it was not
#: waited for to the end; "left out": it was not asked, since its replies misbehaved before.
SiteStatus = Literal["ok", "refused", "failed", "late", "open", "left out"]

#: Those of a node that has answered.
ANSWERED: frozenset[SiteStatus] = frozenset(("ok", "refused", "failed"))


@dataclass(frozen=True, kw_only=True)
class SiteOutcome:
    """One site's part in one phase, as the driver saw it."""

    site: str
    node_id: int
    status: SiteStatus
    code: str = ""
    sentence: str = ""
    records: int = 0
    epsilon: float | None = None
    delta: float | None = None
    bytes: int = 0
    sha256: str = ""
    seconds: float = 0.0


def excuses(bad: "Sequence[SiteOutcome | SiteRound]") -> str:
    """Names and reasons of at most five sites that did not count, in their own words."""
    named = [f"{one.site} {one.status} ({one.code}): {one.sentence.rstrip('.')}" for one in bad[:5]]
    more = [f"{len(bad) - 5} more"] if len(bad) > 5 else []
    return "; ".join([*named, *more])
