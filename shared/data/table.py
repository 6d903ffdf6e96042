"""The one rule of CSV tables: what the node, the device, the page and the exporter all read.

A table is lines of UTF-8 (a byte order mark passes, blank lines are passed over), each of them one
record. Cells stand between commas; one in double quotes may hold commas, and none holds a line end.
A `Dialect` says otherwise: another delimiter, decimal commas, another encoding.

A first line without a number among its cells is the header, and one of numbers alone is a record. A
line of both is the header where it has all names that are asked for, and else refused; so is a line
that counts 0, 1, 2, ..., which most often is a header that some program made. A later line that
equals the header is passed over, as files that are rotated repeat it. All lines have as many cells.
No two columns of values have one name. A number is written in ASCII digits with a point and an
exponent, and is finite. Chosen columns are names of the header; those of a schema say what their
cells mean, and which texts stand for a gap.

A wrong table is a `DataError` whose sentence says the file, the record (from 1) and the column,
what was expected, what came and what to do, but never a value. Its field is the column and its
reason is one of `REASONS`. The page's ``records.js`` follows the same rule in JavaScript. Only
numpy and the standard library are imported, since devices have nothing else.
"""

import csv
import gzip
import re
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.cells import is_number
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.dialect import COMMAS, Dialect, encoding_hint
from fedlatent.shared.data.dialect import MARK as MARK
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import ending_of

#: Why a table is refused: not in its encoding or not CSV; another delimiter; a first line that may
#: be a header or a record; a chosen column that the header lacks or has twice; a line of another
#: width; a cell that is no number; one that is NaN, infinite or would overflow; a gap or an unknown
#: class in a schema's column that takes none; numbered columns out of order.
REASONS = (
    *("encoding", "delimiter", "header", "column"),
    *("width", "number", "finite", "missing", "level", "order"),
)

LARGEST = 1e150  # of a value; its product with a scale stays finite

