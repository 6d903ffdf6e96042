"""What a node did in one phase, as the server saw it."""

from dataclasses import dataclass
from typing import Literal

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
