"""Epsilon of one person with several records: an upper bound, and a tight one."""

import math
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as library
from scipy import stats

from fedlatent.shared.privacy.accounting import GaussianEvent, epsilon_of
from fedlatent.shared.privacy.audit import gaussian_delta, gaussian_epsilon
from fedlatent.shared.privacy.person import person_epsilon

DELTA = 1e-5


def event(sigma: float, rate: float = 1.0, steps: int = 1) -> GaussianEvent:
    """Some releases."""
    return GaussianEvent(noise_multiplier=sigma, sample_rate=rate, steps=steps)


RUNS = {
    "training": [event(1.0, 0.02, 600)],
    "usual": [event(1.4, 0.1, 200), event(6.0), event(9.0)],
    "two rates": [event(1.2, 0.05, 100), event(2.0, 0.2, 50)],
    "large noise": [event(20.0, 0.3, 1000)],
}


def by_library(events: list[GaussianEvent], records: int) -> float:
    """The same by the library's own grids."""
    total = None
    for one in events:
        counts = np.arange(records + 1)
        found = library.from_mixture_gaussian_mechanism(
            one.noise_multiplier,
            counts,
            stats.binom.pmf(counts, records, one.sample_rate),
            value_discretization_interval=4e-3,
        ).self_compose(one.steps)
        total = found if total is None else total.compose(found)
    return float(total.get_epsilon_for_delta(DELTA))


@pytest.mark.parametrize("name", RUNS)
def test_one_record_of_a_person_costs_what_a_record_costs(name: str) -> None:
    """With m = 1 the figure is the record's by privacy loss distributions, below that by RDP."""
    events = RUNS[name]
    total = library.identity()
    for one in events:
        total = total.compose(
            library.from_gaussian_mechanism(
                one.noise_multiplier, sampling_prob=one.sample_rate
            ).self_compose(one.steps)
        )
    found = person_epsilon(events, DELTA, 1)
    assert found == pytest.approx(total.get_epsilon_for_delta(DELTA), rel=2e-3)
    assert found <= epsilon_of(events, DELTA)


@pytest.mark.parametrize(
    ("name", "records"), [("usual", 2), ("two rates", 3), ("large noise", 5), ("training", 3)]
)
def test_several_records_agree_with_the_library(name: str, records: int) -> None:
    """The mixture's losses on our grid and on the library's give the same epsilon."""
    found = person_epsilon(RUNS[name], DELTA, records)
    assert found == pytest.approx(by_library(RUNS[name], records), rel=5e-3)


