"""The privacy budget of a data set, for the life of the data: SQLite, write-ahead, refusing.

Every release is entered before its computation starts, so that no crash can lose a charge. An
entry is `reserved` until the release door has stored the payload, then `released`. A request that
comes again (same bytes) meets its own entry: reserved means that nothing left and the work may
start over, released means that the stored payload is sent again; neither charges twice. Any other
request is a new charge. One composition runs over all entries of the data set, of all runs.
"""

import contextlib
import fcntl
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.errors import BudgetExceeded, PolicyRefusal, ReleaseRefused, ServiceError
from shared.privacy.accounting import GaussianEvent, epsilon_of
from shared.privacy.noise import RngName
from shared.schedule import Kind

State = Literal["reserved", "released"]

_SCHEMA_VERSION = 1
_BUSY_S = 30.0
_LOCK_PAUSE_S = 0.05
_SLACK = 1e-9  # of rounding between one sum of steps and another

_SCHEMA = """
CREATE TABLE runs (
    dataset TEXT NOT NULL,
    run_id TEXT NOT NULL,
    config_digest TEXT NOT NULL,
    started REAL NOT NULL,
    PRIMARY KEY (dataset, run_id)
);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    dataset TEXT NOT NULL,
    run_id TEXT NOT NULL,
    round INTEGER NOT NULL,
    kind TEXT NOT NULL,
    request_digest TEXT NOT NULL,
    noise_multiplier REAL NOT NULL,
    sample_rate REAL NOT NULL,
    steps INTEGER NOT NULL,
    rng TEXT NOT NULL,
    reserved_at REAL NOT NULL,
    epsilon_after REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'released')),
    released_at REAL,
    sha256 TEXT,
    nbytes INTEGER,
    UNIQUE (dataset, run_id, round, kind, request_digest)
);
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger: a release that is paid for.

    Attributes:
        id: number of the entry, growing.
        run_id: run that asked.
        round: round of the request.
        kind: what was asked.
        request_digest: SHA-256 of the request.
        noise_multiplier: sigma; 0 means that the release carries no noise at all.
        sample_rate: Poisson rate q.
        steps: how often the mechanism runs.
        rng: which random numbers.
        reserved_at: when it was charged, in seconds since 1970.
        epsilon_after: of the data set with this entry; infinity once anything left without noise.
        state: whether the payload has left.
        released_at: when, or None.
        sha256: of the payload that left, or None.
        nbytes: of the payload that left, or None.
    """

    id: int
    run_id: str
    round: int
    kind: Kind
    request_digest: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    rng: RngName
    reserved_at: float
    epsilon_after: float
    state: State
    released_at: float | None
    sha256: str | None
    nbytes: int | None


