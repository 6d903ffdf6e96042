"""A schema proposed for a file at hand, as text to edit.

What is proposed follows the records, and a schema travels: its bounds and levels are public. So the
text says so in its first lines, bounds are rounded outward to plain numbers, and nothing reads it
until a person has made it theirs.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.archives import ARRAYS, load_records
from fedlatent.shared.data.cells import is_gap, numbers_of
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.dialect import COMMAS, Dialect
from fedlatent.shared.data.frames import FRAMES, cells_by_name, load_frame
from fedlatent.shared.data.images import image_files, load_images
from fedlatent.shared.data.memory import ArraysInMemory, InMemory, TableInMemory
from fedlatent.shared.data.queries import QUERIES, load_query
from fedlatent.shared.data.recordings import TIME, Recording, is_recording, load_recording
from fedlatent.shared.data.schema import SELFIES, SELFIES_TOKENS
from fedlatent.shared.data.series import seconds_of
from fedlatent.shared.data.smiles import SMILES_FILES, read_lines, tokens_of
from fedlatent.shared.data.table import Table, open_packed, read_table
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.files import ending_of

WARNING = """\
# PROPOSED FROM PRIVATE RECORDS: EDIT BEFORE USE.
# Every number and level here travels to the server and stands in every bundle. Bounds and levels
# must be public knowledge, such as the limits of the instrument or the codes of a standard, and not
# taken from these records: otherwise the schema tells of them, and no epsilon covers that.
# Replace what you see by what you know, then delete these lines.
"""

MOST_LEVELS = 200  # of a column of texts
_FEW = 10  # whole numbers that are taken for codes; cells to a level
_EXACT = 2.0**53  # beyond it float64 has not every whole number
_LEAST_NUMBERED = 20  # cells that only grow, for them to be numbers of records
#: Numbers as people write them: "12,500", "3.5 %", "1 200 €".
_WRITTEN = re.compile(r"[+-]?\W{0,2}\d[\d.,'\s]*\s?[%€$£\w]{0,4}")
_MOST_TIMES = 5000  # cells that are looked at for being dates
_TAIL = 50.0  # times the median, of the largest value of a heavy tail
_LEAST_TAIL = 100.0
_MOST_MOLECULES = 2000  # that are looked at for their length
_MOST_TOKENS = 1024
_TOKEN_STEP = 8


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A schema to edit.

    Attributes:
        data: the table [data].
        notes: by column, what a person should know of the proposal.
        left_out: by column, why it is not proposed.
    """

    data: dict[str, Any]
    notes: dict[str, str]
    left_out: dict[str, str]

    @property
    def text(self) -> str:
        """TOML, with the warning before all else."""
        apart = ("columns", "window")
        head = {key: value for key, value in self.data.items() if key not in apart}
        parts = [WARNING, _table("[data]", head)]
        if "window" in self.data:
            parts.append(_table("[data.window]", self.data["window"]))
        for column in self.data.get("columns", ()):
            note = self.notes.get(column["name"])
            parts.append((f"# {note}\n" if note else "") + _table("[[data.columns]]", column))
        parts += [f"# left out: {name!r}, {why}\n" for name, why in self.left_out.items()]
        return "\n".join(parts)


def describe(
    path: Path | InMemory,
    *,
    skip: Sequence[str] = (),
    records_key: str = "X",
    dialect: Dialect = COMMAS,
) -> Proposal:
    """Propose a schema for a file, or for what is in memory.

    Args:
        path: a table with a header, a file of arrays, or a folder of images.
        skip: columns that are no part of a record: labels, clients, persons, times.
        records_key: of an NPZ, the array of records.
        dialect: how a CSV file is written.

    Raises:
        DataError: the file cannot be read, is empty, or a column of ``skip`` is not there.
    """
    if isinstance(path, Path) and not path.exists():
        raise DataError(f"Expected a data file at {path}, got none; check the path.")
    name = path.name.split(".")[0]
    name = "".join(one if one.isascii() and one.isalnum() else "-" for one in name).strip("-")
    if skip and not is_table(path):
        raise DataError(
            f"Expected no columns to leave out of {path.name}, which has none, got {skip[0]!r}; "
            "leave the option out.",
            field=skip[0],
            reason="column",
        )
    if isinstance(path, Path) and ending_of(path, SMILES_FILES):
        return Proposal(data=_of_molecules(name or "molecules", path), notes={}, left_out={})
    if isinstance(path, Path) and is_recording(path):
        return _of_recording(name or "records", load_recording(path, skip=skip))
    if not is_table(path):
        data = {"name": name or "records", **_short(_array_of(path, records_key))}
        return Proposal(data=data, notes={}, left_out={})
    cells = cells_of(path, dialect)
    unknown = [one for one in skip if one not in cells]
    if unknown:
        raise DataError(
            f"Expected a column {unknown[0]!r} in {path.name}, got {', '.join([*cells][:20])}; "
            "correct the name.",
            field=unknown[0],
            reason="column",
        )
    found = {key: _column(key, values) for key, values in cells.items() if key not in skip}
    if all(one is None for one, _ in found.values()):
        raise DataError(
            f"Expected a column of numbers or of few classes in {path.name}, got none; check how "
            "the file is written.",
            reason="column",
        )
    return Proposal(
        data={
            "name": name or "records",
            "columns": [one for one, _ in found.values() if one is not None],
        },
        notes={key: note for key, (one, note) in found.items() if one is not None and note},
        left_out={key: why for key, (one, why) in found.items() if one is None},
    )


