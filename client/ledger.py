"""The privacy budget of a data set, for the life of the data: SQLite, write-ahead, refusing.

Every release is entered before its computation starts, so that no crash can lose a charge. An
entry is `reserved` until the release door has stored the payload, then `released`. A request that
comes again (same bytes) meets its own entry: reserved means that nothing left and the work is done
over with the very same random numbers, whose key lies sealed beside the entry; released means that
the stored payload is sent again; neither charges twice. Where the records or whatever else decides
the answer have changed meanwhile, the old entry becomes `failed`: it counts for ever, its key is
erased, and the request is a new charge, as any other request is. One composition runs over all
entries of the data set, of all runs. All entries of the file form one chain
(``fedlatent.client.chain``).
"""

import contextlib
import fcntl
import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from fedlatent.client import chain
from fedlatent.client.journal import Receipt
from fedlatent.client.ledger_file import REMEDY, damaged, fail, lost, prepare, readable, told
from fedlatent.shared.errors import (
    BudgetExceeded,
    LedgerError,
    PolicyRefusal,
    ReleaseRefused,
    ServiceError,
)
from fedlatent.shared.files import telling
from fedlatent.shared.privacy.accounting import (
    GaussianEvent,
    epsilon_of,
    filter_order,
    pld_epsilon_of,
)
from fedlatent.shared.privacy.noise import RngName, sealed_key
from fedlatent.shared.schedule import Kind

State = Literal["reserved", "released", "failed"]

_BUSY_S = 30.0
_LOCK_PAUSE_S = 0.05
_SLACK = 1e-9  # of rounding between one sum of steps and another

CHANGED = "the records, or what the answer is made from besides them, changed before a retry"
"""Why an entry fails when its request comes again and cannot have the same answer."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger: a release that is paid for.

    Attributes:
        id: number of the entry, growing.
        run_id: run that asked.
        round: round of the request.
        kind: what was asked.
        request_digest: SHA-256 of the request.
        basis: keyed digest of the records and of whatever else decides the answer.
        noise_multiplier: sigma; 0 means that the release carries no noise at all.
        sample_rate: Poisson rate q.
        steps: how often the mechanism runs.
        rng: which random numbers.
        cap: most records of one person it was made from; None where nothing capped them.
        reserved_at: when it was charged, in seconds since 1970.
        epsilon_after: of the data set with this entry; infinity once anything left without noise.
        state: whether the payload has left, or never will.
        ended_at: when it left or failed, or None.
        reason: why it failed, or None.
        sha256: of the payload that left, or None.
        nbytes: of the payload that left, or None.
    """

    id: int
    run_id: str
    round: int
    kind: Kind
    request_digest: str
    basis: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    rng: RngName
    cap: int | None
    reserved_at: float
    epsilon_after: float
    state: State
    ended_at: float | None
    reason: str | None
    sha256: str | None
    nbytes: int | None


Reservation = Entry
"""What ``Ledger.reserve`` returns: the entry that pays for a release."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What ``Ledger.verify`` found to be whole.

    Attributes:
        events: number of the chain's events.
        head: hash of the last one.
        payments: of every entry of the file, of all data sets, by number.
    """

    events: int
    head: str
    payments: Mapping[int, "Payment"]


class Payment(NamedTuple):
    """What an entry says about what left for it."""

    entry: int
    run_id: str
    state: State
    sha256: str | None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Person:
    """Persons whose records a data set holds.

    Attributes:
        records: most of one person; the others are never used.
        max_epsilon: what all releases together may cost one person, or None without a limit.
    """

    records: int
    max_epsilon: float | None = None


_COLUMNS = ", ".join(Entry.__dataclass_fields__)
_LIVE = (
    f"SELECT {_COLUMNS} FROM entries WHERE dataset = ? AND run_id = ? AND round = ? AND kind = ? "
    "AND request_digest = ? AND state != 'failed'"
)
_INSERT = (
    "INSERT INTO entries (dataset, run_id, round, kind, request_digest, basis, noise_multiplier, "
    "sample_rate, steps, rng, cap, reserved_at, epsilon_after, state) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'reserved')"
)


