"""A ledger made again from what a node's other files tell, never lower than any of them says.

The journal tells of every release and, by its receipts, of all that the ledger had about it. The
outbox and the states of rounds tell of charges whose line is missing, an older ledger of charges of
which nothing left, and a gap in the numbers, a torn line or a line of the log alone of charges of
which nothing else is known: each of those counts like the dearest charge that is known. What is not
known to have left as the journal says has failed: it counts, and is never sent again.
"""

import bisect
import contextlib
import datetime
import itertools
import math
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from fedlatent.client import chain
from fedlatent.client.home import ClientHome
from fedlatent.client.journal import SHORT, Sent, logged_releases, read_journal
from fedlatent.client.ledger import Ledger, Verified
from fedlatent.client.ledger_file import COUNTED, readable
from fedlatent.client.local import ledger_at, open_ledger
from fedlatent.client.policy import NodeConfig
from fedlatent.client.reconcile import claims, numbered, reconcile
from fedlatent.client.store import Store
from fedlatent.shared.errors import FedlatentError, LedgerError, ProtocolError, ServiceError
from fedlatent.shared.files import sha256_hex, sync_folder, telling
from fedlatent.shared.privacy.accounting import GaussianEvent, epsilon_of, filter_order
from fedlatent.shared.privacy.noise import RngName
from fedlatent.shared.schedule import Kind
from fedlatent.shared.wire import STORED_PROTOCOLS, ReplyHeader, unpack

_UNKNOWN = "unknown"
_MOST_GAPS = 100_000  # a number beyond is no number of an entry
_MOST_EPSILON = 1e4  # one beyond counts as none that is finite
_SLACK = 1e-6  # of an epsilon that was written down
_MOST_STEPS = 1 << 40  # of one charge, whose sums SQLite must hold
_DAMAGE = (UnicodeError, IndexError, TypeError, AttributeError)  # of a file that SQLite reads
_PUT_BACK = (
    "put back the newest ledger.db or releases.jsonl, and until then let these records take no "
    "part in any run, in this home or another"
)


class _Mechanism(NamedTuple):
    """What a release cost: noise multiplier (0 for none), Poisson rate, steps, random numbers."""

    sigma: float
    rate: float
    steps: int
    rng: RngName

    def event(self) -> GaussianEvent:
        """The same for the accountant; of a release with noise."""
        return GaussianEvent(noise_multiplier=self.sigma, sample_rate=self.rate, steps=self.steps)


_NOISELESS = _Mechanism(0.0, 1.0, 1, "secure")