def _array_of(path: Path | InMemory, records_key: str) -> NDArray[Any]:
    """Records [N, ...] of a file of arrays, of a folder of images, or in memory."""
    if isinstance(path, ArraysInMemory):
        return path.records(records_key)
    assert isinstance(path, Path)
    return (
        load_images(path, image_files(path)) if path.is_dir() else load_records(path, records_key)
    )


def cells_of(path: Path | InMemory, dialect: Dialect = COMMAS) -> dict[str, list[Any]]:
    """The cells of a table's columns by name, as the file has them.

    Raises:
        DataError: it cannot be read, has no header, or no record.
    """
    if isinstance(path, TableInMemory):
        cells = path.cells()
    elif isinstance(path, ArraysInMemory):
        raise DataError("Expected a table, got arrays, which have no columns; leave them out.")
    elif is_recording(path):
        found = load_recording(path)
        cells = {name: found.frame[name].tolist() for name in found.signals}
    elif ending_of(path, (*FRAMES, *QUERIES)):
        frame = load_query(path) if ending_of(path, QUERIES) else load_frame(path)
        cells = cells_by_name(frame, path.name)
    else:
        names = _header(path, dialect).names
        if not names:
            raise DataError(
                f"Expected names of columns in the first line of {path.name}, got numbers or "
                "nothing; add a header.",
                reason="header",
            )
        texts = read_table(path, None, names, dialect=dialect)[1]
        cells = {name: [*map(dialect.plain, one)] for name, one in zip(names, texts, strict=True)}
    if not any(cells.values()):
        raise DataError(f"Expected records in {path.name}, got none; check the file.")
    return cells


def is_table(path: Path | InMemory) -> bool:
    """Whether a file has columns by name, or may have."""
    if not isinstance(path, Path):
        return isinstance(path, TableInMemory)
    flat = (*ARRAYS, *SMILES_FILES)
    return is_recording(path) or (not path.is_dir() and ending_of(path, flat) is None)


def _header(path: Path, dialect: Dialect) -> Table:
    """A table of which the first line has come."""
    with open_packed(path) as stream:
        table = Table(name=path.name, dialect=dialect)
        table.begin(next(dialect.lines(stream, path.name), b"1"))
    return table


def _of_recording(name: str, found: Recording) -> Proposal:
    """A range for each signal, in its unit, and windows of a second."""
    columns = []
    for signal in found.signals:
        values = found.frame[signal].to_numpy(np.float64)
        finite = values[np.isfinite(values)]
        if not finite.size:
            continue
        lower, upper = _outward(float(finite.min()), float(finite.max()))
        missing = {"missing": "mask"} if finite.size < values.size else {}
        fields = {"name": signal, "unit": found.units[signal], "lower": lower, "upper": upper}
        columns.append(fields | missing)
    length = max(2, round(found.rate))
    window = {"length": length, "step": length, "time": TIME, "rate": found.rate}
    return Proposal(
        data={"name": name, "window": window, "columns": columns},
        notes={},
        left_out={
            one: "no sample holds a value"
            for one in found.signals
            if one not in {column["name"] for column in columns}
        },
    )


def _of_molecules(name: str, path: Path) -> dict[str, Any]:
    """As many tokens as the longest of the first molecules has, and a few more at most."""
    smiles = [line.split()[0] for line in read_lines(path)[:_MOST_MOLECULES]]
    longest = (tokens_of(smiles, _MOST_TOKENS, path.name).records > 0).sum(axis=1).max()
    length = _TOKEN_STEP * math.ceil(longest / _TOKEN_STEP)
    fields = {"shape": [length], "unit": SELFIES, "lower": 0.0, "upper": SELFIES_TOKENS}
    return {"name": name, **fields}


