"""One of five sites cannot move what is pooled far; honest sites are pooled as they are."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.server.strategies.weighting import bounded
from fedlatent.shared.data.scaling import pool_scaling
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.robust import (
    REACH,
    pooled_density,
    temper_moments,
    temper_stacks,
    weighted_median,
)
from fedlatent.shared.privacy.summaries import (
    LatentDensity,
    diagonal_moments,
    diagonal_spec,
    latent_density,
    moments,
    moments_spec,
    noisy_sum,
    scaling_spec,
    scaling_sums,
)

K, RADIUS = 4, 3.0
SPREAD = np.array([1.0, 0.7, 0.4, 0.2])
False_ = Callable[[int], np.ndarray]
Sums = Callable[[np.ndarray, float], np.ndarray]


def sites(number: int, records: int = 400, apart: float = 0.1) -> list[np.ndarray]:
    """Latents of honest sites whose means differ a little."""
    rng = np.random.default_rng(number)
    return [
        rng.normal(size=(records, K)) * SPREAD + apart * rng.normal(size=K) for _ in range(number)
    ]


def counted(matrix: np.ndarray, records: int) -> np.ndarray:
    """A matrix with the public count in its corner."""
    matrix[-1, -1] = records
    return matrix


def far_mean(records: int) -> np.ndarray:
    """All records at one end of the ball, along the narrowest direction."""
    end = np.array([0.0, 0.0, 0.0, 1.0, 1.0])
    return np.outer(end, end) * records


def noise_like(records: int) -> np.ndarray:
    """Random entries as large as the screening lets them be."""
    drawn = np.random.default_rng(3).uniform(-1, 1, size=(K + 1, K + 1)) * records
    return counted((drawn + drawn.T) / 2, records)


FALSE: dict[str, False_] = {
    "zero": lambda n: counted(np.zeros((K + 1, K + 1)), n),
    "far mean": far_mean,
    "wide": lambda n: counted(np.diag(np.full(K + 1, float(n))), n),
    "negative": lambda n: counted(-np.eye(K + 1) * n, n),
    "random": noise_like,
}


def as_diagonal(matrix: np.ndarray) -> np.ndarray:
    """The diagonal form of the same false moments."""
    return np.concatenate([[matrix[-1, -1]], matrix[-1, :-1], np.diag(matrix)[:-1]])


def stretch(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Eigenvalues of one covariance in units of another; all 1 where they are equal."""
    factor = np.linalg.inv(np.linalg.cholesky(other))
    found: np.ndarray = np.linalg.eigvalsh(factor @ one @ factor.T)
    return found


@pytest.mark.parametrize("claim", [400, 10_000_000])
@pytest.mark.parametrize("form", ["full", "diagonal"])
@pytest.mark.parametrize("kind", FALSE)
def test_one_of_five_hardly_moves_the_density(kind: str, form: str, claim: int) -> None:
    """Whatever a site says, and however many records it claims, scores of all keep their scale."""
    sums: Sums = moments if form == "full" else diagonal_moments
    honest = [sums(one, RADIUS) for one in sites(4)]
    false = FALSE[kind](claim)
    released = [*honest, false if form == "full" else as_diagonal(false)]
    clean = latent_density(honest, RADIUS, 0.0)
    found = pooled_density(released, RADIUS, 0.0, bounded([*[400] * 4, claim]))
    offset = np.linalg.solve(np.linalg.cholesky(clean.covariance), found.mean - clean.mean)
    assert np.linalg.norm(offset) < 0.3
    for one, other in ((found.covariance, clean.covariance), (found.within, clean.within)):
        assert stretch(one, other).min() > 0.8
        assert stretch(one, other).max() < 1.25


def test_plain_pooling_would_not_hold() -> None:
    """The same site moves the sums of all at will: what is tested above is not for nothing."""
    honest = [moments(one, RADIUS) for one in sites(4)]
    clean = latent_density(honest, RADIUS, 0.0)
    moved = latent_density([*honest, far_mean(10_000_000)], RADIUS, 0.0)
    assert abs(moved.mean[-1] - clean.mean[-1]) > 2.0
    assert stretch(moved.within, clean.within).min() < 0.01


@pytest.mark.parametrize("form", ["full", "diagonal"])
@pytest.mark.parametrize("sigma", [0.0, 5.0])
def test_sites_that_differ_alike_are_pooled_nearly_as_they_are(form: str, sigma: float) -> None:
    """With honest sites of one size the density is about that of the plain sums, noise or not."""
    full = form == "full"
    sums: Sums = moments if full else diagonal_moments
    spec = moments_spec(K) if full else diagonal_spec(K)
    own = sites(8)
    released = [
        noisy_sum(sums(one, RADIUS), spec, sigma, SimulationNoise(i)) for i, one in enumerate(own)
    ]
    plain = latent_density(released, RADIUS, sigma)
    found = pooled_density(released, RADIUS, sigma, bounded([400] * 8))
    assert np.allclose(found.mean, plain.mean, atol=0.04)  # sites are 0.1 apart
    assert np.allclose(stretch(found.covariance, plain.covariance), 1.0, atol=0.1)
    assert np.allclose(stretch(found.within, plain.within), 1.0, atol=0.1)


