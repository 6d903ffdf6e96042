"""TOML: reading it with a line in each error, and writing it."""

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from fedlatent.shared.errors import ConfigError


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Args:
        text: TOML.
        source: name of the file, for the message.

    Raises:
        ConfigError: a syntax error (reason "syntax"), with its line.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        # The reader says the place in words alone before Python 3.14.
        found = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", str(error), re.DOTALL)
        what, line = (found[1], int(found[2])) if found else (str(error), text.count("\n") + 1)
        raise ConfigError(
            f"{source}, line {line}: expected TOML, got a syntax error: {what}.", reason="syntax"
        ) from None


def dumps(value: Mapping[str, object]) -> str:
    """TOML text of nested tables of strings, numbers, booleans and lists of those.

    ``None`` entries are left out, since TOML has no null.

    Raises:
        ValueError: A value of another kind.
    """
    return "\n".join(_table(value, ())).strip() + "\n"


def _table(value: Mapping[str, object], path: tuple[str, ...]) -> list[str]:
    lines = [
        f"{_key(key)} = {_scalar(item)}"
        for key, item in value.items()
        if item is not None and not isinstance(item, Mapping)
    ]
    if path and (lines or not value):
        lines.insert(0, f"\n[{'.'.join(path)}]")
    for key, item in value.items():
        if isinstance(item, Mapping):
            lines += _table(item, (*path, _key(key)))
    return lines


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else _text(key)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    raise ValueError(
        f"Expected a string, number, boolean, list or table, got {type(value).__name__}."
    )


def _text(value: str) -> str:
    """A basic string; JSON's escapes are TOML's but for DEL, which JSON leaves raw."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
