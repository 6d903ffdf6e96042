"""The one rule of CSV tables: what the node, the device, the page and the exporter all read.

A table is lines of UTF-8 (a byte order mark passes, blank lines are passed over), each of them one
record. Cells stand between commas; one in double quotes may hold commas, and none holds a line end.
A first line with a cell that is no number is the header; a later line that equals it is passed
over, as files that are rotated repeat it. All lines have as many cells. A number is written in
ASCII digits with a point and an exponent, and is finite. Chosen columns are names of the header;
those of a schema say what their cells mean, and which texts stand for a gap.

A wrong table is a `DataError` whose sentence says the file, the record (from 1) and the column,
what was expected, what came and what to do, but never a value. Its field is the column and its
reason is one of `REASONS`. The page's ``records.js`` follows the same rule in JavaScript. Only
numpy and the standard library are imported, since devices have nothing else.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.cells import is_number
from fedlatent.shared.data.column import Column
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import ending_of

#: Why a table is refused: not UTF-8 or not CSV; a chosen column that the header lacks or has twice;
#: a line of another width; a cell that is no number; one that is NaN, infinite or would overflow;
#: a gap or an unknown class in a schema's column that takes none; numbered columns out of order.
REASONS = ("encoding", "column", "width", "number", "finite", "missing", "level", "order")

LARGEST = 1e150  # of a value; its product with a scale stays finite
MARK = b"\xef\xbb\xbf"  # of UTF-8, at the start of some files

_BATCH = 4096
_NUMBERED = re.compile(r"(\D*)([0-9]{1,9})")


class Table:
    """The columns of a table, known once its first line has come, and numbers from its lines."""

    def __init__(
        self,
        columns: Sequence[str] | Sequence[Column] | None = None,
        *,
        aside: Sequence[str] = (),
        width: int | None = None,
        name: str = "",
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Expect a table.

        Args:
            columns: header names of a record's values, in order, or a schema's columns, which say
                what their cells mean; None takes all but ``aside``.
            aside: header names of columns that are read as text.
            names: what columns are called here, by the names that the header has for them.
            width: cells of a line of a table without a header; None takes the first line's.
            name: of the file, for messages.
        """
        self.header: bytes | None = None
        self.names: list[str] = []
        self.width: int | None = None
        self._bare_width = width
        self._specs = [one for one in columns or () if isinstance(one, Column)]
        self._columns: list[str] | None = None
        if columns is not None:
            self._columns = [one.name if isinstance(one, Column) else one for one in columns]
        self._aside, self._called, self._file = aside, names, name
        self._places: list[int] | None = None
        self._sides: list[int] = []
        self._in = f" of {name}" if name else ""

    def begin(self, line: bytes) -> None:
        """Take the first line, which is the header unless all its cells are numbers.

        Raises:
            DataError: it is no CSV ("encoding"), or lacks a chosen column or has it twice
                ("column").
        """
        cells = self._cells(line, "the header")
        self.width = self._bare_width or len(cells)
        if not all(map(is_number, cells)):
            self.header, self.width = line, len(cells)
            self.names = [self._called.get(cell.strip(), cell) for cell in cells]
        wanted = [*(self._columns or ()), *self._aside]
        wrong = [name for name in wanted if self.names.count(name) != 1]
        if wrong:
            raise DataError(
                f"Expected a header{self._in} with columns {', '.join(wrong)} once each, got "
                f"{', '.join(self.names[:20]) or 'a first row without names'}; correct the names, "
                "or add a header.",
                field=wrong[0],
                reason="column",
            )
        self._sides = [self.names.index(name) for name in self._aside]
        if self._columns is not None:
            self._places = [self.names.index(name) for name in self._columns]
        elif self._aside:
            self._places = [at for at in range(self.width) if at not in self._sides]
        if self._columns is None:
            self._check_order([name for name in self.names if name not in self._aside])

    def _check_order(self, names: Sequence[str]) -> None:
        """Refuse numbered columns, such as v0 to v127, that stand in another order.

        Nobody chose their order, and all of them make one record.
        """
        found = [_NUMBERED.fullmatch(name.strip()) for name in names]
        numbers = [int(one[2]) for one in found if one]
        if len({one[1] if one else None for one in found}) != 1 or numbers == sorted(numbers):
            return
        wrong = next(at for at in range(1, len(numbers)) if numbers[at] < numbers[at - 1])
        raise DataError(
            f"Expected the header{self._in} in the order of its numbers, got {names[wrong]!r} "
            f"after {names[wrong - 1]!r}; put them in order, or name them as a record has them.",
            field=names[wrong],
            reason="order",
        )

    def numbers(self, lines: Sequence[bytes], first: int) -> NDArray[np.float64]:
        """The records of ``lines``, none of them blank or the header: [n, columns].

        Args:
            lines: of the table, after `begin`.
            first: number of the first of them, from 1.

        Raises:
            DataError: the first line that is not as it must be.
        """
        if self._specs:
            return self._coded(lines, first)
        rows = self.quickly(lines)
        if rows is None or not (np.abs(rows) <= LARGEST).all():
            rows = np.array([self.record(line, first + at) for at, line in enumerate(lines)])
        return rows

    def quickly(self, lines: Sequence[bytes]) -> NDArray[np.float64] | None:
        """The same where nothing needs a closer look; values may be NaN or infinite."""
        assert self.width is not None
        if any(line.count(b",") != self.width - 1 or b"_" in line for line in lines):
            return None
        try:
            text = [line.decode("ascii") for line in lines]
            rows = np.loadtxt(text, delimiter=",", usecols=self._places, ndmin=2, comments=None)
        except ValueError:
            return None
        return rows if len(rows) == len(lines) else None

    def _coded(self, lines: Sequence[bytes], first: int) -> NDArray[np.float64]:
        """Raw rows [n, C] of a schema's columns: see `Column.codes`."""
        plain = all(isinstance(level, float) for one in self._specs for level in one.levels)
        found: NDArray[Any] | None = self.quickly(lines) if plain else None
        if found is None:
            assert self._places is not None
            columns = list(zip(*self._rows(lines, first), strict=True))
            found = np.array([columns[place] for place in self._places], dtype=object).T
        pairs = zip(self._specs, found.T, strict=True)
        codes = [one.codes(cells, first=first, name=self._file) for one, cells in pairs]
        return np.stack(codes, axis=1)

    def _rows(self, lines: Sequence[bytes], first: int) -> list[list[str]]:
        """The cells of lines; an error is of the first line that is wrong."""
        try:
            rows = list(csv.reader([line.decode() for line in lines], strict=True))
            if len(rows) == len(lines) and all(len(row) == self.width for row in rows):
                return rows
        except (csv.Error, UnicodeDecodeError):
            pass
        return [self.cells(line, first + at) for at, line in enumerate(lines)]

    def record(self, line: bytes, number: int) -> list[float]:
        """The values of one line, finite.

        Raises:
            DataError: "encoding", "width", "number" or "finite".
        """
        values = self.values(line, number)
        for at, value in enumerate(values):
            if not abs(value) <= LARGEST:
                raise self._wrong(
                    "finite", number, at, "a finite value", "NaN, infinity or overflow"
                )
        return values

    def values(self, line: bytes, number: int) -> list[float]:
        """The values of one line, which may be NaN or infinite; of a schema's columns their codes.

        Raises:
            DataError: "encoding", "width" or "number"; or as `Column.codes`.
        """
        if self._specs:
            coded: list[float] = self._coded([line], number)[0].tolist()
            return coded
        cells = self.cells(line, number)
        if self._places is not None:
            cells = [cells[place] for place in self._places]
        for at, cell in enumerate(cells):
            if not is_number(cell):
                got = "text" if cell.strip() else "nothing"
                raise self._wrong("number", number, at, "a number", got)
        return [float(cell) for cell in cells]

    def sides(self, line: bytes, number: int) -> list[str]:
        """The cells of one line that are read as text, in the order of ``aside``."""
        cells = self.cells(line, number)
        return [cells[place] for place in self._sides]

    def cells(self, line: bytes, number: int) -> list[str]:
        """All cells of one line.

        Raises:
            DataError: "encoding" or "width".
        """
        cells = self._cells(line, f"record {number}")
        if len(cells) != self.width:
            raise DataError(
                f"Expected {self.width} cells as in the {'header' if self.names else 'other lines'}"
                f"{self._in}, got {len(cells)} in record {number}; correct the line.",
                reason="width",
            )
        return cells

    def _wrong(self, reason: str, number: int, at: int, expected: str, got: str) -> DataError:
        place = at if self._places is None else self._places[at]
        column = self.names[place] if self.names else str(place + 1)
        return DataError(
            f"Expected {expected} in column {column!r}{self._in}, got {got} in record {number}; "
            "correct it, drop it or choose other columns.",
            field=column,
            reason=reason,
        )

    def _cells(self, line: bytes, where: str) -> list[str]:
        try:
            return next(csv.reader([line.decode()], strict=True), [])
        except (csv.Error, UnicodeDecodeError):
            raise DataError(
                f"Expected CSV in UTF-8, got something else in {where}{self._in}; convert it.",
                reason="encoding",
            ) from None


