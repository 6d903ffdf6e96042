"""Tables of numbers and classes: from data frames to records, back, and what is missing in them.

What a column holds is `fedlatent.shared.data.column.Column`, what a record is the schema of such
columns. In records of the mixed family every column may be missing.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedlatent.shared.data.column import Column
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import DataError


def places(columns: Sequence[Column]) -> list[slice]:
    """Where in a record each column stands."""
    starts = list(accumulate((column.width for column in columns), initial=0))
    return [slice(*pair) for pair in pairwise(starts)]


def raw_rows(frame: pd.DataFrame, columns: Sequence[Column]) -> NDArray[np.float64]:
    """Raw rows [N, C] of a table, its columns found by name: see `Column.codes`.

    Raises:
        DataError: A column is not in the table, or a cell is not as its column needs it.
    """
    missing = [column.name for column in columns if column.name not in frame.columns]
    if missing:
        raise DataError(
            f"Expected columns {missing[:3]} in the table, got none; correct it.",
            field=missing[0],
            reason="column",
        )
    return np.stack([column.codes(frame[column.name].to_numpy()) for column in columns], axis=1)


def to_records(frame: pd.DataFrame, columns: Sequence[Column]) -> NDArray[np.float32]:
    """Records [N, D] of a table; errors are those of `raw_rows`."""
    return Schema(name="table", columns=tuple(columns)).preprocess(raw_rows(frame, columns))


def to_table(records: NDArray[np.float32], columns: Sequence[Column]) -> pd.DataFrame:
    """Rows of records [N, D], drawn or real: numbers in their range, classes by their level.

    A value is missing where its flag, or the sum of its levels, is at most a half.
    """
    found: dict[str, Any] = {}
    for column, place in zip(columns, places(columns), strict=True):
        block = records[:, place].astype(np.float64)
        if column.levels:
            levels = np.array(column.levels, dtype=object)[block.argmax(1)]
            found[column.name] = np.where(_there(block, column), levels, None)
        else:
            numbers = column.raw_of(np.clip(block[:, 0], 0.0, 1.0))
            found[column.name] = np.where(_there(block, column), numbers, np.nan)
    return pd.DataFrame(found)


def present(records: NDArray[np.float32], columns: Sequence[Column]) -> NDArray[np.bool_]:
    """Which values are there, [N, columns]."""
    pairs = zip(columns, places(columns), strict=True)
    return np.stack([_there(records[:, place], column) for column, place in pairs], axis=1)


def hidden(
    records: NDArray[np.float32], columns: Sequence[Column], hide: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """A copy of records [N, D] in which the values that `hide` [N, columns] marks are missing."""
    keep = np.repeat(~hide, [column.width for column in columns], axis=1)
    return np.where(keep, records, 0.0).astype(np.float32)


def _there(block: NDArray[Any], column: Column) -> NDArray[np.bool_]:
    """Where a column's values [N, width] are not missing."""
    if column.levels:
        return np.asarray(block.sum(1) > 0.5)
    return np.asarray(block[:, -1] > 0.5) if column.missing == "mask" else np.ones(len(block), bool)