@dataclass(frozen=True, kw_only=True)
class _Charge:
    """A row of the ledger to be; one without ``sha256`` has failed."""

    data: str
    run: str = _UNKNOWN
    round: int = 0
    kind: Kind = "train"
    cost: _Mechanism | None = None  # None: like the dearest known
    request: str = ""
    basis: str = ""
    cap: int | None = None
    charged: float = field(default_factory=time.time)
    ended: float = field(default_factory=time.time)
    sha256: str | None = None
    nbytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What ``rebuild`` made.

    Attributes:
        released: entries that left, as the journal or an older ledger says.
        failed: entries that count without anything to send again.
        dearest: how many of those count like the dearest charge that is known.
        epsilon: of the node's data set now; infinity without a finite one.
        said: the highest epsilon of it that a file tells of; infinity for none that is finite.
        kept: where the former ledger lies, or None where there was none.
    """

    released: int
    failed: int
    dearest: int
    epsilon: float
    said: float
    kept: Path | None


@dataclass(kw_only=True)
class _Found:
    """What the files tell.

    Attributes:
        data: name of the data set that pays for what names none.
        charges: by number.
        others: without a number of their own.
        runs: configuration and start, by data set and run.
        orders: that guard, by data set.
        said: the highest epsilon that was written down, by data set and delta.
        dear: costs of rows that are not to be trusted otherwise.
        last: highest number of an entry.
    """

    data: str
    charges: dict[int, _Charge] = field(default_factory=dict)
    others: list[_Charge] = field(default_factory=list)
    runs: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    orders: dict[str, float] = field(default_factory=dict)
    said: dict[tuple[str, float], float] = field(default_factory=dict)
    dear: list[_Mechanism] = field(default_factory=list)
    last: int = 0

    def say(self, data: str, epsilon: float | None, delta: float | None) -> None:
        """Note an epsilon that was written down; one without delta is infinite."""
        key, value = (data, delta or 0.0), math.inf if epsilon is None else epsilon
        self.said[key] = max(value, self.said.get(key, 0.0))


def rebuild(home: ClientHome, config: NodeConfig, records: int) -> Rebuilt:
    """Make the ledger of a home again; the former one, if any, is kept beside it.

    Args:
        home: of a node that does not run.
        config: name of the data set and policy.
        records: number of normal records.

    Raises:
        LedgerError: what left is not known well enough to say what it cost.
        ServiceError: the ledger is whole, or the node runs.
        StorageError: a file cannot be read or written.
    """
    with home.alone(), telling():
        _expect_none(home, config, records)
        found = _found(home, config.data.name)
        new = home.ledger.with_name(home.ledger.name + ".new")
        _remove(new)
        try:
            ledger = ledger_at(new, config, records)
            dearest = _fill(new, ledger, found)
            verified = ledger.verify()
            reconcile(home.ledger, verified, claims(home))
        except BaseException:
            _remove(new)
            raise
        epsilon = ledger.epsilon()
        kept = _put(new, home.ledger)
    return _told(found, verified, epsilon, dearest, kept)


def _told(
    found: _Found, verified: Verified, epsilon: float, dearest: int, kept: Path | None
) -> Rebuilt:
    states = [payment.state for payment in verified.payments.values()]
    said = [value for (data, _), value in found.said.items() if data == found.data]
    return Rebuilt(
        released=states.count("released"),
        failed=states.count("failed"),
        dearest=dearest,
        epsilon=epsilon,
        said=max(said, default=0.0),
        kept=kept,
    )


def _expect_none(home: ClientHome, config: NodeConfig, records: int) -> None:
    """Pass where a node would not start for want of its ledger."""
    try:
        open_ledger(home, config, records)
    except LedgerError:
        return
    raise ServiceError(
        "Expected a ledger that is lost, damaged or older than what left, got a whole one in "
        f"{home.ledger}; use it as it is."
    )


def _found(home: ClientHome, data: str) -> _Found:
    found = _Found(data=data)
    journal = read_journal(home.release_journal)
    known = {sent.sha256[:SHORT] for sent in journal.values}
    for sent in journal.values:
        if sent.entry is not None:
            _add_sent(found, sent.entry, sent)
    for number, path in numbered(home.outbox.glob("*/*.bin")):
        known.add(_add_stored(found, number, path))
    for number, path in numbered(home.store.glob("*/round-*.safetensors")):
        round = path.stem.split("-")[1]
        state = _Charge(data=data, run=path.parent.name, round=int(round) if round else 0)
        found.charges.setdefault(number, state)
    _add_former(found, home.ledger)
    found.last = max([found.last, *found.charges])
    if found.last > len(found.charges) + _MOST_GAPS:
        raise LedgerError(
            f"Expected numbers of entries one after the other, got {found.last}; {_PUT_BACK}."
        )
    for number in range(1, found.last + 1):
        found.charges.setdefault(number, _Charge(data=data))
    logged = logged_releases(home.release_log)
    for line in logged.values():
        found.say(data, line.epsilon, line.delta)
    untold = max(journal.torn, len(logged.keys() - known))
    found.others += [_Charge(data=data)] * untold
    for path in sorted(home.store.glob("*/site.safetensors")):
        _add_site(found, Store(home.store), path.parent.name)
    return found


def _add_site(found: _Found, store: Store, run: str) -> None:
    """A finished run: it paid for something, and says what had been spent."""
    # Whatever a damaged file raises, the run counts.
    with contextlib.suppress(FedlatentError, KeyError, TypeError, ValueError):
        site = store.load_site(run)
        found.say(found.data, site.epsilon, site.delta)
    if all(one.run != run for one in [*found.charges.values(), *found.others]):
        found.others.append(_Charge(data=found.data, run=run))


def _add_sent(found: _Found, number: int, sent: Sent) -> None:
    """A line of the journal; what was sent again has a line before it."""
    receipt, ended = sent.receipt, _seconds(sent.time)
    data = receipt.data if receipt else found.data
    found.say(data, sent.epsilon, sent.delta)
    # Without a receipt the random numbers are those of the worst release so far.
    rng = receipt.rng if receipt else sent.rng
    charge = _Charge(
        data=data,
        run=sent.run,
        round=sent.round,
        kind=sent.kind,
        cost=_cost(sent.noise_multiplier, sent.sample_rate, sent.steps, rng),
        request=receipt.request if receipt else "",
        basis=receipt.basis if receipt else "",
        cap=receipt.cap if receipt else None,
        charged=receipt.charged if receipt else ended,
        ended=ended,
        sha256=sent.sha256,
        nbytes=sent.bytes,
    )
    if receipt is not None and receipt.config is not None:
        found.runs.setdefault((data, sent.run), (receipt.config, receipt.charged))
    if receipt is not None and receipt.order is not None:
        found.orders.setdefault(data, receipt.order)
    there = found.charges.setdefault(number, charge)
    if (there.run, there.sha256) != (charge.run, charge.sha256):
        found.others.append(charge)


def _add_stored(found: _Found, number: int, path: Path) -> str:
    """A payload of the outbox; gives the first digits of its hash."""
    payload = path.read_bytes()
    digest = sha256_hex(payload)[:SHORT]
    if number in found.charges:
        return digest
    charge = _Charge(data=found.data, run=path.parent.name)
    with contextlib.suppress(ProtocolError):
        header, _ = unpack(ReplyHeader, payload, STORED_PROTOCOLS)
        found.say(found.data, header.epsilon, header.delta)
        cost = _cost(header.noise_multiplier, header.sample_rate, header.steps, header.rng)
        charge = replace(charge, round=header.round, kind=header.kind, cost=cost)
    found.charges[number] = charge
    return digest


def _add_former(found: _Found, path: Path) -> None:
    """What an older ledger tells; of one that was changed, no more than how dear it was."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with (
        contextlib.suppress(sqlite3.Error, LedgerError, *_DAMAGE),
        contextlib.closing(sqlite3.connect(uri, uri=True)) as connection,
    ):
        connection.row_factory = sqlite3.Row
        connection.text_factory = readable
        rows = connection.execute("SELECT * FROM entries ORDER BY id").fetchall()
        last = max([found.last, *(row["id"] for row in rows)])
        found.last = last if last <= len(rows) + _MOST_GAPS else found.last
        found.dear += [cost for row in rows if (cost := _row_cost(row)) is not None]
        chain.verify(connection)
        for row in rows:
            _add_row(found, row)
        for run in connection.execute("SELECT * FROM runs"):
            found.runs.setdefault((run["dataset"], run["run_id"]), (run[2], run["started"]))
        for order in connection.execute("SELECT * FROM orders"):
            found.orders.setdefault(order["dataset"], order["alpha"])


