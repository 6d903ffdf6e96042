"""From bytes to records: the formats of a stream, and windows over time.

A decoder takes bytes as they come and gives rows of numbers; `Windows` makes records of rows that
are time steps. Both hold at most one unfinished line, row or window, so memory stays flat.
"""

import csv
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np

from client.edge.reader import column_indices, is_number, row_values
from shared.data.schema import Schema
from shared.errors import ConfigError, DataError

#: Rows that a decoder gives at once, at most.
BATCH = 256
FORMATS = ("csv", "jsonl", "f32", "f64")

_LINE_BYTES = 65_536
_BYTES_PER_VALUE = 64  # of a line; more than any printed double
_MAX_MAGNITUDE = 1e150  # of a value; its product with a scale stays finite
_RAW: dict[str, np.dtype[np.floating]] = {"f32": np.dtype("<f4"), "f64": np.dtype("<f8")}


class Decoder(ABC):
    """Rows of numbers from bytes.

    Attributes:
        schema: of one row; see `row_schema`.
        rows: how many have been given or refused.
        bad: how many were refused and passed over.
        cut: how many incomplete ones were dropped where the source broke off.
    """

    def __init__(self, schema: Schema, *, skip_bad: bool = False, where: str = "stream") -> None:
        """Make a decoder.

        Args:
            schema: of one row.
            skip_bad: count a row that is not as it must be and go on, rather than stop.
            where: name of the source, for error sentences.
        """
        self.schema = schema
        self.rows = self.bad = self.cut = 0
        self._skip_bad = skip_bad
        self._where = where
        self._rest = b""

    @abstractmethod
    def feed(self, data: bytes) -> Iterator[np.ndarray]:
        """Rows that are complete with ``data``: float [n, size], 1 <= n <= `BATCH`.

        Raises:
            DataError: a row is not as it must be; the sentence names the row, never its values.
        """

    @abstractmethod
    def finish(self) -> Iterator[np.ndarray]:
        """What is left when the source has ended, as in `feed`.

        Raises:
            DataError: a row is not as it must be, or incomplete.
        """

    def drop(self) -> None:
        """Forget an incomplete row: what comes next does not continue it."""
        if self._rest:
            self.cut += 1
        self._rest = b""

    def _refused(self, sentence: str) -> None:
        """Count one bad row, or stop with ``sentence``."""
        if not self._skip_bad:
            raise DataError(sentence)
        self.bad += 1

    def _finite(self, values: np.ndarray) -> np.ndarray:
        """The rows of ``values`` [n, size] without NaN, infinity and what would overflow."""
        start = self.rows
        self.rows += len(values)
        with np.errstate(invalid="ignore"):
            good = (np.abs(values) <= min(_MAX_MAGNITUDE, _largest(values))).all(axis=1)
        if good.all():
            return values
        for index in np.flatnonzero(~good):
            self._refused(
                f"Expected finite values, got NaN, infinity or overflow in record "
                f"{start + int(index) + 1} of {self._where}; fill it, or use --skip-bad."
            )
        return np.asarray(values[good])


