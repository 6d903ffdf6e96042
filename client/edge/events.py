"""What a stream says: when an alarm starts and ends, as JSON lines with a bound on their file."""

import datetime
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np

from shared.errors import ConfigError, ServiceError

MAX_WINDOW = 10_000

Change = Literal["alarm", "clear"]


class OutputFailed(ServiceError):
    """Events cannot be written now; trying again later may help."""

    code: ClassVar[str] = "temporary"
    exit_code: ClassVar[int] = 75


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When an alarm starts and ends.

    Attributes:
        flagged: an alarm starts when so many ...
        of: ... of the last so many records are flagged.
        calm: it ends after so many records in a row that are not.

    Raises:
        ConfigError: not 1 <= flagged <= of <= `MAX_WINDOW`, or calm not in 1 ... `MAX_WINDOW`.
    """

    flagged: int = 1
    of: int = 1
    calm: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.flagged <= self.of <= MAX_WINDOW or not 1 <= self.calm <= MAX_WINDOW:
            raise ConfigError(
                f"Expected 1 <= flagged <= of <= {MAX_WINDOW} and 1 <= calm <= {MAX_WINDOW} for "
                f"alarms, got {self.flagged} of {self.of} and {self.calm}."
            )


class Debounce:
    """Turns flags into alarms by a `Rule`, in batches.

    Attributes:
        on: whether there is an alarm.
    """

    def __init__(self, rule: Rule) -> None:
        """Start without an alarm."""
        self._rule = rule
        self.on = False
        # True where flagged; an end of alarm makes the past calm.
        self._past = np.zeros(max(rule.of, rule.calm) - 1, dtype=bool)

    def push(self, flags: np.ndarray) -> list[tuple[int, Change]]:
        """Take flags [B] in order.

        Returns:
            Position in ``flags`` and kind of each change.
        """
        changes: list[tuple[int, Change]] = []
        held = len(self._past)
        joined = np.concatenate([self._past, flags])
        place = held
        if not self.on and not joined.any():
            place = len(joined)  # the usual case, fast
        while place < len(joined):
            rule = self._rule
            if self.on:
                reached = _counts(joined, rule.calm, place) == 0
            else:
                reached = _counts(joined, rule.of, place) >= rule.flagged
            hits = np.flatnonzero(reached)
            if not len(hits):
                break
            place += int(hits[0])
            self.on = not self.on
            changes.append((place - held, "alarm" if self.on else "clear"))
            if not self.on:
                joined[: place + 1] = False
            place += 1
        self._past = joined[len(joined) - held :].copy()
        return changes


class Sink(Protocol):
    """Where lines go."""

    def write(self, lines: Iterable[str]) -> None:
        """Write lines that have no line end, at once.

        Raises:
            OutputFailed: it cannot.
        """

    def close(self) -> None:
        """Give back what it holds."""


class StandardOutput:
    """Lines on standard output, each batch flushed."""

    def write(self, lines: Iterable[str]) -> None:
        """See `Sink.write`; a reader that is gone is a BrokenPipeError, as for any program."""
        try:
            sys.stdout.write("".join(line + "\n" for line in lines))
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _failed("standard output", error) from None

    def close(self) -> None:
        """Nothing to give back."""


class LogFile:
    """Lines in a file of bounded size, readable by its owner only.

    When the file would pass ``max_bytes``, it becomes FILE.1 in place of the one before, and a new
    one starts: both together stay below twice that.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Open ``path`` to append.

        Raises:
            ConfigError: ``max_bytes`` is below 4096.
            OutputFailed: it cannot be opened.
        """
        if max_bytes < 4096:
            raise ConfigError(f"Expected a log of at least 4096 bytes, got {max_bytes}.")
        self._path, self._max_bytes = path, max_bytes
        self._descriptor, self._size = self._open()

    def write(self, lines: Iterable[str]) -> None:
        """See `Sink.write`."""
        batch: list[bytes] = []
        size = self._size
        for line in lines:
            data = line.encode() + b"\n"
            if size and size + len(data) > self._max_bytes:
                self._append(batch)
                self._rotate()
                batch, size = [], 0
            batch.append(data)
            size += len(data)
        self._append(batch)

    def close(self) -> None:
        """See `Sink.close`."""
        os.close(self._descriptor)

    def _append(self, batch: list[bytes]) -> None:
        data = b"".join(batch)
        try:
            while data:
                written = os.write(self._descriptor, data)
                self._size += written
                data = data[written:]
        except OSError as error:
            raise _failed(str(self._path), error) from None

    def _rotate(self) -> None:
        try:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        except OSError as error:
            raise _failed(str(self._path), error) from None
        os.close(self._descriptor)
        self._descriptor, self._size = self._open()

    def _open(self) -> tuple[int, int]:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self._path, flags, 0o600)
            return descriptor, os.fstat(descriptor).st_size
        except OSError as error:
            raise _failed(str(self._path), error) from None


def event_line(event: str, values: Mapping[str, object]) -> str:
    """One event as a line of JSON: its name, the time (UTC) and ``values``.

    Numbers that JSON cannot carry become null.
    """
    checked = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
    return json.dumps(
        {"event": event, "time": utc_now(), **checked}, separators=(",", ":"), ensure_ascii=False
    )


def score_lines(first: int, scores: np.ndarray, flags: np.ndarray, threshold: float) -> list[str]:
    """A "score" event for each of B records, of which the first has number ``first``."""
    head = f'{{"event":"score","time":"{utc_now()}","record":'
    tail = f',"threshold":{threshold!r}}}'
    return [
        f'{head}{first + index},"score":{score!r},"flag":{"true" if flag else "false"}{tail}'
        for index, (score, flag) in enumerate(zip(scores.tolist(), flags.tolist(), strict=True))
    ]


def utc_now() -> str:
    """The time as "2026-01-31T12:00:00.000Z"."""
    moment = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _counts(joined: np.ndarray, window: int, start: int) -> np.ndarray:
    """How many of the ``window`` values up to each position from ``start`` on are true."""
    sums = np.concatenate([[0], np.cumsum(joined)])
    return np.asarray(sums[start + 1 :] - sums[start + 1 - window : len(sums) - window])


def _failed(name: str, error: OSError) -> OutputFailed:
    return OutputFailed(
        f"Expected to write to {name}, got {error.strerror or type(error).__name__}; make room or "
        "correct its permissions."
    )