def _add_row(found: _Found, row: sqlite3.Row) -> None:
    charge = _Charge(
        data=row["dataset"],
        run=row["run_id"],
        round=row["round"],
        kind=row["kind"],
        cost=_row_cost(row),
        request=row["request_digest"],
        basis=row["basis"],
        cap=row["cap"],
        charged=row["reserved_at"],
        ended=row["ended_at"] or time.time(),
        sha256=row["sha256"],
        nbytes=row["nbytes"],
    )
    there = found.charges.get(row["id"])
    if there is None or (there.sha256 is None and there.run == charge.run):
        found.charges[row["id"]] = charge
    elif there.run != charge.run or charge.sha256 not in (None, there.sha256):
        found.others.append(replace(charge, sha256=None))


def _row_cost(row: sqlite3.Row) -> _Mechanism | None:
    return _cost(row["noise_multiplier"], row["sample_rate"], row["steps"], row["rng"])


def _cost(sigma: Any, rate: Any, steps: Any, rng: RngName | None) -> _Mechanism | None:  # noqa: ANN401
    """A mechanism; None of numbers that are none."""
    try:
        found = _Mechanism(float(sigma), float(rate), int(steps), rng or "simulation")
        if found.sigma != 0:
            found.event()
    except (TypeError, ValueError, OverflowError):
        return None
    return found if 0 < found.steps < _MOST_STEPS else None


