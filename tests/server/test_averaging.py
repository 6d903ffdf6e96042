"""The streamed weighted mean, and the strategy under Flower's own loop."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlatent.server.driver import drive
from fedlatent.server.strategies.averaging import EncoderAveraging, to_arrays
from fedlatent.server.strategies.mean import WeightedMean
from fedlatent.shared.models import build, encoder_state
from tests.server.federation import Clock, grid_of, home_at, three_sites, tiny_config


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


def test_flowers_own_loop_gives_the_encoder_of_the_driver(tmp_path: Path) -> None:
    """``Strategy.start`` and our driver average the same training rounds to the same bits."""
    config = tiny_config()
    driven = drive(
        grid_of(three_sites()), config, home_at(tmp_path), run_id="tiny-1", pace=Clock().pace()
    )
    model = build("gaussian", config.model.options, config.data.shape, config.seed)
    first = {key: value.numpy() for key, value in encoder_state(model).items()}
    strategy = EncoderAveraging(config, "tiny-1")
    result = strategy.start(
        grid_of(three_sites()), to_arrays(first), num_rounds=config.training.rounds
    )
    assert result.arrays.keys() == driven.arrays.keys()
    for key, value in driven.arrays.items():
        np.testing.assert_array_equal(result.arrays[key].numpy(), value)


def test_flowers_own_loop_keeps_the_arrays_below_the_quorum() -> None:
    """With one node and a quorum of two, a round under Flower's loop changes nothing."""
    config = tiny_config(training={"rounds": 1, "steps_per_round": 2})
    strategy = EncoderAveraging(config, "tiny-1")
    grid = grid_of({11: three_sites()[11]})
    result = strategy.start(grid, to_arrays({"encoder.w": np.ones(2, np.float32)}), num_rounds=1)
    assert not result.arrays