def read_table(
    path: Path,
    columns: Sequence[str] | Sequence[Column] | None = None,
    aside: Sequence[str] = (),
    names: Mapping[str, str] = MappingProxyType({}),
) -> tuple[NDArray[np.float64], list[list[str]]]:
    """Read a whole CSV file, packed with gzip where it ends in .gz.

    Args:
        path: of the file.
        columns: header names of a record's values, in order, or a schema's columns; None takes all
            but ``aside``.
        aside: header names of columns that are read as text.
        names: what columns are called here, by the names that the header has for them.

    Returns:
        Values [N, columns], [0, 0] of an empty file; and N texts for each name of ``aside``.

    Raises:
        DataError: the file cannot be read, or is no table by the rule of this module.
    """
    table = Table(columns, aside=aside, name=path.name, names=names)
    rows: list[NDArray[np.float64]] = []
    texts: list[list[str]] = [[] for _ in aside]
    done = 0
    try:
        with gzip.open(path) if ending_of(path, [".gz"]) else path.open("rb") as stream:
            for lines in _batches(cast(BinaryIO, stream)):
                if table.width is None:
                    table.begin(lines[0])
                if kept := [line for line in lines if line != table.header]:
                    rows.append(table.numbers(kept, done + 1))
                    for at, line in enumerate(kept if aside else ()):
                        for text, cell in zip(texts, table.sides(line, done + at), strict=True):
                            text.append(cell)
                    done += len(kept)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"Expected a readable table at {path}, got a {type(error).__name__}; check the "
            "path and the file."
        ) from None
    width = len(table.names) - len(aside) if columns is None else len(columns)
    return np.concatenate(rows) if rows else np.zeros((0, width)), texts


def _batches(stream: BinaryIO) -> Iterator[list[bytes]]:
    """Lines that are not blank, some thousands at once."""
    batch: list[bytes] = []
    for number, raw in enumerate(stream):
        line = (raw.removeprefix(MARK) if number == 0 else raw).strip()
        if line:
            batch.append(line)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
