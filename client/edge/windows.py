"""From bytes to records: the formats of a stream, and windows over time.

A decoder takes bytes as they come and gives rows of numbers; `Windows` makes records of rows that
are time steps. Both hold at most one unfinished line, row or window, so memory stays flat.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.table import LARGEST, MARK, Table
from fedlatent.shared.errors import ConfigError, DataError

#: Rows that a decoder gives at once, at most.
BATCH = 256

_LINE_BYTES = 65_536
_BYTES_PER_VALUE = 64  # of a line; more than any printed double


class Decoder(ABC):
    """Rows of numbers from bytes.

    Attributes:
        schema: of one row; see `row_schema`.
        rows: how many have been given or refused.
        bad: how many were refused and passed over.
        cut: how many incomplete ones were dropped where the source broke off.
        record_bytes: of a row in a raw format; 0 for lines.
    """

    _item_bytes = 0

    def __init__(
        self, schema: Schema, *, columns: Sequence[str] | None = None, skip_bad: bool = False
    ) -> None:
        """Make a decoder.

        Args:
            schema: of one row.
            columns: header names of a CSV in record order; None takes all. Others have none.
            skip_bad: count a row that is not as it must be and go on, rather than stop.
        """
        self.schema = schema
        self.rows = self.bad = self.cut = 0
        self.record_bytes = schema.size * self._item_bytes
        self._skip_bad = skip_bad
        self._rest = b""

    @abstractmethod
    def feed(self, data: bytes) -> Iterator[np.ndarray]:
        """Rows that are complete with ``data``: float [n, size], 1 <= n <= `BATCH`.

        Raises:
            DataError: a row is not as it must be; the sentence names the row, never its values.
        """

    @abstractmethod
    def finish(self) -> Iterator[np.ndarray]:
        """What is left when the source has ended, as in `feed`."""

    def drop(self) -> None:
        """Forget an incomplete row: what comes next does not continue it."""
        self.cut += bool(self._rest)
        self._rest = b""

    def _refuse(self, error: DataError) -> None:
        """Count one bad row, or stop with ``error``."""
        if not self._skip_bad:
            raise error from None
        self.bad += 1

    def _finite(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """The rows of ``values`` [n, size] without NaN, infinity and what would overflow."""
        largest = min(LARGEST, float(np.finfo(values.dtype).max))
        with np.errstate(invalid="ignore"):
            good = (np.abs(values) <= largest).all(axis=1)
        first = self.rows + 1
        self.rows += len(values)
        if not good.all():
            for index in np.flatnonzero(~good):
                self._refuse(
                    DataError(
                        "Expected finite values, got NaN, infinity or overflow in record "
                        f"{first + int(index)}; fill or drop it.",
                        reason="finite",
                    )
                )
            values = values[good]
        if len(values):
            yield values


class RawDecoder(Decoder):
    """Little-endian floats without any frame, for high rates."""

    _item_bytes = 4

    def feed(self, data: bytes) -> Iterator[np.ndarray]:
        """Finite rows [n, size] of the bytes so far: see `Decoder.feed`."""
        data = self._rest + data if self._rest else data
        rows = len(data) // self.record_bytes
        self._rest = data[rows * self.record_bytes :]
        values = np.frombuffer(data, f"<f{self._item_bytes}", rows * self.schema.size)
        values = values.reshape(rows, self.schema.size)
        for start in range(0, rows, BATCH):
            yield from self._finite(values[start : start + BATCH])

    def finish(self) -> Iterator[np.ndarray]:
        """No rows, since what is left is a part of one: see `Decoder.finish`."""
        if self._rest:
            left, self._rest = len(self._rest), b""
            self.rows += 1
            self._refuse(
                DataError(
                    f"Expected records of {self.record_bytes} bytes, got {left} bytes at the end; "
                    "check format and bundle.",
                    reason="width",
                )
            )
        yield from ()


class DoubleDecoder(RawDecoder):
    """As `RawDecoder`, of 64 bits."""

    _item_bytes = 8


class LineDecoder(Decoder):
    """Rows from lines of UTF-8 text; blank lines are passed over."""

    _skipping = False  # in the middle of a line that was refused

    def feed(self, data: bytes) -> Iterator[np.ndarray]:
        """Finite rows [n, size] of the bytes so far: see `Decoder.feed`."""
        if self._skipping:
            _, newline, data = data.partition(b"\n")
            self._skipping = not newline
        head, newline, self._rest = (self._rest + data).rpartition(b"\n")
        lines = head.split(b"\n") if newline else []
        for start in range(0, len(lines), BATCH):
            yield from self._rows(lines[start : start + BATCH])
        cap = _LINE_BYTES + _BYTES_PER_VALUE * self.schema.size
        if len(self._rest) > cap:
            self._rest, self._skipping = b"", True
            self.rows += 1
            self._refuse(
                DataError(
                    f"Expected a line of at most {cap} bytes, got a longer one as record "
                    f"{self.rows}; check the format.",
                    reason="width",
                )
            )

    def finish(self) -> Iterator[np.ndarray]:
        """See `Decoder.finish`; a last line needs no line end."""
        last, self._rest = self._rest, b""
        yield from self._rows([last])

    def drop(self) -> None:
        """Forget the beginning of a line: see `Decoder.drop`."""
        super().drop()
        self._skipping = False

    def _rows(self, lines: Sequence[bytes]) -> Iterator[np.ndarray]:
        kept = [line for raw in lines if (line := raw.removeprefix(MARK).strip())]
        if kept:
            yield from self._finite(self._parse(kept))

    def _parse(self, lines: Sequence[bytes]) -> np.ndarray:
        """Rows [n, size] of lines that are not blank; those refused are missing."""
        rows: list[list[float]] = []
        for line in lines:
            number = self.rows + len(rows) + 1
            try:
                row = self._row(line, number)
                if len(row) != self.schema.size:
                    raise DataError(
                        f"Expected {self.schema.size} values for schema {self.schema.name!r}, got "
                        f"{len(row)} in record {number}; choose other columns, window or bundle.",
                        reason="width",
                    )
                rows.append(row)
            except DataError as error:
                self._refuse(error)
                self.rows += 1
        return np.array(rows, dtype=np.float64).reshape(-1, self.schema.size)

    @abstractmethod
    def _row(self, line: bytes, number: int) -> list[float]:
        """Record ``number`` of one line; a DataError when it is not as it must be."""


class CsvDecoder(LineDecoder):
    """Comma-separated values, by the rule of `fedlatent.shared.data.table`."""

    def __init__(
        self, schema: Schema, *, columns: Sequence[str] | None = None, skip_bad: bool = False
    ) -> None:
        """Make a decoder; the arguments are those of `Decoder`."""
        super().__init__(schema, columns=columns, skip_bad=skip_bad)
        self._table = Table(columns, width=schema.size)

    def take_header(self, line: bytes) -> None:
        """Take a first line as the header, unless it is empty or all its cells are numbers.

        Raises:
            DataError: columns are to be chosen that it does not name.
        """
        if line:
            self._table.begin(line.removeprefix(MARK).strip())

    def _parse(self, lines: Sequence[bytes]) -> np.ndarray:
        if self._table.width is None:
            self._table.begin(lines[0])
        lines = [line for line in lines if line != self._table.header]
        rows = self._table.quickly(lines) if lines else None
        if rows is not None and rows.shape[1] == self.schema.size:
            return rows
        return super()._parse(lines)

    def _row(self, line: bytes, number: int) -> list[float]:
        return self._table.values(line, number)


class JsonLinesDecoder(LineDecoder):
    """One JSON value a line: a list of numbers, or an object with one at "values"."""

    def _row(self, line: bytes, number: int) -> list[float]:
        try:
            value = json.loads(line)
            if isinstance(value, dict):
                value = value.get("values")
            if isinstance(value, list) and all(type(item) in (int, float) for item in value):
                return [float(item) for item in value]
        except (ValueError, RecursionError, OverflowError):
            pass
        raise DataError(
            f"Expected a JSON list of finite numbers, got something else in record {number}; "
            "correct it.",
            reason="number",
        )


DECODERS: dict[str, type[Decoder]] = {
    "csv": CsvDecoder,
    "jsonl": JsonLinesDecoder,
    "f32": RawDecoder,
    "f64": DoubleDecoder,
}


def row_schema(schema: Schema) -> Schema:
    """The schema of one time step of a record whose last axis is time: (C, T) gives (C,)."""
    return replace(schema, shape=(math.prod(schema.shape[:-1]),))


class Windows:
    """Overlapping records out of time steps; holds at most the steps of one record.

    The last axis of a record is time: (T,) is T steps of one value, (C, T) T steps of C values.
    """

    def __init__(self, schema: Schema, hop: int) -> None:
        """Start empty.

        Args:
            schema: of a record.
            hop: steps from the start of one record to the start of the next.

        Raises:
            ConfigError: ``hop`` is not positive.
        """
        if hop < 1:
            raise ConfigError(f"Expected a window hop of at least 1 time step, got {hop}.")
        self._length, self._hop, self._size = schema.shape[-1], hop, schema.size
        self._held = np.zeros((0, schema.size // self._length))
        self._skip = 0  # steps to come that start no record

    def push(self, rows: np.ndarray) -> np.ndarray:
        """Records that are complete with ``rows`` [n, C]: float64 [m, C * T]."""
        steps = np.concatenate([self._held, rows])[self._skip :]
        self._skip -= len(self._held) + len(rows) - len(steps)
        count = max(0, (len(steps) - self._length) // self._hop + 1)
        passed = count * self._hop
        self._held = steps[passed:]
        if not count:
            return np.zeros((0, self._size))
        self._skip = passed - (len(steps) - len(self._held))
        views = np.lib.stride_tricks.sliding_window_view(steps, self._length, axis=0)
        return np.array(views[:: self._hop]).reshape(count, -1)  # from [m, C, T]

    def reset(self) -> None:
        """Forget the held steps: the next one does not follow on them."""
        self._held, self._skip = self._held[:0], 0
