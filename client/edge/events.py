"""What a stream says: when an alarm starts and ends, as JSON lines with a bound on their file."""

import contextlib
import datetime
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedlatent.shared.errors import ConfigError, ServiceError

MAX_WINDOW = 10_000

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class OutputFailed(ServiceError):
    """Events cannot be written now; trying again later may help."""

    code: ClassVar[str] = "temporary"
    exit_code: ClassVar[int] = 75


class Debounce:
    """Turns flags into alarms, in batches.

    Attributes:
        on: whether there is an alarm.
    """

    def __init__(self, flagged: int = 1, of: int = 1, calm: int = 1) -> None:
        """Start without an alarm.

        Args:
            flagged: an alarm starts when so many ...
            of: ... of the last so many records are flagged.
            calm: it ends after so many records in a row that are not.

        Raises:
            ConfigError: not 1 <= flagged <= of <= `MAX_WINDOW`, or calm not in 1 ... `MAX_WINDOW`.
        """
        if not 1 <= flagged <= of <= MAX_WINDOW or not 1 <= calm <= MAX_WINDOW:
            raise ConfigError(
                f"Expected 1 <= flagged <= of <= {MAX_WINDOW} and 1 <= calm <= {MAX_WINDOW} for "
                f"alarms, got {flagged} of {of} and {calm}."
            )
        self.on = False
        self._flagged, self._of, self._calm = flagged, of, calm
        # True where flagged; an end of alarm makes the past calm.
        self._past = np.zeros(max(of, calm) - 1, dtype=bool)

    def push(self, flags: np.ndarray) -> list[int]:
        """Take flags [B] in order.

        Returns:
            Positions in ``flags`` where an alarm starts or ends, in turn; ``on`` is as after the
            last.
        """
        changes: list[int] = []
        place = held = len(self._past)
        joined = np.concatenate([self._past, flags])
        while place < len(joined) and (self.on or joined.any()):
            window = self._calm if self.on else self._of
            sums = np.concatenate([[0], np.cumsum(joined)])
            counts = sums[place + 1 :] - sums[place + 1 - window : len(sums) - window]
            hits = np.flatnonzero(counts == 0 if self.on else counts >= self._flagged)
            if not len(hits):
                break
            place += int(hits[0]) + 1
            changes.append(place - 1 - held)
            self.on = not self.on
            if not self.on:
                joined[:place] = False
        self._past = joined[len(joined) - held :]
        return changes


class EventLog:
    """Lines on standard output, or in a file of bounded size, readable by its owner only.

    When the file would pass ``max_bytes``, it becomes FILE.1 and a new one starts: both together
    stay below twice that.
    """

    def __init__(self, path: Path | None = None, max_bytes: int = 1 << 20) -> None:
        """Open ``path`` to append; None for standard output.

        Raises:
            ConfigError: ``max_bytes`` is below 4096.
            OutputFailed: it cannot be opened.
        """
        if max_bytes < 4096:
            raise ConfigError(f"Expected a log of at least 4096 bytes, got {max_bytes}.")
        self._path, self._max_bytes = path, max_bytes
        self._descriptor, self._size = 1, 0
        if path is not None:
            with self._guarded():
                self._open(path)

    def write(self, lines: Iterable[str]) -> None:
        """Write lines that have no line end, at once.

        Raises:
            OutputFailed: it cannot.
            BrokenPipeError: the reader of standard output is gone, as for any program.
        """
        batch: list[bytes] = []
        size = self._size
        with self._guarded():
            for line in lines:
                data = line.encode() + b"\n"
                if self._path is not None and size and size + len(data) > self._max_bytes:
                    self._append(b"".join(batch))
                    full = self._descriptor
                    self._path.replace(self._path.with_name(self._path.name + ".1"))
                    self._open(self._path)
                    os.close(full)
                    batch, size = [], 0
                batch.append(data)
                size += len(data)
            self._append(b"".join(batch))

    def close(self) -> None:
        """Close the log's file; nothing is written after that."""
        if self._path is not None:
            os.close(self._descriptor)

    def _append(self, data: bytes) -> None:
        while data:
            written = os.write(self._descriptor, data)
            self._size += written
            data = data[written:]

    def _open(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(
                f"Expected to write to {self._path or 'standard output'}, got "
                f"{error.strerror or type(error).__name__}; make room or correct its permissions."
            ) from None


def event_line(event: str, time: str, **values: object) -> str:
    """One event as a line of JSON: its name, the time (see `utc_now`) and ``values``.

    Numbers that JSON cannot carry become null.
    """
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            values[name] = None
    return _encode({"event": event, "time": time, **values})


def utc_now() -> str:
    """The time as "2026-01-31T12:00:00.000Z"."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return now.removesuffix("+00:00") + "Z"