_BATCH = 4096
_NUMBERED = re.compile(r"(\D*)([0-9]{1,9})")
_LEAST_COUNTED = 3  # cells of a first line that counts


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
        dialect: Dialect = COMMAS,
    ) -> None:
        """Expect a table.

        Args:
            columns: header names of a record's values, in order, or a schema's columns, which say
                what their cells mean; None takes all but ``aside``.
            aside: header names of columns that are read as text.
            width: cells of a line of a table without a header; None takes the first line's.
            name: of the file, for messages.
            names: what columns are called here, by the names that the header has for them.
            dialect: how the table is written.
        """
        self.header: bytes | None = None
        self.names: list[str] = []
        self.width: int | None = None
        self.dialect = dialect
        self._bare_width = width
        self._specs = [one for one in columns or () if isinstance(one, Column)]
        self._columns: list[str] | None = None
        if columns is not None:
            self._columns = [one.name if isinstance(one, Column) else one for one in columns]
        self._aside, self._called, self._file = aside, names, name
        self._places: list[int] | None = None
        self._sides: list[int] = []
        self._in = f" of {name}" if name else ""
        self._first = b""

    @property
    def aside(self) -> Sequence[str]:
        """Names of the columns that are read as text."""
        return self._aside

    @property
    def chosen(self) -> int:
        """How many columns are values."""
        if self._columns is not None:
            return len(self._columns)
        return len(self.names) - len(self._aside)

    @property
    def dropped(self) -> list[str]:
        """Names of columns that are neither values nor read as text."""
        used = {*self._sides, *(range(len(self.names)) if self._places is None else self._places)}
        return [name for at, name in enumerate(self.names) if at not in used]

    def begin(self, line: bytes) -> None:
        """Take the first line, by the rule of this module.

        Raises:
            DataError: it is no CSV ("encoding"), has another delimiter ("delimiter"), may be a
                header or a record ("header"), or lacks a chosen column or has one of the columns
                twice ("column").
        """
        self._first = line
        cells = self._cells(line, "the first line")
        self.width = self._bare_width or len(cells)
        called = [self._called.get(cell.strip(), cell) for cell in cells]
        if self._is_header(cells, called):
            self.header, self.names, self.width = line, called, len(cells)
        elif self.dialect.header is False:
            numbers = [str(at) for at in range(1, len(cells) + 1)]
            self.names = [self._called.get(number, number) for number in numbers]
        self._check_names()
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

    @property
    def _wanted(self) -> list[str]:
        return [*(self._columns or ()), *self._aside]

    def _is_header(self, cells: Sequence[str], called: Sequence[str]) -> bool:
        """Whether the first line is the header."""
        if self.dialect.header is not None:
            return self.dialect.header
        found = [is_number(self.dialect.plain(cell)) for cell in cells]
        if not any(found):
            if len(cells) == 1 and (hint := self._hint(self._first)):
                raise DataError(
                    f"Expected {self._between} between cells{self._in}, got none in the first "
                    f"line; {hint}.",
                    reason="delimiter",
                )
            return True
        if self._wanted:
            return not all(found) and all(called.count(name) == 1 for name in self._wanted)
        counts = [cell.strip() for cell in cells] == [str(at) for at in range(len(cells))]
        if all(found) and not (counts and len(cells) >= _LEAST_COUNTED):
            return False
        got = "one that counts from 0" if counts else "both numbers and other cells"
        hint = self._hint(self._first) or (
            "if it is a record say header=false, if these are names say header=true"
        )
        raise DataError(
            f"Expected names or a record in the first line{self._in}, got {got}; {hint}.",
            reason="header",
        )

    def _check_names(self) -> None:
        """Raise DataError unless every wanted column is there once, and none of values twice."""
        wrong = [name for name in self._wanted if self.names.count(name) != 1]
        if not wrong and self._columns is None:
            wrong = [name for name in self.names if self.names.count(name) > 1]
        if not wrong:
            return
        told = list(dict.fromkeys(wrong))[:20]
        advice = "add a line of names, or say header=true"
        got = "a first line with numbers" if not self.names else "none of them in the first line"
        if wrong == list(self._wanted) and not set(wrong) & set(self.names) and self.names:
            advice = "add a line of names, or correct them"  # and no text, which may be a record's
        elif self.names:
            got, advice = ", ".join(self.names[:20]), "correct the names"
        raise DataError(
            f"Expected a header{self._in} with columns {', '.join(told)} once each, got {got}; "
            f"{self._hint(self._first) or advice}.",
            field=told[0],
            reason="column",
        )

    def numbers(self, lines: Sequence[bytes], first: int) -> NDArray[np.float64]:
        """The records of ``lines``, none of them blank or the header: [n, columns].

        Args:
            lines: of the table, after `begin`.
            first: number of the first of them, from 1.

        Raises:
            DataError: the first line that is not as it must be.
        """
        rows = self.quickly(lines)
        if self._specs:
            cells = self._picked(self.split(lines, first)) if rows is None else rows.T
            return self._coded(cells, first)
        if rows is None or not (np.abs(rows) <= LARGEST).all():
            rows = np.array([self.record(line, first + at) for at, line in enumerate(lines)])
        return rows

    def quickly(self, lines: Sequence[bytes]) -> NDArray[np.float64] | None:
        """The same where nothing needs a closer look; values may be NaN or infinite."""
        assert self.width is not None
        if any(isinstance(level, str) for one in self._specs for level in one.levels):
            return None
        between = self.dialect.delimiter.encode()
        if any(line.count(between) != self.width - 1 for line in lines):
            return None
        if self._places == []:
            return np.zeros((len(lines), 0))
        if self._places is not None:
            lines = _chosen(lines, self._places, between)
        width = self.width if self._places is None else len(self._places)
        return _floats(between.join(lines), (len(lines), width), self.dialect)

    def split(self, lines: Sequence[bytes], first: int) -> list[list[str]]:
        """All cells of lines: see `cells`."""
        if not any(b'"' in line or b"\0" in line for line in lines):
            try:
                text = [line.decode() for line in lines]
            except UnicodeDecodeError:
                text = []
            cells = [line.split(self.dialect.delimiter) for line in text if "\r" not in line]
            if len(cells) == len(lines) and {*map(len, cells)} == {self.width}:
                return cells
        return [self.cells(line, first + at) for at, line in enumerate(lines)]

    def texts(self, lines: Sequence[bytes], first: int) -> Iterator[tuple[str, ...]]:
        """The cells of each column that is read as text, in the order of ``aside``."""
        columns = list(zip(*self.split(lines, first), strict=True)) if self._sides else []
        for place in self._sides:
            # Few distinct texts stand for many.
            yield tuple(map(sys.intern, columns[place]))

    def _picked(self, rows: Sequence[Sequence[str]]) -> list[NDArray[Any]]:
        """The cells of each chosen column of rows, with points before decimals."""
        assert self._places is not None
        columns = list(zip(*rows, strict=True))
        found = (columns[place] for place in self._places)
        if self.dialect.decimal != ".":
            found = (tuple(map(self.dialect.plain, one)) for one in found)
        return [np.array(one, dtype=object) for one in found]

    def _coded(self, columns: Iterable[NDArray[Any]], first: int) -> NDArray[np.float64]:
        """Raw rows [n, C] of the cells of a schema's columns: see `Column.codes`."""
        pairs = zip(self._specs, columns, strict=True)
        return np.stack([one.codes(each, first=first, name=self._file) for one, each in pairs], 1)

    def record(self, line: bytes, number: int) -> list[float]:
        """The values of one line, finite.

        Raises:
            DataError: "encoding", "width", "number" or "finite".
        """
        values = self.values(line, number)
        for at, value in enumerate(values):
            if not self._specs and not abs(value) <= LARGEST:
                raise self._wrong("finite", line, number, at)
        return values

    def values(self, line: bytes, number: int) -> list[float]:
        """The values of one line, which may be NaN or infinite; of a schema's columns their codes.

        Raises:
            DataError: "encoding", "width" or "number"; or as `Column.codes`.
        """
        cells = self.cells(line, number)
        if self._specs:
            coded: list[float] = self._coded(self._picked([cells]), number)[0].tolist()
            return coded
        if self._places is not None:
            cells = [cells[place] for place in self._places]
        cells = [*map(self.dialect.plain, cells)]
        for at, cell in enumerate(cells):
            if not is_number(cell):
                got = "text" if cell.strip() else "nothing"
                raise self._wrong("number", line, number, at, got)
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
                f"Expected {self.width} cells as in the "
                f"{'other lines' if self.header is None else 'header'}{self._in}, got {len(cells)} "
                f"in record {number}; {self._hint(self._first, line) or 'correct the line'}.",
                reason="width",
            )
        return cells

    def _wrong(self, reason: str, line: bytes, number: int, at: int, got: str = "") -> DataError:
        place = at if self._places is None else self._places[at]
        column = self.names[place] if self.names else str(place + 1)
        expected = "a number" if reason == "number" else "a finite value"
        advice = self._hint(self._first, line) or "correct it, drop it or choose other columns"
        return DataError(
            f"Expected {expected} in column {column!r}{self._in}, got "
            f"{got or 'NaN, infinity or overflow'} in record {number}; {advice}.",
            field=column,
            reason=reason,
        )

    def _cells(self, line: bytes, where: str) -> list[str]:
        try:
            if b"\0" not in line:
                return self.dialect.cells(line.decode())
            advice = encoding_hint(line)
        except UnicodeDecodeError:
            advice = encoding_hint(line)
        except csv.Error:
            advice = "correct its quotes and line ends"
        raise DataError(
            f"Expected CSV in UTF-8, got something else in {where}{self._in}; {advice}.",
            reason="encoding",
        )

    @property
    def _between(self) -> str:
        return repr(self.dialect.delimiter)

    def _hint(self, *lines: bytes) -> str:
        return self.dialect.hint([line.decode(errors="replace") for line in lines])


