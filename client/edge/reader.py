"""Records on a device from files: CSV and npz, with numpy and the standard library."""

import gzip
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fedlatent.client.edge.decoders import Layout
from fedlatent.client.edge.formats import CsvDecoder
from fedlatent.client.edge.windows import Rows, Windows, row_of
from fedlatent.shared.data.dialect import COMMAS, Dialect
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import all_seconds, check_steps
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import ending_of

ENDINGS = (".csv", ".csv.gz", ".npz")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a file holds.

    Attributes:
        rows: records in the unit of the file, and the row of the file that each ends in; their
            values are [N, raw_size] from CSV, as stored from npz.
        names: of the values of a row, where the file has them.
        extra: columns of the file that are none of the schema's.
        gaps: how often time has a hole that parts windows.
    """

    rows: Rows
    names: Sequence[str] = ()
    extra: Sequence[str] = ()
    gaps: int = 0

    @property
    def records(self) -> np.ndarray:
        """Raw values of the records."""
        return self.rows.values


def read_records(
    path: Path,
    schema: Schema,
    *,
    key: str = "X",
    columns: Sequence[str] | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
    dialect: Dialect = COMMAS,
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
        dialect: how a CSV is written.

    Raises:
        DataError: the file is absent, of another kind, or does not fit the schema.
        ConfigError: columns are given for a schema that has them.
    """
    ending = ending_of(path, ENDINGS)
    if ending is None:
        raise DataError(
            f"Expected a file that ends in {', '.join(ENDINGS)}, got {path.name}; 'fedlatent data "
            "convert' makes an npz of it."
        )
    layout = Layout(columns=columns, names=names, name=path.name, dialect=dialect)
    try:
        if ending == ".npz":
            found = _read_npz(path, schema, key)
        else:
            found = _read_csv(path, schema, layout, packed=ending == ".csv.gz")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"Expected a readable file at {path}, got {type(error).__name__}; check the path and "
            "the file."
        ) from None
    schema.check_raw(found.records, path.name)
    return found


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
        return Found(rows=_numbered(np.zeros((0, schema.raw_size))), extra=decoder.extra)
    rows, gaps = Rows.joined(parts), 0
    if window is not None:
        windows = Windows(window)
        if rows.seconds is not None:
            check_steps(rows.seconds, window, path.name)
        rows, gaps = _cut(rows, windows, path), windows.gaps
    return Found(rows=rows, names=decoder.names, extra=decoder.extra, gaps=gaps)


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


def _numbered(values: np.ndarray) -> Rows:
    """Rows that follow each other."""
    number = np.arange(1, len(values) + 1)
    return Rows(values=values, number=number, fresh=np.zeros(len(values), dtype=bool))


def _read_npz(path: Path, schema: Schema, key: str) -> Found:
    window = schema.window
    try:
        # Opened here since numpy leaves its own stream open when the archive is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as loaded:
            records = _array(loaded, key, path, "the array of records")
            whole = records.shape[1:] in (schema.raw_shape, (schema.raw_size,))
            if window is None or whole:
                return Found(rows=_numbered(records))
            names = [name for name in (window.time, window.group) if name]
            sides = {name: _array(loaded, name, path, "times and series") for name in names}
    except (zipfile.BadZipFile, ValueError, TypeError):  # TypeError: a bare npy array
        raise DataError(
            f"Expected an npz of plain arrays in {path}, got something else; save it with "
            "numpy.savez."
        ) from None
    fits = all(one.shape == records.shape[:1] for one in sides.values())
    if records.shape[1:] != (schema.row_size,) or not fits:
        raise DataError(
            f"Expected rows of {schema.row_size} values in {path}, each with its time and series "
            f"where the bundle's window names them, got shape {list(records.shape)}; correct it."
        )
    windows, rows = Windows(window), _numbered(records)
    if window.time:
        times = sides[window.time]
        seconds = all_seconds(times, window.time, path.name)
        rows = replace(rows, stamp=times.astype(str), seconds=seconds)
    if window.group:
        rows = replace(rows, group=sides[window.group].astype(str))
    return Found(rows=_cut(rows, windows, path), gaps=windows.gaps)


def _array(loaded: Mapping[str, np.ndarray], key: str, path: Path, what: str) -> np.ndarray:
    """One array of an npz; a DataError where it has none of that name."""
    if key not in loaded:
        names = ", ".join(list(loaded)[:10]) or "none"
        raise DataError(
            f"Expected array {key!r} in {path.name}, got {names}; name {what}.",
            field=key,
            reason="column",
        )
    return loaded[key]
