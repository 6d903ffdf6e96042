"""What was given to whom: messages that nodes pulled, and the one reply each may get.

Kept in memory and in a small SQLite file, so that a gateway that starts again knows the messages
that are under way and those that have been answered. Written without ``fsync``: what a power cut
takes is asked of the nodes again in the next phase.
"""

import logging
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LOG = logging.getLogger("fedlatent.gateway")

_OPEN = 16  # newest messages of a node whose objects may be pulled and pushed
_KNOWN = 512  # newest messages of a node that are remembered at all
_LONGEST_S = 7 * 86400.0

_TABLE = """
CREATE TABLE IF NOT EXISTS issued (
    message TEXT PRIMARY KEY,
    node TEXT NOT NULL,
    run TEXT NOT NULL,
    expires REAL NOT NULL,
    objects TEXT NOT NULL,
    reply TEXT NOT NULL,
    session TEXT NOT NULL,
    awaited TEXT NOT NULL,
    received INTEGER NOT NULL,
    ended TEXT NOT NULL
) WITHOUT ROWID
"""


@dataclass(kw_only=True)
class Issued:
    """A message that one node pulled.

    Attributes:
        message: Flower's id of it.
        node: Flower's id of the node.
        run: Flower's id of the run.
        expires: When its reply is worth nothing any more, in seconds since 1970.
        objects: Ids of the objects it consists of.
        reply: Id of its reply; empty before the server has taken one.
        session: The server's name for the upload of that reply.
        awaited: Ids of the objects that the server asked for.
        received: Bytes of the reply so far.
        ended: Why no more of the reply is taken; empty while it is.
    """

    message: str
    node: int
    run: int
    expires: float
    objects: frozenset[str] = frozenset()
    reply: str = ""
    session: str = ""
    awaited: frozenset[str] = frozenset()
    received: int = 0
    ended: str = ""


@dataclass
class Book:
    """All issued messages that have not expired.

    Attributes:
        path: The SQLite file; its folder exists.
    """

    path: Path
    _nodes: dict[int, dict[str, Issued]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Open the file and read what an earlier gateway left; a damaged file is begun anew."""
        try:
            self._open_file()
        except sqlite3.DatabaseError as error:
            LOG.error("what was issued before is lost (%s); begun anew", error)
            self._nodes.clear()
            self._database.close()
            self.path.unlink(missing_ok=True)
            self._open_file()

    def _open_file(self) -> None:
        self._database = sqlite3.connect(self.path, isolation_level=None)
        self.path.chmod(0o600)
        for line in ("PRAGMA synchronous = OFF", "PRAGMA journal_mode = MEMORY", _TABLE):
            self._database.execute(line)
        self._database.execute("DELETE FROM issued WHERE expires < ?", (time.time(),))
        for row in self._database.execute("SELECT * FROM issued ORDER BY expires"):
            message, node, run, expires, objects, reply, session, awaited, received, ended = row
            self._nodes.setdefault(int(node), {})[message] = Issued(
                message=message,
                node=int(node),
                run=int(run),
                expires=expires,
                objects=frozenset(objects.split()),
                reply=reply,
                session=session,
                awaited=frozenset(awaited.split()),
                received=received,
                ended=ended,
            )

    def close(self) -> None:
        """Close the file of issued messages; nothing is noted after that."""
        self._database.close()

    def find(self, node: int, message: str) -> Issued | None:
        """A message, if it was issued to ``node``."""
        found = self._nodes.get(node, {}).get(message)
        return found if found is not None and found.expires > time.time() else None

    def open(self, node: int) -> Iterator[Issued]:
        """The newest messages of ``node``, the newest first."""
        now = time.time()
        newest = list(reversed(self._nodes.get(node, {}).values()))[:_OPEN]
        return (one for one in newest if one.expires > now)

    def knows_run(self, node: int, run: int) -> bool:
        """Whether ``node`` was given a message of ``run``."""
        return any(one.run == run for one in self._nodes.get(node, {}).values())

    def add(self, one: Issued) -> None:
        """Note a message that goes to its node now; the oldest and the expired are forgotten."""
        now = time.time()
        one.expires = min(one.expires, now + _LONGEST_S)
        known = self._nodes.setdefault(one.node, {})
        if one.message in known:
            return
        known[one.message] = one
        self.save(one)
        for index, old in enumerate(list(known.values())[:-_OPEN]):
            if old.expires < now or index < len(known) - _KNOWN:
                self._forget(old)
            elif old.objects or old.awaited:
                old.objects = old.awaited = frozenset()
                self.save(old)

    def save(self, one: Issued) -> None:
        """Write one message down."""
        self._database.execute(
            "INSERT OR REPLACE INTO issued VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                one.message,
                str(one.node),
                str(one.run),
                one.expires,
                " ".join(one.objects),
                one.reply,
                one.session,
                " ".join(one.awaited),
                one.received,
                one.ended,
            ),
        )

    def count(self, one: Issued, size: int) -> None:
        """Add ``size`` bytes to what came of a reply."""
        one.received += size
        self._database.execute(
            "UPDATE issued SET received = ? WHERE message = ?", (one.received, one.message)
        )

    def _forget(self, one: Issued) -> None:
        del self._nodes[one.node][one.message]
        self._database.execute("DELETE FROM issued WHERE message = ?", (one.message,))
