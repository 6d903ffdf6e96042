"""Bounds from attacks: known values, and that 95 % means 95 %."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy import stats

from fedlatent.shared.privacy.audit import (
    clopper_pearson,
    dp_lower_bound,
    gaussian_epsilon,
    gaussian_mu,
    gdp_lower_bound,
    one_run_lower_bound,
)

DELTA = 1e-5
#: More failures than this in 400 trials of a 95 % bound would happen once in 10,000 times.
TRIALS, MOST_FAILURES = 400, 38


@pytest.mark.parametrize(
    ("epsilon", "sigma"), [(0.5, 7.03), (1, 3.73), (2, 1.99), (4, 1.08), (8, 0.60)]
)
def test_epsilon_of_a_gaussian_release_is_the_known_one(epsilon: float, sigma: float) -> None:
    """The analytic Gaussian mechanism at delta 1e-5, both ways."""
    assert gaussian_epsilon(1 / sigma, DELTA) == pytest.approx(epsilon, rel=3e-3)
    assert 1 / gaussian_mu(epsilon, DELTA) == pytest.approx(sigma, rel=3e-3)


@pytest.mark.parametrize(("rate", "sigma"), [(1.0, 0.5), (0.5, 0.33), (0.1, 1.0), (0.01, 0.7)])
def test_epsilon_of_a_sampled_release_equals_that_of_an_accountant(
    rate: float, sigma: float
) -> None:
    """Our closed form agrees with the numerical privacy loss distribution of dp-accounting."""
    accountant = privacy_loss_distribution.from_gaussian_mechanism(sigma, sampling_prob=rate)
    expected = accountant.get_epsilon_for_delta(DELTA)
    assert gaussian_epsilon(1 / sigma, DELTA, rate) == pytest.approx(expected, rel=1e-4)


def test_no_noise_has_no_epsilon_and_much_noise_has_none_to_speak_of() -> None:
    """The ends of the scale: mu 0 costs nothing, and a tiny mu stays below delta."""
    assert gaussian_epsilon(0.0, DELTA) == 0.0
    assert gaussian_epsilon(1e-6, DELTA) == 0.0
    assert gaussian_epsilon(30.0, DELTA) > 450


def test_arguments_out_of_range_are_refused() -> None:
    """A negative mu, and more right guesses than guesses."""
    with pytest.raises(ValueError, match="mu >= 0"):
        gaussian_epsilon(-1.0, DELTA)
    with pytest.raises(ValueError, match="epsilon >= 0"):
        gaussian_mu(-1.0, DELTA)
    with pytest.raises(ValueError, match="correct <= guesses"):
        one_run_lower_bound(100, 10, 11, DELTA)


def test_clopper_pearson_knows_the_rule_of_three() -> None:
    """Nothing in n draws leaves a rate of at most 1 - 0.05^(1/n); mirrored for all of n."""
    assert clopper_pearson(0, 100, 0.95) == (0.0, pytest.approx(1 - 0.05**0.01))
    assert clopper_pearson(100, 100, 0.95) == (pytest.approx(0.05**0.01), 1.0)
    low, high = clopper_pearson(30, 100, 0.95)
    assert stats.binom.sf(29, 100, low) == pytest.approx(0.05)
    assert stats.binom.cdf(30, 100, high) == pytest.approx(0.05)


def gaussians(rng: np.random.Generator, mu: float, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the strongest attack on a mu-Gaussian DP mechanism."""
    return rng.normal(mu, 1, draws), rng.normal(0, 1, draws)


@pytest.mark.parametrize("mu", [0.5, 2.0])
@pytest.mark.parametrize("bound", [gdp_lower_bound, dp_lower_bound])
def test_bound_covers_a_gaussian(
    mu: float, bound: Callable[[np.ndarray, np.ndarray, float], float]
) -> None:
    """The best threshold of many passes the true epsilon in at most 5 % of the trials."""
    rng, truth = np.random.default_rng(1), gaussian_epsilon(mu, DELTA)
    bounds = [bound(*gaussians(rng, mu, 200), DELTA) for _ in range(TRIALS)]
    assert sum(one > truth for one in bounds) <= MOST_FAILURES


def test_bound_finds_nothing_where_nothing_is() -> None:
    """Equal distributions give a positive bound in at most 5 % of the trials.

    With the threshold chosen on the judged draws, and the same limits, 12 % do.
    """
    rng = np.random.default_rng(2)
    bounds = [gdp_lower_bound(*gaussians(rng, 0.0, 200), DELTA) for _ in range(TRIALS)]
    assert sum(one > 0 for one in bounds) <= MOST_FAILURES


