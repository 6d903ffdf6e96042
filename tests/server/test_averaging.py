"""The streamed weighted mean."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlatent.server.strategies.mean import WeightedMean


def test_mean_is_the_weighted_mean() -> None:
    """The result equals numpy's weighted average, in the dtype that came in."""
    draw = np.random.default_rng(0)
    values = [draw.normal(size=(4, 5)).astype(np.float32) for _ in range(6)]
    weights = [3, 100, 7, 1, 50, 9_999_999]
    mean = WeightedMean()
    for value, weight in zip(values, weights, strict=True):
        mean.add({"w": value}, weight)
    result = mean.result()["w"]
    assert result.dtype == np.float32
    expected = np.average(np.stack(values).astype(np.float64), axis=0, weights=weights)
    np.testing.assert_array_equal(result, expected.astype(np.float32))


@given(
    st.lists(
        st.tuples(st.integers(-(2**24), 2**24), st.integers(-54, -20), st.integers(1, 10_000_000)),
        min_size=2,
        max_size=4,
    )
)
def test_order_of_arrival_does_not_matter(parts: list[tuple[int, int, int]]) -> None:
    """All orders of the same replies give the same float32 bits, also when they cancel."""
    results = set()
    for order in itertools.permutations(parts):
        mean = WeightedMean()
        for mantissa, exponent, weight in order:
            mean.add({"w": np.array([math.ldexp(mantissa, exponent)], np.float32)}, weight)
        results.add(float(mean.result()["w"][0]))
    assert len(results) == 1


def test_replies_are_not_kept() -> None:
    """Folding does not hold on to the arrays it was given."""
    value = np.ones(3, np.float32)
    mean = WeightedMean()
    mean.add({"w": value}, 1)
    value[:] = 5
    np.testing.assert_array_equal(mean.result()["w"], np.ones(3, np.float32))


def test_misuse_is_an_error() -> None:
    """No contribution, a weight of zero and other keys are errors of the caller."""
    mean = WeightedMean()
    with pytest.raises(ValueError, match="at least one"):
        mean.result()
    with pytest.raises(ValueError, match="positive weight"):
        mean.add({"w": np.ones(1)}, 0)
    mean.add({"w": np.ones(1)}, 1)
    with pytest.raises(ValueError, match="got \\['v'\\]"):
        mean.add({"v": np.ones(1)}, 1)
