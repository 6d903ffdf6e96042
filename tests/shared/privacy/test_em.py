"""Federated expectation maximisation on released stacks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.shared.privacy.em import first_mixture, next_mixture
from fedlatent.shared.privacy.mixture import LatentMixture
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.summaries import (
    LatentDensity,
    diagonal_moments,
    latent_density,
    mixture_moments,
    mixture_spec,
    moments,
    noisy_sum,
)

RADIUS = 8.0
LEFT, RIGHT = np.array([-3.0, 1.0]), np.array([3.0, -1.0])
SHAPE = np.array([[0.5, 0.2], [0.2, 0.3]])


def blobs(seed: int, counts: tuple[int, int]) -> np.ndarray:
    """Latents of one client about two centres."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.multivariate_normal(m, SHAPE, n) for m, n in zip((LEFT, RIGHT), counts, strict=True)
    ]
    return np.vstack(parts)


#: Three clients; the third has seen the right blob alone.
CLIENTS = [blobs(1, (900, 300)), blobs(2, (600, 0)), blobs(3, (0, 200))]


def density_of(clients: list[np.ndarray]) -> LatentDensity:
    """The exact density of all latents."""
    return latent_density([moments(rows, RADIUS) for rows in clients], RADIUS, 0.0)


def step(
    previous: LatentMixture, clients: list[np.ndarray], sigma: float, seed: int = 0
) -> LatentMixture:
    """One whole round: clients release, the server maximises."""
    components = len(previous.weights)
    spec = mixture_spec(components, 2)
    released = [
        noisy_sum(mixture_moments(rows, RADIUS, previous), spec, sigma, SimulationNoise(seed, i))
        for i, rows in enumerate(clients)
    ]
    return next_mixture(
        previous,
        np.sum(released, axis=0),
        radius=RADIUS,
        clients=len(clients),
        noise_multiplier=sigma,
        epsilon=1.0,
        density=density_of(clients),
    )


def rough() -> LatentMixture:
    """Two components on the right sides of the origin."""
    return LatentMixture(
        weights=np.array([0.5, 0.5]),
        means=np.array([[-1.0, 0.0], [1.0, 0.0]]),
        covariances=np.stack([4.0 * np.eye(2)] * 2),
    )


def test_two_blobs_of_three_clients_are_found() -> None:
    """Without noise means, weights and covariances come to those of the records."""
    mixture = rough()
    for _ in range(8):
        mixture = step(mixture, CLIENTS, 0.0)
    assert np.allclose(mixture.means, [LEFT, RIGHT], atol=0.1)
    assert np.allclose(mixture.weights, [0.75, 0.25], atol=0.005)
    assert np.allclose(mixture.covariances, SHAPE, atol=0.08)


@pytest.mark.parametrize("seed", range(4))
def test_every_step_raises_the_likelihood(seed: int) -> None:
    """Exact steps from a seeded start never make the records less likely."""
    mixture = first_mixture(density_of(CLIENTS), 3, seed)
    records = np.vstack(CLIENTS)
    found = []
    for _ in range(6):
        found.append(mixture.log_density(records).mean())
        mixture = step(mixture, CLIENTS, 0.0)
    assert (np.diff(found) > -1e-6).all()
    assert found[-1] > found[0] + 0.1


def test_pooling_equals_one_client_with_all_records() -> None:
    """The exact step does not depend on how records lie with clients."""
    apart, together = step(rough(), CLIENTS, 0.0), step(rough(), [np.vstack(CLIENTS)], 0.0)
    for key, value in apart.arrays().items():
        assert np.allclose(together.arrays()[key], value), key


def test_moderate_noise_moves_little() -> None:
    """With noise that 2,000 records bear the blobs are still found."""
    mixture = rough()
    for number in range(5):
        mixture = step(mixture, CLIENTS, 2.0, seed=number)
    assert len(mixture.weights) == 2
    assert np.allclose(mixture.means, [LEFT, RIGHT], atol=0.6)
    assert np.allclose(mixture.weights, [0.75, 0.25], atol=0.05)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 60.0))
def test_every_noisy_step_gives_a_mixture(seed: int, sigma: float) -> None:
    """Whatever the noise, weights are positive, covariances too, and means lie within the ball."""
    start = mixture = first_mixture(density_of(CLIENTS), 5, seed)
    for number in range(3):
        mixture = step(mixture, CLIENTS, sigma, seed=seed + number)
    LatentMixture.checked(mixture.arrays(), 2)
    assert mixture.weights.sum() == pytest.approx(1.0)
    if mixture is not start:
        assert (np.linalg.norm(mixture.means, axis=1) <= RADIUS * (1 + 1e-9)).all()


