"""Labels of records, from what a file holds to 0 for normal and 1 for anomalous."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.cells import is_number
from fedlatent.shared.errors import DataError

Label = str | int | float | bool


def typed(labels: NDArray[Any]) -> NDArray[Any]:
    """A table's labels as numbers or truth values where all are; else texts, empty in gaps."""
    if labels.dtype != object:
        return labels
    cells = ["" if one is None or one != one else str(one).strip() for one in labels.tolist()]
    if all(is_number(cell) or not cell for cell in cells):
        return np.array([float(cell or "nan") for cell in cells])
    if {cell.lower() for cell in cells} <= {"true", "false"}:
        return np.array([cell.lower() == "true" for cell in cells])
    return np.array(cells)


def binary(labels: NDArray[Any], normal: Label | None) -> NDArray[np.uint8]:
    """Turn labels into 0 (equal to `normal`) and 1 (all others)."""
    if normal is None:
        if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
            raise DataError(
                "Expected labels 0 and 1, got others; say which one is normal with normal_label."
            )
        return labels.astype(np.uint8)
    if labels.dtype.kind in "biuf":
        if np.isnan(labels.astype(np.float64)).any():
            raise DataError("Expected a label for every record, got gaps; fill or remove them.")
        abnormal = labels != _value_of(normal, truth=labels.dtype.kind == "b")
    else:
        names = np.char.strip(labels.astype(np.str_))
        if (names == "").any():
            raise DataError("Expected a label for every record, got gaps; fill or remove them.")
        abnormal = names != str(normal).strip()
    return np.asarray(abnormal, dtype=np.uint8)


def _value_of(normal: Label, *, truth: bool) -> float:
    """The normal label as a number, where labels are numbers or truth values.

    Raises:
        DataError: It is no number.
    """
    text = str(normal).strip().lower()
    if truth and text in ("true", "false"):
        return float(text == "true")
    if isinstance(normal, bool) or not is_number(text):
        raise DataError(
            f"Expected a number for normal_label since the labels are "
            f"{'true and false' if truth else 'numbers'}, got {normal!r}; correct it."
        )
    return float(text)
