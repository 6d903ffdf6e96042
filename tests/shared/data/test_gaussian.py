"""The Gaussian of the data and the public basis it lives on."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.frequencies import cosine_basis
from fedlatent.shared.data.gaussian import (
    DataGaussian,
    data_features,
    feature_basis,
    feature_radius,
)
from fedlatent.shared.data.scaling import data_radius
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.summaries import moments, moments_spec, noisy_sum
from tests.client.support import tiny_run

SHAPES = st.sampled_from([(12,), (128,), (4, 6), (1, 8, 8), (2, 3, 5), (1,)])


def run_of(features: int = 6, radius: float = 0.0) -> RunConfig:
    """A run that releases the Gaussian of twelve values within [-3, 3]."""
    return tiny_run(summaries={"data": "gaussian", "features": features, "data_radius": radius})


def records_of(count: int, seed: int = 0) -> np.ndarray:
    """Smooth records: two waves and a little of all else."""
    rng, place = np.random.default_rng(seed), (np.arange(12) + 0.5) / 12
    waves = np.stack([np.ones(12), np.cos(np.pi * place)])
    rough = 0.05 * rng.normal(size=(count, 12))
    smooth = rng.normal(size=(count, 2)) * np.array([0.4, 0.8]) @ waves
    return np.asarray(smooth + 0.3 + rough, dtype=np.float32)


def released(run: RunConfig, records: np.ndarray, sigma: float = 0.0, seed: int = 0) -> np.ndarray:
    """What a client releases in the phase "data"."""
    features = data_features(records, feature_basis(run), 0.0)
    exact = moments(features, feature_radius(run))
    return noisy_sum(exact, moments_spec(len(exact) - 1), sigma, SimulationNoise(seed))


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(1, 150))
def test_rows_of_the_basis_are_orthonormal(shape: tuple[int, ...], features: int) -> None:
    """So features are never longer than the record, and a radius for records holds for them."""
    basis, size = cosine_basis(shape, features), math.prod(shape)
    assert basis.shape == (min(features, size), size)
    assert np.allclose(basis @ basis.T, np.eye(len(basis)))


@pytest.mark.parametrize("shape", [(12,), (4, 6), (2, 3, 5)])
def test_the_basis_is_the_cosine_transform(shape: tuple[int, ...]) -> None:
    """Features are coefficients of scipy's orthonormal DCT-II, every one but the last of them."""
    record, size = np.random.default_rng(1).normal(size=shape), math.prod(shape)
    found = cosine_basis(shape, size - 1) @ record.ravel()
    wanted = dctn(record, norm="ortho").ravel()
    for value in found:
        assert np.abs(wanted - value).min() < 1e-9
    assert np.sum(found**2) == pytest.approx(np.sum(wanted**2) - np.abs(wanted[-1]) ** 2)


def test_low_frequencies_come_first() -> None:
    """The mean is first; more features keep the fewer; on an image both axes count alike."""
    for shape in ((12,), (4, 6), (1, 8, 8)):
        size = math.prod(shape)
        assert np.allclose(cosine_basis(shape, 4)[0], 1 / math.sqrt(size))
        assert np.array_equal(cosine_basis(shape, 5)[:3], cosine_basis(shape, 3))
    wave = np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    assert np.linalg.norm(cosine_basis((64,), 2) @ wave) == pytest.approx(np.linalg.norm(wave))
    square = cosine_basis((8, 8), 3)[1:].reshape(2, 8, 8)
    assert np.allclose(np.sort(np.ptp(square, axis=1).max(axis=1))[0], 0.0, atol=1e-9)
    assert np.allclose(square[0], square[1].T)


def test_an_axis_counts_by_the_waves_that_it_bears() -> None:
    """On a record of two rows and eight columns the first four features vary along the columns."""
    basis = cosine_basis((2, 8), 4).reshape(4, 2, 8)
    assert np.allclose(basis[:, 0], basis[:, 1])


def test_all_features_are_the_record_itself() -> None:
    """With as many features as values the map is the identity, and nothing is lost in a draw."""
    assert np.array_equal(cosine_basis((3, 2), 6), np.eye(6))
    assert np.array_equal(cosine_basis((3, 2), 99), np.eye(6))


