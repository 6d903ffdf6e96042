"""Rows with their places, and windows over time that never reach over a gap.

`Windows` makes records of rows that are time steps, as they come. It cuts a stream as
`fedlatent.shared.data.series.cut` does a file, and holds the steps of one record at most.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np

from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window, follows


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a source in their order, or records of them, and where each comes from.

    A record of several rows has the place and time of its last one.

    Attributes:
        values: numbers [n, size].
        number: int64 [n], place in the source from 1; refused rows count.
        fresh: bool [n], whether rows before it are missing, so that it continues none.
        line: int64 [n], line of the file from 1; None in formats without lines.
        stamp: texts [n] of the rows' times, as they are written; None without a column of times.
        seconds: float64 [n], the same times; None without.
        group: texts [n], the series of each row; None when all are of one.
    """

    values: np.ndarray
    number: np.ndarray
    fresh: np.ndarray
    line: np.ndarray | None = None
    stamp: np.ndarray | None = None
    seconds: np.ndarray | None = None
    group: np.ndarray | None = None

    def __len__(self) -> int:
        """How many rows."""
        return len(self.values)

    def take(self, which: slice | np.ndarray) -> Self:
        """Some of the rows."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        some: dict[str, Any] = {k: None if v is None else v[which] for k, v in found.items()}
        return replace(self, **some)

    def place(self, index: int) -> dict[str, object]:
        """Number, line and time of one row as JSON-ready values, as far as they are known."""
        found: dict[str, object] = {"row": int(self.number[index])}
        if self.line is not None:
            found["line"] = int(self.line[index])
        if self.stamp is not None:
            found["row_time"] = str(self.stamp[index])
        return found

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """Parts of one source, at least one, behind each other."""
        if len(parts) == 1:
            return parts[0]
        arrays = {one.name: [getattr(part, one.name) for part in parts] for one in fields(cls)}
        whole: dict[str, Any] = {
            k: None if v[0] is None else np.concatenate(v) for k, v in arrays.items()
        }
        return cls(**whole)


def row_schema(schema: Schema) -> Schema:
    """The schema of one time step of a record whose last axis is time: (C, T) gives (C,)."""
    shape = () if schema.columns else (math.prod(schema.shape[:-1]),)
    return replace(schema, shape=shape, window=None)


def row_of(schema: Schema) -> Schema:
    """The schema of a row of a file: of a time step where the schema has a window."""
    return schema if schema.window is None else row_schema(schema)


class Windows:
    """Overlapping records out of time steps.

    Attributes:
        window: how many steps a record has, and what parts series.
        gaps: how often a row did not continue the one before: rows in between were refused or lost,
            or there was a hole in time. No record holds rows of both sides.
    """

    def __init__(self, window: Window) -> None:
        """Start empty."""
        self.window, self.gaps = window, 0
        self._single = window.length == window.step == 1  # a row is a record
        self._held: np.ndarray | None = None  # steps [n, C] that later records may begin in
        self._skip = 0  # steps to come that start no record
        self._rows = self._used = self._made = 0  # the last since a series began anew
        self._last: tuple[float, object] | None = None  # time and series of the last row

    @property
    def unused(self) -> int:
        """Rows so far that are in no record: their stretch is too short, or too long by some."""
        return self._rows - self._used - self._in_records

    @property
    def _in_records(self) -> int:
        """Rows in records since a series began anew."""
        length, step = self.window.length, self.window.step
        return length + (self._made - 1) * min(length, step) if self._made else 0

    def push(self, rows: Rows) -> Rows:
        """Records that are complete with ``rows`` [n, C]: their values are [m, C * length]."""
        if not len(rows):
            return self._records(rows)
        begins = self._begins(rows)
        if self._single:
            return rows
        edges = sorted({0, *np.flatnonzero(begins).tolist(), len(rows)})
        made = []
        for start, end in pairwise(edges):
            if begins[start]:
                self._used += self._in_records
                self._held, self._skip, self._made = None, 0, 0
            made.append(self._records(rows.take(slice(start, end))))
        return Rows.joined(made)

    def _begins(self, rows: Rows) -> np.ndarray:
        """Which rows start anew, bool [n]; counts the gaps among them."""
        holes, others = rows.fresh.copy(), np.zeros(len(rows), dtype=bool)
        last = self._last
        if rows.group is not None:
            before = np.concatenate([rows.group[:1] if last is None else [last[1]], rows.group])
            others = before[:-1] != before[1:]
        if rows.seconds is not None and (self.window.rate or not self._single):
            before = np.concatenate([[math.nan if last is None else last[0]], rows.seconds[:-1]])
            steady = follows(before, rows.seconds, self.window)
            steady[0] |= last is None
            holes |= ~steady & ~others
        self._last = (
            math.nan if rows.seconds is None else float(rows.seconds[-1]),
            None if rows.group is None else rows.group[-1],
        )
        self.gaps += int(np.count_nonzero(holes))
        return holes | others

    def _records(self, rows: Rows) -> Rows:
        """Records that are complete with ``rows``, none of which starts anew but the first."""
        length, step = self.window.length, self.window.step
        held = rows.values[:0] if self._held is None else self._held
        steps = np.concatenate([held, rows.values])[self._skip :]
        self._skip -= len(held) + len(rows) - len(steps)
        count = max(0, (len(steps) - length) // step + 1)
        self._rows, self._made = self._rows + len(rows), self._made + count
        passed = count * step
        self._held = steps[passed:]
        self._skip += passed - (len(steps) - len(self._held))
        ends = np.arange(count) * step + length - 1 + len(rows) - len(steps)
        if not count:
            values = np.zeros((0, rows.values.shape[1] * length))
        else:
            views = np.lib.stride_tricks.sliding_window_view(steps, length, axis=0)
            values = np.array(views[::step]).reshape(count, -1)  # from [m, C, length]
        return replace(rows.take(ends), values=values)