def test_two_sites_and_no_weights_are_the_plain_sum() -> None:
    """Where there is no middle, or none is wanted, nothing changes to the last bit."""
    released = [moments(one, RADIUS) for one in sites(2)]
    plain = latent_density(released, RADIUS, 1.0)
    for weights in (None, bounded([400, 400])):
        found = pooled_density(released, RADIUS, 1.0, weights)
        assert np.array_equal(found.covariance, plain.covariance)
        assert np.array_equal(found.within, plain.within)
    five = [moments(one, RADIUS) for one in sites(5)]
    assert np.array_equal(
        pooled_density(five, RADIUS, 1.0).mean, latent_density(five, RADIUS, 1.0).mean
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    records=st.lists(st.integers(1, 10**7), min_size=3, max_size=6),
    sigma=st.sampled_from([0.0, 1.0, 30.0]),
    diagonal=st.booleans(),
    size=st.sampled_from([0.0, 1e-9, 1.0]),
)
def test_whatever_passes_the_screening_is_pooled(
    seed: int, records: list[int], sigma: float, diagonal: bool, size: float
) -> None:
    """Sites may all lie: the density is one that every node accepts, and no run stops."""
    rng = np.random.default_rng(seed)
    released = []
    for count in records:
        drawn = rng.uniform(-1, 1, size=(K + 1, K + 1)) * (count + 17 * sigma) * size
        matrix = counted((drawn + drawn.T) / 2, count)
        released.append(as_diagonal(matrix) if diagonal else matrix)
    found = pooled_density(released, RADIUS, sigma, bounded(records))
    LatentDensity.checked(found.arrays(), K)


def test_the_noise_of_each_site_is_known_afterwards() -> None:
    """A site that weighs less than its records has less noise in the sum, a drawn-in one too."""
    honest = [moments(one, RADIUS) for one in sites(4)]
    big = moments(np.concatenate(sites(4)), RADIUS)
    far = far_mean(400)
    tempered = temper_moments([*honest, big, far], bounded([400] * 4 + [1600, 400]), 0.0, 1e-4)
    assert np.allclose(tempered.factors[:4], 1.0, atol=0.35)
    assert tempered.factors[4] == pytest.approx(800 / 1600)
    assert tempered.factors[5] < 0.01
    counts = [one[-1, -1] for one in tempered.sums]
    assert np.allclose(counts, tempered.factors * [400, 400, 400, 400, 1600, 400])


def test_one_stack_moves_the_mixture_by_its_share_alone() -> None:
    """A stack far off counts nothing; one nearer moves by REACH deviations over the sites."""
    rng = np.random.default_rng(0)
    records = [300] * 5
    middle = rng.normal(size=(3, K + 1, K + 1))
    honest = [300 * (middle + 0.1 * rng.normal(size=middle.shape)) for _ in range(4)]
    false = 300 * rng.uniform(-1, 1, size=middle.shape) * 50
    tempered = temper_stacks([*honest, false], records, bounded(records))
    assert np.allclose(tempered.factors[:4], 1.0)
    assert tempered.factors[4] < 1e-3
    near = honest[0] + 300 * REACH * 0.1 * rng.normal(size=middle.shape)
    moved = np.mean(temper_stacks([*honest, near], records, bounded(records)).sums, axis=0)
    apart = np.linalg.norm(honest[1] - honest[0])
    assert np.linalg.norm(moved - np.mean(honest, axis=0)) < REACH * apart / 5


def test_one_of_five_hardly_moves_the_scaling() -> None:
    """Mean and deviation of every feature stay near those of the honest sites."""
    data = Schema(name="x", shape=(6,), lower=-1.0, upper=1.0)
    rng = np.random.default_rng(1)
    width = np.array([0.4, 0.3, 0.2, 0.1, 0.05, 0.02])
    honest = [
        scaling_sums(np.clip(rng.normal(size=(300, 6)) * width, -1, 1)[:, :, None])
        for _ in range(4)
    ]
    clean = pool_scaling(honest, data, 0.0)
    root = np.sqrt(6.0)
    for claim, first, second in ((300, 1.0, 1.0), (10**7, -1.0, 0.0), (300, 0.0, 0.0)):
        false = np.concatenate([[claim], np.full(6, first * claim), np.full(6, second * claim)])
        false[1:] /= root
        found = pool_scaling([*honest, false], data, 0.0, bounded([300] * 4 + [claim]))
        assert (np.abs(found.mean - clean.mean) < 0.2 * clean.deviation).all()
        assert np.allclose(found.deviation / clean.deviation, 1.0, atol=0.15)
    assert len(honest[0]) == scaling_spec(6).shape[0]


def test_the_weighted_median_has_half_the_weight_on_either_side() -> None:
    """By hand, with a tie, and with an outlier; weights of nobody are refused."""
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.ones(3)) == 2.0
    assert weighted_median(np.array([1.0, 2.0]), np.ones(2)) == 1.5
    assert weighted_median(np.array([1.0, 2.0, 9.0]), np.array([1.0, 1.0, 0.0])) == 1.5
    assert weighted_median(np.array([1.0, 2.0, 9.0]), np.array([1.0, 1.0, 3.0])) == 5.5
    assert weighted_median(np.array([5.0, 1e9, 5.5, 4.0]), np.array([1.0, 2.0, 1.0, 1.0])) == 5.5
    with pytest.raises(ValueError, match="one of them positive"):
        weighted_median(np.array([1.0]), np.zeros(1))
