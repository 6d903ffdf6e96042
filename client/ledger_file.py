"""The ledger's file: its tables, how an older release's becomes one of this, what can be wrong."""

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from fedlatent.client import chain
from fedlatent.shared.errors import FedlatentError, LedgerError, ServiceError, StorageError
from fedlatent.shared.files import check_room

VERSION = 2

#: What to do about a ledger that is not the one that paid for what left.
REMEDY = (
    "Put back the newest ledger.db, from a time after the last release, or let 'fedlatent client "
    "ledger --rebuild' count again all that left; until then these records must take no part in "
    "any run, in this home or another."
)

_ROOM = 65_536  # bytes that a transaction needs for its log and index, at least

#: Why entries of version 1 that were never released fail: their noise had no key that was kept.
UNSEALED = "begun under an older release, which kept no key to draw the same noise again"

#: Why entries failed that count without anything to send again.
COUNTED = "counted when the ledger was made again: what left for it, if anything, is not known"

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


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what SQLite says inside about the ledger at ``path`` into a sentence with its remedy.

    Raises:
        LedgerError: the file is gone or damaged.
        ServiceError: another process holds it.
        StorageError: no room, no permission, a read-only or failing disk.
    """
    try:
        yield
    except sqlite3.Error as error:
        found = _problem(error, path)
        if found is None:
            raise
        raise found from error
    except UnicodeDecodeError as error:  # what is wrong, as SQLite says it, is no text
        raise damaged(path, str(error)) from error


def _problem(error: sqlite3.Error, path: Path) -> FedlatentError | None:
    """None for what no state of the file explains."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_INTERNAL) & 0xFF
    ledger = f"the privacy ledger {path}"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ServiceError(
            f"Expected {ledger} to be free, got another process that holds it; end that process, "
            "and leave the files as they are."
        )
    if code == sqlite3.SQLITE_CANTOPEN and not path.exists():
        return lost(path, "whatever it held")
    if code in _STORAGE:
        return StorageError.of(_cause(code, path), ledger)
    # SQLITE_ERROR: our statements are right, so the file lacks a table or a column that they name.
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return damaged(path, str(error))
    return None


def damaged(path: Path, why: str) -> LedgerError:
    """The error about a ledger that cannot be read."""
    return LedgerError(
        f"Expected the privacy ledger {path} to be whole, got a damaged file ({why}). {REMEDY}"
    )


def readable(text: bytes) -> str:
    """A text of the file, also of a damaged one, whose chain then does not fit."""
    return text.decode(errors="replace")


_STORAGE = (
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR),
)


def _cause(code: int, path: Path) -> OSError:
    """What the operating system has against the file, asked again, since SQLite does not say."""
    guess = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO}
    number = guess.get(code, errno.EACCES)
    try:
        if path.exists():
            os.close(os.open(path, os.O_RDWR))
        check_room(path.parent, _ROOM)
    except OSError as error:
        return error
    return OSError(number, os.strerror(number))


def lost(path: Path, told_by: str) -> LedgerError:
    """The error about a ledger that is not there, beside what tells that it was."""
    return LedgerError(f"Expected the privacy ledger {path} beside {told_by}, got none. {REMEDY}")


def prepare(connection: sqlite3.Connection, path: Path, traces: str | None = None) -> None:
    """Make the tables of a new file, or bring those of version 1 up to date; in a transaction.

    Args:
        connection: to the file.
        path: the file.
        traces: where something tells of a release, so that the file cannot be a new one.

    Raises:
        LedgerError: the file holds nothing, and there are traces.
        ServiceError: the file is of another version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, 1, VERSION):
        raise ServiceError(
            f"Expected a ledger of version {VERSION} at {path}, got {version}; use the fedlatent "
            "release that wrote it."
        )
    if version == 0 and traces is not None:
        raise lost(path, traces)
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