@pytest.mark.parametrize(("mu", "draws", "least"), [(1.0, 20_000, 0.88), (3.0, 2000, 0.83)])
def test_bound_comes_near_the_truth(mu: float, draws: int, least: float) -> None:
    """A bound that is always zero would cover, too: enough draws prove most of epsilon."""
    rng, truth = np.random.default_rng(3), gaussian_epsilon(mu, DELTA)
    ratios = [gdp_lower_bound(*gaussians(rng, mu, draws), DELTA) / truth for _ in range(20)]
    assert least < float(np.median(ratios)) < 1


def test_bound_on_a_sampled_release_knows_the_sample() -> None:
    """Half of the releases hold the record; the bound comes near their epsilon and no further."""
    rng, mu = np.random.default_rng(4), 3.0
    truth = gaussian_epsilon(mu, DELTA, 0.5)
    ratios = []
    for _ in range(20):
        scores, without = gaussians(rng, 0.0, 6000)
        scores = scores + mu * (rng.random(6000) < 0.5)
        ratios.append(gdp_lower_bound(scores, without, DELTA, sample_rate=0.5) / truth)
    assert 0.8 < float(np.median(ratios)) < 1
    assert max(ratios) < 1


def randomised_response(rng: np.random.Generator, bits: np.ndarray, epsilon: float) -> np.ndarray:
    """Each bit told truly with probability e^epsilon / (1 + e^epsilon): exactly epsilon-DP."""
    return np.where(rng.random(len(bits)) < 1 / (1 + math.exp(-epsilon)), bits, 1 - bits)


def test_bound_without_assumptions_is_sharp_for_randomised_response() -> None:
    """It covers epsilon and comes near it, where a Gaussian's bound would be wrong."""
    rng, epsilon = np.random.default_rng(5), 1.0
    ones, zeros = np.ones(2000), np.zeros(2000)
    bounds = [
        dp_lower_bound(
            randomised_response(rng, ones, epsilon), randomised_response(rng, zeros, epsilon), DELTA
        )
        for _ in range(TRIALS)
    ]
    assert sum(one > epsilon for one in bounds) <= MOST_FAILURES
    assert float(np.median(bounds)) > 0.8


def test_bound_is_limited_by_the_draws() -> None:
    """Perfect separation proves about log(N / 4) and never more; few draws are refused."""
    scores = np.arange(1000.0)
    found = dp_lower_bound(scores + 5000, scores, DELTA)
    assert math.log(1000) - 2 < found < math.log(1000)
    with pytest.raises(ValueError, match="draw more"):
        dp_lower_bound(scores[:5], scores, DELTA)
    with pytest.raises(ValueError, match="finite"):
        gdp_lower_bound(np.full(100, np.nan), scores, DELTA)


def test_scores_that_tell_nothing_prove_nothing() -> None:
    """Equal scores, and scores the wrong way round."""
    assert dp_lower_bound(np.zeros(100), np.zeros(100), DELTA) == 0.0
    assert gdp_lower_bound(np.zeros(100), np.ones(100), DELTA) == 0.0


def test_one_run_bound_is_the_published_one() -> None:
    """The known value for 500 canaries and 100 right guesses of 100."""
    assert one_run_lower_bound(500, 100, 100, DELTA) == pytest.approx(3.479, abs=5e-4)


def test_one_run_bound_grows_with_right_guesses() -> None:
    """Half right proves nothing; more right, fewer canaries or a smaller delta prove more."""
    assert one_run_lower_bound(500, 100, 50, DELTA) == 0.0
    assert one_run_lower_bound(500, 0, 0, DELTA) == 0.0
    bounds = [one_run_lower_bound(500, 100, right, DELTA) for right in (70, 80, 90, 100)]
    assert bounds == sorted(bounds)
    assert bounds[0] > 0
    assert one_run_lower_bound(500, 100, 100, 0.01) < bounds[-1]
    assert one_run_lower_bound(100, 100, 100, DELTA) >= bounds[-1]


def test_one_run_bound_covers_randomised_response() -> None:
    """Guesses that an epsilon-DP release allows pass epsilon in at most 5 % of the trials."""
    rng, epsilon = np.random.default_rng(6), 1.0
    bounds = []
    for _ in range(TRIALS):
        bits = rng.integers(0, 2, 200)
        right = int((randomised_response(rng, bits, epsilon) == bits).sum())
        bounds.append(one_run_lower_bound(200, 200, right, DELTA))
    assert sum(one > epsilon for one in bounds) <= MOST_FAILURES
    assert float(np.median(bounds)) > 0.5
