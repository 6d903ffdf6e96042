"""What must hold whatever happened, found out from the files of the homes and from nothing else.

Everything is read here by code of its own: SQLite, JSON, safetensors and the packed replies are
taken apart by their documented layout, and nothing of the code that wrote them is imported.

For every node: its ledger is a whole database, its chain fits, nothing that was ever seen in it is
gone, each request of a phase was charged once, and everything that left (release log, server's
registry) was paid for with the very bytes. For every run: its phases are there once and in order,
and the model of a checkpoint lies, number by number, between what was sent and what came back.
For every file: it is whole.
"""

import contextlib
import hashlib
import json
import math
import re
import sqlite3
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_GENESIS = "0" * 64
_TIMEOUT_S = 20.0
_TYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64}
_FOREIGN = {"flower", "work"}  # folders that Flower writes
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")
_SLACK = 1e-5  # of float32 sums, relative to the largest number

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Excuses:
    """What a fault has taken away, which therefore cannot be asked for.

    Attributes:
        lines: sites whose release log was damaged.
        basis: sites whose records or state were damaged, which makes a repetition another charge.
        lineage: runs whose checkpoints or registry were damaged, after which phases are done over
            or not told of.
        lies: sites, each with a run in which it sent something else than what its log says.
    """

    lines: frozenset[str] = frozenset()
    basis: frozenset[str] = frozenset()
    lineage: frozenset[str] = frozenset()
    lies: frozenset[tuple[str, str]] = frozenset()


