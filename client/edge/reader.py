"""Records on a device from files: CSV and npz, with numpy and the standard library."""

import gzip
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fedlatent.client.edge.decoders import Layout, seconds_or_none
from fedlatent.client.edge.formats import CsvDecoder
from fedlatent.client.edge.windows import Rows, Windows, row_of
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import ending_of

ENDINGS = (".csv", ".csv.gz", ".npz")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a file holds.

    Attributes:
        records: raw values in the unit of the file: [N, raw_size] from CSV, as stored from npz.
        extra: columns of the file that are none of the schema's.
        gaps: how often time has a hole that parts windows.
    """

    records: np.ndarray
    extra: Sequence[str] = ()
    gaps: int = 0


def read_records(
    path: Path,
    schema: Schema,
    *,
    key: str = "X",
    columns: Sequence[str] | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Found:
    """Read raw records from a file.

    Columns of the schema are found by their names, and its window makes records of rows, as
    everywhere.

    Args:
        path: .csv, .csv.gz (one record a row, values in C order) or .npz, in any case.
        schema: gives the number of values in a record.
        key: array of the npz that holds the records.
        columns: header names of a CSV in record order, where the schema has none; None takes all.
        names: what columns are called here, by the names that the file has for them.

    Raises:
        DataError: the file is absent, of another kind, or does not fit the schema.
        ConfigError: columns are given for a schema that has them.
    """
    ending = ending_of(path, ENDINGS)
    if ending is None:
        raise DataError(
            f"Expected a file that ends in {', '.join(ENDINGS)}, got {path.name}; convert it."
        )
    layout = Layout(columns=columns, names=names, name=path.name)
    try:
        if ending == ".npz":
            return _read_npz(path, schema, key)
        return _read_csv(path, schema, layout, packed=ending == ".csv.gz")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"Expected a readable file at {path}, got {type(error).__name__}; check the path and "
            "the file."
        ) from None


def _read_csv(path: Path, schema: Schema, layout: Layout, *, packed: bool) -> Found:
    window = schema.window
    if window is not None:
        layout = replace(layout, time=window.time, group=window.group)
    decoder = CsvDecoder(row_of(schema), layout)
    parts: list[Rows] = []
    with gzip.open(path) if packed else path.open("rb") as stream:
        while data := stream.read(65_536):
            parts += decoder.feed(data)
        parts += decoder.finish()
    if not parts:
        return Found(records=np.zeros((0, schema.raw_size)), extra=decoder.extra)
    rows, gaps = Rows.joined(parts), 0
    if window is not None:
        windows = Windows(window)
        rows, gaps = _cut(rows, windows, path), windows.gaps
    return Found(records=rows.values, extra=decoder.extra, gaps=gaps)


def _cut(rows: Rows, windows: Windows, path: Path) -> Rows:
    """Records of rows, at least one."""
    records = windows.push(rows)
    if not len(records):
        raise DataError(
            f"Expected {windows.window.length} rows of {path.name} that follow each other for one "
            f"record, got fewer in every series of {len(rows)} rows; give more, or check times "
            "and rate.",
            field="window.length",
            reason="short",
        )
    return records


def _read_npz(path: Path, schema: Schema, key: str) -> Found:
    window = schema.window
    sides = [] if window is None else [name for name in (window.time, window.group) if name]
    try:
        with np.load(path, allow_pickle=False) as loaded:
            records: np.ndarray = _array(loaded, key, path, "the array of records")
            shapes = (schema.raw_shape, (schema.raw_size,))
            if window is None or records.shape[1:] in shapes:
                return Found(records=records)
            arrays = {
                name: _array(loaded, name, path, "the rows' times and series") for name in sides
            }
    except (zipfile.BadZipFile, ValueError, TypeError):  # TypeError: a bare npy array
        raise DataError(
            f"Expected an npz of plain arrays in {path}, got something else; save it with "
            "numpy.savez."
        ) from None
    if records.shape[1:] != (schema.row_size,) or any(
        one.shape != records.shape[:1] for one in arrays.values()
    ):
        raise DataError(
            f"Expected rows of {schema.row_size} values in {path}, each with its time and series "
            f"where the bundle's window names them, got shape {list(records.shape)}; correct it."
        )
    rows = Rows(
        values=records,
        number=np.arange(1, len(records) + 1),
        fresh=np.zeros(len(records), dtype=bool),
        seconds=_seconds(arrays[window.time], path) if window.time else None,
        group=arrays[window.group].astype(str) if window.group else None,
    )
    windows = Windows(window)
    return Found(records=_cut(rows, windows, path).values, gaps=windows.gaps)


def _array(loaded: Mapping[str, np.ndarray], key: str, path: Path, what: str) -> np.ndarray:
    """One array of an npz; a DataError where it has none of that name."""
    if key not in loaded:
        names = ", ".join(list(loaded)[:10]) or "none"
        raise DataError(
            f"Expected array {key!r} in {path}, got {names}; name {what}.",
            field=key,
            reason="column",
        )
    return loaded[key]


def _seconds(times: np.ndarray, path: Path) -> np.ndarray:
    """Times in seconds; a DataError where one is neither a number nor a date."""
    found = [*map(seconds_or_none, times.tolist())]
    if None in found:
        raise DataError(
            f"Expected times in seconds or as ISO 8601 dates in {path}, got something else in "
            f"record {found.index(None) + 1}; correct it.",
            reason="time",
        )
    return np.array(found, dtype=np.float64)