def read_table(
    path: Path,
    columns: Sequence[str] | Sequence[Column] | None = None,
    aside: Sequence[str] = (),
    names: Mapping[str, str] = MappingProxyType({}),
    dialect: Dialect = COMMAS,
) -> tuple[NDArray[np.float64], list[list[str]]]:
    """Read a whole CSV file, packed with gzip where it ends in .gz.

    Args:
        path: of the file.
        columns: header names of a record's values, in order, or a schema's columns; None takes all
            but ``aside``.
        aside: header names of columns that are read as text.
        names: what columns are called here, by the names that the header has for them.
        dialect: how the file is written.

    Returns:
        Values [N, columns], [0, 0] of an empty file; and N texts for each name of ``aside``.

    Raises:
        DataError: the file cannot be read, or is no table by the rule of this module.
    """
    table = Table(columns, aside=aside, name=path.name, names=names, dialect=dialect)
    return take_table(table, path)


def take_table(table: Table, path: Path) -> tuple[NDArray[np.float64], list[list[str]]]:
    """Read a whole file into a table that has not begun: see `read_table`."""
    rows = _Grown()
    texts: list[list[str]] = []
    try:
        with open_packed(path) as stream:
            lines = table.dialect.lines(stream, path.name)
            while batch := list(islice(lines, _BATCH)):
                if table.width is None:
                    table.begin(batch[0])
                if kept := [line for line in batch if line != table.header]:
                    first = rows.count + 1
                    rows.add(table.numbers(kept, first))
                    sides = list(table.texts(kept, first))
                    texts = texts or [[] for _ in sides]
                    for text, cells in zip(texts, sides, strict=True):
                        text.extend(cells)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"Expected a readable table at {path}, got a {type(error).__name__}; check the "
            "path and the file."
        ) from None
    return rows.take(table.chosen), texts or [[] for _ in table.aside]


