"""TOML: reading it with a line in each error, and writing it without what is None."""

import re
import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w

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
    """TOML text of nested tables; ``None`` entries are left out, since TOML has no null.

    Raises:
        TypeError: a value that TOML has no form for.
    """
    return tomli_w.dumps(_present(value))


def _present(table: Mapping[str, object]) -> dict[str, object]:
    return {key: _kept(value) for key, value in table.items() if value is not None}


def _kept(value: object) -> object:
    if isinstance(value, Mapping):
        return _present(value)
    return [_kept(item) for item in value] if isinstance(value, list | tuple) else value
