"""Records on a device: CSV files or streams, and npz, with numpy and the standard library."""

import csv
import gzip
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from shared.data.schema import Schema
from shared.errors import DataError

SUFFIXES = (".csv", ".csv.gz", ".npz")


def read_records(
    path: Path, schema: Schema, *, key: str = "X", columns: Sequence[str] | None = None
) -> np.ndarray:
    """Read raw records from a file.

    Args:
        path: .csv, .csv.gz (one record a row, values in C order) or .npz.
        schema: gives the number of values in a record.
        key: array of the npz that holds the records.
        columns: header names of a CSV in record order; None takes all columns.

    Returns:
        Raw values in the unit of the file: [N, size] from CSV, as stored from npz.

    Raises:
        DataError: the file is absent, of another kind, or does not fit the schema.
    """
    if not path.name.endswith(SUFFIXES):
        raise DataError(
            f"Expected a file that ends in {', '.join(SUFFIXES)}, got {path.name}; convert it."
        )
    try:
        if path.suffix == ".npz":
            return _read_npz(path, key)
        with (
            gzip.open(path, "rt", newline="")
            if path.suffix == ".gz"
            else path.open(newline="") as stream
        ):
            chunks = list(csv_chunks(stream, schema, columns=columns, where=str(path)))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(
            f"Expected a readable file at {path}, got {type(error).__name__}; check the path and "
            "the file."
        ) from None
    return np.concatenate([np.zeros((0, schema.size)), *chunks])


def csv_chunks(
    lines: Iterable[str],
    schema: Schema,
    *,
    columns: Sequence[str] | None = None,
    where: str = "the stream",
    size: int = 256,
) -> Iterator[np.ndarray]:
    """Records from CSV lines as they come, for files, pipes and standard input.

    A first row with a cell that is not a number is the header.

    Args:
        lines: text lines, one record each; blank ones are skipped.
        schema: gives the number of values in a record.
        columns: header names in record order; None takes all columns.
        where: name of the source, for error sentences.
        size: records per chunk; 1 answers every line at once.

    Yields:
        float64 [n, schema.size] with 1 <= n <= size.

    Raises:
        DataError: a row has another length or a cell that is not a number; the sentence names
            the row, never its values.
    """
    rows = _rows(lines, where)
    first = next(rows, None)
    if first is None:
        return
    header = None if all(is_number(cell) for cell in first) else first
    indices = column_indices(header, columns, where)
    if header is None:
        rows = chain([first], rows)
    width = None if header is None else len(header)
    chunk: list[list[float]] = []
    for number, row in enumerate(rows, start=1):
        chunk.append(row_values(row, indices, width, schema, f"record {number} of {where}"))
        if len(chunk) == size:
            yield np.array(chunk)
            chunk = []
    if chunk:
        yield np.array(chunk)


def _rows(lines: Iterable[str], where: str) -> Iterator[list[str]]:
    """Cells of every line that is not blank."""
    try:
        yield from (row for row in csv.reader(lines) if row)
    except csv.Error:
        raise DataError(f"Expected CSV in {where}, got something else; convert it.") from None


def column_indices(
    header: Sequence[str] | None, columns: Sequence[str] | None, where: str
) -> list[int] | None:
    """Positions of ``columns`` in ``header``, or None for all columns.

    Raises:
        DataError: there is no header to choose by, or it lacks a name.
    """
    if columns is None:
        return None
    if header is None:
        raise DataError(f"Expected a header row in {where} to choose columns by, got none; add it.")
    missing = [name for name in columns if name not in header]
    if missing:
        raise DataError(
            f"Expected columns {', '.join(missing)} in {where}, got a header without them; "
            "correct the names."
        )
    return [header.index(name) for name in columns]


def row_values(
    row: Sequence[str], indices: list[int] | None, width: int | None, schema: Schema, where: str
) -> list[float]:
    """The cells of a row as numbers.

    Args:
        row: the cells.
        indices: which of them, in order; None for all.
        width: how many there must be; None leaves that to the schema.
        schema: gives the number of values.
        where: name of the row, for error sentences.

    Raises:
        DataError: another number of cells, or a cell that is no number.
    """
    if width is not None and len(row) != width:
        raise DataError(f"Expected {width} cells as in the header, got {len(row)} in {where}.")
    cells = row if indices is None else [row[index] for index in indices]
    if len(cells) != schema.size:
        raise DataError(
            f"Expected {schema.size} values for schema {schema.name!r}, got {len(cells)} in "
            f"{where}; choose other columns or another bundle."
        )
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        raise DataError(
            f"Expected numbers only, got a cell that is none in {where}; correct it or choose "
            "other columns."
        ) from None


def _read_npz(path: Path, key: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as loaded:
            if key not in loaded.files:
                names = ", ".join(loaded.files[:10]) or "none"
                raise DataError(
                    f"Expected array {key!r} in {path}, got {names}; name the array of records."
                )
            array: np.ndarray = loaded[key]
    except (zipfile.BadZipFile, ValueError, TypeError):  # TypeError: a bare npy array
        raise DataError(
            f"Expected an npz of plain arrays in {path}, got something else; save it with "
            "numpy.savez."
        ) from None
    return array


def is_number(cell: str) -> bool:
    """Whether a cell is a number; a first row with another is a header."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
