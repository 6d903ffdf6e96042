"""Read recordings of signals: WFDB records and EDF files, or a folder of either.

A row is a sample, a column a signal by its name, in physical units. Beside the signals each row has
its ``time`` in seconds from the start, the name of its ``record``, and what was noted of it: the
``beat`` nearest to it (WFDB), or the ``annotation`` that covers it (EDF, "-" where none does). A
window of the schema never reaches from one recording into another.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.asked import (
    Asked,
    Found,
    check_keys,
    check_once,
    hidden,
    name_of,
    needed,
)
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.frames import found_in
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import ending_of

if TYPE_CHECKING:
    import pandas as pd

#: Columns that are no signals.
TIME, RECORD, BEAT, ANNOTATION = "time", "record", "beat", "annotation"
#: Codes of beats in WFDB annotations, https://archive.physionet.org/physiobank/annotations.shtml.
_BEATS = frozenset("NLRBAaJSVrFejnE/fQ?")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Recordings as one table.

    Attributes:
        frame: A row per sample: the signals, and the columns beside them.
        signals: Names of the signals.
        units: Of each signal, as the file says it.
        rate: Samples per second.
    """

    frame: "pd.DataFrame"
    signals: tuple[str, ...]
    units: Mapping[str, str]
    rate: float


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """One recording before its signals are chosen.

    Attributes:
        names: Of all signals.
        units: Of each.
        rates: Samples per second of each.
        signal: Gives the samples of a signal by its place.
        noted: Gives the name of the column of notes, and a note for each of so many samples at a
            rate.
    """

    names: list[str]
    units: list[str]
    rates: list[float]
    signal: Callable[[int], NDArray[np.float64]]
    noted: Callable[[int, float], tuple[str, NDArray[Any]]]


def is_recording(path: Path) -> bool:
    """Whether a path is a recording, or a folder that holds some."""
    return bool(_files(path)) if path.is_dir() else ending_of(path, RECORDINGS) is not None


def find_in_recording(path: Path, asked: Asked) -> Found:
    """Samples and what is asked for beside them."""
    chosen = None if asked.columns is None else [*map(name_of, asked.columns)]
    own = {new: old for old, new in asked.names.items()}
    found = load_recording(path, chosen and [own.get(one, one) for one in chosen])
    if asked.rate and abs(found.rate / asked.rate - 1.0) > 1e-6:
        raise DataError(
            f"Expected {asked.rate:g} samples a second in {path.name}, as the schema's window "
            f"says, got {found.rate:g}; resample the recording or train on another schema.",
            field="window.rate",
            reason="rate",
        )
    for column in asked.columns or ():
        if isinstance(column, Column):
            _check_unit(column, found.units.get(own.get(column.name, column.name), ""), path.name)
    return found_in(found.frame, path.name, asked, inputs=found.signals)


def _check_unit(column: Column, unit: str, name: str) -> None:
    """Raise DataError where a signal is in another unit than its column says."""
    said, got = (one.replace("µ", "u").replace("μ", "u").strip() for one in (column.unit, unit))
    if said and got and said != got:
        raise DataError(
            f"Expected signal {column.name!r} of {name} in {column.unit}, as the schema says, got "
            f"{unit}; convert the recording or train on another schema.",
            field=column.name,
            reason="unit",
        )


def load_recording(
    path: Path, chosen: Sequence[str] | None = None, *, skip: Sequence[str] = ()
) -> Recording:
    """One recording, or all of a folder in the order of their names.

    Args:
        path: A .hea, .edf or .bdf file, or a folder of them.
        chosen: Names of signals; None takes all.
        skip: Signals that are left out.

    Raises:
        DataError: One cannot be read, lacks a signal that another has, or has another rate.
    """
    import pandas as pd

    files = _files(path) if path.is_dir() else [path]
    records = [file.with_suffix("") for file in files]
    if len(set(records)) < len(records):
        twice = next(one for one in records if records.count(one) > 1)
        raise DataError(
            f"Expected one file of each recording in {path.name}, got two called {twice.name!r}; "
            "rename one or take it out.",
            field=twice.name,
            reason="recording",
        )
    parts = [_load(file, path, chosen, skip) for file in files]
    first = parts[0]
    for file, one in zip(files[1:], parts[1:], strict=True):
        _check_like(first, one, file.name)
    frame = pd.concat([one.frame for one in parts], ignore_index=True) if parts[1:] else first.frame
    return Recording(frame=frame, signals=first.signals, units=first.units, rate=first.rate)


def _files(folder: Path) -> list[Path]:
    """Recordings of a folder and those below it; parts of one stand for no record of their own."""
    found = [
        one
        for one in sorted(folder.rglob("*"))
        if ending_of(one, RECORDINGS) and one.is_file() and not hidden(one.relative_to(folder))
    ]
    parts = {part for one in found if ending_of(one, [".hea"]) for part in _segments(one)}
    return [one for one in found if one not in parts]