class Ledger:
    """The budget of one data set in one SQLite file, safe against crashes and other processes.

    Attributes:
        dataset: name of the data set.
        max_epsilon: what all releases together may cost at ``delta``.
        delta: of every epsilon of this ledger.
        allow_simulation_rng: whether an entry with seeded noise has a finite epsilon.
        person: whose records these are, or None where nobody said.
    """

    def __init__(
        self,
        path: Path,
        dataset: str,
        max_epsilon: float,
        delta: float,
        *,
        allow_simulation_rng: bool = False,
        person: Person | None = None,
        traces: str | None = None,
    ) -> None:
        """Open the file, making it when absent.

        Args:
            path: the file.
            dataset: name of the data set.
            max_epsilon: what all releases together may cost.
            delta: of that epsilon.
            allow_simulation_rng: for simulations: count seeded noise as if it were secret. Whoever
                knows the seed can take such noise off, so it costs an infinite epsilon elsewhere.
            person: whose records these are, and what they may cost one of them.
            traces: where something tells of a release: then no new file is made.

        Raises:
            LedgerError: the file is damaged, or gone in spite of traces.
            ServiceError: the file is of another version, or another process holds it.
            StorageError: no room, no permission, a read-only or failing disk.
        """
        self._path = path
        self.dataset = dataset
        self.max_epsilon = max_epsilon
        self.delta = delta
        self.allow_simulation_rng = allow_simulation_rng
        self._seen = (0, chain.GENESIS)
        self.person = person
        with telling():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if traces is not None:
                    raise lost(path, traces)
                path.touch(0o600)
            with self._transaction() as connection:
                prepare(connection, path, traces)
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
                    self._check(connection, planned, f"run {run_id!r}")
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
        basis: str = "",
        *,
        once: bool = False,
    ) -> Reservation:
        """Charge a release before it is computed, or find the charge of the same request.

        A new charge with secure noise gets the key of its one stream, see ``sealed``.

        Args:
            run_id: run that asks.
            round: its round.
            kind: what is asked.
            request_digest: SHA-256 of the request; equal requests share one charge.
            event: the mechanism, or None for a release without noise, after which the data set
                has no finite epsilon.
            rng: which random numbers the noise comes from.
            basis: digest of all that decides the answer besides the request and the noise. A
                reserved entry of another basis fails: it counts, and a new charge is made.
            once: refuse a second charge for one round of a run, whatever became of the first.

        Raises:
            BudgetExceeded: the budget does not hold it; nothing new was charged.
            PolicyRefusal: the round was charged before; nothing new was.
        """
        key = (self.dataset, run_id, round, kind, request_digest)
        with self._transaction() as connection:
            entry = _live(connection, key)
            failed = entry is not None and entry.state == "reserved" and entry.basis != basis
            if entry is not None and failed:
                fail(connection, entry.id, CHANGED)
        if failed:
            self._forget()
        # A second transaction: the failure stands even where the budget holds no new charge.
        with self._transaction() as connection:
            entry = _live(connection, key)
            if entry is not None:
                return entry
            what = f"{kind} of round {round} of run {run_id!r}"
            if once and _charged(connection, key[:3]):
                raise PolicyRefusal(
                    f"Expected one request for {what}, got another one; a person at this site "
                    "approved what its plan costs, so start a new run."
                )
            after = math.inf
            if event is not None:
                after = self._epsilon_with(connection, [event], rng)
                self._check(connection, [event], what, rng)
            self._check_person(connection, [event], what)
            mechanism = (
                event.noise_multiplier if event else 0.0,
                event.sample_rate if event else 1.0,
                event.steps if event else 1,
            )
            cap = None if self.person is None else self.person.records
            values = (*key, basis, *mechanism, rng, cap, time.time(), after)
            number = int(connection.execute(_INSERT, values).lastrowid or 0)
            if rng == "secure":
                connection.execute("INSERT INTO seals VALUES (?, ?)", (number, sealed_key()))
            chain.append(connection, number, "reserve")
            return _entry(connection, number)

    def sealed(self, entry: Reservation) -> bytes | None:
        """The key of the one noise stream that a reserved entry pays for; None for seeded noise.

        Raises:
            ReleaseRefused: the entry is not reserved: its key has been erased.
        """
        if entry.rng == "simulation":
            return None
        with self._connection() as connection:
            row = connection.execute(
                "SELECT sealed FROM seals WHERE entry = ?", (entry.id,)
            ).fetchone()
        if row is None:
            raise ReleaseRefused(
                f"Expected entry {entry.id} to be reserved, with the key of its noise, got none; "
                "reserve first."
            )
        return bytes(row[0])

    def released(self, entry_id: int, sha256: str, nbytes: int) -> None:
        """Record that the payload of a reserved entry is stored and may leave; erase its key.

        Raises:
            ReleaseRefused: the entry is not reserved.
        """
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE entries SET state = 'released', ended_at = ?, sha256 = ?, nbytes = ? "
                "WHERE id = ? AND dataset = ? AND state = 'reserved'",
                (time.time(), sha256, nbytes, entry_id, self.dataset),
            ).rowcount
            if changed == 1:
                connection.execute("DELETE FROM seals WHERE entry = ?", (entry_id,))
                chain.append(connection, entry_id, "release")
        if changed != 1:
            raise ReleaseRefused(
                f"Expected entry {entry_id} to be reserved, got another state; reserve first."
            )
        self._forget()

    def verify(self) -> Verified:
        """Recompute the chain over the whole file.

        Raises:
            LedgerError: naming the first event or entry that does not fit.
        """
        try:
            with self._transaction() as connection:
                events, last = chain.verify(connection)
                rows = connection.execute("SELECT id, run_id, state, sha256, reason FROM entries")
                states = {row["id"]: Payment(*row) for row in rows}
        except LedgerError as error:
            raise LedgerError(
                f"{error} The file {self._path} was changed by hand or is damaged. {REMEDY}",
                event=error.event,
                entry=error.entry,
            ) from None
        except (IndexError, TypeError, AttributeError) as error:  # other columns, other types
            raise damaged(self._path, str(error)) from error
        return Verified(events=events, head=last, payments=states)

    @contextlib.contextmanager
    def exclusive(self, timeout_s: float) -> Iterator[None]:
        """Let one request at a time, of all processes, work on the data set.

        Two processes that answered the same request at once would draw noise twice for one
        charge. The kernel frees the lock of a process that dies, however it dies.

        Raises:
            ServiceError: another request held the lock for ``timeout_s`` seconds.
            StorageError: the lock's file cannot be opened.
        """
        end = time.monotonic() + timeout_s
        with telling():
            stream = self._path.with_name(self._path.name + ".lock").open("w")
        with stream:
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

    def receipt(self, entry: Entry) -> Receipt:
        """What the ledger has about an entry that its release does not tell."""
        with self._connection() as connection:
            run = connection.execute(
                "SELECT config_digest FROM runs WHERE dataset = ? AND run_id = ?",
                (self.dataset, entry.run_id),
            ).fetchone()
            order = connection.execute(
                "SELECT alpha FROM orders WHERE dataset = ?", (self.dataset,)
            ).fetchone()
        return Receipt(
            data=self.dataset,
            request=entry.request_digest,
            basis=entry.basis,
            rng=entry.rng,
            cap=entry.cap,
            charged=entry.reserved_at,
            config=run[0] if run else None,
            order=order[0] if order else None,
        )

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
        """Spent so far, whatever the state of an entry; infinity once anything has none."""
        return self.spent_if([])

    def pld_epsilon(self) -> float:
        """The same by privacy loss distributions: tighter, to be shown beside the guard's."""
        with self._connection() as connection:
            return self._epsilon_with(connection, [], by=pld_epsilon_of)

    def rng(self) -> RngName:
        """Of the worst entry in the sum: "simulation" once any noise was seeded."""
        with self._connection() as connection:
            seeded = connection.execute(
                "SELECT 1 FROM entries WHERE dataset = ? AND rng != 'secure' LIMIT 1",
                (self.dataset,),
            ).fetchone()
        return "simulation" if seeded else "secure"

    def person_epsilon(self) -> float | None:
        """Spent so far for a person with the most records; None where persons are not known.

        Each release counts with the cap it was made under; infinite where one had none.
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
        self,
        connection: sqlite3.Connection,
        extra: Iterable[GaussianEvent],
        rng: RngName = "secure",
        by: Callable[[Iterable[GaussianEvent], float], float] = epsilon_of,
    ) -> float:
        rows = connection.execute(
            "SELECT noise_multiplier, sample_rate, rng, SUM(steps) FROM entries WHERE dataset = ? "
            "GROUP BY noise_multiplier, sample_rate, rng",
            (self.dataset,),
        ).fetchall()
        kinds = {rng, *(row[2] for row in rows)}
        if any(row[0] == 0 for row in rows):
            return math.inf
        if "simulation" in kinds and not self.allow_simulation_rng:
            return math.inf
        spent = [
            GaussianEvent(noise_multiplier=sigma, sample_rate=rate, steps=steps)
            for sigma, rate, _, steps in rows
        ]
        return by([*spent, *extra], self.delta)

    def _check(
        self,
        connection: sqlite3.Connection,
        extra: Sequence[GaussianEvent],
        what: str,
        rng: RngName = "secure",
    ) -> None:
        """Refuse what would pass the budget, at the one order that guards this data set."""

        def at_one_order(events: Iterable[GaussianEvent], delta: float) -> float:
            found = list(events)
            return epsilon_of(found, delta, self._order(connection, found))

        epsilon = self._epsilon_with(connection, extra, rng, at_one_order)
        if epsilon > self.max_epsilon + _SLACK:
            raise BudgetExceeded(
                f"Expected epsilon of at most {self.max_epsilon:g} over the life of the data, "
                f"got {epsilon:.4g} with {what}; lower the run's epsilon or leave this node out."
            )

    def _order(self, connection: sqlite3.Connection, planned: Sequence[GaussianEvent]) -> float:
        """The order that guards: fixed by what is planned first, before any answer is seen."""
        row = connection.execute(
            "SELECT alpha FROM orders WHERE dataset = ?", (self.dataset,)
        ).fetchone()
        if row is not None:
            return float(row[0])
        order = filter_order(planned, self.max_epsilon + _SLACK, self.delta)
        connection.execute("INSERT INTO orders VALUES (?, ?)", (self.dataset, order))
        return order

    def _person_epsilon_with(
        self, connection: sqlite3.Connection, records: int, extra: Sequence[GaussianEvent | None]
    ) -> float:
        """Of a person; infinite once anything left without noise, or without a cap."""
        rows = connection.execute(
            "SELECT noise_multiplier, sample_rate, cap, SUM(steps) FROM entries WHERE dataset = ? "
            "GROUP BY noise_multiplier, sample_rate, cap",
            (self.dataset,),
        ).fetchall()
        known = [(event, records) for event in extra if event is not None]
        noiseless = len(known) < len(extra) or math.isinf(self._epsilon_with(connection, []))
        if noiseless or any(row["cap"] is None for row in rows):
            return math.inf
        for sigma, rate, cap, steps in rows:
            event = GaussianEvent(noise_multiplier=sigma, sample_rate=rate, steps=steps)
            known.append((event, cap))
        # Imported here: most nodes do without, and it takes a while.
        from fedlatent.shared.privacy.person import capped_epsilon

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

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Open the file for a while; one that is gone is not made again."""
        uri = f"{self._path.absolute().as_uri()}?mode=rw"
        with (
            told(self._path),
            contextlib.closing(
                sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None)
            ) as connection,
        ):
            connection.row_factory = sqlite3.Row
            connection.text_factory = readable
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")  # an erased key is overwritten
            yield connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One exclusive writer: what is read inside is still true when it is written."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._same_chain(connection)
                yield connection
                seen = chain.head(connection)
            except BaseException:
                if connection.in_transaction:  # SQLite ends it on a full disk
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            self._seen = seen

    def _forget(self) -> None:
        """Bring an erased key out of the file and its log, whoever else has the file open.

        SQLite does that when the last connection closes. A reader that stays in a transaction for
        longer than the pause leaves it to that moment.
        """
        with self._connection() as connection:
            connection.execute(f"PRAGMA busy_timeout = {int(_LOCK_PAUSE_S * 1000)}")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _same_chain(self, connection: sqlite3.Connection) -> None:
        """Refuse a file that has lost what this object has seen in it."""
        seq, last = self._seen
        if seq == 0:
            return
        row = connection.execute("SELECT hash FROM events WHERE seq = ?", (seq,)).fetchone()
        if row is None or row[0] != last:
            raise LedgerError(
                f"Expected the ledger {self._path} to go on from event {seq}, got another or an "
                f"older file in its place. {REMEDY}",
                event=seq,
            )


def _live(connection: sqlite3.Connection, key: tuple[object, ...]) -> Entry | None:
    row = connection.execute(_LIVE, key).fetchone()
    return None if row is None else Entry(**dict(row))


def _charged(connection: sqlite3.Connection, place: tuple[object, ...]) -> bool:
    """Whether a round of a run has any entry."""
    found = connection.execute(
        "SELECT 1 FROM entries WHERE dataset = ? AND run_id = ? AND round = ? LIMIT 1", place
    ).fetchone()
    return found is not None


def _entry(connection: sqlite3.Connection, entry_id: int) -> Entry:
    row = connection.execute(f"SELECT {_COLUMNS} FROM entries WHERE id = ?", (entry_id,)).fetchone()
    return Entry(**dict(row))
