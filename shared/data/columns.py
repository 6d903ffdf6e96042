"""Tables of numbers and classes as records, missing values and all.

What a column holds is a public description: its range or its levels, never taken from the rows. A
record has two values for a column of numbers, the number scaled to [0, 1] and 1 where it is there,
and one value per level for a column of classes, all zero where it is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import ConfigError, DataError

Level = str | float


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: of numbers from `lower` to `upper`, or of classes where it has `levels`.

    Attributes:
        name: In the table.
        lower: Number that becomes 0; what lies below is clipped.
        upper: Number that becomes 1; what lies above is clipped.
        logarithm: Whether numbers are counts, scaled after log(1 + count).
        levels: Every class; any other value counts as missing.

    Raises:
        ConfigError: The range is empty, or there are levels and fewer than two distinct ones.
    """

    name: str
    lower: float = 0.0
    upper: float = 1.0
    logarithm: bool = False
    levels: tuple[Level, ...] = ()

    def __post_init__(self) -> None:
        """Check the range or the levels."""
        if self.levels and (len(self.levels) < 2 or len(set(self.levels)) < len(self.levels)):
            raise ConfigError(
                f"Expected two or more distinct levels of {self.name}, got {self.levels}; "
                "correct them."
            )
        if not self.levels and not self.lower < self.upper:
            raise ConfigError(
                f"Expected lower < upper of {self.name}, got {self.lower} and {self.upper}; "
                "correct them."
            )
        if self.logarithm and not self.lower > -1.0:
            raise ConfigError(
                f"Expected counts of {self.name} above -1, got lower {self.lower}; correct it."
            )

    @property
    def width(self) -> int:
        """Values of a record that the column takes."""
        return len(self.levels) or 2


def layout(columns: Sequence[Column]) -> list[int]:
    """The option `columns` of the mixed family: 0 for numbers, else the number of levels."""
    return [len(column.levels) for column in columns]


def places(columns: Sequence[Column]) -> list[slice]:
    """Where in a record each column stands."""
    starts = list(accumulate((column.width for column in columns), initial=0))
    return [slice(*pair) for pair in pairwise(starts)]


def table_schema(name: str, columns: Sequence[Column]) -> Schema:
    """What records of these columns look like."""
    width = sum(column.width for column in columns)
    return Schema(
        name=name, shape=(width,), unit="", scale=1.0, center="none", lower=0.0, upper=1.0
    )


def to_records(frame: pd.DataFrame, columns: Sequence[Column]) -> NDArray[np.float32]:
    """Records [N, D] of a table; what is empty or no known level is missing.

    Raises:
        DataError: A column is not in the table.
    """
    missing = [column.name for column in columns if column.name not in frame.columns]
    if missing:
        raise DataError(f"Expected columns {missing[:3]} in the table, got none; correct it.")
    blocks = [_block(frame[column.name], column) for column in columns]
    return np.concatenate(blocks, axis=1).astype(np.float32)


def to_table(records: NDArray[np.float32], columns: Sequence[Column]) -> pd.DataFrame:
    """Rows of records [N, D], drawn or real: numbers in their range, classes by their level.

    A value is missing where its flag, or the sum of its levels, is at most a half.
    """
    found: dict[str, Any] = {}
    for column, place in zip(columns, places(columns), strict=True):
        block = records[:, place].astype(np.float64)
        if column.levels:
            levels = np.array(column.levels, dtype=object)[block.argmax(1)]
            found[column.name] = np.where(block.sum(1) > 0.5, levels, None)
        else:
            numbers = _unscaled(np.clip(block[:, 0], 0.0, 1.0), column)
            found[column.name] = np.where(block[:, 1] > 0.5, numbers, np.nan)
    return pd.DataFrame(found)


def present(records: NDArray[np.float32], columns: Sequence[Column]) -> NDArray[np.bool_]:
    """Which values are there, [N, columns]."""
    parts = [
        records[:, place].sum(1) > 0.5 if column.levels else records[:, place][:, 1] > 0.5
        for column, place in zip(columns, places(columns), strict=True)
    ]
    return np.stack(parts, axis=1)


def hidden(
    records: NDArray[np.float32], columns: Sequence[Column], hide: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """A copy of records [N, D] in which the values that `hide` [N, columns] marks are missing."""
    keep = np.repeat(~hide, [column.width for column in columns], axis=1)
    return np.where(keep, records, 0.0).astype(np.float32)


def _block(values: pd.Series, column: Column) -> NDArray[np.float64]:
    if column.levels:
        return np.stack([np.asarray(values == level) for level in column.levels], 1).astype(
            np.float64
        )
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
    there = np.isfinite(numbers)
    clipped = np.clip(np.where(there, numbers, column.lower), column.lower, column.upper)
    low, high, inside = column.lower, column.upper, clipped
    if column.logarithm:
        low, high, inside = np.log1p(low), np.log1p(high), np.log1p(clipped)
    return np.stack([np.where(there, (inside - low) / (high - low), 0.0), there], 1)


def _unscaled(numbers: NDArray[np.float64], column: Column) -> NDArray[np.float64]:
    if not column.logarithm:
        return column.lower + numbers * (column.upper - column.lower)
    low, high = np.log1p(column.lower), np.log1p(column.upper)
    return np.asarray(np.expm1(low + numbers * (high - low)), dtype=np.float64)
