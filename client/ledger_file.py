"""The tables of the ledger's file, and how a file of an older release becomes one of this."""

import sqlite3
import time
from pathlib import Path

from client import chain
from shared.errors import ServiceError

VERSION = 2

#: Why entries of version 1 that were never released fail: their noise had no key that was kept.
UNSEALED = "begun under an older release, which kept no key to draw the same noise again"

_SCHEMA = f"""
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
    basis TEXT NOT NULL,
    noise_multiplier REAL NOT NULL,
    sample_rate REAL NOT NULL,
    steps INTEGER NOT NULL,
    rng TEXT NOT NULL,
    cap INTEGER,
    reserved_at REAL NOT NULL,
    epsilon_after REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'released', 'failed')),
    ended_at REAL,
    reason TEXT,
    sha256 TEXT,
    nbytes INTEGER
);
CREATE UNIQUE INDEX live ON entries (dataset, run_id, round, kind, request_digest)
    WHERE state != 'failed';
CREATE TABLE seals (
    entry INTEGER PRIMARY KEY,
    sealed BLOB NOT NULL
);
{chain.SCHEMA};
"""

#: The Renyi order that guards each data set, fixed before its first release.
_ORDERS = "CREATE TABLE IF NOT EXISTS orders (dataset TEXT PRIMARY KEY, alpha REAL NOT NULL)"

_COPY = """
INSERT INTO entries (id, dataset, run_id, round, kind, request_digest, basis, noise_multiplier,
    sample_rate, steps, rng, reserved_at, epsilon_after, state, ended_at, sha256, nbytes)
SELECT id, dataset, run_id, round, kind, request_digest, '', noise_multiplier,
    sample_rate, steps, rng, reserved_at, epsilon_after, state, released_at, sha256, nbytes
FROM entries_1 ORDER BY id
"""


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new file, or bring those of version 1 up to date; in a transaction.

    Raises:
        ServiceError: the file is of another version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, 1, VERSION):
        raise ServiceError(
            f"Expected a ledger of version {VERSION} at {path}, got {version}; use the fedlatent "
            "release that wrote it."
        )
    connection.execute(_ORDERS)
    if version == VERSION:
        return
    if version == 1:
        connection.execute("ALTER TABLE entries RENAME TO entries_1")
        connection.execute("ALTER TABLE runs RENAME TO runs_1")
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    if version == 1:
        _migrate(connection)
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _migrate(connection: sqlite3.Connection) -> None:
    """Every charge of version 1 stays a charge, under its old number."""
    connection.execute("INSERT INTO runs SELECT * FROM runs_1")
    connection.execute(_COPY)
    connection.execute("DROP TABLE runs_1")
    connection.execute("DROP TABLE entries_1")
    for row in connection.execute("SELECT id, state FROM entries ORDER BY id").fetchall():
        chain.append(connection, row["id"], "reserve")
        if row["state"] == "released":
            chain.append(connection, row["id"], "release")
        else:
            fail(connection, row["id"], UNSEALED)


def fail(connection: sqlite3.Connection, entry_id: int, reason: str) -> None:
    """End a reserved entry of which nothing will leave; it goes on counting. In a transaction."""
    connection.execute(
        "UPDATE entries SET state = 'failed', ended_at = ?, reason = ? WHERE id = ?",
        (time.time(), reason, entry_id),
    )
    connection.execute("DELETE FROM seals WHERE entry = ?", (entry_id,))
    chain.append(connection, entry_id, "fail")
