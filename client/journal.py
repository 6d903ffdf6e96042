"""What left a node, as its own files tell it: a journal for programs and a log for people.

Both are written by the release door, one line for each thing that left. The journal's line of a
release carries a receipt: what the ledger has about it beyond what left, so that a lost ledger can
be made again (``fedlatent.client.rebuild``).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from fedlatent.shared.files import Lines, read_lines
from fedlatent.shared.privacy.noise import RngName
from fedlatent.shared.schedule import Kind


class Receipt(BaseModel):
    """What the ledger has about an entry that a line of the journal does not tell.

    Attributes:
        data: name of the data set that paid.
        request: SHA-256 of the request.
        basis: keyed digest of the records and of whatever else decided the answer.
        rng: which random numbers, of this entry alone.
        cap: most records of one person it was made from, or None.
        charged: when, in seconds since 1970.
        config: SHA-256 of the run's configuration, or None where nobody tied the run to one.
        order: the Renyi order that guards the data set, or None before one was fixed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str
    request: str
    basis: str
    rng: RngName
    cap: int | None
    charged: float
    config: str | None
    order: float | None


class Sent(BaseModel):
    """One line of the journal.

    Attributes:
        time: when, in UTC.
        site: the node's name.
        run: the run that asked.
        round: its round.
        kind: what was asked.
        status: "ok", or "refused" where no arrays left.
        what: what left, in words.
        code: of a refusal.
        records: of the node.
        bytes: of what left.
        sha256: of what left.
        entry: of the ledger, which paid for it; None for a refusal.
        epsilon: of the data set after it; None without a finite one.
        delta: of that epsilon.
        noise_multiplier: sigma; 0 for none.
        sample_rate: Poisson rate.
        steps: how often the mechanism ran.
        rng: of the worst release in that epsilon.
        receipt: of a release; None in journals of older releases.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    time: str
    site: str | None = None
    run: str
    round: int
    kind: Kind
    status: str = ""
    what: str
    code: str | None = None
    records: int | None = None
    bytes: Annotated[int, Field(ge=0)]
    sha256: str
    entry: Annotated[int, Field(ge=1)] | None = None
    epsilon: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None
    sample_rate: float | None = None
    steps: int | None = None
    rng: RngName | None = None
    receipt: Receipt | None = None


def read_journal(path: Path) -> Lines[Sent]:
    """The whole lines of a release journal, and how many are not.

    Raises:
        OSError: it cannot be read.
    """
    return read_lines(path, Sent.model_validate)


@dataclass(frozen=True)
class Logged:
    """What a line of the log says was spent; an epsilon of None is infinite."""

    epsilon: float | None
    delta: float | None


SHORT = 16
"""First digits of a hash, by which lines of the log for people are found; old ones end there."""

_RELEASE = re.compile(
    rf", \d+ bytes, sha256 ([0-9a-f]{{{SHORT}}})[0-9a-f]*, "
    r"(?:epsilon (\d+\.\d{4}) at delta (\S+)|no finite epsilon) \(\w+ random numbers\)$"
)
_ROUNDED = 5e-5  # at most, in the log's epsilons


def logged_releases(log: Path) -> dict[str, Logged]:
    """Every release of the log for people, by the first digits of its hash.

    Raises:
        OSError: it cannot be read.
    """
    try:
        text = log.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return {}
    found = (_RELEASE.search(line) for line in text.split("\n"))
    return {one[1]: _logged(one[2], one[3]) for one in found if one}


def _logged(epsilon: str | None, delta: str | None) -> Logged:
    try:
        return Logged(float(epsilon or "") - _ROUNDED, float(delta or ""))
    except ValueError:
        return Logged(None, None)
