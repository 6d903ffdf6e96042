"""The formats of a stream: CSV, JSON lines and raw floats."""

import codecs
import contextlib
import csv
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedlatent.client.edge.decoders import BATCH, Decoder, Layout
from fedlatent.client.edge.windows import Rows
from fedlatent.shared.data.cells import is_number
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import seconds_or_none
from fedlatent.shared.data.table import LARGEST, Table
from fedlatent.shared.errors import ConfigError, DataError

_LINE_BYTES = 65_536
_BYTES_PER_VALUE = 64  # of a line; more than any printed double


class RawDecoder(Decoder):
    """Little-endian floats without any frame, for high rates.

    Columns of a schema stand in its order: a class as the index of its level, a gap as NaN.
    """

    item_bytes = 4

    def __init__(self, schema: Schema, layout: Layout | None = None) -> None:
        """Make a decoder: see `Decoder`."""
        super().__init__(schema, layout)
        self._row_bytes = schema.raw_size * self.item_bytes
        self._gaps = np.array([one.missing != "refuse" for one in schema.columns] or [False])
        if self.layout.sides:
            raise ConfigError(
                f"Expected no column {self.layout.sides[0]!r} in a raw format, which holds values "
                "alone; send CSV or JSON lines."
            )

    def feed(self, data: bytes) -> Iterator[Rows]:
        """Finite rows [n, size] of the bytes so far: see `Decoder.feed`."""
        data = self._rest + data if self._rest else data
        rows = len(data) // self._row_bytes
        self._rest = data[rows * self._row_bytes :]
        values = np.frombuffer(data, f"<f{self.item_bytes}", rows * self.schema.raw_size)
        values = values.reshape(rows, self.schema.raw_size)
        for start in range(0, rows, BATCH):
            yield from self._finite(values[start : start + BATCH])

    def finish(self) -> Iterator[Rows]:
        """No rows, since what is left is a part of one: see `Decoder.finish`."""
        if self._rest:
            left, self._rest = len(self._rest), b""
            self._refuse(
                DataError(
                    f"Expected records of {self._row_bytes} bytes, got {left} bytes at the end"
                    f"{self.layout.of}; check format and bundle.",
                    reason="width",
                )
            )
        yield from ()

    def _finite(self, values: np.ndarray) -> Iterator[Rows]:
        """The rows of ``values`` [n, size] without NaN, infinity and what would overflow."""
        largest = min(LARGEST, float(np.finfo(values.dtype).max))
        with np.errstate(invalid="ignore"):
            good = ((np.abs(values) <= largest) | (np.isnan(values) & self._gaps)).all(axis=1)
        stops = not self.layout.skip_bad and not good.all()
        if stops:
            good = good[: np.argmin(good)]
        if len(good):
            fresh, place = np.concatenate([[self.missing], ~good[:-1]]), np.flatnonzero(good)
            number = self.rows + 1 + place
            self.rows += len(good)
            self.bad += len(good) - len(place)
            self.missing = not good[-1]
            if len(place):
                yield Rows(values=values[place], number=number, fresh=fresh[place])
        if stops:
            self._refuse(self._not_finite(self.rows + 1))


class DoubleDecoder(RawDecoder):
    """As `RawDecoder`, of 64 bits."""

    item_bytes = 8


