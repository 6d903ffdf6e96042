"""Who misbehaved in a run, how often, and who is therefore not asked any more.

Kept in one small file of the run's folder, so that the count survives the server and the operator
may let a site back while the run goes on.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fedlatent.server.outcome import SiteOutcome, SiteStatus
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.files import file_lock, read_json, write_json
from fedlatent.shared.schedule import Phase

#: Replies of one site that may misbehave before it is left out of the run.
STRIKES = 3

#: Codes that a node gives no reason for but a fault or an intention of its own; a refusal in words,
#: lateness, errors that Flower reports and another protocol version are none.
MISBEHAVIOUR = frozenset(
    (
        *("identity", "signature", "size", "incomplete", "unreadable", "keys", "shape"),
        *("finite", "norm", "range", "count", "records", "plan", "round"),
    )
)
_JUDGED: frozenset[SiteStatus] = frozenset(("failed", "late"))


@dataclass(frozen=True, kw_only=True)
class Strike:
    """One reply that misbehaved.

    Attributes:
        phase: number of the phase.
        kind: of the phase.
        code: why, as the registry has it.
    """

    phase: int
    kind: str
    code: str


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A site that is not asked any more.

    Attributes:
        site: its name.
        sentence: why, and how the operator lets it back.
    """

    site: str
    sentence: str


class Strikes:
    """The strikes of one run, shared by its driver and the operator's commands."""

    def __init__(self, folder: Path) -> None:
        """Keep them in ``folder``, that of the run; nothing is written before the first."""
        self._path = folder / "strikes.json"
        self._lock = folder / "strikes.lock"
        self._run = folder.name

    def note(self, outcome: SiteOutcome, phase: Phase) -> LeftOut | None:
        """Count an outcome that misbehaved; the site once it is left out by that.

        Raises:
            DataError: the file is damaged.
        """
        if outcome.status not in _JUDGED or outcome.code not in MISBEHAVIOUR:
            return None
        with self._changed() as found:
            strikes = found.setdefault(outcome.site, [])
            strikes.append(Strike(phase=phase.number, kind=phase.kind, code=outcome.code))
        return self._left_out(outcome.site, strikes) if len(strikes) >= STRIKES else None

    def left_out(self) -> dict[str, LeftOut]:
        """The sites that are left out, by name.

        Raises:
            DataError: the file is damaged.
        """
        return {
            site: self._left_out(site, strikes)
            for site, strikes in sorted(self._read().items())
            if len(strikes) >= STRIKES
        }

    def readmit(self, site: str) -> None:
        """Let a site back: it is asked again from the next phase on, with nothing counted.

        Raises:
            ConfigError: it is not left out of this run.
            DataError: the file is damaged.
        """
        known = self.left_out()
        if site not in known:
            names = ", ".join(known) or "none"
            raise ConfigError(
                f"Expected a site that is left out of run {self._run}, got {site!r}; "
                f"left out are: {names}."
            )
        with self._changed() as found:
            found.pop(site, None)

    @contextmanager
    def _changed(self) -> Iterator[dict[str, list[Strike]]]:
        """All strikes by site, to be changed in place; one process at a time."""
        with file_lock(self._lock):
            found = self._read()
            yield found
            value = {site: [asdict(one) for one in strikes] for site, strikes in found.items()}
            write_json(self._path, value, 0o600)

    def _read(self) -> dict[str, list[Strike]]:
        if not self._path.exists():
            return {}
        value = read_json(self._path)
        try:
            if not isinstance(value, dict):
                raise TypeError
            return {site: [Strike(**one) for one in strikes] for site, strikes in value.items()}
        except TypeError:
            raise DataError(
                f"Expected the strikes of each site in {self._path}, got something else; restore "
                "or remove the file."
            ) from None

    def _left_out(self, site: str, strikes: list[Strike]) -> LeftOut:
        last = ", ".join(f"{one.code} in phase {one.phase} ({one.kind})" for one in strikes[-3:])
        return LeftOut(
            site=site,
            sentence=f"not asked, since {len(strikes)} of its replies misbehaved: {last}; "
            f"'fedlatent server readmit {self._run} {site}' lets it back",
        )


def way_back(left_out: Iterable[LeftOut]) -> str:
    """Who is left out of a run that lacks nodes, and how the operator lets them back."""
    return "".join(f" Site {one.site} is {one.sentence}." for one in left_out)
