"""What is asked of a reader, what it finds, and how it refuses what is not there."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.column import Column
from fedlatent.shared.data.dialect import Dialect
from fedlatent.shared.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a reader is to find in a file.

    Attributes:
        records_key: The array of records, where the file is an archive.
        columns: The columns of a record where the file is a table, in order: names, or those of a
            schema, which say what their cells mean. None takes all but `others`.
        others: Further columns or arrays: labels, clients, persons, times, groups.
        numbers: Those of `others` that may be numbers: labels and times.
        names: What columns are called here, by the names that the file has for them.
        dialect: How a CSV file is written.
        rate: Rows per second that a recording must have; 0 where nothing is said.
        series: Whether the order of rows counts, since windows cut them.
    """

    records_key: str
    columns: Sequence[str] | Sequence[Column] | None
    others: Sequence[str]
    names: Mapping[str, str]
    dialect: Dialect
    rate: float = 0.0
    series: bool = False
    numbers: Sequence[str] = ()


class Found(NamedTuple):
    """What a reader found.

    Attributes:
        records: [N, ...].
        sides: Of each of `Asked.others` the array [N] that it names.
        names: Of the columns of a record; none where the file names none.
        left_out: Records of the file that are not among these: how many for each reason.
    """

    records: NDArray[Any]
    sides: list[NDArray[Any]]
    names: Sequence[str] = ()
    left_out: Mapping[str, int] = MappingProxyType({})


def hidden(path: Path) -> bool:
    """Whether a part of a name below a folder begins with a dot, or is what a packer leaves."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


@contextlib.contextmanager
def needed(extra: str, what: str) -> Iterator[None]:
    """Import here what only the extra ``extra`` of this package installs, to read ``what``.

    Raises:
        DataError: it is not installed; the sentence names the extra.
    """
    try:
        yield
    except ImportError as error:
        raise DataError(
            f"Expected the package {error.name!r} to read {what}, got none; install "
            f"'fedlatent[{extra}]'.",
            field=error.name,
            reason="extra",
        ) from None


def name_of(column: str | Column) -> str:
    """The name of a column that is asked for."""
    return column if isinstance(column, str) else column.name


def numbers(cells: NDArray[Any], column: str, name: str) -> NDArray[Any]:
    """The same, where they are finite numbers.

    Raises:
        DataError: One is none.
    """
    if cells.dtype == object and {type(one) for one in cells} <= {Decimal, type(None)}:
        cells = np.array([math.nan if one is None else float(one) for one in cells])
    if cells.dtype.kind not in "iuf":
        raise DataError(
            f"Expected numbers in every record column of {name}, got other values in "
            f"{column}; "
            "name the record columns or convert them.",
            field=column,
            reason="number",
        )
    wrong = np.flatnonzero(~np.isfinite(cells))
    if len(wrong):
        raise DataError(
            f"Expected a finite value in column {column!r} of {name}, got a gap, NaN or "
            f"infinity in record {int(wrong[0]) + 1}; correct it, drop it or choose other columns.",
            field=column,
            reason="finite",
        )
    return cells


def check_once(name: str, wanted: Sequence[str], present: Sequence[str]) -> None:
    """Raise DataError where a wanted column is there twice."""
    twice = [key for key in wanted if present.count(key) > 1]
    if twice:
        raise DataError(
            f"Expected column {twice[0]!r} once in {name}, got it twice; rename one of them.",
            field=str(twice[0]),
            reason="column",
        )


def check_keys(name: str, kind: str, wanted: Sequence[str], present: Sequence[str]) -> None:
    """Raise DataError unless every wanted key is present."""
    missing = [key for key in wanted if key not in present]
    if missing:
        raise DataError(
            f"Expected {kind} {', '.join(map(repr, missing[:5]))} in {name}, got "
            f"{', '.join(map(str, present[:20]))}; correct the name.",
            field=missing[0],
            reason="column",
        )