def open_packed(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends in .gz."""
    return cast(BinaryIO, gzip.open(path)) if ending_of(path, [".gz"]) else path.open("rb")


class _Grown:
    """Rows that grow at their end, without a second copy of them."""

    def __init__(self) -> None:
        self.count = 0
        self._held: NDArray[np.float64] = np.zeros((0, 0))

    def add(self, rows: NDArray[np.float64]) -> None:
        """Append rows [n, C]."""
        needed = self.count + len(rows)
        if needed > len(self._held):
            # In place: no view of the array is given out before the end.
            self._held.resize((needed + needed // 4, rows.shape[1]), refcheck=False)
        self._held[self.count : needed] = rows
        self.count = needed

    def take(self, width: int) -> NDArray[np.float64]:
        """All rows [N, C]."""
        self._held.resize(
            (self.count, self._held.shape[1] if self.count else width), refcheck=False
        )
        return self._held


def _chosen(lines: Sequence[bytes], places: Sequence[int], between: bytes) -> list[bytes]:
    """Some cells of each line, in the order of their places."""
    if len(places) == 1:
        return [line.split(between)[places[0]] for line in lines]
    pick = itemgetter(*places)
    return [between.join(pick(line.split(between))) for line in lines]


def _floats(text: bytes, shape: tuple[int, int], dialect: Dialect) -> NDArray[np.float64] | None:
    """Numbers between delimiters; None unless all are, and as many as the shape says."""
    if not shape[1] or b"(" in text or b'"' in text:
        return None
    if dialect.decimal != ".":
        if b"." in text:
            return None
        text = text.replace(b",", b".")
    elif dialect.delimiter != "," and b"," in text:
        return None
    text = text.replace(dialect.delimiter.encode(), b",")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        try:
            found: NDArray[Any] = np.fromstring(text, dtype=np.float64, sep=",")
        except (ValueError, DeprecationWarning):
            return None
    return found.reshape(shape) if found.size == shape[0] * shape[1] else None