class RawDecoder(Decoder):
    """Little-endian floats without any frame, for high rates."""

    def __init__(
        self, schema: Schema, kind: str, *, skip_bad: bool = False, where: str = "stream"
    ) -> None:
        """Like `Decoder`; ``kind`` is "f32" or "f64"."""
        super().__init__(schema, skip_bad=skip_bad, where=where)
        self._dtype = _RAW[kind]
        self._bytes = schema.size * self._dtype.itemsize

    def feed(self, data: bytes) -> Iterator[np.ndarray]:
        """See `Decoder.feed`."""
        data = self._rest + data if self._rest else data
        whole = len(data) // self._bytes * self._bytes
        self._rest = data[whole:]
        rows = np.frombuffer(data, self._dtype, whole // self._dtype.itemsize)
        rows = rows.reshape(-1, self.schema.size)
        for start in range(0, len(rows), BATCH):
            good = self._finite(rows[start : start + BATCH])
            if len(good):
                yield good

    def finish(self) -> Iterator[np.ndarray]:
        """See `Decoder.finish`."""
        if self._rest:
            left, self._rest = len(self._rest), b""
            self.rows += 1
            self._refused(
                f"Expected records of {self._bytes} bytes in {self._where}, got {left} bytes at "
                "its end; check format and bundle."
            )
        yield from ()


class LineDecoder(Decoder):
    """Rows from lines of UTF-8 text; blank lines are passed over."""

    def __init__(self, schema: Schema, *, skip_bad: bool = False, where: str = "stream") -> None:
        """Like `Decoder`."""
        super().__init__(schema, skip_bad=skip_bad, where=where)
        self._cap = _LINE_BYTES + _BYTES_PER_VALUE * schema.size
        self._too_long = False  # in the middle of a line that was refused

    def feed(self, data: bytes) -> Iterator[np.ndarray]:
        """See `Decoder.feed`."""
        head, newline, tail = data.rpartition(b"\n")
        if newline:
            lines = self._close_first(head).split(b"\n")
            for start in range(0, len(lines), BATCH):
                yield from self._rows(lines[start : start + BATCH])
        self._hold(tail)

    def finish(self) -> Iterator[np.ndarray]:
        """See `Decoder.finish`; a last line needs no line end."""
        last, self._rest = self._rest, b""
        if last:
            yield from self._rows([last])

    def drop(self) -> None:
        """See `Decoder.drop`."""
        super().drop()
        self._too_long = False

    def _close_first(self, head: bytes) -> bytes:
        """``head`` with what was held of its first line, or without that line if it is refused."""
        if self._too_long:
            head = head.partition(b"\n")[2]
        elif self._rest:
            head = self._rest + head
        self._rest, self._too_long = b"", False
        return head

    def _hold(self, tail: bytes) -> None:
        if self._too_long or not tail:
            return
        self._rest += tail
        if len(self._rest) > self._cap:
            self._rest, self._too_long = b"", True
            self._refuse_long()

    def _refuse_long(self) -> None:
        self.rows += 1
        self._refused(
            f"Expected a line of at most {self._cap} bytes, got a longer one as record "
            f"{self.rows} of {self._where}; check the format."
        )

    def _rows(self, lines: Sequence[bytes]) -> Iterator[np.ndarray]:
        kept = [line for line in lines if line and not line.isspace()]
        if max(map(len, kept), default=0) > self._cap:
            for _ in [line for line in kept if len(line) > self._cap]:
                self._refuse_long()
            kept = [line for line in kept if len(line) <= self._cap]
        if kept:
            rows = self._finite(self._parse(kept))
            if len(rows):
                yield rows

    @abstractmethod
    def _parse(self, lines: Sequence[bytes]) -> np.ndarray:
        """Rows [n, size] of lines that are not blank; those refused are missing."""

    def _one_by_one(
        self, lines: Sequence[bytes], parse: Callable[[str, str], list[float]]
    ) -> np.ndarray:
        """Parse each line alone, with its name for error sentences."""
        rows: list[list[float]] = []
        for line in lines:
            where = f"record {self.rows + len(rows) + 1} of {self._where}"
            try:
                rows.append(parse(_text(line, where), where))
            except DataError as error:
                self._refused(str(error))
                self.rows += 1
        return np.array(rows, dtype=np.float64).reshape(-1, self.schema.size)


class CsvDecoder(LineDecoder):
    """Comma-separated values; a first line with a cell that is no number is the header.

    A later line that equals the header is passed over: files that are rotated and servers that
    are asked again repeat it.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        columns: Sequence[str] | None = None,
        skip_bad: bool = False,
        where: str = "stream",
    ) -> None:
        """Like `Decoder`; ``columns`` are header names in record order, None takes all."""
        super().__init__(schema, skip_bad=skip_bad, where=where)
        self._columns = columns
        self._header: bytes | None = None
        self._indices: list[int] | None = None
        self._width: int | None = None
        self._first = True

    def take_header(self, line: bytes) -> bool:
        """Take ``line`` as the header unless all its cells are numbers; before the first row.

        Returns:
            Whether it was a header.

        Raises:
            DataError: columns are to be chosen that it does not name.
        """
        self._first = False
        line = line.removeprefix(b"\xef\xbb\xbf").strip()
        cells = _cells(_text(line, f"the header of {self._where}"), self._where)
        header = None if all(is_number(cell) for cell in cells) else cells
        self._indices = column_indices(header, self._columns, self._where)
        if header is None:
            return False
        self._header, self._width = line, len(header)
        return True

    def _parse(self, lines: Sequence[bytes]) -> np.ndarray:
        if self._first and self.take_header(lines[0]):
            lines = lines[1:]
        elif lines[0].startswith(b"\xef\xbb\xbf"):
            lines = [lines[0][3:], *lines[1:]]
        if self._header is not None:
            lines = [line for line in lines if line.rstrip() != self._header]
        if not lines:
            return np.zeros((0, self.schema.size))
        commas = (self._width or self.schema.size) - 1
        if all(line.count(b",") == commas for line in lines):
            rows = _fast_csv(lines, self._indices)
            if rows is not None and rows.shape == (len(lines), self.schema.size):
                return rows
        return self._one_by_one(lines, self._row)

    def _row(self, line: str, where: str) -> list[float]:
        return row_values(_cells(line, where), self._indices, self._width, self.schema, where)


class JsonLinesDecoder(LineDecoder):
    """One JSON value a line: a list of numbers, or an object that has one at ``key``."""

    def __init__(
        self,
        schema: Schema,
        *,
        key: str = "values",
        skip_bad: bool = False,
        where: str = "stream",
    ) -> None:
        """Like `Decoder`."""
        super().__init__(schema, skip_bad=skip_bad, where=where)
        self._key = key

    def _parse(self, lines: Sequence[bytes]) -> np.ndarray:
        return self._one_by_one(lines, self._row)

    def _row(self, line: str, where: str) -> list[float]:
        try:
            value = json.loads(line, parse_constant=_no_constant)
            if isinstance(value, dict):
                value = value.get(self._key)
            if isinstance(value, list) and all(type(item) in (int, float) for item in value):
                values = [float(item) for item in value]
                if len(values) == self.schema.size:
                    return values
                raise DataError(
                    f"Expected {self.schema.size} values for schema {self.schema.name!r}, got "
                    f"{len(values)} in {where}; choose another bundle or window."
                )
        except (ValueError, RecursionError, OverflowError):
            pass
        raise DataError(
            f"Expected a JSON list of finite numbers, or an object with one at {self._key!r}, got "
            f"something else in {where}; correct it, or use --skip-bad."
        )


def make_decoder(
    kind: str,
    schema: Schema,
    *,
    columns: Sequence[str] | None = None,
    key: str = "values",
    skip_bad: bool = False,
    where: str = "stream",
) -> Decoder:
    """The decoder of one of the `FORMATS`, for rows of ``schema``.

    Raises:
        ConfigError: another format.
    """
    if kind == "csv":
        return CsvDecoder(schema, columns=columns, skip_bad=skip_bad, where=where)
    if kind == "jsonl":
        return JsonLinesDecoder(schema, key=key, skip_bad=skip_bad, where=where)
    if kind in _RAW:
        return RawDecoder(schema, kind, skip_bad=skip_bad, where=where)
    raise ConfigError(f"Expected a format out of {', '.join(FORMATS)}, got {kind!r}.")


def raw_bytes(kind: str, schema: Schema) -> int | None:
    """Bytes of a row in a raw format; None for formats of lines."""
    return schema.size * _RAW[kind].itemsize if kind in _RAW else None


def row_schema(schema: Schema) -> Schema:
    """The schema of one time step of a record whose last axis is time: (C, T) gives (C,)."""
    return replace(schema, shape=(math.prod(schema.shape[:-1]),))


class Windows:
    """Overlapping records out of time steps, from a buffer of fixed size.

    The last axis of a record is time: (T,) is T steps of one value, (C, T) T steps of C values.
    """

    def __init__(self, schema: Schema, hop: int) -> None:
        """Make an empty buffer.

        Args:
            schema: of a record.
            hop: steps from the start of one record to the start of the next.

        Raises:
            ConfigError: ``hop`` is not positive.
        """
        if hop < 1:
            raise ConfigError(f"Expected a hop of at least 1 time step, got {hop}.")
        self.length = schema.shape[-1]
        self.hop = hop
        self._buffer = np.zeros((2 * self.length + BATCH, schema.size // self.length))
        self._start = self._end = self._skip = 0

    def push(self, rows: np.ndarray) -> np.ndarray:
        """Records that are complete with ``rows`` [n, C], n <= `BATCH`: float64 [m, C * T]."""
        if self._end + len(rows) > len(self._buffer):
            held = self._end - self._start  # below T, so that the two places do not overlap
            self._buffer[:held] = self._buffer[self._start : self._end]
            self._start, self._end = 0, held
        self._buffer[self._end : self._end + len(rows)] = rows
        self._end += len(rows)
        self._pass()
        count = max(0, (self._end - self._start - self.length) // self.hop + 1)
        if self._skip or not count:
            return np.zeros((0, self._buffer.shape[1] * self.length))
        held_rows = self._buffer[self._start : self._end]
        views = np.lib.stride_tricks.sliding_window_view(held_rows, self.length, axis=0)
        records = np.array(views[:: self.hop]).reshape(count, -1)  # from [m, C, T]
        self._skip = count * self.hop
        self._pass()
        return records

    def reset(self) -> None:
        """Forget the held steps: the next one does not follow on them."""
        self._start = self._end = self._skip = 0

    def _pass(self) -> None:
        """Move past steps that start no record."""
        passed = min(self._skip, self._end - self._start)
        self._start += passed
        self._skip -= passed


def _largest(values: np.ndarray) -> float:
    return float(np.finfo(values.dtype).max)


def _fast_csv(lines: Sequence[bytes], indices: list[int] | None) -> np.ndarray | None:
    """All rows at once, or None where a line needs a closer look."""
    try:
        return np.loadtxt(
            [line.decode() for line in lines],
            delimiter=",",
            usecols=indices,
            ndmin=2,
            comments=None,
        )
    except ValueError:
        return None


def _text(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise DataError(f"Expected UTF-8 text in {where}, got other bytes; convert it.") from None


def _cells(line: str, where: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        raise DataError(f"Expected CSV in {where}, got something else; convert it.") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
