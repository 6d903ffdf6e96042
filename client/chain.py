"""The ledger's chain: every charge and every release, each tied to what stands before it.

An event is one line of canonical JSON; its hash is the SHA-256 of the hash before it and that line.
A line that is changed, removed, added or moved in between breaks the chain from there on. What the
chain cannot show is that its end is missing: an older copy is whole in itself. For that the node
compares it with what left (``fedlatent.client.reconcile``).
"""

import math
import sqlite3
from collections.abc import Mapping
from typing import Any, Literal

from fedlatent.shared.errors import LedgerError
from fedlatent.shared.files import canonical_json, sha256_hex

What = Literal["reserve", "release", "fail"]

#: Hash before the first event.
GENESIS = "0" * 64

#: What an entry says from the moment it is charged, and what its end adds.
RESERVED = (
    "dataset",
    "run_id",
    "round",
    "kind",
    "request_digest",
    "basis",
    "noise_multiplier",
    "sample_rate",
    "steps",
    "rng",
    "cap",
    "reserved_at",
    "epsilon_after",
)
ENDED: Mapping[What, tuple[str, ...]] = {
    "release": ("ended_at", "sha256", "nbytes"),
    "fail": ("ended_at", "reason"),
}

SCHEMA = """
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    entry INTEGER NOT NULL,
    what TEXT NOT NULL CHECK (what IN ('reserve', 'release', 'fail')),
    line TEXT NOT NULL,
    hash TEXT NOT NULL
)
"""

_STATE = {"reserve": "reserved", "release": "released", "fail": "failed"}


def append(connection: sqlite3.Connection, entry_id: int, what: What) -> None:
    """Add the event that brought an entry into the state its row has now; inside a transaction."""
    row = connection.execute("SELECT * FROM entries WHERE id = ?", (entry_id,)).fetchone()
    seq, before = head(connection)
    line = _line(seq + 1, what, row)
    connection.execute(
        "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
        (seq + 1, entry_id, what, line, _hash(before, line)),
    )


def head(connection: sqlite3.Connection) -> tuple[int, str]:
    """Number and hash of the last event; those before the first for an empty chain."""
    row = connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    return (row["seq"], row["hash"]) if row else (0, GENESIS)


def verify(connection: sqlite3.Connection) -> tuple[int, str]:
    """Recompute the chain and hold every entry against it; number of events and last hash.

    Raises:
        LedgerError: naming the first event, or else the entry, that does not fit.
    """
    rows = {row["id"]: row for row in connection.execute("SELECT * FROM entries ORDER BY id")}
    ends: dict[int, What] = {}
    seq, before = 0, GENESIS
    for event in connection.execute("SELECT * FROM events ORDER BY seq"):
        seq += 1
        if event["seq"] != seq or event["hash"] != _hash(before, event["line"]):
            raise LedgerError(
                f"Expected event {seq} of the ledger to continue its chain, got one that was "
                f"changed, removed or put in (number {event['seq']}, entry {event['entry']}).",
                event=seq,
                entry=event["entry"],
            )
        before = event["hash"]
        what, entry = event["what"], event["entry"]
        row = rows.get(entry)
        first = entry not in ends
        follows = (what == "reserve") == first and ends.get(entry, "reserve") == "reserve"
        if row is None or not follows or event["line"] != _line(seq, what, row):
            raise LedgerError(
                f"Expected entry {entry} as event {seq} of the ledger's chain has it, got "
                f"{'none' if row is None else 'another one'}.",
                event=seq,
                entry=entry,
            )
        ends[entry] = what
    for number, row in rows.items():
        if number not in ends or row["state"] != _STATE[ends[number]]:
            raise LedgerError(
                f"Expected entry {number} in a state that the ledger's chain tells, got "
                f"{row['state']!r}, of which it has no event.",
                event=None,
                entry=number,
            )
    return seq, before


def _line(seq: int, what: What, row: sqlite3.Row) -> str:
    facts: dict[str, Any] = {"seq": seq, "what": what, "entry": row["id"]}
    for name in RESERVED if what == "reserve" else ENDED[what]:
        value = row[name]
        # JSON has no infinity; it stands for a release that no epsilon covers.
        facts[name] = None if isinstance(value, float) and math.isinf(value) else value
    return canonical_json(facts).decode()


def _hash(before: str, line: str) -> str:
    return sha256_hex(before.encode() + line.encode())
