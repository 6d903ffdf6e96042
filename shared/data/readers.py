"""Read records from a client's own disk: tables, arrays, recordings, images, queries.

CSV is read by the rule of `fedlatent.shared.data.table`.

A key names a column of a table (CSV, Parquet, Arrow) or an array of an NPZ archive. Nothing is
guessed beyond that: a value that does not fit is a `DataError` that shows no record's values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.archives import ARRAYS, find_in_archive
from fedlatent.shared.data.asked import Asked, Found, name_of
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.data.dialect import COMMAS, Dialect
from fedlatent.shared.data.frames import FRAMES, find_in_table
from fedlatent.shared.data.images import find_in_folder
from fedlatent.shared.data.labels import Label, binary, typed
from fedlatent.shared.data.memory import ArraysInMemory, InMemory
from fedlatent.shared.data.queries import QUERIES, find_by_query
from fedlatent.shared.data.recordings import RECORD, RECORDINGS, find_in_recording, is_recording
from fedlatent.shared.data.schema import SELFIES, Schema
from fedlatent.shared.data.series import Window, all_seconds, check_steps, cut
from fedlatent.shared.data.smiles import SMILES, SMILES_FILES, as_molecules, find_in_lines
from fedlatent.shared.data.table import Table, take_table
from fedlatent.shared.errors import DataError, FedlatentError
from fedlatent.shared.files import ending_of
from fedlatent.shared.plugins import PluginTable, is_callable


@dataclass(frozen=True, kw_only=True, eq=False)
class RawRecords:
    """Records as the file holds them, before a schema's scaling.

    Attributes:
        records: Numbers [N, ...]; a table gives [N, columns].
        label: uint8 [N], 0 normal and 1 anomalous, or None.
        client_id: Text [N], or None.
        person: int64 [N], a number for each person in place of what the file calls them, or None.
        names: Of the columns of a record, where the file names them.
        left_out: What of the file is not among these, how much for each reason: molecules, or rows
            of a series.
    """

    records: NDArray[Any]
    label: NDArray[np.uint8] | None
    client_id: NDArray[np.str_] | None
    person: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

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
        path: A .csv, .csv.gz, .parquet, .arrow, .feather, .npz, .npy, .hea (WFDB), .edf,
            .bdf, .sql or .duckdb file, or a folder of images or recordings.
        schema: What each record must be.
        where: What the file calls its records, labels, clients and persons: see `Fields`.

    Raises:
        DataError: If the file is absent, damaged or of another kind, if a key is absent, if a
            record has no person, or if the records do not fit the schema.
    """
    return read_raw(path, schema, **where).dataset(schema)


def read_raw(
    path: Path | str | InMemory,
    schema: Schema | None = None,
    *,
    records_key: str = "X",
    columns: Sequence[str] | None = None,
    label_key: str | None = None,
    normal_label: Label | None = None,
    client_key: str | None = None,
    person_key: str | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
    dialect: Dialect = COMMAS,
) -> RawRecords:
    """Read a file, or what is in memory, without scaling; arguments and errors as of `read`.

    The columns of `schema` are found by name and coded (`Column.codes`), and its window cuts rows
    into records; a record is anomalous when one of its rows is. Where it is one of molecules
    (`fedlatent.shared.data.schema.SELFIES`), SMILES become rows of tokens.
    """
    path = Path(path) if isinstance(path, str) else path
    reader = _reader_of(path, schema)
    window = None if schema is None else schema.window
    columns_of = _inputs(path, schema, columns)
    series = ("", "")
    if window is not None:
        recording = isinstance(path, Path) and is_recording(path)
        series = window.time, window.group or (RECORD if recording else "")
    keys = (label_key, client_key, person_key, *series)
    molecules = schema is not None and schema.unit == SELFIES
    taken = [records_key, *map(name_of, columns_of or ((SMILES,) if molecules else ()))]
    _check_apart(path, "labels", label_key, taken)
    _check_apart(path, "client names", client_key, taken)
    _check_apart(path, "persons", person_key, [*taken, label_key])
    others = tuple(key for key in keys if key)
    asked = Asked(
        records_key=records_key,
        columns=columns_of,
        others=others,
        names=names,
        dialect=dialect,
        rate=0.0 if window is None else window.rate,
        series=window is not None,
        numbers=tuple(key for key in (label_key, series[0]) if key),
    )
    records, sides, inputs, left_out = reader(path, asked)
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
        label=None if labels is None else binary(typed(labels), normal_label),
        client_id=None if clients is None else _texts(clients),
        person=None if persons is None else _numbered(persons, path),
        names=tuple(inputs) if records.shape[1:] == (len(inputs),) else (),
        left_out=left_out,
    )
    if schema is None:
        return raw
    if window is not None and records.shape[1:] != schema.raw_shape:
        raw = _cut(raw, schema, path, times, groups)
    schema.check_raw(raw.records, path.name)
    return raw


def _reader_of(place: Path | InMemory, schema: Schema | None) -> Callable[[Any, Asked], Found]:
    """What reads a file or folder; a DataError where nothing does, or it is not there."""
    molecules = schema is not None and schema.unit == SELFIES
    reader: Callable[[Any, Asked], Found]
    if isinstance(place, Path):
        reader, arrays = _reader_of_file(place)
    else:
        reader, arrays = type(place).find, isinstance(place, ArraysInMemory)
    if schema is not None and molecules and not arrays:
        return as_molecules(reader, schema.size)
    return reader