def _short(records: NDArray[Any]) -> dict[str, Any]:
    """One range for all values of a signal or an image [N, ...]."""
    values = np.asarray(records, np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size or values.ndim < 2:
        raise DataError("Expected records [N, ...] of numbers, got none; name another array.")
    shape = values.shape[1:] if values.ndim != 3 else (1, *values.shape[1:])
    if records.dtype == np.uint8 and len(shape) == 3:  # the range of the type, which is public
        return {"shape": list(shape), "scale": 1 / 255, "lower": 0.0, "upper": 1.0}
    lower, upper = _outward(float(finite.min()), float(finite.max()))
    return {"shape": list(shape), "lower": lower, "upper": upper}


def _column(name: str, cells: Sequence[Any]) -> tuple[dict[str, Any] | None, str]:
    """Fields of a column and a remark; None and the reason where nothing can be proposed."""
    found, note = _fields(cells)
    if found is not None:
        found = {"name": name, **found}
        try:
            Column(**found)
        except ConfigError as error:
            return None, str(error)
    return found, note


def _fields(cells: Sequence[Any]) -> tuple[dict[str, Any] | None, str]:
    there = [one for one in cells if not is_gap(one)]  # NaN is a gap by its text
    if not there:
        return None, "no cell holds a value"
    if any(isinstance(one, list | dict | np.ndarray) for one in there):
        return None, "its cells hold several values each"
    gaps = {"missing": "mask"} if len(there) < len(cells) else {}
    numbers = numbers_of(there)
    values = np.array([one for one in numbers if one is not None])
    if len(values) == len(there) and np.isfinite(values).all():
        if np.abs(values).max() > _EXACT and (values == np.round(values)).all():
            return None, "its whole numbers are too large to be told apart, as names of records are"
        if len(values) >= _LEAST_NUMBERED and _numbered(values):
            return None, "its whole numbers only grow, as numbers of records or times do"
        found, note = _numbers(values)
        return found | gaps, note
    levels = sorted({str(cell).strip() for cell in there})
    if all(map(_is_time, there[:_MOST_TIMES])):
        return None, "it holds times: name it as time under [data.window] where rows are a series"
    if len(levels) > min(MOST_LEVELS, max(_FEW, len(there) // _FEW)):
        if all(map(_WRITTEN.fullmatch, levels)):
            return None, "its texts look like numbers with %, units or separators: write plain ones"
        return None, "its texts hardly repeat, as names and free text"
    if len(levels) < 2:
        return None, "all cells hold one text"
    return {
        "levels": levels
    } | gaps, "a class that is not listed is refused, or missing with 'mask'"


def _numbered(values: NDArray[np.float64]) -> bool:
    """Whether numbers are whole and each is larger than the one before."""
    return bool((values == np.round(values)).all() and (np.diff(values) > 0).all())


def _numbers(values: NDArray[np.float64]) -> tuple[dict[str, Any], str]:
    low, high = float(values.min()), float(values.max())
    kinds = np.unique(values)
    if (
        2 <= len(kinds) <= _FEW < len(values)
        and low == round(low)
        and (kinds == np.arange(low, high + 1)[: len(kinds)]).all()
    ):
        note = "taken for codes of classes; for a count or a grade write lower and upper instead"
        return {"levels": [int(one) for one in kinds]}, note
    lower, upper = _outward(low, high)
    note = "all cells hold one value" if low == high else ""
    positive = values[values > 0.0]
    if low >= 0.0 and high >= _LEAST_TAIL and high > _TAIL * float(np.median(positive)):
        top = 10.0 ** math.ceil(math.log10(high))
        return {"lower": 0.0, "upper": top, "transform": "log"}, "a few values are far larger"
    return {"lower": lower, "upper": upper}, note


def _outward(low: float, high: float) -> tuple[float, float]:
    """The nearest plain numbers around a range."""
    spread = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(spread))
    finer = 0.2 if spread < 2 * power else 0.5 if spread < 5 * power else 1.0
    step = power * (finer if low < high else 1.0)
    lower = 0.0 if 0.0 <= low < spread / 2 else math.floor(low / step) * step
    upper = math.ceil(high / step) * step
    upper = upper if lower < upper else lower + step
    digits = max(0, 2 - math.floor(math.log10(step)))
    return round(lower, digits), round(upper, digits)


def _is_time(cell: object) -> bool:
    try:
        seconds_of(cell)
    except ValueError:
        return False
    return True


def _table(name: str, values: Mapping[str, Any]) -> str:
    """A table of TOML, whose texts, numbers and lists are written as in JSON."""
    pairs = (f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    return f"{name}\n{''.join(pairs)}"
