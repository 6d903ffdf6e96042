"""Recordings of signals, WFDB and EDF, are series with a row per sample."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyedflib
import pytest
import wfdb
from pydantic import TypeAdapter

from fedlatent.shared.config import Data
from fedlatent.shared.data.describe import describe
from fedlatent.shared.data.readers import read_raw
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import DataError
from fedlatent.shared.toml import parse_toml

RATE = 50


def signals(length: int, seed: int = 0) -> np.ndarray:
    """Two signals of so many samples, the second a ramp."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(0.0, 0.2, length), np.linspace(-1.0, 1.0, length)], axis=1)


def wfdb_record(folder: Path, name: str = "r1", *, length: int = 200, rate: int = RATE) -> Path:
    """Signals MLII and V1 in mV, with a normal beat at 60 and a ventricular one at 140."""
    folder.mkdir(exist_ok=True)
    wfdb.wrsamp(
        name,
        fs=rate,
        units=["mV", "mV"],
        sig_name=["MLII", "V1"],
        p_signal=signals(length),
        fmt=["16", "16"],
        write_dir=str(folder),
    )
    marks = {"sample": np.array([10, 60, 140]), "symbol": ["+", "N", "V"]}
    wfdb.wrann(name, "atr", marks["sample"], symbol=marks["symbol"], write_dir=str(folder))
    return folder / f"{name}.hea"


def edf_file(path: Path, *, rates: tuple[int, int] = (RATE, RATE)) -> Path:
    """Four seconds of EEG and SpO2, with a seizure noted from 1.0 to 2.5 s."""
    with pyedflib.EdfWriter(str(path), 2) as writer:
        for at, (label, unit, rate) in enumerate(
            zip(("EEG Fz", "SpO2"), ("uV", "%"), rates, strict=True)
        ):
            head: dict[str, Any] = {
                **{"label": label, "dimension": unit, "sample_frequency": rate},
                **{"physical_min": -2.0, "physical_max": 2.0, "digital_min": -32768},
                **{"digital_max": 32767, "transducer": "", "prefilter": ""},
            }
            writer.setSignalHeader(at, head)
        writer.writeSamples(
            [np.ascontiguousarray(signals(4 * rate)[:, at]) for at, rate in enumerate(rates)]
        )
        writer.writeAnnotation(1.0, 1.5, "seizure")
    return path


def schema(columns: tuple[str, ...], window: str = "length = 50\nstep = 50") -> Schema:
    """Columns from -2 to 2 in windows."""
    parts = [f'[[data.columns]]\nname = "{name}"\nlower = -2\nupper = 2' for name in columns]
    text = '[data]\nname = "w"\n' + "\n".join(parts) + f"\n[data.window]\n{window}\n"
    found: Schema = TypeAdapter(Data).validate_python(parse_toml(text, "test")["data"])
    return found


def test_a_wfdb_record_is_rows_in_physical_units(tmp_path: Path) -> None:
    """Signals by name; each row has the kind of the beat nearest to it."""
    raw = read_raw(wfdb_record(tmp_path), label_key="beat", normal_label="N")
    assert raw.records.shape == (200, 2)
    np.testing.assert_allclose(raw.records, signals(200), atol=1e-3)
    assert raw.label is not None
    assert raw.label.tolist() == [0] * 101 + [1] * 99


def test_windows_of_a_record_are_anomalous_where_a_beat_is(tmp_path: Path) -> None:
    """A schema chooses signals by name and cuts them; its rate is that of the record."""
    path = wfdb_record(tmp_path)
    raw = read_raw(path, schema(("V1",)), label_key="beat", normal_label="N")
    assert raw.records.shape == (4, 1, 50)
    assert raw.label is not None
    assert raw.label.tolist() == [0, 0, 1, 1]
    same = read_raw(path, schema(("V1",), "length = 50\nstep = 50\ntime = 'time'\nrate = 50"))
    np.testing.assert_array_equal(same.records, raw.records)
    with pytest.raises(DataError, match=r"100 samples a second in r1\.hea.* got 50"):
        read_raw(path, schema(("V1",), "length = 50\nstep = 50\ntime = 'time'\nrate = 100"))


def test_no_window_reaches_from_one_recording_into_another(tmp_path: Path) -> None:
    """The recordings of a folder are series of their own, and clients where that is asked for."""
    wfdb_record(tmp_path / "r", "b", length=70)
    wfdb_record(tmp_path / "r", "a", length=120)
    raw = read_raw(tmp_path / "r", schema(("MLII", "V1")), client_key="record")
    assert raw.records.shape == (3, 2, 50)
    assert raw.client_id is not None
    assert raw.client_id.tolist() == ["a", "a", "b"]


def test_an_edf_file_is_rows_with_its_annotations(tmp_path: Path) -> None:
    """Rows that an annotation covers have its text, all others a dash."""
    raw = read_raw(edf_file(tmp_path / "night.edf"), label_key="annotation", normal_label="-")
    assert raw.records.shape == (200, 2)
    np.testing.assert_allclose(raw.records, signals(200), atol=1e-3)
    assert raw.label is not None
    assert np.flatnonzero(raw.label).tolist() == list(range(50, 125))


