"""Feature scaling: what is bounded, what is pooled, and what a message may bring."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fedlatent.shared.data.scaling import (
    LIMIT,
    Scaling,
    bounded_values,
    data_radius,
    features_of,
    pool_scaling,
)
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.summaries import noisy_sum, scaling_spec, scaling_sums

FLAT = Schema(name="flat", shape=(4,), lower=-2.0, upper=6.0)
SERIES = Schema(name="series", shape=(3, 5), lower=-1.0, upper=1.0)


def sums_of(records: np.ndarray, data: Schema) -> np.ndarray:
    """Exact sums of preprocessed records."""
    return scaling_sums(bounded_values(records.astype(np.float32), data))


def records_of(data: Schema, count: int, seed: int = 0) -> np.ndarray:
    """Records within the bounds whose features differ in place and width."""
    rng = np.random.default_rng(seed)
    features = data.shape[0]
    place = (features,) + (1,) * (len(data.shape) - 1)
    middle, half = (data.upper + data.lower) / 2, (data.upper - data.lower) / 2
    width = half * np.linspace(0.05, 0.2, features).reshape(place)
    center = middle + half * np.linspace(-0.3, 0.3, features).reshape(place)
    return np.clip(
        center + width * rng.normal(size=(count, *data.shape)), data.lower, data.upper
    ).astype(np.float32)


@pytest.mark.parametrize("data", [FLAT, SERIES], ids=["flat", "series"])
@pytest.mark.parametrize("clients", [1, 3])
def test_without_noise_mean_and_deviation_are_those_of_the_records(
    data: Schema, clients: int
) -> None:
    """Pooled sums give each feature's mean and deviation over records and places, in data units."""
    parts = [records_of(data, 300 + 100 * i, seed=i) for i in range(clients)]
    scaling = pool_scaling([sums_of(part, data) for part in parts], data, 0.0)
    by_feature = np.concatenate(parts).astype(np.float64).swapaxes(0, 1).reshape(data.shape[0], -1)
    assert np.allclose(scaling.mean, by_feature.mean(axis=1), atol=1e-6)
    assert np.allclose(scaling.deviation, by_feature.std(axis=1), atol=1e-6)


@pytest.mark.parametrize("data", [FLAT, SERIES], ids=["flat", "series"])
def test_scaled_records_are_standard(data: Schema) -> None:
    """After scaling every feature has mean 0 and deviation 1; shape and dtype stay."""
    records = records_of(data, 500)
    before = records.copy()
    scaled = pool_scaling([sums_of(records, data)], data, 0.0)(records)
    assert scaled.shape == records.shape
    assert scaled.dtype == np.float32
    by_feature = scaled.swapaxes(0, 1).reshape(data.shape[0], -1)
    assert np.allclose(by_feature.mean(axis=1), 0.0, atol=1e-4)
    assert np.allclose(by_feature.std(axis=1), 1.0, atol=1e-3)
    assert np.array_equal(records, before)


def test_scaled_values_are_clipped() -> None:
    """Nothing passes the limit of deviations, infinity neither."""
    scaling = Scaling(mean=np.zeros(4), deviation=np.full(4, 0.01))
    records = np.array([[6.0, -2.0, 0.05, np.inf]], dtype=np.float32)
    assert np.allclose(scaling(records), [[LIMIT, -LIMIT, 5.0, LIMIT]])
    assert scaling(np.zeros((0, 4), np.float32)).shape == (0, 4)


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (3, 4), elements=st.floats(-(2.0**30), 2.0**30, width=32)))
def test_bounded_values_never_leave_the_ball(records: NDArray[np.float32]) -> None:
    """Whatever comes, mapped values lie within [-1, 1], so that the sums take them."""
    values = bounded_values(records, FLAT)
    assert values.shape == (3, 4, 1)
    assert np.abs(values).max() <= 1.0
    assert scaling_sums(values).shape == (9,)


