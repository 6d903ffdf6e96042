"""How a table is written: what stands between cells, before decimals, and in which encoding.

Nothing is guessed: a table of another dialect is refused, with a hint at what it looks like. Only
the standard library is imported, since devices read tables, too.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from fedlatent.shared.data.cells import is_number
from fedlatent.shared.errors import ConfigError, DataError

#: What may stand between cells, and what people call it.
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

_TABS = ("tab", r"\t")  # as people say it, and as TOML and shells take what a message shows
MARK = b"\xef\xbb\xbf"  # of UTF-8, at the start of some files
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
_WITH_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+(?:e[+-]?[0-9]+)?", re.I)


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a CSV file is written.

    Attributes:
        delimiter: Between cells: a comma, semicolon, tab or bar; "tab" is one, too.
        decimal: Before decimals: a point or a comma.
        encoding: A name that Python knows, such as "utf-16" or "cp1252".
        header: Whether the first line is the header; None where the line itself shows it. Columns
            of a table without a header are called by their numbers: "1", "2", ...

    Raises:
        ConfigError: A field is none of these, or delimiter and decimal are one.
    """

    delimiter: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    header: bool | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if self.delimiter in _TABS:
            object.__setattr__(self, "delimiter", "\t")
        for key, choices in (("delimiter", DELIMITERS), ("decimal", ".,")):
            if getattr(self, key) not in [*choices]:
                raise ConfigError(
                    f"Expected {key} to be one of {', '.join(map(repr, choices))}, got "
                    f"{getattr(self, key)!r:.20}; choose one of them.",
                    field=key,
                )
        if self.delimiter == self.decimal:
            raise ConfigError(
                "Expected another delimiter than the decimal comma, got a comma for both; "
                "choose ';'.",
                field="delimiter",
            )
        try:
            codecs.lookup(self.encoding)
        except (LookupError, ValueError):
            raise ConfigError(
                f"Expected an encoding such as utf-8, utf-16 or cp1252, got {self.encoding!r:.40}; "
                "correct it.",
                field="encoding",
            ) from None

    def cells(self, line: str) -> list[str]:
        """The cells of a line.

        Raises:
            csv.Error: its quotes are wrong.
        """
        return next(csv.reader([line], strict=True, delimiter=self.delimiter), [])

    def plain(self, cell: str) -> str:
        """A cell with a point before its decimals, if it is a number of this dialect."""
        if self.decimal == ".":
            return cell
        if _WITH_COMMA.fullmatch(cell.strip()):
            return cell.replace(",", ".")
        # A point has no meaning here: what has one is no number.
        return f"{cell} with a point" if "." in cell and is_number(cell) else cell

    def lines(self, stream: BinaryIO, name: str) -> Iterator[bytes]:
        """Lines of a file in UTF-8, without marks, line ends and spaces around; blank ones go.

        Raises:
            DataError: The file is not in the encoding.
        """
        raw = stream if self.utf8 else self._recoded(stream, name)
        for line in raw:
            if kept := self.trimmed(line):
                yield kept

    def trimmed(self, line: bytes) -> bytes:
        """A line without mark, line end and spaces around; tabs stay where they part cells."""
        return line.removeprefix(MARK).strip(b" \r\n" if self.delimiter == "\t" else None)

    @property
    def utf8(self) -> bool:
        """Whether bytes are UTF-8 as they are."""
        return codecs.lookup(self.encoding).name == "utf-8"

    def as_utf8(self, text: bytes, name: str) -> bytes:
        """A text in this encoding as UTF-8.

        Raises:
            DataError: It is not in the encoding.
        """
        try:
            return text.decode(self.encoding).encode()
        except UnicodeError:
            raise self.not_encoded(name) from None

    def not_encoded(self, name: str) -> DataError:
        """What is wrong with a file that is not in the encoding."""
        return DataError(
            f"Expected {name or 'a table'} in {self.encoding}, got something else; name its "
            "encoding.",
            reason="encoding",
        )

    def _recoded(self, stream: BinaryIO, name: str) -> Iterable[bytes]:
        """Lines in UTF-8 from another encoding."""
        try:
            with io.TextIOWrapper(stream, encoding=self.encoding, newline="\n") as text:
                for line in text:
                    yield line.encode()
        except UnicodeError:
            raise self.not_encoded(name) from None

    def hint(self, lines: Sequence[str]) -> str:
        """What lines look like that do not fit this dialect: "" or a clause that says it."""
        found: tuple[int, str, list[list[str]]] | None = None
        for delimiter in DELIMITERS:
            if delimiter != self.delimiter and (cells := _split(lines, delimiter)):
                found = max(found or (1, "", []), (len(cells[0]), delimiter, cells))
        delimiter, rows = found[1:] if found else ("", _split(lines, self.delimiter))
        decimal = self.decimal == "." and any(
            _WITH_COMMA.fullmatch(cell.strip()) for row in rows for cell in row
        )
        if not delimiter and not decimal:
            return ""
        looks = DELIMITERS.get(delimiter, "")
        looks += (" with " if looks and decimal else "") + ("decimal commas" if decimal else "")
        say = [f"delimiter={delimiter!r}"] * bool(delimiter) + ["decimal=','"] * decimal
        return f"it looks like {looks}, so say {' '.join(say)}"


#: Commas, points and UTF-8, as where nothing is said.
COMMAS = Dialect()


def _split(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """Cells of lines that all have as many, more than one; else none."""
    try:
        rows = list(csv.reader(lines, strict=True, delimiter=delimiter))
    except csv.Error:
        return []
    widths = {len(row) for row in rows}
    return rows if len(widths) == 1 and widths != {1} else []


def encoding_hint(line: bytes) -> str:
    """What a line that is not UTF-8 looks like."""
    if line.startswith(_WIDE_MARKS) or b"\0" in line:
        return "it looks like UTF-16, so say encoding='utf-16'"
    return "save it as UTF-8, or name its encoding, such as encoding='cp1252'"
