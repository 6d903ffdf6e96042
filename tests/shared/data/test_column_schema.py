"""Tables with a range for each column, and series cut into records."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window, cut, places, seconds_of
from fedlatent.shared.data.table import read_table
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.models import build_model
from fedlatent.shared.privacy.clipping import synthetic_records
from fedlatent.shared.toml import dumps, parse_toml

AGE = Column(name="age", unit="years", lower=20.0, upper=90.0)
PAIN = Column(name="pain", levels=("none", "mild", 3.0), missing="mask")
BYTES = Column(name="bytes", upper=1e6, transform="log", missing="value", fill=0.0)
PULSE = Column(name="pulse", lower=40.0, upper=200.0, missing="mask")
TABLE = Schema(name="rows", columns=(AGE, PAIN, BYTES, PULSE))


def test_each_column_has_its_own_range() -> None:
    """Numbers are scaled by their own range, levels one-hot, gaps as their column says."""
    raw = np.array([[55.0, 1.0, np.nan, np.nan], [20.0, np.nan, 1e6, 120.0]])
    assert TABLE.shape == (7,)
    assert TABLE.raw_shape == (4,)
    np.testing.assert_allclose(
        TABLE.preprocess(raw), [[0.5, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0.5, 1]]
    )


def test_what_lies_beyond_the_bounds_is_counted() -> None:
    """Clipped values are counted by record; gaps and classes are none of them."""
    raw = np.array([[55.0, 1.0, np.nan, np.nan], [5.0, np.nan, 2e6, 120.0]])
    assert TABLE.outside(raw).tolist() == [0, 2]
    short = Schema(name="signal", shape=(3,), scale=0.1)
    assert short.outside([[1, 2, 3], [10, 10.5, -11]]).tolist() == [0, 2]


def test_no_records_stay_none() -> None:
    """A table of no rows becomes no records, with a window too, and none of them is outside."""
    series = Schema(name="series", columns=(AGE, PAIN), window=Window(length=3))
    for schema in (TABLE, series):
        nothing = np.zeros((0, schema.raw_size))
        assert schema.preprocess(nothing).shape == (0, *schema.shape)
        assert schema.outside(nothing).tolist() == []


def test_a_gap_is_refused_where_the_column_says_so() -> None:
    """NaN in a column that takes none, and infinity in any, never becomes a record."""
    for row in ([np.nan, 0, 0, 60], [30, 0, 0, np.inf], [30, 0, np.inf, 60]):
        with pytest.raises(DataError, match="in 1 of 1 records"):
            TABLE.preprocess([row])


def test_cells_become_raw_numbers() -> None:
    """Texts and numbers of one meaning have one code; gaps are NaN."""
    assert AGE.codes(["30", " 4e1 "]).tolist() == [30.0, 40.0]
    assert AGE.codes(np.array([30, 40])).tolist() == [30.0, 40.0]
    np.testing.assert_array_equal(PULSE.codes(["60", "", "NA", None]), [60, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(
        PAIN.codes(["mild", "3", "3.0", "none", "worse", ""]), [1, 2, 2, 0, np.nan, np.nan]
    )
    sex = Column(name="sex", levels=(0.0, 1.0))
    assert sex.codes(np.array([True, False])).tolist() == [1.0, 0.0]
    assert sex.codes(["0", "1.0"]).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("column", "cells", "reason"),
    [
        (AGE, ["30", "old"], "number"),
        (AGE, ["30", ""], "missing"),
        (AGE, ["30", "inf"], "finite"),
        (AGE, ["30", "1_0"], "number"),
        (AGE, ["30", "\u0663"], "number"),
        (AGE, ["30", "0x1f"], "number"),
        (AGE, ["30", "NULL"], "missing"),
        (PULSE, ["30", "fast"], "number"),
        (Column(name="kind", levels=("a", "b")), ["a", "c"], "level"),
        (Column(name="kind", levels=("a", "b")), ["a", None], "missing"),
    ],
)
def test_a_wrong_cell_is_named(column: Column, cells: list[str], reason: str) -> None:
    """The refusal says the column, the record and the file, and shows no value."""
    with pytest.raises(DataError, match=r"of t\.csv.*record 8") as told:
        column.codes(cells, first=7, name="t.csv")
    assert (told.value.field, told.value.reason) == (column.name, reason)
    assert not any(cell and cell in str(told.value).split() for cell in cells if cell != "a")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lower": 1.0, "upper": 1.0}, "lower < upper"),
        ({"levels": ("a",)}, "levels"),
        ({"levels": ("a", "a")}, "levels"),
        ({"levels": ("a", "b"), "transform": "log"}, "transform"),
        ({"lower": -1.0, "transform": "log"}, "above -1"),
        ({"missing": "value"}, "fill"),
        ({"fill": 0.5}, "fill"),
        ({"missing": "value", "fill": 7.0}, "within its range"),
        ({"missing": "value", "fill": "c", "levels": ("a", "b")}, "one of its levels"),
        ({"missing": "drop"}, "missing"),
        ({"upper": float("nan")}, "finite"),
    ],
)
def test_unfit_columns_are_refused(fields: dict[str, Any], words: str) -> None:
    """Fields that do not fit each other are refused by name."""
    with pytest.raises(ConfigError, match=words):
        Column(name="x", **fields)


def test_columns_travel_in_the_run() -> None:
    """A run keeps columns and window over JSON; a schema without them is written as ever."""
    schema = Schema(name="rows", columns=(AGE, PAIN), window=Window(length=5, step=2))
    run = RunConfig.parse({"name": "t", "data": schema.to_dict()}, "test")
    assert RunConfig.model_validate_json(run.model_dump_json()).data == schema
    assert Schema.from_dict(schema.to_dict()) == schema
    written = dumps({"name": "t", "data": schema.to_dict()})
    assert RunConfig.parse(parse_toml(written, "test"), "test").data == schema
    assert set(Schema(name="s", shape=(3,)).to_dict()) == {
        *("name", "shape", "unit", "scale", "center", "lower", "upper")
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"columns": (AGE, AGE)}, "twice"),
        ({"columns": (AGE,), "upper": 7.0}, "for all"),
        ({"columns": (AGE,), "shape": (3,)}, "leave it out"),
        ({"columns": (AGE,), "window": Window(length=3, group="age")}, "tell series apart"),
        ({"shape": (4,), "window": Window(length=3)}, "end in the 3 rows"),
        ({}, "shape"),
    ],
)
def test_unfit_schemas_are_refused(fields: dict[str, Any], words: str) -> None:
    """Columns, window and shape have to go together."""
    with pytest.raises(ConfigError, match=words):
        Schema(name="rows", **fields)


def test_a_mixed_model_follows_the_columns() -> None:
    """The mixed family takes its layout from the schema and wants gaps to be masked."""
    numbers = [one.to_dict() for one in (PULSE, PAIN)]
    values = {"name": "t", "data": {"name": "rows", "columns": numbers}}
    model = {"model": {"family": "mixed", "options": {"hidden": [4], "latent_dim": 2}}}
    assert build_model(RunConfig.parse(values | model, "test")).input_shape == (5,)
    values["data"] = {"name": "rows", "columns": [AGE.to_dict()]}
    with pytest.raises(ConfigError, match="'mask' of column 'age'"):
        build_model(RunConfig.parse(values | model, "test"))


def test_windows_never_reach_over_a_hole_or_another_series() -> None:
    """Records start anew after a missing row and with each group."""
    window = Window(length=3, step=1, time="t", group="host", rate=1.0)
    times = np.array([0.0, 1, 2, 3, 9, 10, 11, 0, 1, 2])
    groups = [*"aaaaaaabbb"]
    rows = np.arange(20.0).reshape(10, 2)
    records, begins = cut(rows, window, times, groups)
    assert begins.tolist() == [0, 1, 4, 7]
    np.testing.assert_array_equal(records[2], rows[4:7].T)
    schema = Schema(name="s", columns=(AGE, PULSE), window=window)
    assert schema.preprocess(records).shape == (4, 3, 3)
    with pytest.raises(DataError, match="3 rows that follow each other"):
        cut(rows[:2], window)


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 9), st.sets(st.integers(1, 59)))
def test_windows_are_all_that_fit(rows: int, length: int, step: int, breaks: set[int]) -> None:
    """Every record lies within one stretch, and no further one would fit there."""
    groups = np.cumsum([at in breaks for at in range(rows)])
    found = places(rows, Window(length=length, step=step), groups=groups).tolist()
    expected = []
    for group in sorted(set(groups.tolist())):
        mine = np.flatnonzero(groups == group)
        expected += [int(at) for at in mine[::step] if at + length - 1 <= mine[-1]]
    assert found == expected


def test_times_are_seconds_or_dates() -> None:
    """Numbers are seconds, dates without a zone are UTC, other texts are refused."""
    assert seconds_of("12.5") == 12.5
    assert seconds_of("1970-01-01 00:01:00") == 60.0
    assert seconds_of("1970-01-01T01:00:00+01:00") == 0.0
    with pytest.raises(ValueError, match="soon"):
        seconds_of("soon")


def test_synthetic_records_fill_the_public_ranges() -> None:
    """Clipping, golden records and quantisers get rows of columns within their bounds."""
    for window in (None, Window(length=6)):
        schema = Schema(name="rows", columns=TABLE.columns, window=window)
        raw = synthetic_records(schema, 50)
        assert raw.shape == (50, *schema.raw_shape)
        assert schema.outside(raw).sum() == 0
        records = schema.preprocess(raw)
        assert records.min() >= 0.0
        assert records.max() <= 1.0
        assert records.reshape(50, -1).std(axis=0).max() > 0.1


def test_a_table_is_read_by_the_names_of_columns(tmp_path: Path) -> None:
    """Any order, further columns and own names give the same raw rows; sides are texts."""
    path = tmp_path / "rows.csv"
    path.write_text("note,pulse,Alter,bytes,pain\nx,60,30,12,none\ny,?,44,NA,worse\n")
    rows, sides = read_table(path, TABLE.columns, ["note"], {"Alter": "age"})
    np.testing.assert_array_equal(rows, [[30, 0, 12, 60], [44, np.nan, np.nan, np.nan]])
    assert sides == [["x", "y"]]
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("pulse,age\n60,30\nnan,44\n")
    rows, _ = read_table(numbers, (AGE, PULSE))
    np.testing.assert_array_equal(rows, [[30, 60], [44, np.nan]])


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("age,pain\n30,none\nold,none\n", "age", "number"),
        ("age,pain\n30,none\n,none\n", "age", "missing"),
        ("Age,pain\n30,none\n", "age", "column"),
        ("age,pain,age\n30,none,30\n", "age", "column"),
        ("30,none\n", "age", "column"),
        ("30,3\n", "age", "column"),
        ("age,pain\n30,none,1\n", None, "width"),
    ],
)
def test_a_table_that_its_columns_do_not_fit_is_refused(
    tmp_path: Path, text: str, field: str | None, reason: str
) -> None:
    """What is wrong is named by column and reason, with the file in the sentence."""
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"rows\.csv") as told:
        read_table(path, (AGE, PAIN))
    assert (told.value.field, told.value.reason) == (field, reason)
