"""Limits of the fields of schemas, checked with pydantic and without it."""

from collections.abc import Callable
from typing import Any

from fedlatent.shared.errors import ConfigError

MAX_TEXT = 64
MAX_MAGNITUDE = 1e30


class Limits:
    """Limits of a field, for the files that pydantic reads; devices have no pydantic."""

    def __init__(self, **limits: float) -> None:
        """Take pydantic's keywords, such as ``ge`` and ``max_length``."""
        self._limits = limits

    def __get_pydantic_core_schema__(
        self, source: object, handler: Callable[[object], dict[str, Any]]
    ) -> dict[str, Any]:
        """Pydantic's schema of the field, with the limits."""
        return handler(source) | self._limits


def check_text(key: str, value: object, least: int) -> None:
    """Raise ConfigError unless `value` is a printable string of `least` to MAX_TEXT characters."""
    if not isinstance(value, str) or not least <= len(value) <= MAX_TEXT or not value.isprintable():
        raise ConfigError(
            f"Expected schema {key} to be {least} to {MAX_TEXT} printable characters, "
            f"got {type(value).__name__} {str(value)[:MAX_TEXT]!r}; shorten or correct it.",
            field=key,
        )


def checked_float(key: str, value: object) -> float:
    """Return `value` as a finite float; raise ConfigError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"Expected schema {key} to be a number, got {type(value).__name__}; write a number.",
            field=key,
        )
    if not -MAX_MAGNITUDE < value < MAX_MAGNITUDE:
        raise ConfigError(
            f"Expected a finite schema {key} below {MAX_MAGNITUDE:g} in size; write such a number.",
            field=key,
        )
    return float(value)


def checked_count(key: str, value: object, most: int) -> int:
    """Return `value` as a whole number from 1 to `most`; raise ConfigError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigError(
            f"Expected schema {key} to be a whole number from 1 to {most}, got "
            f"{str(value)[:MAX_TEXT]}; correct it.",
            field=key,
        )
    return value