def _fill(path: Path, ledger: Ledger, found: _Found) -> int:
    """Write everything into a new ledger's file; how many charges count like the dearest."""
    charges = [found.charges[number] for number in sorted(found.charges)] + found.others
    known = [*found.dear, *(charge.cost for charge in charges if charge.cost is not None)]
    unknown = sum(charge.cost is None for charge in charges)
    if not known:  # something tells of a release, or a ledger of which nobody can say what it held
        raise LedgerError(
            "Expected one release at least whose cost is known, got "
            f"{f'{unknown} without' if unknown else 'none'}; {_PUT_BACK}."
        )
    dearest = _dearest(known, ledger.delta)
    cap = _cap(charges)
    priced = [c if c.cost is not None else replace(c, cost=dearest, cap=cap) for c in charges]
    extra = _missing(found, priced, dearest, seeded=ledger.allow_simulation_rng)
    priced += [replace(charge, cap=cap) for charge in extra]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN IMMEDIATE")
        live: set[tuple[object, ...]] = set()
        for number, charge in enumerate(priced, 1):
            request = (charge.data, charge.run, charge.round, charge.kind, charge.request)
            if request in live:  # a repeated request gets the first one's bytes
                charge = replace(charge, request="")
            live.add(request)
            before = [one for one in priced[:number] if one.data == charge.data]
            after = _epsilon(before, ledger.delta, seeded=ledger.allow_simulation_rng)
            _insert(connection, number, charge, after)
        for (data, run), facts in found.runs.items():
            connection.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", (data, run, *facts))
        orders = _orders(found, priced, ledger)
        connection.executemany("INSERT INTO orders VALUES (?, ?)", orders.items())
        connection.execute("COMMIT")
    return unknown + len(priced) - len(charges)


def _dearest(known: Sequence[_Mechanism], delta: float) -> _Mechanism:
    """The mechanism with the highest epsilon, with the worst random numbers of all."""

    def cost(one: _Mechanism) -> float:
        return math.inf if one.sigma == 0 else epsilon_of([one.event()], delta)

    seeded = any(one.rng == "simulation" for one in known)
    return max(set(known), key=cost)._replace(rng="simulation" if seeded else "secure")


def _cap(charges: Sequence[_Charge]) -> int | None:
    """The most records of one person in any charge; None once one had no cap."""
    caps = [charge.cap for charge in charges if charge.cost is not None]
    return max((cap for cap in caps if cap is not None), default=None) if None not in caps else None


def _missing(
    found: _Found, charges: Sequence[_Charge], dearest: _Mechanism, *, seeded: bool
) -> list[_Charge]:
    """Charges without which the sum would be lower than what was written down."""
    extra: list[_Charge] = []
    for (data, delta), said in found.said.items():
        mine = [one for one in [*charges, *extra] if one.data == data]
        if said > _MOST_EPSILON or not 0 < delta < 1:
            secret = all(one.cost and one.cost.rng == "secure" for one in mine)
            if secret and math.isfinite(_epsilon(mine, 0.5, seeded=seeded)):
                extra.append(_Charge(data=data, cost=_NOISELESS))
            continue

        if _epsilon(mine, delta, seeded=seeded) < said - _SLACK:
            cost = _enough(mine, dearest, delta, said - _SLACK, seeded=seeded)
            extra.append(_Charge(data=data, cost=cost))
    return extra


def _enough(
    mine: Sequence[_Charge], one: _Mechanism, delta: float, least: float, *, seeded: bool
) -> _Mechanism:
    """A mechanism so many times that it brings an epsilon to ``least``."""

    def reached(times: int) -> float:
        more = _Charge(data=_UNKNOWN, cost=_many(one, times))
        return _epsilon([*mine, more], delta, seeded=seeded)

    times = range(1, _MOST_STEPS)
    return _many(one, times[bisect.bisect_left(times, least, key=reached)])


