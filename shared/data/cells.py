"""Cells of tables: what is a number, and what stands for none."""

import math
import re
from collections.abc import Sequence

#: Texts that stand for no value, in any case, unless they are levels of the column.
GAPS = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})

_NUMBER = re.compile(
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf(?:inity)?)", re.I
)


def is_number(cell: str) -> bool:
    """Whether a cell is a number: ASCII digits, a point, an exponent; spaces around do not count.

    NaN and infinity are numbers here, too.
    """
    return _NUMBER.fullmatch(cell.strip()) is not None


def is_gap(cell: object) -> bool:
    """Whether a cell holds no value: None, or one of `GAPS`."""
    return cell is None or str(cell).strip().lower() in GAPS


def number_of(cell: object) -> float | None:
    """The number in a cell; NaN where it holds no value, None where it holds another text."""
    if is_gap(cell):
        return math.nan
    text = str(cell)
    return float(text) if is_number(text) else None


def numbers_of(cells: Sequence[object]) -> list[float | None]:
    """`number_of` of each cell."""
    try:
        text = "".join(cells)  # type: ignore[arg-type]  # others than texts raise
        if text.isascii() and "_" not in text:  # what float takes beyond the rule
            return [math.nan if cell in GAPS else float(cell) for cell in cells]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        pass
    return [number_of(cell) for cell in cells]
