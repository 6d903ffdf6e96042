"""When a supervised process last spoke with its peer: two file times in its service's folder.

The process notes them, its supervisor and ``status`` read them; no content, so nothing can be torn.
"""

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

FOLDER_VARIABLE = "FEDLATENT_CONTACT"
"""Environment variable that names the folder; the supervisor sets it for each service."""

_LEAST_S = 1.0  # between two notes of one kind


@dataclass
class Contact:
    """The last try to reach the peer, and the last answer from it.

    Attributes:
        folder: Of the service.
    """

    folder: Path
    _noted: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_process(cls) -> "Contact | None":
        """That of this process; None where no supervisor runs it."""
        folder = os.environ.get(FOLDER_VARIABLE)
        return cls(Path(folder)) if folder else None

    def tried(self) -> None:
        """Note that a request was sent."""
        self._note("tried")

    def answered(self) -> None:
        """Note that a request was answered, with whatever status."""
        self._note("answered")

    @property
    def last_tried(self) -> float | None:
        """When, in seconds since 1970; None before the first."""
        return self._read("tried")

    @property
    def last_answered(self) -> float | None:
        """When, in seconds since 1970; None before the first."""
        return self._read("answered")

    def _note(self, name: str) -> None:
        now = time.monotonic()
        if now - self._noted.get(name, -_LEAST_S) >= _LEAST_S:
            self._noted[name] = now
            with contextlib.suppress(OSError):  # a full disk is no reason to ask nothing
                (self.folder / f"contact.{name}").touch(0o600)

    def _read(self, name: str) -> float | None:
        try:
            return (self.folder / f"contact.{name}").stat().st_mtime
        except OSError:  # there is none
            return None

    def forget_tries(self) -> None:
        """Begin anew, as for a process that starts."""
        (self.folder / "contact.tried").unlink(missing_ok=True)


@dataclass
class Silence:
    """Whether a process asks its peer as often as it should, seen from its supervisor.

    What counts is how long its note has not changed, by a clock that nobody sets.

    Attributes:
        contact: Of the process.
    """

    contact: Contact
    _note: float | None = None
    _since: float = field(default_factory=time.monotonic)

    def ailment(self, most_s: float) -> str:
        """What ails a process that asks at least each ``most_s`` seconds; empty for nothing."""
        note, now = self.contact.last_tried, time.monotonic()
        if note is None or note != self._note:
            self._note, self._since = note, now
        silence = now - self._since
        return f"it has asked its peer for nothing for {silence:.0f} s" if silence > most_s else ""