class LineDecoder(Decoder):
    """Rows from lines of UTF-8 text; blank lines are passed over."""

    _skipping = False  # in the middle of a line that was refused

    def feed(self, data: bytes) -> Iterator[Rows]:
        """Finite rows [n, size] of the bytes so far: see `Decoder.feed`."""
        if self._skipping:
            _, newline, data = data.partition(b"\n")
            self._skipping = not newline
            self.line += len(newline)
        head, newline, self._rest = (self._rest + data).rpartition(b"\n")
        lines = head.split(b"\n") if newline else []
        for start in range(0, len(lines), BATCH):
            yield from self._rows(lines[start : start + BATCH])
        cap = _LINE_BYTES + _BYTES_PER_VALUE * self.schema.raw_size
        if len(self._rest) > cap:
            self._rest, self._skipping = b"", True
            self._refuse(
                DataError(
                    f"Expected a line of at most {cap} bytes, got a longer one as record "
                    f"{self.rows + 1}{self.layout.of}; check the format.",
                    reason="width",
                )
            )

    def finish(self) -> Iterator[Rows]:
        """See `Decoder.finish`; a last line needs no line end."""
        last, self._rest = self._rest, b""
        yield from self._rows([last])

    def drop(self, *, gap: bool = False) -> None:
        """Forget the beginning of a line: see `Decoder.drop`."""
        super().drop(gap=gap)
        self._skipping = False

    def _rows(self, lines: Sequence[bytes]) -> Iterator[Rows]:
        numbered = enumerate(lines, self.line + 1)
        self.line += len(lines)
        kept = [(at, line) for at, raw in numbered if (line := self.layout.dialect.trimmed(raw))]
        kept = self._records(kept)
        if not kept:
            return
        places, texts = zip(*kept, strict=True)
        quick = self._quickly(texts)
        if quick is not None:
            number = self.rows + 1 + np.arange(len(kept))
            fresh = np.zeros(len(kept), dtype=bool)
            fresh[0] = self.missing
            rows = self._made(*quick, number, fresh, places)
            if rows.seconds is None or not np.isnan(rows.seconds).any():
                self.rows, self.missing = self.rows + len(kept), False
                yield rows
                return
        good, error = self._one_by_one(kept)
        if good:
            yield self._made(*zip(*good, strict=True))
        if error is not None:
            raise error from None

    def _one_by_one(
        self, kept: Sequence[tuple[int, bytes]]
    ) -> tuple[list[tuple[list[float], list[str], int, bool, int]], DataError | None]:
        """What `_made` takes of each good line, and what is wrong with the one after the last."""
        good: list[tuple[list[float], list[str], int, bool, int]] = []
        for place, line in kept:
            number = self.rows + 1
            try:
                values, sides = self._checked(line, number)
            except DataError as error:
                if self._passed_over():
                    continue
                return good, error
            self.rows = number
            good.append((values, sides, number, self.missing, place))
            self.missing = False
        return good, None

    def _checked(self, line: bytes, number: int) -> tuple[list[float], list[str]]:
        """Values and sides of one line; a DataError when they are not as they must be."""
        values, sides = self._row(line, number)
        if len(values) != self.schema.raw_size:
            raise DataError(
                f"Expected {self.schema.raw_size} values for schema {self.schema.name!r}, got "
                f"{len(values)} in record {number}{self.layout.of}; choose other columns, window "
                "or bundle.",
                reason="width",
            )
        if not self.schema.columns and not all(abs(value) <= LARGEST for value in values):
            raise self._not_finite(number)
        if self.layout.time and self._seconds(sides[0]) is None:
            raise DataError(
                f"Expected a time in seconds or an ISO 8601 date in column {self.layout.time!r}"
                f"{self.layout.of}, got something else in record {number}; correct or drop it.",
                field=self.layout.time,
                reason="time",
            )
        return values, sides

    def _made(
        self,
        values: np.ndarray | Sequence[Sequence[float]],
        sides: Sequence[Sequence[str]],
        number: np.ndarray | Sequence[int],
        fresh: np.ndarray | Sequence[bool],
        places: Sequence[int],
    ) -> Rows:
        columns = np.array(sides, dtype=object).T
        stamp = columns[0] if self.layout.time else None
        return Rows(
            values=np.asarray(values, dtype=np.float64),
            number=np.asarray(number),
            fresh=np.asarray(fresh),
            line=np.asarray(places),
            stamp=stamp,
            seconds=None if stamp is None else np.array([*map(self._seconds, stamp)], np.float64),
            group=columns[-1] if self.layout.group else None,
        )

    def _seconds(self, stamp: str) -> float | None:
        """The time of a row in seconds, or None where it is none."""
        return seconds_or_none(stamp)

    def _records(self, kept: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Those of the numbered lines that are records."""
        return kept

    def _quickly(self, lines: Sequence[bytes]) -> tuple[np.ndarray, list[list[str]]] | None:
        """Finite values [n, size] and sides, where no line needs a closer look but for its time."""
        return None

    @abstractmethod
    def _row(self, line: bytes, number: int) -> tuple[list[float], list[str]]:
        """Values of one line, and its cells in the columns of `Layout.sides`.

        Raises:
            DataError: record ``number`` is not as it must be.
        """


class CsvDecoder(LineDecoder):
    """Comma-separated values, by the rule of `fedlatent.shared.data.table`."""

    def __init__(self, schema: Schema, layout: Layout | None = None) -> None:
        """Make a decoder: see `Decoder`."""
        super().__init__(schema, layout)
        self._begin()
        self._recoder = self._fresh_recoder()

    def _fresh_recoder(self) -> codecs.IncrementalDecoder | None:
        """What makes texts of bytes in another encoding, from the start of a file."""
        dialect = self.layout.dialect
        return None if dialect.utf8 else codecs.getincrementaldecoder(dialect.encoding)()

    def feed(self, data: bytes) -> Iterator[Rows]:
        """Finite rows [n, size] of the bytes so far: see `Decoder.feed`."""
        yield from super().feed(self._recoded(data))

    def finish(self) -> Iterator[Rows]:
        """See `Decoder.finish`; a last line needs no line end."""
        yield from super().feed(self._recoded(b"", final=True))
        yield from super().finish()

    def _recoded(self, data: bytes, *, final: bool = False) -> bytes:
        """Bytes in UTF-8; a character that is not whole stays for the next."""
        if self._recoder is None:
            return data
        try:
            return self._recoder.decode(data, final).encode()
        except UnicodeError:
            raise self.layout.dialect.not_encoded(self.layout.name) from None

    def _begin(self) -> None:
        """Expect a table whose first line has not come."""
        self._opening = False  # whether the next line is the first of a further file
        self._table = Table(
            self.schema.columns or self.layout.columns,
            aside=self.layout.sides,
            width=self.schema.raw_size,
            name=self.layout.name,
            names=self.layout.names,
            dialect=self.layout.dialect,
        )

    @property
    def names(self) -> Sequence[str]:
        """Names of a row's values; empty without a header."""
        if self.layout.columns is not None:
            return self.layout.columns
        if self.schema.columns:
            return [column.name for column in self.schema.columns]
        return [name for name in self._table.names if name not in self.layout.sides]

    def drop(self, *, gap: bool = False) -> None:
        """Forget the beginning of a line; a further file may have a header of its own."""
        super().drop(gap=gap)
        self._opening = True
        self._recoder = self._fresh_recoder()

    def take_header(self, line: bytes) -> None:
        """Take a first line as the header, unless it is empty or all its cells are numbers.

        Raises:
            DataError: columns are to be chosen that it does not name.
        """
        if line := self.layout.dialect.trimmed(line):
            self._table.begin(line)
            self._see(self._table.names)

    def _records(self, kept: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        first = kept[0][1] if kept else b""
        if kept and self._opening and first != self._table.header and self._all_names(first):
            self._begin()
        self._opening &= not kept
        if kept and self._table.width is None:
            self.take_header(first)
        return [(at, line) for at, line in kept if line != self._table.header]

    def _quickly(self, lines: Sequence[bytes]) -> tuple[np.ndarray, list[list[str]]] | None:
        first = self.rows + 1
        try:
            coded = self._table.numbers(lines, first) if self.schema.columns else None
            rows = self._table.quickly(lines) if coded is None else coded
            if rows is None or (coded is None and not (abs(rows) <= LARGEST).all()):
                return None
            sides = [self._table.sides(line, first) for line in lines if self.layout.sides]
        except DataError:
            return None
        if rows.shape[1] != self.schema.raw_size:
            return None
        return rows, sides

    def _row(self, line: bytes, number: int) -> tuple[list[float], list[str]]:
        read = self._table.values if self.schema.columns else self._table.record
        return read(line, number), self._table.sides(line, number)

    def _seconds(self, stamp: str) -> float | None:
        return seconds_or_none(self.layout.dialect.plain(stamp))

    def _all_names(self, line: bytes) -> bool:
        """Whether a line is a header by itself: no cell is a number."""
        dialect = self.layout.dialect
        if dialect.header is False:
            return False
        try:
            cells = dialect.cells(line.decode(errors="replace"))
        except csv.Error:
            return False
        return not any(is_number(dialect.plain(cell)) for cell in cells)


class JsonLinesDecoder(LineDecoder):
    """One JSON value a line: a list of numbers, or an object with one at "values".

    For a schema with columns it is an object that has them by name, itself or at "values".
    """

    def _row(self, line: bytes, number: int) -> tuple[list[float], list[str]]:
        value, sides = self._parsed(line, number)
        if self.schema.columns:
            values = self._coded([self._cells(value, number)], number)[0].tolist()
            return values, sides
        if isinstance(value, list) and all(type(item) in (int, float) for item in value):
            with contextlib.suppress(OverflowError):
                return [float(item) for item in value], sides
        raise self._wrong("a JSON list of finite numbers", number)

    def _quickly(self, lines: Sequence[bytes]) -> tuple[np.ndarray, list[list[str]]] | None:
        if not self.schema.columns:
            return None
        first = self.rows + 1
        try:
            parsed = [self._parsed(line, at) for at, line in enumerate(lines, first)]
            cells = [self._cells(value, first) for value, _ in parsed]
            rows, sides = self._coded(cells, first), [side for _, side in parsed]
        except DataError:
            return None
        return rows, sides

    def _parsed(self, line: bytes, number: int) -> tuple[object, list[str]]:
        """What holds the values of one line, and its sides as texts."""
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise self._wrong("JSON", number) from None
        sides = {}
        if isinstance(value, dict):
            value = self._named(value)
            sides = {name: str(value[name]) for name in self.layout.sides if name in value}
            inner = value.get("values")
            if not self.schema.columns:
                value = inner
            elif isinstance(inner, dict):
                value = self._named(inner)
        for name in self.layout.sides:
            if name not in sides:
                raise self._wrong(f"a JSON object with {name!r}", number, name, "column")
        return value, [sides[name] for name in self.layout.sides]

    def _named(self, value: Mapping[str, object]) -> dict[str, object]:
        return {self.layout.names.get(key, key): one for key, one in value.items()}

    def _cells(self, value: object, number: int) -> list[object]:
        """The cells of the schema's columns in one object, in their order."""
        if not isinstance(value, dict):
            raise self._wrong("a JSON object with the columns of the bundle by name", number)
        for column in self.schema.columns:
            cell = value.get(column.name, self)
            if cell is self:
                raise self._wrong(f"column {column.name!r}", number, column.name, "column")
            if not isinstance(cell, str | int | float | None):
                raise self._wrong(
                    f"a number or text in column {column.name!r}", number, column.name
                )
        if not self.rows:
            self._see(list(value))
        return [value[column.name] for column in self.schema.columns]

    def _coded(self, cells: Sequence[Sequence[object]], first: int) -> np.ndarray:
        """Raw rows [n, C] of cells of the schema's columns."""
        by_column = zip(self.schema.columns, zip(*cells, strict=True), strict=True)
        codes = [
            column.codes(np.array(found, object), first=first, name=self.layout.name)
            for column, found in by_column
        ]
        return np.stack(codes, axis=1)

    def _wrong(
        self, expected: str, number: int, name: str | None = None, reason: str = "number"
    ) -> DataError:
        return DataError(
            f"Expected {expected}, got something else in record {number}{self.layout.of}; correct "
            "it.",
            field=name,
            reason=reason,
        )


DECODERS: dict[str, type[Decoder]] = {
    "csv": CsvDecoder,
    "jsonl": JsonLinesDecoder,
    "f32": RawDecoder,
    "f64": DoubleDecoder,
}
