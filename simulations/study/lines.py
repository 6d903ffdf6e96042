"""Where each key of a TOML text stands.

The standard library's reader keeps no positions, so errors about a value could not name its line.
This scanner walks over a text that the reader has already accepted and notes the line of every
key: in tables, dotted keys, inline tables, and tables within arrays.
"""

import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

#: Path of a key; the number of an element stands for a table within an array.
Path = tuple[str, ...]

_BARE_END = " \t\r\n=.]},#"
_SPACE, _LINE_SPACE = " \t\r", " \t\r\n"


def key_lines(text: str) -> dict[Path, int]:
    """The line (from 1) of every key and table header of ``text``, which must be valid TOML.

    Tables that are only named as part of a longer key have the line of the first such key.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


def line_of(lines: Mapping[Path, int], path: Sequence[str]) -> int | None:
    """The line of ``path``, or of the longest part of it that stands in the text."""
    for end in range(len(path), 0, -1):
        if (found := lines.get(tuple(path[:end]))) is not None:
            return found
    return None


class _Scanner:
    """A position in the text, and the lines found so far."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.lines: dict[Path, int] = {}

    def document(self) -> None:
        """Everything: headers and pairs."""
        table: Path = ()
        tables: Counter[Path] = Counter()
        while self._skip(_LINE_SPACE):
            if self.text.startswith("[[", self.at):
                self.at += 2
                table = self._arrayed(self._key(), tables)
                table = (*table, str(tables[table]))
                tables[table[:-1]] += 1
                self._note(table)
                self.at = self.text.index("]]", self.at) + 2
            elif self.text[self.at] == "[":
                self.at += 1
                table = self._arrayed(self._key(), tables)
                self._note(table)
                self.at = self.text.index("]", self.at) + 1
            else:
                self._pair(table)

    def _arrayed(self, path: Path, tables: Counter[Path]) -> Path:
        """``path`` with the number of the newest element after each array of tables before it."""
        made: Path = ()
        for i, part in enumerate(path):
            made = (*made, part)
            if tables[made] and i < len(path) - 1:
                made = (*made, str(tables[made] - 1))
        return made

    def _pair(self, table: Path) -> None:
        path = (*table, *self._key(table))
        self._skip(_SPACE)
        self.at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _key(self, table: Path = ()) -> Path:
        """A key of one or more parts; every part is noted under ``table``."""
        parts: Path = ()
        while True:
            self._skip(_SPACE)
            if self.text[self.at] in "\"'":
                start = self.at
                self._string()
                parts = (*parts, _unquoted(self.text[start : self.at]))
            else:
                start = self.at
                while self.at < len(self.text) and self.text[self.at] not in _BARE_END:
                    self.at += 1
                parts = (*parts, self.text[start : self.at])
            self._note((*table, *parts))
            self._skip(_SPACE)
            if self.text[self.at : self.at + 1] != ".":
                return parts
            self.at += 1

    def _value(self, path: Path) -> None:
        opening = self.text[self.at]
        if opening in "\"'":
            self._string()
        elif opening == "{":
            self._items("}", lambda number: self._pair(path))
        elif opening == "[":
            self._items("]", lambda number: self._value((*path, str(number))))
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\n":
                self.at += 1

    def _items(self, closing: str, read: Callable[[int], None]) -> None:
        """Items up to ``closing``, with commas, line ends and comments between them."""
        self.at += 1
        number = 0
        while self._skip(_LINE_SPACE + ",") and self.text[self.at] != closing:
            read(number)
            number += 1
        self.at += 1

    def _string(self) -> None:
        """Step over a string of any of the four kinds."""
        quote = self.text[self.at]
        fence = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.at += len(fence)
        while not self.text.startswith(fence, self.at):
            escaped = quote == '"' and self.text[self.at] == "\\"
            self.at += 2 if escaped else 1
        self.at += len(fence)
        while len(fence) == 3 and self.text.startswith(quote, self.at):
            self.at += 1  # up to two quotes may stand before the closing fence

    def _skip(self, characters: str) -> bool:
        """Step over ``characters`` and comments; whether any text is left."""
        while self.at < len(self.text):
            if self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self.text[self.at] in characters:
                self.at += 1
            else:
                return True
        return False

    def _note(self, path: Path) -> None:
        line = self.text.count("\n", 0, self.at) + 1
        self.lines.setdefault(path, line)


def _unquoted(text: str) -> str:
    """The key in quotes ``text``, with its escapes read."""
    (key,) = tomllib.loads(f"{text} = 0")
    return key
