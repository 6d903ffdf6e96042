"""Read records from CSV, Parquet, Arrow and NPZ files of a client's own disk.

CSV is read by the rule of `fedlatent.shared.data.table`.

A key names a column of a table (CSV, Parquet, Arrow) or an array of an NPZ archive. Nothing is
guessed beyond that: a value that does not fit is a `DataError` that shows no record's values.
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.cells import is_number
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.data.dialect import Dialect
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import all_seconds, cut
from fedlatent.shared.data.table import read_table
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import ending_of

if TYPE_CHECKING:
    import pandas as pd

Label = str | int | float | bool


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

    def dataset(self, schema: Schema) -> Dataset:
        """The same preprocessed.

        Raises:
            DataError: If the records do not fit the schema.
        """
        return Dataset(
            records=schema.preprocess(self.records),
            schema=schema,
            client_id=self.client_id,
            label=self.label,
            person=self.person,
        )


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
        names: What columns of a table are called here, by the names that the file has for them.
        dialect: How a CSV file is written.
    """

    records_key: str
    columns: Sequence[str] | None
    label_key: str | None
    normal_label: Label | None
    client_key: str | None
    person_key: str | None
    names: Mapping[str, str]
    dialect: Dialect


def read(path: Path | str, schema: Schema, **where: Unpack[Fields]) -> Dataset:
    """Read a file and preprocess its records.

    Args:
        path: A .csv, .csv.gz, .parquet, .arrow, .feather or .npz file.
        schema: What each record must be.
        where: What the file calls its records, labels, clients and persons: see `Fields`.

    Raises:
        DataError: If the file is absent, damaged or of another kind, if a key is absent, if a
            record has no person, or if the records do not fit the schema.
    """
    return read_raw(path, schema, **where).dataset(schema)


def read_raw(
    path: Path | str,
    schema: Schema | None = None,
    *,
    records_key: str = "X",
    columns: Sequence[str] | None = None,
    label_key: str | None = None,
    normal_label: Label | None = None,
    client_key: str | None = None,
    person_key: str | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
    dialect: Dialect = Dialect(),  # noqa: B008 - frozen
) -> RawRecords:
    """Read a file without scaling; the arguments and errors are those of `read`.

    The columns of `schema` are found by name and coded (`Column.codes`), and its window cuts rows
    into records; a record is anomalous when one of its rows is.
    """
    path = Path(path)
    ending = ending_of(path, READERS)
    if ending is None:
        raise DataError(
            f"Expected a file ending in {', '.join(READERS)}, got {path.name!r}; convert it."
        )
    if not path.is_file():
        raise DataError(f"Expected a data file at {path}, got none; check the path.")
    window = None if schema is None else schema.window
    inputs = _inputs(path, schema, columns)
    series = (window.time, window.group) if window is not None else ("", "")
    keys = (label_key, client_key, person_key, *series)
    taken = [records_key, *map(_name_of, inputs or ())]
    _check_apart(path, "labels", label_key, taken)
    _check_apart(path, "client names", client_key, taken)
    _check_apart(path, "persons", person_key, [*taken, label_key])
    others = tuple(key for key in keys if key)
    asked = Asked(
        records_key=records_key, columns=inputs, others=others, names=names, dialect=dialect
    )
    records, sides = READERS[ending](path, asked)
    found = iter(sides)
    labels, clients, persons, times, groups = (next(found) if key else None for key in keys)
    for name, values in zip(_SIDES, (labels, clients, persons, times, groups), strict=True):
        if values is not None and values.shape != (len(records),):
            raise DataError(
                f"Expected one of the {name} for each of {len(records)} records in {path.name}, "
                f"got shape {list(values.shape)}; give one value per record."
            )
    raw = RawRecords(
        records=records,
        label=None if labels is None else _binary(_typed(labels), normal_label),
        client_id=None if clients is None else clients.astype(np.str_),
        person=None if persons is None else _numbered(persons, path),
    )
    if schema is None or window is None or records.shape[1:] == schema.raw_shape:
        return raw
    return _cut(raw, schema, path, times, groups)


#: What the arrays beside the records are, in the order of their keys.
_SIDES = ("labels", "client names", "persons", "times", "series")


def _name_of(column: str | Column) -> str:
    return column if isinstance(column, str) else column.name


def _inputs(
    path: Path, schema: Schema | None, columns: Sequence[str] | None
) -> Sequence[str] | Sequence[Column] | None:
    """The columns of a record: those of the schema where it has any."""
    if schema is None or not schema.columns:
        return columns
    if columns is not None:
        raise DataError(
            f"Expected the columns of {path.name} from the schema alone, got columns beside it; "
            "leave them out."
        )
    return schema.columns


def _check_apart(path: Path, what: str, key: str | None, taken: Sequence[str | None]) -> None:
    """Raise DataError where what is told of records would become a part of them."""
    if key is not None and key in taken:
        raise DataError(
            f"Expected {key!r} to hold the {what} of {path.name} and nothing else, got it among "
            f"the records or labels too; a record never holds its {what}, so leave it out there.",
            field=key,
            reason="column",
        )


