"""Records on a device from files: CSV and npz, with numpy and the standard library."""

import gzip
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedlatent.client.edge.decoders import CsvDecoder, Layout
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import ending_of

ENDINGS = (".csv", ".csv.gz", ".npz")


def read_records(
    path: Path, schema: Schema, *, key: str = "X", columns: Sequence[str] | None = None
) -> np.ndarray:
    """Read raw records from a file.

    Args:
        path: .csv, .csv.gz (one record a row, values in C order) or .npz, in any case.
        schema: gives the number of values in a record.
        key: array of the npz that holds the records.
        columns: header names of a CSV in record order; None takes all columns.

    Returns:
        Raw values in the unit of the file: [N, size] from CSV, as stored from npz.

    Raises:
        DataError: the file is absent, of another kind, or does not fit the schema.
    """
    ending = ending_of(path, ENDINGS)
    if ending is None:
        raise DataError(
            f"Expected a file that ends in {', '.join(ENDINGS)}, got {path.name}; convert it."
        )
    decoder = CsvDecoder(schema, Layout(columns=columns, name=path.name))
    rows = [np.zeros((0, schema.size))]
    try:
        if ending == ".npz":
            return _read_npz(path, key)
        with gzip.open(path) if ending == ".csv.gz" else path.open("rb") as stream:
            while data := stream.read(65_536):
                rows += [each.values for each in decoder.feed(data)]
            rows += [each.values for each in decoder.finish()]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"Expected a readable file at {path}, got {type(error).__name__}; check the path and "
            "the file."
        ) from None
    return np.concatenate(rows)


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