Reservation = Entry
"""What ``Ledger.reserve`` returns: the entry that pays for a release."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """Persons whose records a data set holds.

    Attributes:
        records: most of one person; the others are never used.
        max_epsilon: what all releases together may cost one person, or None without a limit.
    """

    records: int
    max_epsilon: float | None = None


#: Most records of one person in the release of an entry; entries without a row had no cap.
_CAPS = (
    "CREATE TABLE IF NOT EXISTS caps (entry INTEGER PRIMARY KEY REFERENCES entries, "
    "records INTEGER NOT NULL)"
)
_COLUMNS = ", ".join(Entry.__dataclass_fields__)


class Ledger:
    """The budget of one data set in one SQLite file, safe against crashes and other processes.

    Attributes:
        dataset: name of the data set.
        max_epsilon: what all releases together may cost at ``delta``.
        delta: of every epsilon of this ledger.
        person: whose records these are, or None where nobody said.
    """

    def __init__(
        self,
        path: Path,
        dataset: str,
        max_epsilon: float,
        delta: float,
        *,
        person: Person | None = None,
    ) -> None:
        """Open the file, making it when absent.

        Raises:
            ServiceError: the file is no ledger, or of another version.
        """
        self._path = path
        self.dataset = dataset
        self.max_epsilon = max_epsilon
        self.delta = delta
        self.person = person
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._transaction() as connection:
                self._prepare(connection)
                connection.execute(_CAPS)
        except sqlite3.DatabaseError as error:
            raise ServiceError(
                f"Expected a privacy ledger at {path}, got a file SQLite cannot use ({error}); "
                "restore it from a backup, never delete it."
            ) from None
        path.chmod(0o600)

    def open_run(self, run_id: str, config_digest: str, events: Iterable[GaussianEvent]) -> None:
        """Tie a run to its configuration, and check once that all of it fits the budget.

        Args:
            run_id: the run.
            config_digest: of the configuration that came with the request.
            events: everything the run plans to release; none for a run without privacy.

        Raises:
            BudgetExceeded: the whole run does not fit what is left; nothing was charged.
            PolicyRefusal: the run came with another configuration before.
        """
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT config_digest FROM runs WHERE dataset = ? AND run_id = ?",
                (self.dataset, run_id),
            ).fetchone()
            if row is None:
                planned = list(events)
                if planned:
                    self._check(self._epsilon_with(connection, planned), f"run {run_id!r}")
                    self._check_person(connection, planned, f"run {run_id!r}")
                connection.execute(
                    "INSERT INTO runs VALUES (?, ?, ?, ?)",
                    (self.dataset, run_id, config_digest, time.time()),
                )
            elif row[0] != config_digest:
                raise PolicyRefusal(
                    f"Expected run {run_id!r} with the configuration it started with, got "
                    "another one; start a new run."
                )

    def reserve(
        self,
        run_id: str,
        round: int,
        kind: Kind,
        request_digest: str,
        event: GaussianEvent | None,
        rng: RngName,
    ) -> Reservation:
        """Charge a release before it is computed, or find the charge of the same request.

        Args:
            run_id: run that asks.
            round: its round.
            kind: what is asked.
            request_digest: SHA-256 of the request; equal requests share one charge.
            event: the mechanism, or None for a release without noise, after which the data set
                has no finite epsilon.
            rng: which random numbers the noise comes from.

        Raises:
            BudgetExceeded: the budget does not hold it; nothing was charged.
        """
        key = (self.dataset, run_id, round, kind, request_digest)
        with self._transaction() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM entries WHERE dataset = ? AND run_id = ? "
                "AND round = ? AND kind = ? AND request_digest = ?",
                key,
            ).fetchone()
            if row is not None:
                if row["state"] == "reserved":
                    self._note_cap(connection, row["id"], again=True)
                return Entry(**dict(row))
            after, what = math.inf, f"{kind} of round {round} of run {run_id!r}"
            if event is not None:
                after = self._epsilon_with(connection, [event])
                self._check(after, what)
            self._check_person(connection, [event], what)
            cursor = connection.execute(
                "INSERT INTO entries (dataset, run_id, round, kind, request_digest, "
                "noise_multiplier, sample_rate, steps, rng, reserved_at, epsilon_after, state) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'reserved')",
                (
                    *key,
                    event.noise_multiplier if event else 0.0,
                    event.sample_rate if event else 1.0,
                    event.steps if event else 1,
                    rng,
                    time.time(),
                    after,
                ),
            )
            number = int(cursor.lastrowid or 0)
            self._note_cap(connection, number)
            return _entry(connection, number)

    def released(self, entry_id: int, sha256: str, nbytes: int) -> None:
        """Record that the payload of a reserved entry is stored and may leave.

        Raises:
            ReleaseRefused: the entry is not reserved.
        """
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE entries SET state = 'released', released_at = ?, sha256 = ?, nbytes = ? "
                "WHERE id = ? AND dataset = ? AND state = 'reserved'",
                (time.time(), sha256, nbytes, entry_id, self.dataset),
            ).rowcount
        if changed != 1:
            raise ReleaseRefused(
                f"Expected entry {entry_id} to be reserved, got another state; reserve first."
            )

    @contextlib.contextmanager
    def exclusive(self, timeout_s: float) -> Iterator[None]:
        """Let one request at a time, of all processes, work on the data set.

        Two processes that answered the same request at once would draw noise twice for one
        charge. The kernel frees the lock of a process that dies, however it dies.

        Raises:
            ServiceError: another request held the lock for ``timeout_s`` seconds.
        """
        end = time.monotonic() + timeout_s
        with self._path.with_name(self._path.name + ".lock").open("w") as stream:
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise ServiceError(
                            f"Expected the ledger {self._path} to be free within {timeout_s:g} s, "
                            "got another process that works on it; stop that one."
                        ) from None
                time.sleep(_LOCK_PAUSE_S)
            yield

    def entry(self, entry_id: int) -> Entry | None:
        """The entry with that number, or None."""
        found = [entry for entry in self.entries() if entry.id == entry_id]
        return found[0] if found else None

    def entries(self) -> list[Entry]:
        """Every entry of the data set, oldest first."""
        with self._connection() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM entries WHERE dataset = ? ORDER BY id", (self.dataset,)
            ).fetchall()
        return [Entry(**dict(row)) for row in rows]

    def epsilon(self) -> float:
        """Spent so far, reserved entries included; infinity after a release without noise."""
        return self.spent_if([])

    def person_epsilon(self) -> float | None:
        """Spent so far for a person with the most records; None where persons are not known.

        Infinite where a release was made before there was a cap.
        """
        if self.person is None:
            return None
        with self._connection() as connection:
            return self._person_epsilon_with(connection, self.person.records, [])

    def spent_if(self, events: Iterable[GaussianEvent]) -> float:
        """Epsilon of the data set if ``events`` were released too; charges nothing."""
        with self._connection() as connection:
            return self._epsilon_with(connection, events)

    def _epsilon_with(
        self, connection: sqlite3.Connection, extra: Iterable[GaussianEvent]
    ) -> float:
        rows = connection.execute(
            "SELECT noise_multiplier, sample_rate, SUM(steps) FROM entries WHERE dataset = ? "
            "GROUP BY noise_multiplier, sample_rate",
            (self.dataset,),
        ).fetchall()
        if any(sigma == 0 for sigma, _, _ in rows):
            return math.inf
        spent = [
            GaussianEvent(noise_multiplier=sigma, sample_rate=rate, steps=steps)
            for sigma, rate, steps in rows
        ]
        return epsilon_of([*spent, *extra], self.delta)

    def _check(self, epsilon: float, what: str) -> None:
        if epsilon > self.max_epsilon + _SLACK:
            raise BudgetExceeded(
                f"Expected epsilon of at most {self.max_epsilon:g} over the life of the data, "
                f"got {epsilon:.4g} with {what}; lower the run's epsilon or leave this node out."
            )

    def _note_cap(
        self, connection: sqlite3.Connection, entry_id: int, *, again: bool = False
    ) -> None:
        """Keep the cap that an entry is computed under; of one computed again, the higher."""
        if self.person is None:
            connection.execute("DELETE FROM caps WHERE entry = ?", (entry_id,))
        elif again:
            change = "UPDATE caps SET records = max(records, ?) WHERE entry = ?"
            connection.execute(change, (self.person.records, entry_id))
        else:
            connection.execute("INSERT INTO caps VALUES (?, ?)", (entry_id, self.person.records))

    def _person_epsilon_with(
        self, connection: sqlite3.Connection, records: int, extra: Sequence[GaussianEvent | None]
    ) -> float:
        """Of a person; infinite once anything left without noise, or without a cap."""
        rows = connection.execute(
            "SELECT noise_multiplier, sample_rate, records, SUM(steps) FROM entries "
            "LEFT JOIN caps ON caps.entry = entries.id WHERE dataset = ? "
            "GROUP BY noise_multiplier, sample_rate, records",
            (self.dataset,),
        ).fetchall()
        known = [(event, records) for event in extra if event is not None]
        noiseless = len(known) < len(extra) or math.isinf(self._epsilon_with(connection, []))
        if noiseless or any(row["records"] is None for row in rows):
            return math.inf
        for sigma, rate, most, steps in rows:
            event = GaussianEvent(noise_multiplier=sigma, sample_rate=rate, steps=steps)
            known.append((event, most))
        # Imported here: most nodes do without, and it takes a while.
        from shared.privacy.person import capped_epsilon

        return capped_epsilon(known, self.delta)

    def _check_person(
        self, connection: sqlite3.Connection, extra: Sequence[GaussianEvent | None], what: str
    ) -> None:
        """Refuse what would cost a person too much; None is a release without noise."""
        person = self.person
        if person is None or person.max_epsilon is None:
            return
        epsilon = self._person_epsilon_with(connection, person.records, extra)
        if epsilon > person.max_epsilon + _SLACK:
            raise BudgetExceeded(
                f"Expected epsilon of at most {person.max_epsilon:g} over the life of the data for "
                f"a person with {person.records} records, got {epsilon:.4g} with {what}; lower the "
                "run's epsilon or leave this node out."
            )

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        elif version != _SCHEMA_VERSION:
            raise ServiceError(
                f"Expected a ledger of version {_SCHEMA_VERSION} at {self._path}, got "
                f"{version}; use the fedlatent release that wrote it."
            )

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One exclusive writer: what is read inside is still true when it is written."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def _entry(connection: sqlite3.Connection, entry_id: int) -> Entry:
    row = connection.execute(f"SELECT {_COLUMNS} FROM entries WHERE id = ?", (entry_id,)).fetchone()
    return Entry(**dict(row))
