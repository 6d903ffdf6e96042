"""The plan spends exactly what the run file says and makes matching parts."""

import math

import numpy as np
import pytest

from fedlatent.shared.config import RunConfig
from fedlatent.shared.privacy.accounting import epsilon_of
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan

BASE = {"name": "plan", "data": {"name": "ecg", "shape": [8]}}


def plan(**privacy: object) -> PrivacyPlan:
    """The plan of a small run with some privacy settings."""
    return PrivacyPlan.from_config(RunConfig.parse({**BASE, "privacy": privacy}, "test"))


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_the_whole_run_costs_the_epsilon_it_names(epsilon: float) -> None:
    """Training, moments and threshold together meet the target and waste under one percent."""
    made = plan(epsilon=epsilon)
    assert 0.99 * epsilon < made.epsilon() <= epsilon
    assert epsilon_of(made.events(), made.delta) == made.epsilon()
    assert len(made.events()) == made.rounds + 2


def test_two_sides_derive_the_same_plan() -> None:
    """The plan is a pure function of the configuration."""
    assert plan(epsilon=3.0) == plan(epsilon=3.0)


def test_sampling_is_poisson_at_the_rate_that_is_accounted() -> None:
    """Sample sizes have the mean and variance of Binomial(N, q), empty samples included."""
    made = plan(sample_rate=0.05)
    noise = SimulationNoise(1)
    sizes = np.array([len(made.sample(40, noise)) for _ in range(4000)])
    assert abs(sizes.mean() - 2.0) < 0.1
    assert abs(sizes.var() - 40 * 0.05 * 0.95) < 0.2
    assert (sizes == 0).any()


def test_gradient_noise_has_deviation_sigma_times_clip() -> None:
    """The noise on the gradient sum has the stated deviation to one percent."""
    made = plan(clip=0.5)
    draws = made.gradient_noise(100_000, SimulationNoise(2))
    assert draws.std() == pytest.approx(made.noise_multiplier * 0.5, rel=0.01)


def test_a_run_without_privacy_says_so() -> None:
    """No mechanism means no noise, no event and an infinite epsilon."""
    made = plan(mechanism="none")
    assert made.events() == []
    assert math.isinf(made.epsilon())
    assert not made.gradient_noise(10, SimulationNoise(2)).any()
