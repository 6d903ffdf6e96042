"""The schema turns raw records into model input, the same way for training and edge."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedlatent.shared.data.schema import Schema, row_medians
from fedlatent.shared.errors import ConfigError, DataError

FIELDS: dict[str, object] = {
    "name": "beat",
    "shape": [4],
    "unit": "mV",
    "scale": 1e-3,
    "center": "median",
    "lower": -2.5,
    "upper": 2.5,
}


def make(**changes: object) -> Schema:
    """Build a small schema with some fields changed."""
    return Schema.from_dict(FIELDS | changes)


def test_preprocess_scales_then_centres_then_clips() -> None:
    """Integers in microvolt become centred, clipped millivolt in float32."""
    result = make().preprocess(np.array([[1000, 2000, 3000, 9000]], dtype=np.int16))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [[-1.5, -0.5, 0.5, 2.5]])


def test_mean_and_no_centre() -> None:
    """The centre is each record's own mean, or nothing."""
    raw = np.array([[0.0, 0.0, 0.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    np.testing.assert_allclose(
        make(scale=1, center="mean").preprocess(raw), [[-1, -1, -1, 2.5], [0, 0, 0, 0]]
    )
    np.testing.assert_allclose(make(scale=1, center="none").preprocess(raw)[0], [0, 0, 0, 2.5])


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float64, (3, 4), elements=st.floats(-1e12, 1e12)),
    st.sampled_from(["none", "median", "mean"]),
)
def test_output_is_bounded_and_per_record(raw: np.ndarray, center: str) -> None:
    """Every value lies in the public bounds, and no record depends on another."""
    schema = make(center=center)
    together = schema.preprocess(raw)
    assert together.min() >= -2.5
    assert together.max() <= 2.5
    alone = np.concatenate([schema.preprocess(row[None]) for row in raw])
    np.testing.assert_array_equal(together, alone)


def test_flat_rows_become_records() -> None:
    """A table row of all values fits a schema of several dimensions."""
    schema = make(shape=[1, 2, 2], center="none", scale=1.0)
    raw = np.array([[0.0, 1.0, 2.0, -1.0]])
    np.testing.assert_array_equal(schema.preprocess(raw), raw.reshape(1, 1, 2, 2))
    np.testing.assert_array_equal(
        schema.preprocess(raw.reshape(1, 1, 2, 2)), raw.reshape(1, 1, 2, 2)
    )


def test_no_records() -> None:
    """An empty batch stays empty and keeps the record shape."""
    assert make().preprocess(np.empty((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e308])
@pytest.mark.parametrize("center", ["none", "median", "mean"])
def test_values_that_are_not_finite(bad: float, center: str) -> None:
    """NaN, infinity and overflow are refused with a count of records and none of their values."""
    raw = np.full((5, 4), 7.125)
    raw[1], raw[3, 2] = bad, np.nan
    schema = make(center=center, scale=1e3)
    with pytest.raises(DataError, match="in 2 of 5 records") as caught:
        schema.preprocess(raw)
    assert "7.125" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        np.zeros(4),
        np.zeros((2, 5)),
        np.zeros((2, 2, 2)),
        np.array([["a", "b", "c", "d"]]),
        np.zeros((2, 4), dtype=bool),
        np.zeros((2, 4), dtype=complex),
        [[1.0, 2.0], [3.0]],
    ],
)
def test_wrong_shape_or_type(raw: object) -> None:
    """Records of another shape or type are refused."""
    with pytest.raises(DataError, match=r"^Expected"):
        make().preprocess(raw)  # type: ignore[arg-type]


def test_dictionary_round_trip_and_digest() -> None:
    """A schema survives its dictionary; equal schemas have equal digests and others differ."""
    schema = make()
    assert Schema.from_dict(schema.to_dict()) == schema
    assert Schema.from_dict(schema.to_dict()).digest() == schema.digest()
    assert make(upper=2.4).digest() != schema.digest()
    assert make(lower=-2, upper=2).digest() == make(lower=-2.0, upper=2.0).digest()
    assert make(unit="").unit == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": 3},
        {"name": "a" * 65},
        {"unit": None},
        {"unit": "m\n"},
        {"shape": []},
        {"shape": "4"},
        {"shape": [0]},
        {"shape": [True]},
        {"shape": [1.5]},
        {"shape": [2, 2, 2, 2, 2]},
        {"shape": [2**11, 2**11]},
        {"scale": 0.0},
        {"scale": "1"},
        {"scale": True},
        {"scale": float("nan")},
        {"scale": 10**400},
        {"lower": float("-inf")},
        {"lower": 3.0},
        {"lower": 2.5},
        {"center": "max"},
        {"center": None},
        {"centre": "none"},
    ],
)
def test_wrong_fields(changes: dict[str, object]) -> None:
    """Each field outside its limits, and each unknown key, is a configuration error."""
    with pytest.raises(ConfigError, match=r"^Expected"):
        make(**changes)


def test_missing_key_and_wrong_table() -> None:
    """A missing key is named; something else than a table is refused."""
    with pytest.raises(ConfigError, match="missing: unit"):
        Schema.from_dict({k: v for k, v in FIELDS.items() if k != "unit"})
    with pytest.raises(ConfigError, match="table"):
        Schema.from_dict([1])  # type: ignore[arg-type]


def test_schema_imports_only_numpy() -> None:
    """The edge runtime can use the schema without pandas, scikit-learn, torch or pydantic."""
    code = (
        "import sys, fedlatent.shared.data.schema\n"
        "print([m for m in ('torch','pandas','sklearn','pydantic','flwr') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240
    )
    assert done.stdout.strip() == "[]"


@settings(max_examples=100, deadline=None)
@given(
    arrays(
        np.float64,
        st.tuples(st.integers(0, 4), st.integers(1, 9)),
        elements=st.floats(-1e12, 1e12),
    )
)
def test_row_medians_are_those_of_numpy(rows: np.ndarray) -> None:
    """The median of each row, for odd and even numbers of values."""
    np.testing.assert_array_equal(row_medians(rows), np.median(rows, axis=1, keepdims=True))


def test_grey_images_come_with_their_channel_or_without() -> None:
    """[N, 28, 28] is taken for [N, 1, 28, 28]; other planes are not guessed."""
    grey = Schema(name="grey", shape=(1, 4, 4))
    images = np.linspace(-1, 1, 32).reshape(2, 4, 4)
    np.testing.assert_array_equal(grey.preprocess(images), grey.preprocess(images[:, None]))
    with pytest.raises(DataError, match="shape"):
        Schema(name="colour", shape=(3, 4, 4)).preprocess(images)
