"""Read tables by pandas: Parquet and Arrow files, and what other readers make a frame of."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.asked import Asked, Found, check_keys, check_once, name_of, numbers
from fedlatent.shared.data.column import Column
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import ending_of

if TYPE_CHECKING:
    import pandas as pd

#: Endings of the tables that pandas reads.
FRAMES = (".parquet", ".arrow", ".feather")
_EXACT = 2.0**53  # beyond it float64 has not every whole number


def load_frame(path: Path) -> "pd.DataFrame":
    """The table of a Parquet or Arrow file, by pandas, imported only here.

    Raises:
        DataError: It cannot be read.
    """
    import pandas as pd

    load = pd.read_parquet if ending_of(path, [".parquet"]) else pd.read_feather
    try:
        return load(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"Expected a readable table at {path}, got a {type(error).__name__}; write the file "
            "again with one record per row."
        ) from error


def find_in_table(path: Path, asked: Asked) -> Found:
    """Records and other columns of a Parquet or Arrow file."""
    return found_in(load_frame(path), path.name, asked)


def found_in(
    frame: "pd.DataFrame", name: str, asked: Asked, inputs: Sequence[str] | None = None
) -> Found:
    """Records and other columns of a table, whatever it was read from.

    Args:
        frame: One record or row of a series per row.
        name: What errors call the place it was read from.
        asked: What is to be found.
        inputs: The columns of a record where none are asked for; None takes all but `others`.

    Raises:
        DataError: A column is absent or there twice, or holds what does not fit.
    """
    frame = frame.rename(columns=dict(asked.names))
    columns = asked.columns
    if columns is None:
        columns = [one for one in (inputs or frame.columns) if one not in asked.others]
    chosen = [name_of(one) for one in columns]
    present = list(frame.columns)
    check_keys(name, "column", [*chosen, *asked.others], present)
    check_once(name, [*chosen, *asked.others], present)
    sides = [
        cells_in(frame[key]) if key in asked.numbers else _names_in(frame[key], name)
        for key in asked.others
    ]
    if specs := [one for one in columns if isinstance(one, Column)]:
        codes = [one.codes(cells_in(frame[one.name]), name=name) for one in specs]
        return Found(np.stack(codes, axis=1), sides, chosen)
    found = [numbers(cells_in(frame[column]), str(column), name) for column in chosen]
    records = np.stack(found, axis=1) if found else np.zeros((len(frame), 0))
    return Found(records, sides, [str(one) for one in chosen])


def cells_by_name(frame: "pd.DataFrame", name: str) -> dict[str, list[Any]]:
    """The cells of a table's columns by name.

    Raises:
        DataError: A name is there twice.
    """
    names = list(map(str, frame.columns))
    check_once(name, names, names)
    cells = (cells_in(column) for _, column in frame.items())
    return {key: one.tolist() for key, one in zip(names, cells, strict=True)}


def _names_in(column: "pd.Series[Any]", name: str) -> NDArray[Any]:
    """Cells that name a client, person or series: whole numbers stay so beside gaps, None there.

    Raises:
        DataError: They came as floating point, in which several of them would be one.
    """
    cells = cells_in(column)
    if cells.dtype.kind != "f":
        return cells
    there = cells[np.isfinite(cells)]
    if len(there) and np.abs(there).max() > _EXACT:
        raise DataError(
            f"Expected names of clients, persons or series in column {str(column.name)!r} of "
            f"{name}, got numbers too large to be told apart as they come; make them texts there.",
            field=str(column.name),
            reason="number",
        )
    if len(there) == len(cells) or (there != np.round(there)).any():
        return cells
    return np.array([str(int(one)) if one == one else None for one in cells.tolist()], dtype=object)


def cells_in(column: "pd.Series[Any]") -> NDArray[Any]:
    """Cells of a column of any type: numbers where all are, NaN in gaps; else None in gaps."""
    if column.dtype.kind in "iufb" and isinstance(column.dtype, np.dtype):
        return column.to_numpy()
    if column.dtype.kind in "iuf":  # nullable, or of Arrow
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column.astype(object).where(column.notna(), None).to_numpy(dtype=object)
