"""Read records from CSV, Parquet and NPZ files of a client's own disk.

CSV is read by the rule of `fedlatent.shared.data.table`.

A key names a column of a table (CSV, Parquet) or an array of an NPZ archive. Nothing is guessed
beyond that: a value that does not fit is a `DataError` that shows no record's values.
"""

import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.cells import is_number
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.table import read_table
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import ending_of

Label = str | int | float


@dataclass(frozen=True, kw_only=True, eq=False)
class RawRecords:
    """Records as the file holds them, before a schema's scaling.

    Attributes:
        records: Numbers [N, ...]; a table gives [N, columns].
        label: uint8 [N], 0 normal and 1 anomalous, or None.
        client_id: Text [N], or None.
        person: int64 [N], a number for each person in place of what the file calls them, or None.
    """

    records: NDArray[Any]
    label: NDArray[np.uint8] | None
    client_id: NDArray[np.str_] | None
    person: NDArray[np.int64] | None = None


class Fields(TypedDict, total=False):
    """Where a file has what: the keyword arguments of `read_raw`.

    Attributes:
        records_key: NPZ only: the array of records [N, ...]; by default "X".
        columns: Tables only: the columns of a record, in order. None takes all columns other than
            the label's, the client's and the person's.
        label_key: Column or array of labels, for evaluation.
        normal_label: The label of normal records; every other label is an anomaly. None demands
            labels that are 0 or 1 already.
        client_key: Column or array that says whose record it is.
        person_key: Column or array that says which person it is about. Equal values are one
            person; spaces around them do not count.
    """

    records_key: str
    columns: Sequence[str] | None
    label_key: str | None
    normal_label: Label | None
    client_key: str | None
    person_key: str | None


def read(path: Path | str, schema: Schema, **where: Unpack[Fields]) -> Dataset:
    """Read a file and preprocess its records.

    Args:
        path: A .csv, .csv.gz, .parquet or .npz file.
        schema: What each record must be.
        where: What the file calls its records, labels, clients and persons: see `Fields`.

    Raises:
        DataError: If the file is absent, damaged or of another kind, if a key is absent, if a
            record has no person, or if the records do not fit the schema.
    """
    raw = read_raw(path, **where)
    return Dataset(
        records=schema.preprocess(raw.records),
        schema=schema,
        client_id=raw.client_id,
        label=raw.label,
        person=raw.person,
    )


def read_raw(
    path: Path | str,
    *,
    records_key: str = "X",
    columns: Sequence[str] | None = None,
    label_key: str | None = None,
    normal_label: Label | None = None,
    client_key: str | None = None,
    person_key: str | None = None,
) -> RawRecords:
    """Read a file without scaling; the arguments and errors are those of `read`."""
    path = Path(path)
    ending = ending_of(path, READERS)
    if ending is None:
        raise DataError(
            f"Expected a file ending in {', '.join(READERS)}, got {path.name!r}; convert it."
        )
    if not path.is_file():
        raise DataError(f"Expected a data file at {path}, got none; check the path.")
    taken = (records_key, label_key, *(columns or ()))
    if person_key is not None and person_key in taken:
        raise DataError(
            f"Expected {person_key!r} to tell persons apart in {path.name} and nothing else, got "
            "it among the records or labels too; a record never holds its person, so leave it out "
            "there."
        )
    keys = (label_key, client_key, person_key)
    records, others = READERS[ending](path, records_key, columns, [key for key in keys if key])
    found = iter(others)
    labels, clients, persons = (next(found) if key else None for key in keys)
    sides = (("labels", labels), ("client names", clients), ("persons", persons))
    for name, values in sides:
        if values is not None and values.shape != (len(records),):
            raise DataError(
                f"Expected one of the {name} for each of {len(records)} records in {path.name}, "
                f"got shape {list(values.shape)}; give one value per record."
            )
    return RawRecords(
        records=records,
        label=None if labels is None else _binary(_typed(labels), normal_label),
        client_id=None if clients is None else clients.astype(np.str_),
        person=None if persons is None else _numbered(persons, path),
    )


#: The records [N, ...], and of each further key the array [N] that it names.
_Found = tuple[NDArray[Any], list[NDArray[Any]]]


def read_npz(path: Path | str, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Read named arrays of an NPZ archive, without pickled objects.

    Raises:
        DataError: If the file is absent, is no such archive, or lacks a key.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"Expected a data file at {path}, got none; check the path.")
    try:
        # Opened here since numpy leaves its own stream open when the archive is damaged.
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            with archive:
                _check_keys(path, "array", keys, archive.files)
                return {key: archive[key] for key in keys}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"Expected a readable NPZ archive of plain arrays at {path}, got a "
            f"{type(error).__name__}; write the file again with numpy.savez."
        ) from error


