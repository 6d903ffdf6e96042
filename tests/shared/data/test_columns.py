"""Tables as records: ranges, levels, missing values, and back."""

import numpy as np
import pandas as pd
import pytest

from fedlatent.shared.data.column import Column, layout
from fedlatent.shared.data.columns import (
    hidden,
    places,
    present,
    to_records,
    to_table,
)
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import ConfigError, DataError

COLUMNS = (
    Column(name="age", lower=20.0, upper=120.0, missing="mask"),
    Column(name="kind", levels=("a", "b", "c"), missing="mask"),
    Column(name="bytes", upper=np.e - 1.0, transform="log", missing="mask"),
)
FRAME = pd.DataFrame(
    {"age": [70.0, np.nan, 500.0], "kind": ["b", "z", None], "bytes": [0.0, np.sqrt(np.e) - 1, 9.0]}
)


def test_records_hold_scaled_numbers_flags_and_levels() -> None:
    """Numbers are scaled and clipped, missing ones are zero, unknown levels are missing."""
    expected = [
        [0.5, 1, 0, 1, 0, 0.0, 1],
        [0.0, 0, 0, 0, 0, 0.5, 1],
        [1.0, 1, 0, 0, 0, 1.0, 1],
    ]
    np.testing.assert_allclose(to_records(FRAME, COLUMNS), expected, atol=1e-6)
    assert layout(COLUMNS) == [0, 3, 0]
    assert Schema(name="rows", columns=COLUMNS).shape == (7,)
    assert places(COLUMNS) == [slice(0, 2), slice(2, 5), slice(5, 7)]


def test_tables_come_back() -> None:
    """What lies within range and levels returns, and so does what is missing."""
    records = to_records(FRAME, COLUMNS)
    table = to_table(records, COLUMNS)
    np.testing.assert_allclose(table["age"], [70.0, np.nan, 120.0], rtol=1e-6)
    np.testing.assert_allclose(table["bytes"], [0.0, np.sqrt(np.e) - 1, np.e - 1], atol=1e-6)
    assert table["kind"].isna().tolist() == [False, True, True]
    assert table["kind"][0] == "b"
    np.testing.assert_array_equal(to_records(table, COLUMNS), records)


def test_hidden_values_are_missing() -> None:
    """Hiding marks exactly the asked values as missing and touches no other."""
    records = to_records(FRAME, COLUMNS)
    there = present(records, COLUMNS)
    assert there.tolist() == [[True, True, True], [False, False, True], [True, False, True]]
    hide = np.zeros((3, 3), dtype=bool)
    hide[0, 1] = hide[2, 2] = True
    changed = hidden(records, COLUMNS, hide)
    assert (present(changed, COLUMNS) == there & ~hide).all()
    np.testing.assert_array_equal(changed[1], records[1])


def test_unfit_descriptions_are_refused() -> None:
    """An empty range, repeated or single levels, and an absent column are errors."""
    with pytest.raises(ConfigError, match="lower < upper"):
        Column(name="x", lower=1.0, upper=1.0)
    with pytest.raises(ConfigError, match="levels"):
        Column(name="x", levels=("a",))
    with pytest.raises(ConfigError, match="levels"):
        Column(name="x", levels=("a", "a"))
    with pytest.raises(ConfigError, match="above -1"):
        Column(name="x", lower=-2.0, transform="log")
    with pytest.raises(DataError, match="columns"):
        to_records(FRAME, (Column(name="weight"),))
