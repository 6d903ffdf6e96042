"""Windows of a stream: those of the whole file, whatever the portions, and none over a gap."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.client.edge.windows import Rows, Windows, row_schema
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window, cut
from fedlatent.shared.errors import ConfigError, DataError
from tests.shared.bundle import tiny


def _rows(
    values: np.ndarray,
    *,
    fresh: list[int] | None = None,
    seconds: np.ndarray | None = None,
    group: np.ndarray | None = None,
) -> Rows:
    marks = np.isin(np.arange(len(values)), fresh or [])
    number = np.arange(1, len(values) + 1)
    return Rows(values=values, number=number, fresh=marks, seconds=seconds, group=group)


def _pushed(windows: Windows, rows: Rows, portions: list[int]) -> Rows:
    got, place = [], 0
    for portion in [*portions, len(rows)]:
        got.append(windows.push(rows.take(slice(place, place + portion))))
        place += portion
    return Rows.joined(got)


@pytest.mark.parametrize("step", [1, 3, 8, 20])
@pytest.mark.parametrize("shape", [(8,), (5, 8)])
def test_windows_are_those_of_the_whole_series(shape: tuple[int, ...], step: int) -> None:
    """Windows of rows that come in any portions are the windows of the series, channels first."""
    channels = row_schema(replace(tiny.SCHEMA, shape=shape)).size
    series = np.random.default_rng(0).normal(size=(700, channels))
    expected = [series[s : s + 8].T.ravel() for s in range(0, 700 - 8 + 1, step)]
    windows = Windows(Window(length=8, step=step))
    got = _pushed(windows, _rows(series), [1, 2, 100, 256, 3, 256, 82])
    np.testing.assert_array_equal(got.values, expected)
    assert got.number.tolist() == list(range(8, 701, step))
    assert windows.gaps == 0


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_windows_of_a_stream_are_those_of_the_file(data: st.DataObject) -> None:
    """Cut as they come, rows give the records that `cut` makes of all: holes, series and steps."""
    count, channels = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 3))
    timed, grouped = data.draw(st.booleans()), data.draw(st.booleans())
    window = Window(
        length=data.draw(st.integers(1, 6)),
        step=data.draw(st.integers(1, 8)),
        time="t" if timed else "",
        group="g" if grouped else "",
        rate=data.draw(st.sampled_from([0.0, 1.0])) if timed else 0.0,
    )
    passed = st.lists(
        st.sampled_from([1.0, 1.0, 1.5, 1.6, 0.0, -3.0]), min_size=count, max_size=count
    )
    seconds = np.cumsum(data.draw(passed)) if timed else None
    series = st.lists(st.integers(0, 3), min_size=count, max_size=count)
    group = np.array(data.draw(series)).astype(str) if grouped else None
    values = np.arange(count * channels, dtype=np.float64).reshape(count, channels)
    portions = data.draw(st.lists(st.integers(0, 20), max_size=8))
    windows = Windows(window)
    got = _pushed(windows, _rows(values, seconds=seconds, group=group), portions)
    try:
        records, begins = cut(values, window, seconds, None if group is None else group.tolist())
    except DataError:
        records, begins = np.zeros((0, channels, window.length)), np.zeros(0, dtype=np.int64)
    np.testing.assert_array_equal(
        got.values, records.reshape(len(records), channels * window.length)
    )
    np.testing.assert_array_equal(got.number, begins + window.length)
    if not windows.window.length == windows.window.step == 1:
        used = np.unique(begins[:, np.newaxis] + np.arange(window.length))
        assert windows.unused == count - len(used)


def test_no_window_reaches_over_a_missing_row() -> None:
    """Of 40 rows without one in the middle come the whole windows of both sides, and a gap."""
    series = np.arange(40.0).reshape(-1, 1)
    rows = _rows(np.delete(series, 20, axis=0), fresh=[20])
    windows = Windows(Window(length=6, step=1))
    got = _pushed(windows, rows, [7, 13])
    expected = [series[s : s + 6, 0] for s in (*range(0, 15), *range(21, 35))]
    np.testing.assert_array_equal(got.values, expected)
    assert windows.gaps == 1


def test_gaps_are_counted_where_time_has_a_hole() -> None:
    """A hole, a time again and one before count a gap each; the begin of a series counts none."""
    seconds = np.array([0.0, 60.0, 150.0, 241.0, 301.0, 301.0, 361.0, 5.0])
    window = Window(length=2, step=1, time="t", rate=1 / 60)
    windows = Windows(window)
    got = windows.push(_rows(np.arange(8.0).reshape(-1, 1), seconds=seconds))
    assert got.values.tolist() == [[0, 1], [1, 2], [3, 4], [5, 6]]
    assert windows.gaps == 3
    group = np.array([*"aaaabbbb"])
    windows = Windows(replace(window, group="g"))
    windows.push(_rows(np.zeros((8, 1)), seconds=seconds % 200, group=group))
    assert windows.gaps == 3


def test_rows_that_are_records_pass() -> None:
    """Windows of one row are the rows; what is missing between them is counted."""
    windows = Windows(Window(length=1))
    rows = _rows(np.arange(6.0).reshape(3, 2), fresh=[1])
    np.testing.assert_array_equal(windows.push(rows).values, rows.values)
    assert windows.gaps == 1
    with pytest.raises(ConfigError, match="step"):
        Window(length=6, step=0)


def test_schema_of_a_row() -> None:
    """A row of a series has the channels of a record, or the columns of its schema."""
    assert row_schema(replace(tiny.SCHEMA, shape=(5, 8))).shape == (5,)
    assert row_schema(replace(tiny.SCHEMA, shape=(8,))).shape == (1,)
    columns = (Column(name="a"), Column(name="b", missing="mask"))
    schema = Schema(name="s", columns=columns, window=Window(length=4))
    assert schema.shape == (3, 4)
    assert (row_schema(schema).shape, row_schema(schema).raw_size) == ((3,), 2)