def _many(one: _Mechanism, times: int) -> _Mechanism:
    """A mechanism that many times; none that is private where nobody could count the steps."""
    steps = one.steps * times
    return one._replace(steps=steps) if steps < _MOST_STEPS else _NOISELESS


def _epsilon(charges: Sequence[_Charge], delta: float, *, seeded: bool) -> float:
    """Of the charges of one data set, as the ledger counts."""
    steps: Counter[_Mechanism] = Counter()
    for one in charges:
        if one.cost is not None:
            steps[one.cost._replace(steps=1)] += one.cost.steps
    if any(one.sigma == 0 or (one.rng == "simulation" and not seeded) for one in steps):
        return math.inf
    return epsilon_of([one._replace(steps=n).event() for one, n in steps.items()], delta)


def _orders(found: _Found, charges: Sequence[_Charge], ledger: Ledger) -> Mapping[str, float]:
    """The order that guards each data set; of this one anew where nothing tells of it."""
    events = [
        one.cost.event()
        for one in charges
        if one.data == ledger.dataset and one.cost is not None and one.cost.sigma > 0
    ]
    if ledger.dataset in found.orders or not events:
        return found.orders
    order = filter_order(events, ledger.max_epsilon, ledger.delta)
    return {**found.orders, ledger.dataset: order}


def _insert(connection: sqlite3.Connection, number: int, charge: _Charge, after: float) -> None:
    """One entry and its events, as the ledger would have written them."""
    cost = charge.cost or _NOISELESS
    row = {
        "id": number,
        "dataset": charge.data,
        "run_id": charge.run,
        "round": charge.round,
        "kind": charge.kind,
        "request_digest": charge.request or f"{_UNKNOWN}-{number}",
        "basis": charge.basis,
        "noise_multiplier": cost.sigma,
        "sample_rate": cost.rate,
        "steps": cost.steps,
        "rng": cost.rng,
        "cap": charge.cap,
        "reserved_at": charge.charged,
        "epsilon_after": after,
        "state": "reserved",
    }
    names, places = ", ".join(row), ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO entries ({names}) VALUES ({places})", row)
    chain.append(connection, number, "reserve")
    end = {"state": "released", "ended_at": charge.ended, "sha256": charge.sha256}
    end |= {"nbytes": charge.nbytes, "reason": None, "id": number}
    if charge.sha256 is None:
        end |= {"state": "failed", "reason": COUNTED}
    connection.execute(
        "UPDATE entries SET state = :state, ended_at = :ended_at, sha256 = :sha256, "
        "nbytes = :nbytes, reason = :reason WHERE id = :id",
        end,
    )
    chain.append(connection, number, "fail" if charge.sha256 is None else "release")


def _put(new: Path, ledger: Path) -> Path | None:
    """Let the new file take the ledger's place; where the former one lies then."""
    kept = None
    if ledger.exists():
        name = f"{ledger.name}.kept-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        kept = ledger.with_name(name)
        for number in itertools.count(1):
            if not kept.exists():  # as after another in this second, or with a clock set back
                break
            kept = ledger.with_name(f"{name}-{number}")
        os.link(ledger, kept)
    for rest in _beside(ledger):  # a log of the former file would be played into the new one
        if kept is None:
            rest.unlink()
        else:
            rest.rename(kept.with_name(kept.name + rest.name.removeprefix(ledger.name)))
    new.replace(ledger)
    sync_folder(ledger.parent)
    if kept is not None:
        _forget_keys(kept)
    return kept


def _forget_keys(kept: Path) -> None:
    """Erase the keys of noise in a former ledger, some of which may have left since it was copied.

    A file that SQLite cannot read stays as it is.
    """
    with (
        contextlib.suppress(sqlite3.Error, UnicodeError),
        contextlib.closing(sqlite3.connect(kept, isolation_level=None)) as connection,
    ):
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("DELETE FROM seals")


def _beside(path: Path) -> Iterator[Path]:
    names = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))
    return (name for name in names if name.exists())


def _remove(path: Path) -> None:
    for one in (path, *_beside(path)):
        one.unlink(missing_ok=True)


def _seconds(text: str) -> float:
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time()