def test_without_sampling_the_person_is_a_gaussian_of_sigma_over_m() -> None:
    """Releases on all records compose exactly."""
    events = [event(8.0, steps=2), event(20.0)]
    mu = 3 * math.sqrt(2 / 64 + 1 / 400)
    assert person_epsilon(events, DELTA, 3) == pytest.approx(gaussian_epsilon(mu, DELTA), rel=1e-9)
    nearly = [event(8.0, 1 - 1e-9, 2), event(20.0)]
    assert person_epsilon(nearly, DELTA, 3) == pytest.approx(gaussian_epsilon(mu, DELTA), rel=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_more_records_cost_more_and_less_than_generic_group_privacy(name: str) -> None:
    """Epsilon grows with m, and lies below what any mechanism of the record's profile gives."""
    events = RUNS[name]
    found = [person_epsilon(events, DELTA, m) for m in (1, 2, 3, 20)]
    assert all(a < b for a, b in pairwise(found))
    assert found[1] < generic(events, 2)


def generic(events: list[GaussianEvent], records: int) -> float:
    """The least m epsilon whose delta is DELTA for the group (Vadhan 2017, lemma 2.2)."""
    best = math.inf
    for delta in np.logspace(-12, -6, 7):
        epsilon = person_epsilon(events, float(delta), 1)
        grown = delta * math.expm1(records * epsilon) / math.expm1(epsilon)
        if grown <= DELTA:
            best = min(best, records * epsilon)
    return best


def test_huge_groups_and_tiny_noise_stay_bounds() -> None:
    """However many records: a number or infinity, never an error, and never below fewer records."""
    events = [event(1.0, 0.02, 600), event(3.0)]
    found = [person_epsilon(events, DELTA, m) for m in (50, 500, 1000, 10**6)]
    assert found == sorted(found)
    assert found[0] > 100
    assert person_epsilon([event(0.01, 0.5, 10)], DELTA, 40) > 1000


def test_no_event_costs_nothing_and_bad_arguments_are_refused() -> None:
    """The empty composition is free; delta and m have ranges."""
    assert person_epsilon([], DELTA, 5) == 0.0
    assert person_epsilon([event(1.0, 0.1, 0)], DELTA, 5) == 0.0
    with pytest.raises(ValueError, match="delta"):
        person_epsilon([event(1.0)], 1.0, 2)
    with pytest.raises(ValueError, match="one record"):
        person_epsilon([event(1.0)], DELTA, 0)


def losses(
    sigma: float, rate: float, means: np.ndarray, draws: int, steps: int, *, present: bool
) -> np.ndarray:
    """Privacy losses [draws] of ``steps`` steps, for gradients ``means`` [m, d] of one person."""
    rng = np.random.default_rng(1)
    subsets = ((np.arange(2 ** len(means))[:, None] >> np.arange(len(means))) & 1).astype(float)
    sizes = subsets.sum(1)
    shares = rate**sizes * (1 - rate) ** (len(means) - sizes)
    shifts = subsets @ means
    total = np.zeros(draws)
    for _ in range(steps):
        released = rng.normal(0, sigma, (draws, means.shape[1]))
        if present:
            released += shifts[rng.choice(len(shares), draws, p=shares)]
        powers = (released @ shifts.T - (shifts**2).sum(1) / 2) / sigma**2
        total += np.log((shares * np.exp(powers)).sum(1))
    return total if present else -total


ALIGNED = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])


@pytest.mark.parametrize("present", [True, False])
def test_drawn_losses_have_the_stated_delta(*, present: bool) -> None:
    """Monte Carlo: delta at the stated epsilon is met in the worse direction, never passed."""
    sigma, rate, steps, delta, draws = 1.5, 0.2, 4, 0.01, 400_000
    epsilon = person_epsilon([event(sigma, rate, steps)], delta, 3)
    found = losses(sigma, rate, ALIGNED, draws, steps, present=present)
    gains = np.maximum(-np.expm1(epsilon - np.maximum(found, epsilon)), 0.0)
    error = gains.std() / math.sqrt(draws)
    assert gains.mean() <= delta + 4 * error
    if present:  # the direction that decides
        assert gains.mean() >= delta - 4 * error


@pytest.mark.parametrize(
    "means",
    [
        np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]),
        np.array([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]),
        np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]),
        np.array([[0.5, 0.0], [1.0, 0.0], [1.0, 0.0]]),
    ],
    ids=["across", "nearly aligned", "opposed", "shorter"],
)
def test_gradients_that_are_not_aligned_show_less(means: np.ndarray) -> None:
    """Vectors of other directions or lengths have a smaller delta at the same epsilon."""
    sigma, rate, steps, delta, draws = 1.5, 0.2, 4, 0.01, 200_000
    epsilon = person_epsilon([event(sigma, rate, steps)], delta, 3)
    for present in (True, False):
        found = losses(sigma, rate, means, draws, steps, present=present)
        gains = np.maximum(-np.expm1(epsilon - np.maximum(found, epsilon)), 0.0)
        assert gains.mean() < 0.9 * delta


def test_one_step_is_exact() -> None:
    """For one step and one record the profile is known in closed form; the grid adds nothing."""
    for sigma, rate in ((0.5, 0.1), (2.0, 0.5), (1.0, 0.9)):
        found = person_epsilon([event(sigma, rate)], DELTA, 1)
        assert gaussian_delta(found, 1 / sigma, rate) <= DELTA
        exact = gaussian_epsilon(1 / sigma, DELTA, rate)
        assert found == pytest.approx(exact, rel=1e-3, abs=2e-4)
