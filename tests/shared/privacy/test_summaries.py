"""Each release moves by no more than its stated sensitivity and carries the stated noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.summaries import (
    MOMENTS_SENSITIVITY,
    SCORE_EDGES,
    LatentDensity,
    client_mean,
    histograms,
    latent_density,
    moments,
    noisy_moments,
    noisy_sum,
    squared_distance,
    threshold_spec,
)

LATENTS = arrays(
    np.float64, st.tuples(st.integers(0, 6), st.just(3)), elements=st.floats(-1e6, 1e6)
)


@settings(max_examples=60, deadline=None)
@given(LATENTS, arrays(np.float64, (1, 3), elements=st.floats(-1e9, 1e9)))
def test_one_record_moves_the_moments_by_at_most_the_sensitivity(
    latents: np.ndarray, extra: np.ndarray
) -> None:
    """A null record in the place of any record, however extreme, changes them by at most sqrt 3."""
    with_it = moments(np.vstack([latents, extra]), 2.0)
    null = np.full_like(extra, np.nan)
    difference = np.linalg.norm(with_it - moments(np.vstack([latents, null]), 2.0))
    assert difference <= MOMENTS_SENSITIVITY * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e12), max_size=8), st.floats(0, 1e12), st.floats(0, 1e12))
def test_one_record_moves_the_histograms_by_at_most_the_sensitivity(
    scores: list[float], absolute: float, recentred: float
) -> None:
    """Removing any record changes the stacked histograms by at most sqrt(2)."""
    base = np.asarray(scores)
    difference = histograms(np.append(base, absolute), np.append(base, recentred)) - histograms(
        base, base
    )
    assert np.linalg.norm(difference) <= threshold_spec().sensitivity * (1 + 1e-9)


def test_moments_noise_is_isotropic_in_the_symmetric_matrices() -> None:
    """The noise is symmetric: sqrt(3) sigma on the diagonal, sqrt(1.5) sigma off it, 0 on N."""
    noise = SimulationNoise(5)
    exact = moments(np.ones((4, 3)), 2.0)
    draws = np.array([noisy_moments(np.ones((4, 3)), 2.0, 1.5, noise) - exact for _ in range(4000)])
    assert np.allclose(draws, draws.transpose(0, 2, 1))
    deviation = draws.std(axis=0)
    assert np.allclose(np.diag(deviation)[:-1], 1.5 * np.sqrt(3), rtol=0.06)
    assert deviation[-1, -1] == 0.0
    off = deviation[~np.eye(4, dtype=bool)]
    assert np.allclose(off, 1.5 * np.sqrt(1.5), rtol=0.06)


def test_histogram_noise_has_the_stated_deviation() -> None:
    """Every bin of both histograms carries deviation sqrt(2) sigma."""
    scores = np.full(100, 3.0)
    released = noisy_sum(histograms(scores, scores), threshold_spec(), 2.0, SimulationNoise(6))
    residual = released - histograms(scores, scores)
    assert residual.std() == pytest.approx(2.0 * threshold_spec().sensitivity, rel=0.15)
    assert released.shape == (2, len(SCORE_EDGES) + 1)


def test_without_noise_the_density_is_that_of_the_pooled_records() -> None:
    """Two clients with different centres give the pooled mean, covariance and within-covariance."""
    generator = np.random.default_rng(0)
    one = generator.normal(size=(400, 3)) * 0.3 + 1.0
    two = generator.normal(size=(200, 3)) * 0.3 - 1.0
    released = [noisy_moments(x, 10.0, 0.0, SimulationNoise(0)) for x in (one, two)]
    density = latent_density(released, 10.0, 0.0)
    pooled = np.vstack([one, two])
    assert density.count == pytest.approx(600)
    assert np.allclose(density.mean, pooled.mean(axis=0))
    assert np.allclose(density.covariance, np.cov(pooled.T, bias=True), atol=1e-9)
    own = np.vstack([one - one.mean(axis=0), two - two.mean(axis=0)])
    assert np.allclose(density.within, np.cov(own.T, bias=True), atol=1e-9)
    assert np.allclose(client_mean(released[1], 10.0), two.mean(axis=0))
    again = LatentDensity.from_arrays(density.arrays())
    assert np.array_equal(again.within, density.within)


def test_noise_cannot_make_a_covariance_that_has_no_inverse() -> None:
    """Heavy noise on few records still gives positive eigenvalues and finite distances."""
    latents = np.random.default_rng(1).normal(size=(60, 4))
    released = [noisy_moments(latents, 3.0, 4.0, SimulationNoise(i)) for i in range(3)]
    density = latent_density(released, 3.0, 4.0)
    assert np.linalg.eigvalsh(density.covariance).min() > 0
    distance = squared_distance(latents, density.mean, density.precision(recentred=True))
    assert np.isfinite(distance).all()
    assert (distance >= 0).all()


def test_moments_of_nobody_are_refused() -> None:
    """No client and a count below one are errors, not numbers."""
    with pytest.raises(ValueError, match="at least one client"):
        latent_density([], 3.0, 1.0)
    with pytest.raises(ValueError, match="at least 1"):
        latent_density([np.zeros((3, 3))], 3.0, 1.0)