def _cut(
    raw: RawRecords,
    schema: Schema,
    path: Path,
    times: NDArray[Any] | None,
    groups: NDArray[Any] | None,
) -> RawRecords:
    """Records of the windows of a schema out of rows; none reaches over a client or a person."""
    window = schema.window
    assert window is not None
    if raw.records.ndim != 2 or raw.records.shape[1] != schema.row_size:
        raise DataError(
            f"Expected rows of {schema.row_size} values in {path.name} for schema {schema.name!r}, "
            f"got shape {list(raw.records.shape)}; choose other columns or another schema."
        )
    parts = [values for values in (groups, raw.client_id, raw.person) if values is not None]
    series = np.array(["\0".join(map(str, one)) for one in zip(*parts, strict=True)])
    seconds = None if times is None else all_seconds(times, window.time, path.name)
    records, begins = cut(raw.records, window, seconds, series if parts else None)
    rows = begins[:, np.newaxis] + np.arange(window.length)
    return RawRecords(
        records=records,
        label=None if raw.label is None else raw.label[rows].max(axis=1),
        client_id=None if raw.client_id is None else raw.client_id[begins],
        person=None if raw.person is None else raw.person[begins],
    )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a reader is to find in a file.

    Attributes:
        records_key: The array of records, where the file is an archive.
        columns: The columns of a record where the file is a table, in order: names, or those of a
            schema, which say what their cells mean. None takes all but `others`.
        others: Further columns or arrays: labels, clients, persons, times, groups.
        names: What columns are called here, by the names that the file has for them.
        dialect: How a CSV file is written.
    """

    records_key: str
    columns: Sequence[str] | Sequence[Column] | None
    others: Sequence[str]
    names: Mapping[str, str]
    dialect: Dialect


#: The records [N, ...], and of each of `Asked.others` the array [N] that it names.
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


def _npz(path: Path, asked: Asked) -> _Found:
    """Records and other arrays of an NPZ archive."""
    if any(isinstance(one, str) for one in asked.columns or ()):
        raise DataError(
            f"Expected no columns for the NPZ file {path.name}, got {len(asked.columns or ())}; "
            "use records_key."
        )
    arrays = read_npz(path, [asked.records_key, *asked.others])
    if arrays[asked.records_key].ndim < 2:
        raise DataError(
            f"Expected records [N, ...] under {asked.records_key!r} in {path.name}, got shape "
            f"{list(arrays[asked.records_key].shape)}; name another array."
        )
    return arrays[asked.records_key], [arrays[key] for key in asked.others]


def _csv(path: Path, asked: Asked) -> _Found:
    """Records and other columns of a CSV table, by the one rule of tables."""
    records, texts = read_table(path, asked.columns, asked.others, asked.names, asked.dialect)
    return records, [np.array(text, dtype=object) for text in texts]


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


def _frame(path: Path, asked: Asked) -> _Found:
    """Records and other columns of a Parquet or Arrow file."""
    frame = load_frame(path).rename(columns=dict(asked.names))
    columns = asked.columns
    if columns is None:
        columns = [name for name in frame.columns if name not in asked.others]
    chosen = [_name_of(one) for one in columns]
    present = list(frame.columns)
    _check_keys(path, "column", [*chosen, *asked.others], present)
    _check_once(path, [*chosen, *asked.others], present)
    sides = [cells_in(frame[key]) for key in asked.others]
    if specs := [one for one in columns if isinstance(one, Column)]:
        codes = [one.codes(cells_in(frame[one.name]), name=path.name) for one in specs]
        return np.stack(codes, axis=1), sides
    found = [_numbers(cells_in(frame[name]), str(name), path) for name in chosen]
    return np.stack(found, axis=1) if found else np.zeros((len(frame), 0)), sides


def cells_in(column: "pd.Series[Any]") -> NDArray[Any]:
    """Cells of a column of any type: numbers where all are, NaN in gaps; else None in gaps."""
    if column.dtype.kind in "iufb" and isinstance(column.dtype, np.dtype):
        return column.to_numpy()
    if column.dtype.kind in "iuf":  # nullable, or of Arrow
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column.astype(object).where(column.notna(), None).to_numpy(dtype=object)


def _numbers(cells: NDArray[Any], name: str, path: Path) -> NDArray[Any]:
    """The same, where they are finite numbers.

    Raises:
        DataError: One is none.
    """
    if cells.dtype.kind not in "iuf":
        raise DataError(
            f"Expected numbers in every record column of {path.name}, got other values in {name}; "
            "name the record columns or convert them.",
            field=name,
            reason="number",
        )
    wrong = np.flatnonzero(~np.isfinite(cells))
    if len(wrong):
        raise DataError(
            f"Expected a finite value in column {name!r} of {path.name}, got a gap, NaN or "
            f"infinity in record {int(wrong[0]) + 1}; correct it, drop it or choose other columns.",
            field=name,
            reason="finite",
        )
    return cells


def _check_once(path: Path, wanted: Sequence[str], present: Sequence[str]) -> None:
    """Raise DataError where a wanted column is there twice."""
    twice = [key for key in wanted if present.count(key) > 1]
    if twice:
        raise DataError(
            f"Expected column {twice[0]!r} once in {path.name}, got it twice; rename one of them.",
            field=str(twice[0]),
            reason="column",
        )


def _typed(labels: NDArray[Any]) -> NDArray[Any]:
    """A table's labels as numbers or truth values where all are; else texts, empty in gaps."""
    if labels.dtype != object:
        return labels
    cells = ["" if one is None or one != one else str(one).strip() for one in labels.tolist()]
    if all(is_number(cell) or not cell for cell in cells):
        return np.array([float(cell or "nan") for cell in cells])
    if {cell.lower() for cell in cells} <= {"true", "false"}:
        return np.array([cell.lower() == "true" for cell in cells])
    return np.array(cells)


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


#: Endings of the tables that pandas reads.
FRAMES = (".parquet", ".arrow", ".feather")
#: By ending; a reader raises `DataError`. A new kind of file is a function and a row.
READERS: dict[str, Callable[[Path, Asked], _Found]] = {
    ".csv": _csv,
    ".csv.gz": _csv,
    **dict.fromkeys(FRAMES, _frame),
    ".npz": _npz,
}
