"""A strict reader of JSON objects: exact keys, exact types, bounded sizes, finite numbers.

Bundles are read on devices that carry no pydantic, hence this small parser. Every failure is a
`BundleError` that names the place and what was expected.
"""

import json
import math
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

from fedlatent.shared.errors import BundleError

MAX_ITEMS = 256
MAX_TEXT = 256
#: Counts stay exact in every JSON reader, JavaScript's included.
MAX_INTEGER = 2**53 - 1

Value = TypeVar("Value")


def parse_object(data: bytes, where: str, max_bytes: int) -> "StrictObject":
    """Parse one JSON object: no NaN or infinity, no key twice.

    Args:
        data: UTF-8 JSON text.
        where: name for error sentences, such as "manifest.json".
        max_bytes: largest length that is parsed at all.

    Raises:
        BundleError: ``data`` is too long or is not such an object.
    """
    if len(data) > max_bytes:
        raise BundleError(f"Expected at most {max_bytes} bytes in {where}, got {len(data)}.")
    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_duplicates
        )
    except (ValueError, RecursionError):  # both decode errors are kinds of ValueError
        raise BundleError(
            f"Expected strict JSON in {where} (UTF-8, finite numbers, no key twice), "
            "got something else; get the bundle again."
        ) from None
    return StrictObject(value, where)


class StrictObject:
    """One JSON object whose keys are taken one by one; `close` refuses what is left."""

    def __init__(self, value: object, where: str) -> None:
        """Take ``value``, which must be a JSON object with at most `MAX_ITEMS` keys."""
        if not isinstance(value, dict) or len(value) > MAX_ITEMS:
            raise BundleError(
                f"Expected {where} to be a JSON object of at most {MAX_ITEMS} keys, "
                f"got {type(value).__name__}."
            )
        self._values: dict[str, object] = dict(value)
        self._where = where

    def close(self) -> None:
        """Refuse keys that nobody took.

        Raises:
            BundleError: an unknown key is present.
        """
        if self._values:
            names = ", ".join(repr(name[:40]) for name in sorted(self._values)[:5])
            raise BundleError(
                f"Expected no other keys in {self._where}, got {names}; "
                "the bundle may be of a newer version than this program."
            )

    def text(self, key: str, pattern: str | None = None) -> str:
        """A printable string of 1 to `MAX_TEXT` characters that fully matches ``pattern``."""
        value = self._take(key)
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT:
            self._refuse(key, f"text of 1 to {MAX_TEXT} characters")
        if not value.isprintable() or (pattern and not re.fullmatch(pattern, value)):
            self._refuse(key, f"text that matches {pattern or 'printable characters'}")
        return value

    def optional_text(self, key: str, pattern: str) -> str | None:
        """Like `text`, or null."""
        if self._values.get(key, "") is None:
            del self._values[key]
            return None
        return self.text(key, pattern)

    def integer(self, key: str, least: int, most: int = MAX_INTEGER) -> int:
        """A whole number between ``least`` and ``most``, both included."""
        value = self._take(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._refuse(key, f"a whole number between {least} and {most}")
        return value

    def number(self, key: str) -> float:
        """A finite number, whole or not; anything else is refused."""
        return self._finite(key, self._take(key))

    def optional_number(self, key: str) -> float | None:
        """A finite number, or null."""
        value = self._take(key)
        return None if value is None else self._finite(key, value)

    def texts(self, key: str, pattern: str) -> tuple[str, ...]:
        """A list of distinct strings that match ``pattern``."""
        values = self._list(key)
        if not all(isinstance(value, str) and re.fullmatch(pattern, value) for value in values):
            self._refuse(key, f"a list of texts that match {pattern}")
        if len(set(values)) != len(values):
            self._refuse(key, "a list without repeats")
        return tuple(str(value) for value in values)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        return tuple(self._finite(key, value) for value in self._list(key))

    def mapping(self, key: str) -> dict[str, object]:
        """A JSON object, not looked into."""
        value = self._take(key)
        if not isinstance(value, dict) or len(value) > MAX_ITEMS:
            self._refuse(key, f"an object of at most {MAX_ITEMS} keys")
        return dict(value)

    def number_mapping(self, key: str, pattern: str) -> dict[str, float]:
        """A JSON object of finite numbers whose keys match ``pattern``."""
        values = self.mapping(key)
        if not all(re.fullmatch(pattern, name) for name in values):
            self._refuse(key, f"an object whose keys match {pattern}")
        return {name: self._finite(key, value) for name, value in values.items()}

    def child(self, key: str) -> "StrictObject":
        """A JSON object, to be read in the same way."""
        return StrictObject(self._take(key), f"{self._where}: {key}")

    def optional_child(self, key: str) -> "StrictObject | None":
        """A JSON object, or null."""
        value = self._take(key)
        return None if value is None else StrictObject(value, f"{self._where}: {key}")

    def children(
        self, key: str, pattern: str, read: "Callable[[StrictObject], Value]"
    ) -> dict[str, Value]:
        """A JSON object of objects; ``read`` turns each into a value and it is then closed."""
        result = {}
        for name, value in self.mapping(key).items():
            if not re.fullmatch(pattern, name):
                self._refuse(key, f"an object whose keys match {pattern}")
            child = StrictObject(value, f"{self._where}: {key}: {name}")
            result[name] = read(child)
            child.close()
        return result

    def _take(self, key: str) -> object:
        if key not in self._values:
            raise BundleError(
                f"Expected key {key!r} in {self._where}, got none; get the bundle again."
            )
        return self._values.pop(key)

    def _list(self, key: str) -> list[object]:
        value = self._take(key)
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            self._refuse(key, f"a list of at most {MAX_ITEMS} items")
        return list(value)

    def _finite(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(key, "a number")
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
        if not math.isfinite(result):
            self._refuse(key, "a finite number")
        return result

    def _refuse(self, key: str, expected: str) -> NoReturn:
        raise BundleError(
            f"Expected {expected} at {key!r} in {self._where}, got something else; "
            "get the bundle again."
        )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON constant {name}")


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result