def test_bounds_are_mapped_to_one() -> None:
    """The lower bound goes to -1, the upper to 1, the middle to 0; places come last."""
    records = np.array([[-2.0, 6.0, 2.0, 4.0]], np.float32)
    assert np.allclose(bounded_values(records, FLAT)[0, :, 0], [-1.0, 1.0, 0.0, 0.5])
    series = np.linspace(-1, 1, 15, dtype=np.float32).reshape(1, 3, 5)
    assert np.allclose(bounded_values(series, SERIES)[0, 1], series[0, 1])
    assert features_of(SERIES) == 3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 5.0, 50.0]))
def test_noise_cannot_make_a_deviation_that_is_not_positive(seed: int, sigma: float) -> None:
    """Heavy noise on few records gives finite means within the bounds and positive deviations."""
    records = records_of(FLAT, 400, seed=seed)
    spec = scaling_spec(4)
    released = [
        noisy_sum(sums_of(part, FLAT), spec, sigma, SimulationNoise(seed, i))
        for i, part in enumerate(np.split(records, 4))
    ]
    if sum(one[0] for one in released) < 1:
        return
    scaling = pool_scaling(released, FLAT, sigma)
    assert (scaling.mean >= FLAT.lower).all()
    assert (scaling.mean <= FLAT.upper).all()
    assert (scaling.deviation > 0).all()
    Scaling.from_arrays(scaling.arrays(), FLAT)


def test_error_falls_with_the_noise() -> None:
    """The pooled scaling comes to the exact one as noise gets small."""
    sums, spec = sums_of(records_of(FLAT, 5000), FLAT), scaling_spec(4)
    exact = pool_scaling([sums], FLAT, 0.0)
    errors = []
    for sigma in (30.0, 3.0, 0.3):
        found = pool_scaling([noisy_sum(sums, spec, sigma, SimulationNoise(3))], FLAT, sigma)
        errors.append(np.abs(found.mean - exact.mean).max())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


def test_a_constant_feature_gets_the_least_deviation() -> None:
    """A feature that never changes has 2 % of the half range, not zero."""
    records = np.full((50, 4), 1.0, np.float32)
    scaling = pool_scaling([sums_of(records, FLAT)], FLAT, 0.0)
    assert np.allclose(scaling.deviation, 0.02 * 4.0)
    assert np.isfinite(scaling(records)).all()


def test_what_cannot_be_pooled_is_refused() -> None:
    """No client and a count below one raise."""
    with pytest.raises(ValueError, match="at least one client"):
        pool_scaling([], FLAT, 1.0)
    with pytest.raises(ValueError, match="at least 1"):
        pool_scaling([np.zeros(9)], FLAT, 1.0)


def test_arrays_round_trip() -> None:
    """What arrays write is read back bit for bit."""
    scaling = pool_scaling([sums_of(records_of(FLAT, 60), FLAT)], FLAT, 0.0)
    again = Scaling.from_arrays(scaling.arrays(), FLAT)
    assert np.array_equal(again.mean, scaling.mean)
    assert np.array_equal(again.deviation, scaling.deviation)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found.pop("mean"),
        lambda found: found.update(extra=np.zeros(4)),
        lambda found: found.update(mean=np.zeros(3)),
        lambda found: found.update(mean=np.zeros(4, np.int64)),
        lambda found: found.update(mean=np.array([0.0, np.nan, 0.0, 0.0])),
        lambda found: found.update(deviation=np.zeros(4)),
        lambda found: found.update(deviation=np.array([1.0, 1.0, -1.0, 1.0])),
        lambda found: found.update(deviation=np.array([1.0, 1.0, np.inf, 1.0])),
    ],
)
def test_what_is_no_scaling_is_refused(spoil: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Missing, surplus, misshapen, mistyped, infinite or non-positive arrays raise."""
    found = {"mean": np.zeros(4), "deviation": np.ones(4)}
    spoil(found)
    with pytest.raises(ProtocolError, match="positive deviation of 4 features"):
        Scaling.from_arrays(found, FLAT)


def test_the_public_radius_of_a_record() -> None:
    """A quarter of the half range at each place, over the whole record."""
    assert data_radius(FLAT) == pytest.approx(0.25 * 4.0 * 2.0)
    assert data_radius(SERIES) == pytest.approx(0.25 * np.sqrt(15))