def _npz(
    path: Path, records_key: str, columns: Sequence[str] | None, others: Sequence[str]
) -> _Found:
    """Records and other arrays of an NPZ archive."""
    if columns is not None:
        raise DataError(
            f"Expected no columns for the NPZ file {path.name}, got {len(columns)}; "
            "use records_key."
        )
    arrays = read_npz(path, [records_key, *others])
    if arrays[records_key].ndim < 2:
        raise DataError(
            f"Expected records [N, ...] under {records_key!r} in {path.name}, got shape "
            f"{list(arrays[records_key].shape)}; name another array."
        )
    return arrays[records_key], [arrays[key] for key in others]


def _csv(
    path: Path, records_key: str, columns: Sequence[str] | None, others: Sequence[str]
) -> _Found:
    """Records and other columns of a CSV table, by the one rule of tables."""
    records, texts = read_table(path, columns, others)
    return records, [np.array(text, dtype=object) for text in texts]


def _parquet(
    path: Path, records_key: str, columns: Sequence[str] | None, others: Sequence[str]
) -> _Found:
    """Records and other columns of a Parquet table, with pandas, which is imported only here."""
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"Expected a readable table at {path}, got a {type(error).__name__}; write the file "
            "again with one record per row."
        ) from error
    if columns is None:
        columns = [name for name in frame.columns if name not in others]
    _check_keys(path, "column", [*columns, *others], list(frame.columns))
    features = frame[list(columns)]
    texts = [name for name in columns if features[name].dtype.kind not in "iuf"]
    if texts:
        raise DataError(
            f"Expected numbers in every record column of {path.name}, got other values in "
            f"{', '.join(texts[:5])}; name the record columns or convert them.",
            field=texts[0],
            reason="number",
        )
    return features.to_numpy(), [frame[key].astype(object).to_numpy() for key in others]


def _typed(labels: NDArray[Any]) -> NDArray[Any]:
    """A table's labels as numbers or truth values where all are; an empty one is then NaN."""
    if labels.dtype != object:
        return labels
    cells = [str(label).strip() for label in labels]
    if all(is_number(cell) or not cell for cell in cells):
        return np.array([float(cell or "nan") for cell in cells])
    if {cell.lower() for cell in cells} <= {"true", "false"}:
        return np.array([cell.lower() == "true" for cell in cells])
    return labels


def _check_keys(path: Path, kind: str, wanted: Sequence[str], present: Sequence[str]) -> None:
    """Raise DataError unless every wanted key is present."""
    missing = [key for key in wanted if key not in present]
    if missing:
        raise DataError(
            f"Expected {kind} {', '.join(map(repr, missing[:5]))} in {path.name}, got "
            f"{', '.join(map(str, present[:20]))}; correct the name.",
            field=missing[0],
            reason="column",
        )


def _binary(labels: NDArray[Any], normal: Label | None) -> NDArray[np.uint8]:
    """Turn labels into 0 (equal to `normal`) and 1 (all others)."""
    if normal is None:
        if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
            raise DataError(
                "Expected labels 0 and 1, got others; say which one is normal with normal_label."
            )
        return labels.astype(np.uint8)
    if labels.dtype.kind in "biuf":
        if isinstance(normal, str):
            raise DataError(
                f"Expected a number for normal_label since the labels are numbers, got {normal!r}; "
                "write it without quotes."
            )
        if np.isnan(labels.astype(np.float64)).any():
            raise DataError("Expected a label for every record, got gaps; fill or remove them.")
        abnormal = labels != normal
    else:
        names = labels.astype(np.str_)
        if (np.char.strip(names) == "").any():
            raise DataError("Expected a label for every record, got gaps; fill or remove them.")
        abnormal = names != str(normal)
    return np.asarray(abnormal, dtype=np.uint8)


def _numbered(persons: NDArray[Any], path: Path) -> NDArray[np.int64]:
    """One number for each person, so that what the file calls them goes no further.

    Raises:
        DataError: If a record has no person.
    """
    names = ["" if v is None or v != v else str(v).strip() for v in persons.tolist()]
    if "" in names:
        raise DataError(
            f"Expected a person for every record of {path.name}, got none in row "
            f"{names.index('') + 1} (the first record is row 1); name the person or remove the row."
        )
    return np.unique(np.array(names, dtype=np.str_), return_inverse=True)[1].astype(np.int64)


#: By ending; a reader takes the path, the key of an archive's records, the columns of a table's
#: records (None: all others) and the further keys, and raises `DataError`. A new kind of file is a
#: function and a row.
READERS: dict[str, Callable[[Path, str, Sequence[str] | None, Sequence[str]], _Found]] = {
    ".csv": _csv,
    ".csv.gz": _csv,
    ".parquet": _parquet,
    ".npz": _npz,
}