def _segments(path: Path) -> list[Path]:
    """Headers of the parts that a WFDB header names, where it is of several."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line.split() for line in text.splitlines() if line.strip() and line[0] != "#"]
    if not lines or "/" not in lines[0][0]:
        return []
    return [path.with_name(f"{line[0]}{path.suffix}") for line in lines[1:]]


def _check_like(first: Recording, one: Recording, name: str) -> None:
    """Raise DataError unless a recording has the signals, units and rate of the first."""
    alike = {
        "signals": first.signals == one.signals,
        "units": first.units == one.units,
        "samples a second": first.rate == one.rate,
    }
    for what, same in alike.items():
        if not same:
            raise DataError(
                f"Expected the {what} of the first recording in {name}, got others; choose columns "
                "that all have, or convert it.",
                field=name,
                reason="column" if what == "signals" else "rate",
            )


def _load(path: Path, root: Path, chosen: Sequence[str] | None, skip: Sequence[str]) -> Recording:
    """One recording; its record is named by its place below ``root`` where that is a folder."""
    import pandas as pd

    opened = RECORDINGS[ending_of(path, RECORDINGS) or ""](path)
    names = opened.names
    places = [
        at
        for at, name in enumerate(names)
        if name not in skip and (chosen is None or name in chosen)
    ]
    if not places:
        raise DataError(
            f"Expected signals {', '.join(map(repr, chosen))} in {path.name}, got "
            f"{', '.join(names)}; correct the names."
            if chosen
            else f"Expected a signal of {path.name} to stay, got none; leave out fewer.",
            field=chosen[0] if chosen else None,
            reason="column",
        )
    rates = {opened.rates[at] for at in places}
    if len(rates) > 1:
        told = ", ".join(f"{names[at]} {opened.rates[at]:g}" for at in places)
        raise DataError(
            f"Expected signals of one rate in {path.name}, got samples a second of {told}; choose "
            "columns of one rate.",
            field=names[places[0]],
            reason="rate",
        )
    (rate,) = rates
    signals = [opened.signal(at) for at in places]
    length = len(signals[0])
    note, notes = opened.noted(length, rate)
    record = path.relative_to(root).with_suffix("").as_posix() if root.is_dir() else path.stem
    sides: dict[str, Any] = {TIME: np.arange(length) / rate, RECORD: record, note: notes}
    check_keys(path.name, "column to leave out", skip, [*names, *sides])
    columns = [*(names[at] for at in places), *sides]
    check_once(path.name, columns, columns)
    table = pd.DataFrame(dict(zip(columns, [*signals, *sides.values()], strict=True)))
    return Recording(
        frame=table,
        signals=tuple(names[at] for at in places),
        units={names[at]: opened.units[at] for at in places},
        rate=rate,
    )


def _wfdb(path: Path) -> _Opened:
    """A WFDB record: a header, its signals, and the beats of an .atr file beside it."""
    with needed("wfdb", path.name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas, about how wfdb uses it
        import wfdb
    base = str(path.with_suffix(""))
    try:
        record = wfdb.rdrecord(base)
        beats = wfdb.rdann(base, "atr") if path.with_suffix(".atr").is_file() else None
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise _unreadable(path, "WFDB record", error) from error

    def noted(length: int, _rate: float) -> tuple[str, NDArray[Any]]:
        if beats is None:
            return BEAT, np.full(length, "-", dtype=object)
        kinds = np.array(beats.symbol, dtype=object)
        isbeat = np.array([kind in _BEATS for kind in kinds], dtype=bool)
        at, kinds = np.asarray(beats.sample)[isbeat], kinds[isbeat]
        if not len(at):
            return BEAT, np.full(length, "-", dtype=object)
        middles = (at[1:] + at[:-1]) / 2.0
        return BEAT, kinds[np.searchsorted(middles, np.arange(length))]

    return _Opened(
        names=list(record.sig_name or ()),
        units=list(record.units or ()),
        rates=[float(record.fs)] * len(record.sig_name or ()),
        signal=lambda at: np.asarray(record.p_signal[:, at], dtype=np.float64),
        noted=noted,
    )


def _edf(path: Path) -> _Opened:
    """An EDF or BDF file, with the annotations of EDF+."""
    with needed("pyedflib", path.name):
        import pyedflib
    try:
        with pyedflib.EdfReader(str(path)) as reader:
            count = reader.signals_in_file
            names = [str(one).strip() for one in reader.getSignalLabels()]
            units = [str(reader.getPhysicalDimension(at)).strip() for at in range(count)]
            rates = [float(reader.getSampleFrequency(at)) for at in range(count)]
            onsets, lengths, texts = reader.readAnnotations()
    except (OSError, ValueError, IndexError) as error:
        raise _unreadable(path, "EDF file", error) from error

    def signal(at: int) -> NDArray[np.float64]:
        with pyedflib.EdfReader(str(path)) as reader:
            return np.asarray(reader.readSignal(at), dtype=np.float64)

    def noted(length: int, rate: float) -> tuple[str, NDArray[Any]]:
        notes = np.full(length, "-", dtype=object)
        for onset, lasts, text in zip(onsets, lengths, texts, strict=True):
            first = max(0, round(float(onset) * rate))
            end = round((float(onset) + max(0.0, float(lasts))) * rate)
            notes[first : max(first + 1 if onset >= 0 else 0, end)] = str(text)
        return ANNOTATION, notes

    return _Opened(names=names, units=units, rates=rates, signal=signal, noted=noted)


def _unreadable(path: Path, what: str, error: Exception) -> DataError:
    return DataError(
        f"Expected a readable {what} at {path}, got a {type(error).__name__}; check that all of "
        "its files are there and whole.",
        field=path.name,
        reason="recording",
    )


#: By ending, what opens a recording.
RECORDINGS: dict[str, Callable[[Path], _Opened]] = {".hea": _wfdb, ".edf": _edf, ".bdf": _edf}