@dataclass(kw_only=True)
class Witness:
    """Remembers what was ever seen, and says what does not hold.

    Attributes:
        server: home of the server.
        nodes: homes by site.
        excuses: what cannot be asked for.
        entries: every charge that was ever seen, by site and number.
        violations: what did not hold, in the order in which it was found, each once.
    """

    server: Path
    nodes: Mapping[str, Path]
    excuses: Excuses = Excuses()
    entries: dict[str, dict[int, Row]] = field(default_factory=dict)
    violations: dict[str, None] = field(default_factory=dict)

    def look(self) -> list[str]:
        """Look at everything now; what is found to be violated for the first time.

        What follows from something is read before it, so that one may look while work goes on: a
        checkpoint before the registry, that before the release logs, those before the ledgers.
        """
        found: list[str] = []
        folders = sorted(self.server.glob("runs/*"))
        checkpoints = {folder: _checkpoints(folder / "checkpoints") for folder in folders}
        registry = self._registry(found)
        for folder in folders:
            with _told(found, f"run {folder.name}"):
                found += self._run(folder, checkpoints[folder], registry)
        for site, home in self.nodes.items():
            with _told(found, f"{site}: what left"):
                lines, outbox = _lines(home / "releases.jsonl"), _outbox(home / "outbox")
                entries = self._ledger(site, home, found)
                found += self._left(site, lines, outbox, entries, registry)
                found += self._once(site, entries)
        for home in (self.server, *self.nodes.values()):
            with _told(found, home.name):
                found += self._torn(home)
        new = [one for one in dict.fromkeys(found) if one not in self.violations]
        self.violations |= dict.fromkeys(new)
        return new

    def _ledger(self, site: str, home: Path, found: list[str]) -> dict[int, Row]:
        """The entries of a node's ledger, once it was held against itself and against the past."""
        path = home / "ledger.db"
        known = self.entries.setdefault(site, {})
        if not path.exists():
            if known:
                found.append(f"{site}: no ledger, of {len(known)} charges")
            return {}
        with _database(path) as base:
            check = base.execute("PRAGMA integrity_check").fetchone()[0]
            entries = {row["id"]: dict(row) for row in base.execute("SELECT * FROM entries")}
            events = [dict(row) for row in base.execute("SELECT * FROM events ORDER BY seq")]
        if check != "ok":
            found.append(f"{site}: the ledger's file is damaged: {check}")
        found += [f"{site}: {one}" for one in _chain(entries, events)]
        for number, before in known.items():
            now = entries.get(number)
            if before["state"] == "reserved" and site in self.excuses.basis:
                continue  # nothing left for it
            if now is None:
                found.append(f"{site}: charge {number} of {before['run_id']} is lost")
            elif not _follows(before, now):
                found.append(f"{site}: charge {number} became another one")
        known.update(entries)
        return entries

    def _registry(self, found: list[str]) -> Mapping[str, list[Row]]:
        """All rows of the server's registry, by table."""
        tables = ("runs", "rounds", "site_rounds")
        nothing: dict[str, list[Row]] = {name: [] for name in tables}
        path = self.server / "registry.db"
        if not path.exists():
            return nothing
        with _told(found, "registry"), _database(path) as base:
            check = base.execute("PRAGMA integrity_check").fetchone()[0]
            if check != "ok":
                found.append(f"registry: the file is damaged: {check}")
            return {
                name: [dict(row) for row in base.execute(f"SELECT * FROM {name}")]
                for name in tables
            }
        return nothing

    def _left(
        self,
        site: str,
        lines: list[Row],
        outbox: Mapping[Path, str],
        entries: Mapping[int, Row],
        registry: Mapping[str, list[Row]],
    ) -> Iterator[str]:
        """Whether what left is what was paid for."""
        lines = [line for line in lines if line.get("entry") is not None]
        for line in lines:
            entry = entries.get(line["entry"])
            if entry is None or entry["state"] != "released":
                yield f"{site}: the log tells of {line['entry']}, for which nothing was paid"
            elif (entry["sha256"], entry["nbytes"]) != (line["sha256"], line["bytes"]):
                yield f"{site}: other bytes left for {line['entry']} than were paid for"
        logged = {line["entry"] for line in lines}
        paid: dict[tuple[str, int, str], list[Row]] = {}
        for entry in entries.values():
            if entry["state"] == "released":
                paid.setdefault(_request(entry), []).append(entry)
        for row in registry["site_rounds"]:
            lied = (site, row["run_id"]) in self.excuses.lies
            if row["site"] != site or row["status"] != "ok" or lied:
                continue
            kind = _kind(registry, row["run_id"], row["number"])
            payers = paid.get((row["run_id"], row["number"], kind), [])
            if not any(_equal(one["epsilon_after"], row["epsilon"]) for one in payers):
                yield f"{site}: the server counted {_name(row, kind)} for {row['epsilon']}, unpaid"
            elif site not in self.excuses.lines and not any(one["id"] in logged for one in payers):
                yield f"{site}: the server counted {_name(row, kind)}, which no log tells of"
        for path, digest in outbox.items():
            entry = entries.get(int(path.stem.rsplit("-", 1)[-1]))
            if entry is None:
                yield f"{site}: {path.name} lies in the outbox, and no charge is known"
            elif entry["state"] != "released" or site in self.excuses.basis:
                continue
            elif digest != entry["sha256"]:
                yield f"{site}: {path.name} is not what was paid for"

    def _once(self, site: str, entries: Mapping[int, Row]) -> Iterator[str]:
        """Whether each phase was charged once."""
        charged: dict[tuple[str, int, str], list[Row]] = {}
        for entry in entries.values():
            charged.setdefault(_request(entry), []).append(entry)
        for (run, number, kind), found in charged.items():
            excused = site in self.excuses.basis or run in self.excuses.lineage
            if len(found) > 1 and not excused:
                digests = {one["request_digest"][:8] for one in found}
                states = [one["state"] for one in found]
                yield (
                    f"{site}: {kind} {number} of {run} was charged {len(found)} times ({states}, "
                    f"requests {sorted(digests)})"
                )

    def _run(
        self,
        folder: Path,
        checkpoints: "Mapping[int, Checkpoint]",
        registry: Mapping[str, list[Row]],
    ) -> Iterator[str]:
        """Whether a run's phases are there once and in order, and its model is made of them."""
        run = folder.name
        if not checkpoints and list(folder.glob("checkpoints/*.json")):
            yield f"{run}: no checkpoint is whole"
        for done, (facts, _) in checkpoints.items():
            numbers = [entry["number"] for entry in facts["history"]]
            if facts["done"] != done or numbers != list(range(1, done + 1)):
                yield f"{run}: checkpoint {done} tells of phases {numbers}"
        rows = sorted(
            (row for row in registry["rounds"] if row["run_id"] == run), key=lambda r: r["number"]
        )
        complete = [row["number"] for row in rows if row["status"] == "complete"]
        newest, excused = max(checkpoints, default=0), run in self.excuses.lineage
        if complete != list(range(1, len(complete) + 1)) and not excused:
            yield f"{run}: the registry has phases {complete} as complete"
        if len(complete) < newest and not excused:
            yield f"{run}: {newest} phases are in the checkpoint, {len(complete)} in the registry"
        if not excused and run not in {one for _, one in self.excuses.lies}:
            yield from self._lineage(run, checkpoints, registry)
        status = next((row["status"] for row in registry["runs"] if row["id"] == run), None)
        if status == "complete":
            yield from _result(folder, checkpoints)

    def _lineage(
        self,
        run: str,
        checkpoints: "Mapping[int, Checkpoint]",
        registry: Mapping[str, list[Row]],
    ) -> Iterator[str]:
        """Whether the model after a training round lies between its parts, number by number."""
        for done, (facts, arrays) in checkpoints.items():
            entry = facts["history"][-1] if facts["history"] else {}
            if entry.get("kind") != "train" or done - 1 not in checkpoints:
                continue
            parts = [checkpoints[done - 1][1]]
            sites = _counted(registry, run, done)
            if not self.excuses.basis.isdisjoint(sites):
                continue
            for site in sites:
                replies = list(self.nodes[site].glob(f"outbox/{run}/train-{done:06d}-*.bin"))
                if len(replies) != 1:
                    yield f"{run}: {site} keeps {len(replies)} replies of round {done}, not one"
                    return
                arrays_of_reply = _packed(replies[0].read_bytes())
                parts.append({f"encoder/{key}": one for key, one in arrays_of_reply.items()})
            for key in (key for key in arrays if key.startswith("encoder/")):
                stack = np.stack([part[key] for part in parts]).astype(np.float64)
                slack = _SLACK * max(1.0, float(np.abs(stack).max()))
                low, high = stack.min(axis=0) - slack, stack.max(axis=0) + slack
                if not ((arrays[key] >= low) & (arrays[key] <= high)).all():
                    yield f"{run}: {key} after round {done} is not made of what left"

    def _torn(self, home: Path) -> Iterator[str]:
        """Whether any file is half there."""
        for path in sorted(home.rglob("*.json")):
            if _FOREIGN.isdisjoint(path.relative_to(home).parts) and not _is_json(path):
                yield f"{home.name}: {path.relative_to(home)} is torn"
        for path in sorted(home.rglob("*.jsonl")):
            if home.name not in self.excuses.lines and any(not line for line in _lines(path)):
                yield f"{home.name}: {path.relative_to(home)} has a torn line"
        for path in sorted(home.rglob("*.safetensors")):
            excused = path.parts[-3] in self.excuses.lineage or home.name in self.excuses.basis
            if not excused and not _is_whole(path):
                yield f"{home.name}: {path.relative_to(home)} is torn"

    def litter(self) -> int:
        """Temporary files that interrupted writes have left."""
        homes = (self.server, *self.nodes.values())
        return sum(
            bool(_TEMPORARY.fullmatch(path.name)) and path.is_file()
            for home in homes
            for path in home.rglob(".*")
        )