def test_without_noise_it_is_the_gaussian_of_the_features() -> None:
    """Pooled mean and covariance of two clients are those of all features."""
    run = run_of(radius=50.0)
    parts = [records_of(300, 1), records_of(200, 2) + np.float32(0.5)]
    made = DataGaussian.pooled(run, [released(run, part) for part in parts], 0.0)
    features = made.features(np.concatenate(parts))
    assert np.allclose(made.density.mean, features.mean(axis=0))
    values = np.linalg.eigvalsh(np.cov(features.T, bias=True))
    assert values.min() > 1e-3  # above the floor of eigenvalues
    assert np.allclose(made.density.covariance, np.cov(features.T, bias=True), atol=1e-6)


def test_features_are_about_the_middle_of_the_bounds() -> None:
    """A record at the middle has no feature, whichever the bounds are."""
    run = tiny_run(
        summaries={"data": "gaussian", "features": 6},
        data={"name": "tiny", "shape": [12], "lower": 2.0, "upper": 8.0},
    )
    middle = np.full((1, 12), 5.0, np.float32)
    basis = feature_basis(run)
    sums = moments(data_features(np.repeat(middle, 9, axis=0), basis, 5.0), feature_radius(run))
    made = DataGaussian.pooled(run, [sums], 0.0)
    assert np.allclose(made.features(middle), 0.0)
    assert made.draws(2000, np.random.default_rng(0)).mean() == pytest.approx(5.0, abs=0.01)


def test_draws_have_the_mean_and_covariance_of_the_records() -> None:
    """Synthetic records look like real ones as far as the low frequencies tell."""
    run = run_of(radius=50.0)
    records = records_of(3000)
    made = DataGaussian.pooled(run, [released(run, records)], 0.0)
    draws = made.draws(30_000, np.random.default_rng(1))
    assert draws.shape == (30_000, 12)
    assert draws.dtype == np.float32
    assert np.allclose(draws.mean(axis=0), records.mean(axis=0), atol=0.05)
    real, drawn = np.cov(records.T), np.cov(draws.T)
    assert np.abs(real - drawn).max() < 0.05
    again = made.draws(30_000, np.random.default_rng(1))
    assert np.array_equal(again, draws)


def test_what_the_features_leave_out_is_zero_in_draws() -> None:
    """Draws lie in the span of the basis about the middle."""
    run = run_of(3)
    made = DataGaussian.pooled(run, [released(run, records_of(200))], 0.0)
    draws = made.draws(20, np.random.default_rng(0)).astype(np.float64)
    assert np.allclose(made.features(draws.astype(np.float32)) @ made.basis, draws, atol=1e-5)


def test_distance_tells_an_unusual_record() -> None:
    """Usual records have a mean distance of the number of features; odd ones lie far outside."""
    run = run_of(radius=50.0)
    records = records_of(2000)
    made = DataGaussian.pooled(run, [released(run, records)], 0.0)
    usual = made.distance(records)
    assert usual.mean() == pytest.approx(6.0, rel=0.02)
    odd = np.where(np.arange(12) < 6, 1.0, -1.0)[None].astype(np.float32) * [[1.0], [-1.0]]
    assert made.distance(odd.astype(np.float32)).min() > np.quantile(usual, 0.999)


def test_noise_leaves_a_positive_covariance() -> None:
    """Heavy noise on few records still gives draws and distances that are finite."""
    run, records = run_of(), records_of(200)
    made = DataGaussian.pooled(run, [released(run, records, 5.0, i) for i in range(3)], 5.0)
    assert np.linalg.eigvalsh(made.density.covariance).min() > 0
    assert np.isfinite(made.draws(10, np.random.default_rng(0))).all()
    assert (made.distance(records) >= 0).all()


def test_messages_are_checked() -> None:
    """Arrays of a density of the run's features are read back; others raise."""
    run = run_of()
    made = DataGaussian.pooled(run, [released(run, records_of(100))], 0.0)
    again = DataGaussian.from_arrays(run, made.density.arrays())
    assert np.array_equal(again.distance(records_of(9)), made.distance(records_of(9)))
    with pytest.raises(ProtocolError, match="density of 5 dimensions"):
        DataGaussian.from_arrays(run_of(5), made.density.arrays())
    with pytest.raises(ProtocolError, match="positive covariances"):
        DataGaussian.from_arrays(
            run, {**made.density.arrays(), "covariance": -made.density.covariance}
        )


def test_a_named_radius_takes_the_place_of_the_public_one() -> None:
    """Zero means a quarter of the bounds."""
    assert feature_radius(run_of()) == data_radius(run_of().data)
    assert feature_radius(run_of(radius=2.5)) == 2.5
