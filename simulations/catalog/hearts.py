"""Electrocardiograms: MIT-BIH (WFDB records) and ECG5000."""

import base64
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.files import sha256_hex
from fedlatent.simulations.catalog.content import npz

PATIENTS = (
    *(101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122),
    *(124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230),
)
_PHYSIONET = "https://physionet.org/files/mitdb/1.0.0"
MITBIH = {
    f"{one}.{ending}": f"{_PHYSIONET}/{one}.{ending}"
    for one in PATIENTS
    for ending in ("hea", "dat", "atr")
}
_HFUOC = "https://raw.githubusercontent.com/HFuoc/ECG5000-Anomaly/aa4773795d825b890cfe9b12640bfb350a68b516/data"
ECG5000 = {
    name: f"{_HFUOC}/{name}"
    for name in (
        *("processed/train_data.npy", "processed/test_data.npy", "processed/test_labels.npy"),
        *("processed/scaler.pkl", "raw/ECG5000_TRAIN.txt"),
    )
}

SCALER = "90dd34abca1faa58274bb0bbdf607abeb655d41acdfb204f4ff552e70c98f578"
CLASSES = ("N", "S", "V", "F", "Q")  # of the AAMI
_SYMBOLS = {
    **dict.fromkeys("NLRej", 0),
    **dict.fromkeys("AaJS", 1),
    **dict.fromkeys("VE", 2),
    **dict.fromkeys("F", 3),
    **dict.fromkeys("/fQ", 4),
}
#: Symbol of each code of an annotation (WFDB, ecgcodes.h).
_CODES = ' NLRaVFJASEj/Q~ | sT*D"=pB^t+u?![]en@xf()r'
_SKIP, _NUM, _SUB, _CHN, _AUX = 59, 60, 61, 62, 63
_BEFORE, _AFTER = 48, 80  # samples of a beat around its peak, at 180 a second
_STRIP = slice(300 * 360, 390 * 360)
_DRAW = Path(__file__).with_name("mitbih_draw.txt")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Lead MLII of a patient, with its beats.

    Attributes:
        microvolts: float64 [T], at 360 a second.
        samples: int64 [N]: where each beat has its peak.
        symbols: N letters, one a beat.
    """

    microvolts: NDArray[np.float64]
    samples: NDArray[np.int64]
    symbols: str


def beats(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """700 beats of each patient, of 128 samples, from 360 to 180 a second.

    Which beats is told by `mitbih_draw.txt`, a bit a beat, for the draw of the published figures
    cannot be made again.
    """
    from scipy.signal import resample_poly

    rows, symbols, record, sample = [], "", [], []
    for one in PATIENTS:
        found = recording(originals, one)
        chosen = np.flatnonzero(_drawn()[one][: len(found.samples)])
        slow = resample_poly(found.microvolts, 1, 2)
        for i in chosen:
            peak = int(np.rint(found.samples[i] / 2))
            rows.append(np.rint(slow[peak - _BEFORE : peak + _AFTER]))
            symbols += found.symbols[i]
        record += [one] * len(chosen)
        sample += found.samples[chosen].tolist()
    arrays: dict[str, NDArray[Any]] = {
        "X": np.stack(rows).astype(np.int16),
        "y": np.array([_SYMBOLS[symbol] for symbol in symbols], np.uint8),
        "symbol": np.array(list(symbols)),
        "record": np.array(record, np.uint16),
        "sample": np.array(sample, np.int32),
        "classes": np.array(CLASSES),
    }
    return {"mitbih_beats.npz": npz(arrays)}


def strips(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """Seconds 300 to 390 of each patient, at 360 a second, and the beats there."""
    rows, row, sample, symbols = [], [], [], ""
    for number, one in enumerate(PATIENTS):
        found = recording(originals, one)
        rows.append(np.rint(found.microvolts[_STRIP]))
        inside = np.flatnonzero((found.samples >= _STRIP.start) & (found.samples < _STRIP.stop))
        row += [number] * len(inside)
        sample += (found.samples[inside] - _STRIP.start).tolist()
        symbols += "".join(found.symbols[i] for i in inside)
    arrays: dict[str, NDArray[Any]] = {
        "X": np.stack(rows).astype(np.int16),
        "record": np.array(PATIENTS, np.uint16),
        "beat_row": np.array(row, np.uint8),
        "beat_sample": np.array(sample, np.int32),
        "beat_symbol": np.array(list(symbols)),
        "beat_class": np.array([_SYMBOLS[symbol] for symbol in symbols], np.uint8),
        "classes": np.array(CLASSES),
    }
    return {"mitbih_strips.npz": npz(arrays)}


def recording(originals: Mapping[str, bytes], patient: int) -> Recording:
    """Lead MLII of a WFDB record of two signals in format 212, with its annotated beats.

    Raises:
        ValueError: The record is of another kind, or has no such lead.
    """
    header = originals[f"{patient}.hea"].decode().splitlines()
    leads = [line.split() for line in header[1:3]]
    names = [words[-1] for words in leads]
    if "MLII" not in names or any(words[1] != "212" for words in leads):
        raise ValueError(f"record {patient} without a lead MLII in format 212")
    lead = names.index("MLII")
    gain, zero = float(leads[lead][2]), int(leads[lead][4])
    levels = signals_212(originals[f"{patient}.dat"])[lead]
    marks = [one for one in annotations(originals[f"{patient}.atr"]) if one[1] in _SYMBOLS]
    return Recording(
        microvolts=(levels - zero) * (1000.0 / gain),
        samples=np.array([time for time, _ in marks], np.int64),
        symbols="".join(symbol for _, symbol in marks),
    )


def signals_212(data: bytes) -> NDArray[np.int64]:
    """Two signals [2, T] of format 212: three bytes hold one sample of each, 12 bits long."""
    first, shared, second = np.frombuffer(data, np.uint8).reshape(-1, 3).T.astype(np.int64)
    levels = np.stack([first | (shared & 15) << 8, second | (shared >> 4) << 8])
    return np.where(levels > 2047, levels - 4096, levels)


def annotations(data: bytes) -> list[tuple[int, str]]:
    """Times and symbols of an annotation file in MIT format.

    Each is a word of 16 bits: code in the upper six, time since the last one in the lower ten.
    """
    words, found = np.frombuffer(data, "<u2").tolist(), []
    at = time = 0
    while at < len(words) and words[at]:
        code, value = words[at] >> 10, words[at] & 1023
        at += 1
        if code == _SKIP:
            time += (words[at] << 16) + words[at + 1]
            at += 2
        elif code == _AUX:
            at += (value + 1) // 2
        elif code not in (_NUM, _SUB, _CHN):
            time += value
            found.append((time, _CODES[code] if code < len(_CODES) else " "))
    return found


def ecg5000(originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """Beats as UCR published them: the copy's scaling to [0, 1] taken back.

    The 500 official training rows come first, in their order and with their class; the others
    follow as the copy has them.
    """
    from scipy.spatial import cKDTree

    official = np.loadtxt(io.BytesIO(originals["raw/ECG5000_TRAIN.txt"]))
    train, test, label = (
        np.load(io.BytesIO(originals[f"processed/{name}.npy"]), allow_pickle=False)
        for name in ("train_data", "test_data", "test_labels")
    )
    scale, least = _scaling(originals["processed/scaler.pkl"])
    rows = (np.concatenate([train, test]) - least) / scale
    anomaly = np.concatenate([np.zeros(len(train)), label]).astype(np.uint8)
    first = cKDTree(rows).query(official[:, 1:])[1]
    order = np.concatenate([first, np.setdiff1d(np.arange(len(rows)), first)])
    classes = np.zeros(len(rows), np.uint8)
    classes[: len(first)] = official[:, 0]
    arrays = {
        "X": rows[order].astype(np.float32),
        "anomaly": anomaly[order],
        "y5": classes,
        "official_train": np.arange(len(rows)) < len(first),
    }
    return {"ecg5000.npz": npz(arrays)}


def _scaling(data: bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and offset [140] of the copy's scaler, a pickle: that very one or none is opened."""
    import joblib

    if sha256_hex(data) != SCALER:
        raise ValueError("a scaler.pkl other than the published one, which alone is opened")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was written by another version of scikit-learn
        scaler = joblib.load(io.BytesIO(data))
    return scaler.scale_, scaler.min_


@cache
def _drawn() -> dict[int, NDArray[np.bool_]]:
    """By patient, which annotated beats were drawn."""
    lines = (line.split() for line in _DRAW.read_text(encoding="ascii").splitlines())
    return {
        int(patient): np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8)).astype(bool)
        for patient, bits in lines
    }