def _reader_of_file(path: Path) -> tuple[Callable[[Path, Asked], Found], bool]:
    """What reads a file or folder, and whether that holds arrays."""
    ending = FOLDER if path.is_dir() else ending_of(path, READERS)
    if ending is None:
        endings = ", ".join(one for one in READERS if one != FOLDER)
        raise DataError(
            f"Expected a folder of images or recordings, or a file ending in {endings}, got "
            f"{path.name!r}; convert it."
        )
    if not path.exists():
        raise DataError(f"Expected a data file at {path}, got none; check the path.")
    reader = READERS[ending]
    if READERS.plugged(ending):
        reader = partial(_from_outside, reader, ending)
    return reader, ending in (*ARRAYS, FOLDER)


def _from_outside(
    reader: Callable[[Path, Asked], Found], ending: str, path: Path, asked: Asked
) -> Found:
    """What a plugin's reader finds; its errors may hold values of records and go no further."""
    try:
        found: object = reader(path, asked)
    except (FedlatentError, OSError):
        raise
    except Exception as error:  # whatever another's code does
        raise DataError(
            f"Expected the plugin for {ending} to read {path.name}, got {type(error).__name__}; "
            "check the file, or mend the plugin."
        ) from error
    if isinstance(found, Found) and len(found.sides) == len(asked.others):
        return found
    told = type(found).__name__ if not isinstance(found, Found) else f"{len(found.sides)} of them"
    raise DataError(
        f"Expected the plugin for {ending} to give a Found with {len(asked.others)} sides for "
        f"{path.name}, got {told}; mend the plugin."
    )


#: What the arrays beside the records are, in the order of their keys.
_SIDES = ("labels", "client names", "persons", "times", "series")


def _inputs(
    path: Path | InMemory, schema: Schema | None, columns: Sequence[str] | None
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


def _check_apart(
    path: Path | InMemory, what: str, key: str | None, taken: Sequence[str | None]
) -> None:
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
    path: Path | InMemory,
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
    if seconds is not None:
        check_steps(seconds, window, path.name)
    records, begins = cut(raw.records, window, seconds, series if parts else None, path.name)
    rows = begins[:, np.newaxis] + np.arange(window.length)
    return RawRecords(
        records=records,
        label=None if raw.label is None else raw.label[rows].max(axis=1),
        client_id=None if raw.client_id is None else raw.client_id[begins],
        person=None if raw.person is None else raw.person[begins],
        names=raw.names,
        left_out=_uncovered(len(raw.records), begins, window),
    )


def _uncovered(count: int, begins: NDArray[np.int64], window: Window) -> dict[str, int]:
    """Rows in no window, where windows are to follow each other without a space between them."""
    covered = np.zeros(count, dtype=np.bool_)
    covered[begins[:, np.newaxis] + np.arange(window.length)] = True
    lost = 0 if window.step > window.length else int((~covered).sum())
    return {"rows at holes in time or at the end of a series": lost} if lost else {}


def _csv(path: Path, asked: Asked) -> Found:
    """Records and other columns of a CSV table, by the one rule of tables."""
    table = Table(
        asked.columns, aside=asked.others, name=path.name, names=asked.names, dialect=asked.dialect
    )
    records, texts = take_table(table, path)
    inputs = [one for one in table.names if one not in asked.others]
    names = inputs if asked.columns is None else [*map(name_of, asked.columns)]
    for at, name in enumerate(asked.others):
        if name in asked.numbers:
            texts[at] = [*map(asked.dialect.plain, texts[at])]
    return Found(records, [np.array(text, dtype=object) for text in texts], names)


def _texts(names: NDArray[Any]) -> NDArray[np.str_]:
    """Names as texts, empty in gaps."""
    if names.dtype != object:
        return names.astype(np.str_)
    return np.array(["" if one is None else str(one) for one in names.tolist()], np.str_)


def _numbered(persons: NDArray[Any], path: Path | InMemory) -> NDArray[np.int64]:
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


def _find_below(path: Path, asked: Asked) -> Found:
    """Records of a folder of recordings, or of images."""
    return (find_in_recording if is_recording(path) else find_in_folder)(path, asked)


#: What stands for a folder among the endings of files.
FOLDER = "/"
_OWN: dict[str, Callable[[Path, Asked], Found]] = {
    ".csv": _csv,
    ".csv.gz": _csv,
    **dict.fromkeys(FRAMES, find_in_table),
    **dict.fromkeys(ARRAYS, find_in_archive),
    **dict.fromkeys(RECORDINGS, find_in_recording),
    **dict.fromkeys(QUERIES, find_by_query),
    **dict.fromkeys(SMILES_FILES, find_in_lines),
    FOLDER: _find_below,
}


def _wrong(name: str, value: object) -> str | None:
    """Why a plugin's reader may not stand under its ending."""
    if not name.startswith("."):
        return "expected the ending of a file as name, such as '.toy', got one without a dot"
    if name != name.lower():
        return "expected an ending in lower case, which fits files in any, got capitals"
    return is_callable(name, value)


#: By ending; a reader raises `DataError`. A new kind of file is a function and a row, or a plugin.
READERS: PluginTable[Callable[[Path, Asked], Found]] = PluginTable("readers", _OWN, _wrong)