Checkpoint = tuple[Row, dict[str, np.ndarray]]


def _chain(entries: Mapping[int, Row], events: list[Row]) -> Iterator[str]:
    """Whether each event continues the one before it, and the entries are as they tell."""
    before, told = _GENESIS, dict[int, str]()
    for number, event in enumerate(events, 1):
        expected = hashlib.sha256((before + event["line"]).encode()).hexdigest()
        if event["seq"] != number or event["hash"] != expected:
            yield f"the ledger's chain breaks at event {number}"
            return
        before = expected
        facts = json.loads(event["line"])
        entry = entries.get(facts["entry"])
        names = facts.keys() - {"seq", "what", "entry"}
        if entry is None or any(not _equal(entry[name], facts[name]) for name in names):
            yield f"the ledger's entry {facts['entry']} is not as event {number} tells"
        told[facts["entry"]] = {"reserve": "reserved", "release": "released"}.get(
            facts["what"], "failed"
        )
    if told != {number: entry["state"] for number, entry in entries.items()}:
        yield "the ledger has entries of which its chain does not tell"


def _result(folder: Path, checkpoints: Mapping[int, Checkpoint]) -> Iterator[str]:
    """Whether a complete run has its whole result, made of its last checkpoint."""
    path = folder / "result" / "result.json"
    if not path.exists() or not checkpoints:
        yield f"{folder.name}: complete, without a result or a checkpoint"
        return
    facts, (last, arrays) = json.loads(path.read_bytes()), checkpoints[max(checkpoints)]
    if [one["number"] for one in facts["rounds"]] != [one["number"] for one in last["history"]]:
        yield f"{folder.name}: the result tells of other phases than the checkpoint"
    model = _tensors((folder / "result" / "encoder.safetensors").read_bytes())
    for key, value in model.items():
        if not np.array_equal(value, arrays.get(f"encoder/{key}", np.empty(0))):
            yield f"{folder.name}: {key} of the result is not that of the last checkpoint"


