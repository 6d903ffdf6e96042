"""Series cut into records: windows over rows, never over a hole, and never over two series."""

import datetime
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlatent.shared.data.limits import check_text, checked_count, checked_float
from fedlatent.shared.errors import ConfigError, DataError

MAX_LENGTH = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Window:
    """How rows that are time steps become records; the table [data.window] of a run file.

    Attributes:
        length: Rows of a record.
        step: Rows from the start of one record to the start of the next.
        time: Name of the column of times, in seconds or as ISO 8601 dates; empty when rows follow
            each other without one.
        group: Name of the column whose values each are a series of their own; empty for one series.
        rate: Rows per second; 0 when unknown. With `time` it finds holes.
        gap: Longest time between two rows, in the usual time between rows, that is no hole.

    Raises:
        ConfigError: A field is not as it must be.
    """

    length: int
    step: int = 1
    time: str = ""
    group: str = ""
    rate: float = 0.0
    gap: float = 1.5

    def __post_init__(self) -> None:
        """Check every field."""
        checked_count("window length", self.length, MAX_LENGTH)
        checked_count("window step", self.step, MAX_LENGTH)
        for key in ("time", "group"):
            check_text(f"window {key}", getattr(self, key), least=0)
        for key, least in (("rate", 0.0), ("gap", 1.0)):
            value = checked_float(f"window {key}", getattr(self, key))
            object.__setattr__(self, key, value)
            if value < least:
                raise ConfigError(
                    f"Expected window {key} of at least {least:g}, got {value:g}; correct it.",
                    field=f"window.{key}",
                )
        if self.rate and not self.time:
            raise ConfigError(
                "Expected window rate beside the name of a time column, got no window time; name "
                "it or leave the rate out.",
                field="window.rate",
            )

    @property
    def longest(self) -> float:
        """Most seconds between two rows that follow each other; infinite when nobody said."""
        return self.gap / self.rate if self.rate else float("inf")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping of all fields."""
        return asdict(self)


_SHORT_STEP = 0.5  # of the time between rows that a rate says
#: 202510261530 or 20251026153000: no number of seconds.
_PACKED_DATE = re.compile(r"(?:19|20)[0-9]{10}(?:[0-9]{2})?")


def seconds_of(cell: object) -> float:
    """A time in seconds, from a number or an ISO 8601 date; dates without a zone are UTC.

    Raises:
        ValueError: It is neither.
    """
    text = str(cell).strip()
    if _PACKED_DATE.fullmatch(text):
        raise ValueError("a date without its dashes, which would count as seconds")
    try:
        return float(text)
    except ValueError:
        moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()


def seconds_or_none(cell: object) -> float | None:
    """A finite time in seconds, or None where a cell is none."""
    try:
        found = seconds_of(cell)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def all_seconds(cells: ArrayLike, column: str, name: str) -> NDArray[np.float64]:
    """Times of rows in seconds [n].

    Args:
        cells: numbers or texts [n].
        column: that holds them, for messages.
        name: of the file, for messages.

    Raises:
        DataError: one is neither a number nor a date; its reason is "time".
    """
    found = [*map(seconds_or_none, np.asarray(cells).tolist())]
    if None in found:
        raise DataError(
            f"Expected seconds or an ISO 8601 date in column {column!r} of {name}, got another in "
            f"record {found.index(None) + 1}; correct it.",
            field=column,
            reason="time",
        )
    return np.array(found, dtype=np.float64)


def check_steps(seconds: NDArray[np.float64], window: Window, name: str) -> None:
    """See that times pass as the rate of a window says: a day that counts as 24 is no hole.

    Args:
        seconds: times of rows [n].
        window: with a rate, or without, which says nothing.
        name: of the file, for messages.

    Raises:
        DataError: half of the steps are shorter than half of what the rate says.
    """
    steps = np.diff(seconds)
    steps = steps[steps > 0.0]
    if window.rate and len(steps) and float(np.median(steps)) < _SHORT_STEP / window.rate:
        raise DataError(
            f"Expected {1.0 / window.rate:g} seconds from row to row of {name}, as the window's "
            f"rate says, got {float(np.median(steps)):g} in the middle; write times in column "
            f"{window.time!r} in seconds or as ISO dates, or correct the rate.",
            field=window.time,
            reason="rate",
        )


def follows(before: ArrayLike, now: ArrayLike, window: Window) -> NDArray[np.bool_]:
    """Whether a row at ``now`` continues a series whose last row is at ``before``, in seconds."""
    passed = np.subtract(now, before)
    return (passed > 0.0) & (passed <= window.longest)


def stretches(
    rows: int,
    window: Window,
    times: NDArray[np.float64] | None,
    groups: ArrayLike | None,
) -> Iterator[slice]:
    """Rows that follow each other without a hole and belong to one series, in their order.

    Args:
        rows: How many there are.
        window: Says how long a hole is.
        times: Seconds [rows], or None.
        groups: The series of each row [rows], or None. A series is one block of rows.
    """
    new = np.zeros(max(0, rows - 1), dtype=np.bool_)
    if groups is not None:
        owners = np.asarray(groups)
        new |= owners[1:] != owners[:-1]
    if times is not None:
        new |= ~follows(times[:-1], times[1:], window)
    edges = [0, *(np.flatnonzero(new) + 1).tolist(), rows]
    for start, end in pairwise(edges):
        yield slice(start, end)


def places(
    rows: int,
    window: Window,
    times: NDArray[np.float64] | None = None,
    groups: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """First row of every record, ascending: int64 [M]; arguments as of `stretches`."""
    found = [
        np.arange(part.start, part.stop - window.length + 1, window.step, dtype=np.int64)
        for part in stretches(rows, window, times, groups)
    ]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def cut(
    rows: NDArray[np.float64],
    window: Window,
    times: NDArray[np.float64] | None = None,
    groups: ArrayLike | None = None,
    name: str = "",
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Records out of rows.

    Args:
        rows: [n, C], a time step each.
        window: How long records are, and what parts series.
        times: Seconds [n], or None.
        groups: The series of each row [n], or None.
        name: Of the file, for messages.

    Returns:
        Raw records [M, C, length], and the first row of each [M].

    Raises:
        DataError: There is not one whole record.
    """
    begins = places(len(rows), window, times, groups)
    if not len(begins):
        raise DataError(
            f"Expected {window.length} rows{f' of {name}' if name else ''} that follow each other "
            f"for one record, got fewer in every series of {len(rows)} rows; sort them by series "
            "and time, shorten the window, or say a longer gap.",
            field="window.length",
            reason="short",
        )
    at = begins[:, np.newaxis] + np.arange(window.length)
    return np.ascontiguousarray(rows[at].transpose(0, 2, 1)), begins