def test_signals_of_several_rates_are_chosen_by_name(tmp_path: Path) -> None:
    """All of them at once are refused with their rates."""
    path = edf_file(tmp_path / "night.EDF", rates=(50, 1))
    with pytest.raises(DataError, match="EEG Fz 50, SpO2 1"):
        read_raw(path)
    assert read_raw(path, columns=["SpO2"]).records.shape == (4, 1)
    assert read_raw(path, schema(("EEG Fz",))).records.shape == (4, 1, 50)
    assert describe(path, skip=["SpO2"]).data["columns"][0]["unit"] == "uV"


def test_a_proposal_has_units_and_windows_of_a_second(tmp_path: Path) -> None:
    """It is a schema by which the recording can be read."""
    path = wfdb_record(tmp_path)
    proposed = parse_toml(describe(path).text, "test")["data"]
    found: Schema = TypeAdapter(Data).validate_python(proposed)
    assert [(one.name, one.unit) for one in found.columns] == [("MLII", "mV"), ("V1", "mV")]
    assert read_raw(path, found).records.shape == (4, 2, 50)


def test_own_names_of_signals_are_mapped(tmp_path: Path) -> None:
    """A signal may have another name here than in the schema."""
    raw = read_raw(wfdb_record(tmp_path), schema(("lead",)), names={"V1": "lead"})
    assert raw.records.shape == (4, 1, 50)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A record without its signals, a torn EDF file, an absent signal and unlike recordings."""
    path = wfdb_record(tmp_path / "one")
    with pytest.raises(DataError, match=r"signals 'II' in r1\.hea, got MLII, V1"):
        read_raw(path, schema(("II",)))
    path.with_suffix(".dat").unlink()
    with pytest.raises(DataError, match=r"readable WFDB record at .*r1\.hea"):
        read_raw(path)
    torn = tmp_path / "torn.edf"
    torn.write_bytes(edf_file(tmp_path / "whole.edf").read_bytes()[:300])
    with pytest.raises(DataError, match=r"readable EDF file at .*torn\.edf"):
        read_raw(torn)
    wfdb_record(tmp_path / "two", "a")
    wfdb_record(tmp_path / "two", "b", rate=100)
    with pytest.raises(DataError, match=r"samples a second of the first recording in b\.hea"):
        read_raw(tmp_path / "two")


def test_another_unit_than_the_schemas_is_refused(tmp_path: Path) -> None:
    """Millivolts are never read as microvolts; a column without a unit takes any."""
    path, asked = wfdb_record(tmp_path), schema(("V1",))
    (column,) = asked.columns
    assert len(read_raw(path, replace(asked, columns=(replace(column, unit="mV"),))).records) == 4
    with pytest.raises(DataError, match=r"signal 'V1' of r1\.hea in µV.*, got mV"):
        read_raw(path, replace(asked, columns=(replace(column, unit="µV"),)))


def test_parts_and_hidden_files_are_no_recordings_of_their_own(tmp_path: Path) -> None:
    """A record of several segments is read once, and two files of one name are refused."""
    place = tmp_path / "r"
    for name in ("s1", "s2"):
        wfdb_record(place, name)
    (place / "whole.hea").write_text("whole/2 2 50 400\ns1 200\ns2 200\n")
    (place / "._whole.hea").write_bytes(b"what another system leaves")
    raw = read_raw(place, client_key="record")
    assert len(raw.records) == 400
    assert raw.client_id is not None
    assert set(raw.client_id.tolist()) == {"whole"}
    edf_file(place / "whole.edf")
    with pytest.raises(DataError, match="two called 'whole'"):
        read_raw(place)


def test_an_annotation_from_before_the_start_marks_no_end(tmp_path: Path) -> None:
    """It covers rows from the first on, or none."""
    path = tmp_path / "night.edf"
    edf_file(path)
    whole = path.read_bytes()
    assert whole.count(b"+1\x15") == 1
    path.write_bytes(whole.replace(b"+1\x15", b"-1\x15"))
    label = read_raw(path, label_key="annotation", normal_label="-").label
    assert label is not None
    assert np.flatnonzero(label).tolist() == list(range(25))


def test_two_signals_of_one_name_are_refused(tmp_path: Path) -> None:
    """One of them can still be left for the signals of other names."""
    path = wfdb_record(tmp_path)
    path.write_text(path.read_text().replace("MLII", "V1"))
    for read_it in (lambda: read_raw(path), lambda: describe(path)):
        with pytest.raises(DataError, match=r"column 'V1' once in r1\.hea"):
            read_it()
    path.write_text(path.read_text().replace("V1", "time", 1))
    with pytest.raises(DataError, match=r"column 'time' once in r1\.hea"):
        read_raw(path)
    assert read_raw(path, columns=["V1"]).records.shape == (200, 1)