def _checkpoints(folder: Path) -> dict[int, Checkpoint]:
    """The whole ones by number of phases."""
    found = {}
    for path in sorted(folder.glob("phase-*.json")):
        try:
            facts = json.loads(path.read_bytes())
            data = path.with_suffix(".safetensors").read_bytes()
        except (OSError, ValueError):
            continue
        if hashlib.sha256(data).hexdigest() == facts.get("arrays_sha256"):
            found[int(path.stem.removeprefix("phase-"))] = (facts, _tensors(data))
    return found


def _outbox(folder: Path) -> dict[Path, str]:
    """The digest of each stored payload."""
    found = {}
    for path in sorted(folder.glob("*/*.bin")):
        with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _tensors(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file: a length, a JSON object, the numbers."""
    (length,) = struct.unpack_from("<Q", data)
    head = json.loads(data[8 : 8 + length])
    head.pop("__metadata__", None)
    body = data[8 + length :]
    return {
        key: np.frombuffer(body[slice(*one["data_offsets"])], _TYPES[one["dtype"]]).reshape(
            one["shape"]
        )
        for key, one in head.items()
    }


def _packed(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a packed reply: two lengths, a JSON object, a safetensors file."""
    header, body = struct.unpack_from("<II", data)
    return _tensors(data[8 + header : 8 + header + body])


def _lines(path: Path) -> list[Row]:
    """The objects of a file of JSON lines; an empty one for a line that is none."""
    if not path.exists():
        return []
    found: list[Row] = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            value = {}
        found.append(value if isinstance(value, dict) else {})
    return found


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:  # it is being replaced
        return True
    except ValueError:
        return False
    return True


def _is_whole(path: Path) -> bool:
    try:
        _tensors(path.read_bytes())
    except FileNotFoundError:
        return True
    except (ValueError, KeyError, struct.error):
        return False
    return True


def _request(entry: Row) -> tuple[str, int, str]:
    return entry["run_id"], entry["round"], entry["kind"]


def _name(row: Row, kind: str) -> str:
    return f"{kind} {row['number']} of {row['run_id']}"


def _kind(registry: Mapping[str, list[Row]], run: str, number: int) -> str:
    found = (r["kind"] for r in registry["rounds"] if (r["run_id"], r["number"]) == (run, number))
    return str(next(found, "?"))


def _counted(registry: Mapping[str, list[Row]], run: str, number: int) -> list[str]:
    """The sites whose answers made a phase."""
    rows = (row for row in registry["site_rounds"] if row["status"] == "ok")
    return [row["site"] for row in rows if (row["run_id"], row["number"]) == (run, number)]


def _follows(before: Row, now: Row) -> bool:
    """Whether a charge is the one that was seen before, which may have ended meanwhile."""
    ended = {"state", "ended_at", "reason", "sha256", "nbytes"}
    fixed = before.keys() - ended if before["state"] == "reserved" else before.keys()
    return all(before[name] == now.get(name) for name in fixed)


def _equal(one: object, other: object) -> bool:
    """Equality of what a database and JSON make of the same value."""
    if isinstance(one, float) and math.isinf(one):
        return other is None
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


@contextlib.contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    base = sqlite3.connect(path, timeout=_TIMEOUT_S)
    base.row_factory = sqlite3.Row
    try:
        base.execute("PRAGMA query_only = ON")
        base.execute("BEGIN")
        yield base
    finally:
        base.close()


@contextlib.contextmanager
def _told(found: list[str], where: str) -> Iterator[None]:
    """Turn what cannot be read at all into a violation."""
    try:
        yield
    except (sqlite3.DatabaseError, OSError, ValueError, KeyError, struct.error) as error:
        found.append(f"{where}: unreadable ({type(error).__name__}: {error})")
