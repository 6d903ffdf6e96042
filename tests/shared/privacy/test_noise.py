"""Both noise sources against the distributions they promise."""

import numpy as np
import pytest
from scipy import stats

from shared.privacy.noise import NoiseSource, SecureNoise, SimulationNoise


@pytest.mark.parametrize("source", [SecureNoise(), SimulationNoise(3, 1)], ids=["secure", "seeded"])
def test_normal_numbers_are_standard_normal(source: NoiseSource) -> None:
    """A Kolmogorov-Smirnov test at p = 1e-6 and the first moments agree with N(0, 1)."""
    draws = source.normal(200_001)
    assert draws.shape == (200_001,)
    assert stats.kstest(draws, "norm").pvalue > 1e-6
    assert abs(draws.mean()) < 0.012
    assert abs(draws.var() - 1) < 0.02
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.012


@pytest.mark.parametrize("source", [SecureNoise(), SimulationNoise(3, 2)], ids=["secure", "seeded"])
def test_uniform_numbers_fill_the_unit_interval(source: NoiseSource) -> None:
    """Uniform draws lie in [0, 1) and pass a Kolmogorov-Smirnov test at p = 1e-6."""
    draws = source.uniform(100_000)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-6


def test_secure_streams_never_repeat() -> None:
    """Two secure sources share no number, and neither takes a seed."""
    assert not np.intersect1d(SecureNoise().uniform(1000), SecureNoise().uniform(1000)).size


def test_a_simulation_key_names_one_stream() -> None:
    """The same key gives the same numbers, another key others."""
    assert np.array_equal(SimulationNoise(1, 2).normal(5), SimulationNoise(1, 2).normal(5))
    assert not np.array_equal(SimulationNoise(1, 2).normal(5), SimulationNoise(2, 1).normal(5))


def test_zero_numbers_are_no_error() -> None:
    """An empty request gives an empty array."""
    assert SecureNoise().normal(0).shape == (0,)
    assert SimulationNoise(0).normal(0).shape == (0,)