def _three() -> LatentMixture:
    """The blobs and a component where no record is."""
    return LatentMixture(
        weights=np.array([0.6, 0.3, 0.1]),
        means=np.stack([LEFT, RIGHT, [0.0, 7.0]]),
        covariances=np.stack([0.5 * np.eye(2)] * 3),
    )


def test_a_drowned_component_is_dropped() -> None:
    """A component whose count is below three deviations of its noise goes; the others stay."""
    for seed in range(10):
        mixture = step(_three(), CLIENTS, 10.0, seed=seed)
        assert len(mixture.weights) == 2
        assert np.allclose(mixture.means, [LEFT, RIGHT], atol=1.5)


def test_the_limit_is_three_deviations_of_the_pooled_noise() -> None:
    """A count just above 3 * 2 sigma sqrt(clients) keeps its component, one just below does not."""
    limit = 3 * 2.0 * 1.5 * np.sqrt(4)
    density = density_of(CLIENTS)

    def left(count: float) -> int:
        total = np.zeros((2, 3, 3))
        total[:, -1, -1] = count, 500.0
        made = next_mixture(
            rough(),
            total,
            radius=RADIUS,
            clients=4,
            noise_multiplier=1.5,
            epsilon=1.0,
            density=density,
        )
        return len(made.weights)

    assert left(limit * 1.001) == 2
    assert left(limit * 0.999) == 1


def test_a_mean_that_noise_drove_out_of_the_ball_is_brought_back() -> None:
    """Clipped latents have no mean outside, so the estimate goes to the sphere, direction kept."""
    total = np.zeros((1, 3, 3))
    total[0] = [[90.0, 0.0, 150.0], [0.0, 90.0, -200.0], [150.0, -200.0, 100.0]]
    made = next_mixture(
        rough(),
        total,
        radius=RADIUS,
        clients=1,
        noise_multiplier=1.0,
        epsilon=1.0,
        density=density_of(CLIENTS),
    )
    assert np.allclose(made.means, [[0.6 * RADIUS, -0.8 * RADIUS]])


def test_the_previous_mixture_stays_when_all_are_drowned() -> None:
    """Where no component survives the noise, nothing is learnt and nothing is lost."""
    previous = _three()
    assert step(previous, [CLIENTS[0][:5]], 50.0) is previous
    assert step(previous, [np.zeros((0, 2)), CLIENTS[2][:1]][1:], 50.0) is previous


def test_where_noise_does_not_bear_a_covariance_components_share_one() -> None:
    """Few records under noise give all components one covariance; many give each its own."""
    few, many = step(rough(), [blobs(5, (60, 60))], 1.0), step(rough(), [blobs(5, (2000, 2000))], 1)
    assert len(few.covariances) == len(many.covariances) == 2
    assert np.array_equal(few.covariances[0], few.covariances[1])
    assert not np.allclose(many.covariances[0], many.covariances[1], rtol=1e-3)
    assert np.abs(many.covariances[:, 0, 1]).min() > 0.05


def test_the_first_mixture_is_seeded_and_of_the_density() -> None:
    """Equal seeds give equal components; their means are draws from the density."""
    density = density_of(CLIENTS)
    one, two = first_mixture(density, 4, 7), first_mixture(density, 4, 7)
    assert np.array_equal(one.means, two.means)
    assert not np.array_equal(one.means, first_mixture(density, 4, 8).means)
    assert np.array_equal(one.weights, np.full(4, 0.25))
    LatentMixture.checked(one.arrays(), 2)
    many = first_mixture(density, 20_000, 1)
    assert np.allclose(many.means.mean(axis=0), density.mean, atol=0.08)
    assert np.allclose(np.cov(many.means.T), density.covariance, rtol=0.05, atol=0.08)


def test_a_diagonal_density_starts_a_mixture_too() -> None:
    """The density of diagonal moments is enough to begin and to set the least variance."""
    density = latent_density([diagonal_moments(x, RADIUS) for x in CLIENTS], RADIUS, 0.0)
    start = first_mixture(density, 2, 1)
    total = np.sum([mixture_moments(x, RADIUS, start) for x in CLIENTS], axis=0)
    made = next_mixture(
        start, total, radius=RADIUS, clients=3, noise_multiplier=0.0, epsilon=1.0, density=density
    )
    assert made.weights.sum() == pytest.approx(1.0)
    least = 0.05 * np.trace(density.covariance) / 2
    assert np.linalg.eigvalsh(made.covariances).min() >= least * (1 - 1e-9)
