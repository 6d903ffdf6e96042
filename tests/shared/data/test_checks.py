"""The look at records before they are used: what it finds, and at what it stops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlatent.shared.data.checks import Check, check
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.readers import read_raw
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window
from fedlatent.shared.errors import DataError, RecordsRefused

RNG = np.random.default_rng(0)
COLUMNS = (
    Column(name="age", lower=0.0, upper=120.0),
    Column(name="sex", levels=("f", "m", "x")),
    Column(name="bytes", upper=1e9, transform="log"),
    Column(name="pulse", lower=30.0, upper=220.0, missing="mask"),
)
TABLE = Schema(name="rows", columns=COLUMNS)
SIGNAL = Schema(name="signal", shape=(16,), scale=1e-3)
ROWS = np.stack(
    [
        RNG.uniform(20, 90, 400),
        RNG.integers(0, 2, 400),
        np.floor(RNG.lognormal(3, 2, 400)),
        RNG.uniform(50, 120, 400),
    ],
    axis=1,
)
LABEL = (np.arange(400) >= 360).astype(np.uint8)


def changed(**columns: Any) -> np.ndarray:  # noqa: ANN401
    """The rows with other values in some columns."""
    rows = ROWS.copy()
    for name, values in columns.items():
        rows[:, [one.name for one in COLUMNS].index(name)] = values
    return rows


def keys(found: Check) -> set[str]:
    """Of all findings."""
    return {one.key for one in found.findings}


def test_records_as_they_should_be_pass() -> None:
    """A table within its bounds stops nothing; a level that nobody has is told."""
    found = check(ROWS, TABLE, label=LABEL, least=16)
    assert found.stops() == ()
    assert keys(found) == {"unseen:sex"}
    assert (found.records, found.distinct) == (360, 360)
    assert found.columns[1].unseen == ("x",)
    found.refuse("say so")


@pytest.mark.parametrize("factor", [10.0, 60.0, 100.0, 1000.0, 1e6])
def test_another_unit_is_told(factor: float) -> None:
    """Values beyond the bounds stop, with the factor between units that explains them."""
    found = check(changed(pulse=ROWS[:, 3] * factor), TABLE)
    assert {one.key for one in found.stops()} == {"clipped:pulse"}
    told = found.columns[3].factor or 0.0
    assert factor / 2 < told < factor * 2
    assert f"about {told:g} times too large" in found.findings[0].text
    small = check(changed(pulse=ROWS[:, 3] / factor), TABLE)
    assert 0.5 < factor * (small.columns[3].factor or 0.0) < 2.0


def test_one_range_for_all_columns_is_looked_at_by_column() -> None:
    """Of a table in the short form each column is told by itself, and a signal as a whole."""
    short = Schema(name="rows", shape=(4,), lower=0.0, upper=1.0)
    rows = RNG.uniform(size=(200, 4))
    rows[:, 2] *= 1000.0
    assert {one.key for one in check(rows, short, names=["a", "b", "c", "d"]).stops()} == {
        "clipped:c"
    }
    volts = RNG.normal(size=(200, 16)) * 200.0
    assert check(volts, SIGNAL).stops() == ()
    assert [one.key for one in check(volts * 100.0, SIGNAL).stops()] == ["clipped"]


def test_records_that_become_one_stop() -> None:
    """The table of the wrong bounds: every value at a bound, and two distinct rows left."""
    short = Schema(name="rows", shape=(3,), lower=0.0, upper=1.0)
    rows = np.stack([RNG.integers(30, 80, 264), RNG.integers(90, 180, 264), ROWS[:264, 0]], 1)
    found = check(rows, short, names=["age", "pressure", "cholesterol"])
    assert found.distinct == 1
    assert {"duplicates", "constants", "clipped:age"} <= {one.key for one in found.stops()}


@pytest.mark.parametrize(
    ("rows", "key", "stops"),
    [
        (changed(age=50.0), "constant:age", False),
        (changed(age=50.0, sex=1.0, pulse=60.0), "constants", True),
        (changed(pulse=np.where(np.arange(400) < 300, np.nan, 60.0)), "missing:pulse", False),
        (changed(pulse=np.nan), "constant:pulse", False),
        (changed(age=ROWS[:, 0] / 100.0), "narrow:age", False),
        (changed(pulse=np.where(np.arange(400) < 3, 1e30, 70.0)), "far:pulse", True),
        (changed(bytes=np.where(np.arange(400) < 3, 1e300, 70.0)), "far:bytes", True),
        (np.repeat(ROWS[:10], 40, axis=0), "duplicates", True),
        (ROWS[:15], "few", True),
    ],
)
def test_each_kind_is_found(rows: np.ndarray, key: str, stops: bool) -> None:
    """What is found has its name, and stops where it must be a mistake."""
    found = check(rows, TABLE, least=16)
    assert key in keys(found)
    assert (key in {one.key for one in found.stops()}) == stops


@pytest.mark.parametrize(
    "copy", [LABEL, 1.0 - LABEL, 7.0 + 3.0 * LABEL, LABEL * RNG.integers(1, 5, 400)]
)
def test_a_copy_of_the_label_stops(copy: np.ndarray) -> None:
    """A column of few values that tells anomalies apart stops; a good measurement does not."""
    assert "label:age" in {one.key for one in check(changed(age=copy), TABLE, label=LABEL).stops()}
    real = check(changed(age=ROWS[:, 0] / 2 + 60.0 * LABEL), TABLE, label=LABEL)
    assert not any(one.kind == "label" for one in real.findings)


def test_windows_are_looked_at_by_column() -> None:
    """Records of a series are told by the columns of its rows."""
    series = Schema(name="load", columns=(COLUMNS[0], COLUMNS[3]), window=Window(length=8))
    raw = np.stack([RNG.uniform(20, 90, (50, 8)), RNG.uniform(5e3, 9e3, (50, 8))], axis=1)
    assert [one.key for one in check(raw, series).stops()] == ["clipped:pulse"]


def test_a_refusal_can_be_accepted_by_its_names() -> None:
    """The refusal says what and how to go on, carries the report, and shows no value."""
    found = check(changed(pulse=ROWS[:, 3] * 100, age=ROWS[:, 0] * 2), TABLE)
    with pytest.raises(RecordsRefused, match=r"'age'.*'pulse'.*say --accept") as told:
        found.refuse("say --accept")
    assert (told.value.field, told.value.reason) == ("age", "clipped")
    assert json.loads(json.dumps(told.value.facts, allow_nan=False))["check"] == json.loads(
        json.dumps(found.to_json())
    )
    with pytest.raises(RecordsRefused, match="'pulse'"):
        found.refuse("say --accept", ["clipped:age"])
    found.refuse("say --accept", ["clipped:age", "clipped:pulse"])


def test_no_normal_record_is_refused() -> None:
    """A mistyped normal label leaves nothing, which is said before anything else."""
    with pytest.raises(DataError, match="Expected normal records, got none among 400"):
        check(ROWS, TABLE, label=np.ones(400, np.uint8))


def test_a_label_or_client_among_the_inputs_is_refused(tmp_path: Path) -> None:
    """What a file says of its records by name never becomes a part of them."""
    table = tmp_path / "t.csv"
    table.write_text("a,b,c\n1,0,1\n2,1,1\n")
    for where in ({"label_key": "b"}, {"client_key": "b"}, {"person_key": "b"}):
        with pytest.raises(DataError, match=r"'b' to hold the .* nothing else") as told:
            read_raw(table, columns=["a", "b"], **where)
        assert told.value.field == "b"
