"""Both noise sources against the distributions they promise."""

import numpy as np
import pytest
from scipy import stats

from fedlatent.shared.privacy.noise import NoiseSource, SecureNoise, SimulationNoise, sealed_key


@pytest.mark.parametrize("source", [SecureNoise(), SimulationNoise(3, 1)], ids=["secure", "seeded"])
def test_normal_numbers_are_standard_normal(source: NoiseSource) -> None:
    """A Kolmogorov-Smirnov test at p = 1e-6 and the first moments agree with N(0, 1)."""
    draws = source.normal(200_001)
    assert draws.shape == (200_001,)
    assert stats.kstest(draws, "norm").pvalue > 1e-6
    assert abs(draws.mean()) < 0.012
    assert abs(draws.var() - 1) < 0.02
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.012


def test_seeded_numbers_have_the_tails_and_the_isotropy_of_normal_ones() -> None:
    """Beyond 2, 3 and 4 deviations lie as many as should; numbers of one draw do not hang together.

    The bounds are six deviations of the counts of 26 million draws.
    """
    draws = np.concatenate([SimulationNoise(5, i).normal(65_536) for i in range(400)])
    for bound in (2.0, 3.0, 4.0):
        expected = 2.0 * stats.norm.sf(bound) * len(draws)
        assert abs((np.abs(draws) > bound).sum() - expected) < 6.0 * np.sqrt(expected)
    first, second = draws[0::2], draws[1::2]
    for power in (1, 2):
        assert abs(np.corrcoef(first**power, second**power)[0, 1]) < 6.0 / np.sqrt(len(first))
    assert abs(stats.kurtosis(draws)) < 6.0 * np.sqrt(24.0 / len(draws))


def test_added_noise_is_the_drawn_noise_scaled() -> None:
    """Both sources add what they would draw: the seeded one the same bits, also for odd sizes."""
    for size in (1, 7, 65_537):
        total = np.ones(size, dtype=np.float32)
        SimulationNoise(4).add_normal(total, -0.5)
        expected = 1.0 - 0.5 * SimulationNoise(4).normal(size)
        np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)
    total = np.zeros(100_000, dtype=np.float32)
    SecureNoise().add_normal(total, 3.0)
    assert abs(total.std() - 3.0) < 0.05


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


def test_a_sealed_key_names_one_secure_stream() -> None:
    """The same sealed key gives the same samples and noise, another one others."""
    key, other = sealed_key(), sealed_key()
    draws = [
        np.concatenate([source.uniform(5), source.normal(7)])
        for source in (SecureNoise(key), SecureNoise(key), SecureNoise(other), SecureNoise())
    ]
    assert np.array_equal(draws[0], draws[1])
    assert len({draw.tobytes() for draw in draws}) == 3
    turned = key[:32] + other[32:]
    assert not np.array_equal(SecureNoise(turned).uniform(5), SecureNoise(key).uniform(5))


@pytest.mark.parametrize("length", [0, 32, 47, 49])
def test_a_sealed_key_has_one_length(length: int) -> None:
    """A key that was cut short is refused, not filled up."""
    with pytest.raises(ValueError, match="48 bytes"):
        SecureNoise(bytes(length))


@pytest.mark.parametrize("source", [SecureNoise(), SimulationNoise(3, 5)], ids=["secure", "seeded"])
def test_noise_beyond_all_numbers_is_infinite(source: NoiseSource) -> None:
    """A scale past the range of float32 is no error: what comes of it is clamped at the door."""
    total = np.zeros(64, dtype=np.float32)
    source.add_normal(total, 1e39)
    assert not np.isfinite(total).all()


def test_a_simulation_key_names_one_stream() -> None:
    """The same key gives the same numbers, another key others."""
    assert np.array_equal(SimulationNoise(1, 2).normal(5), SimulationNoise(1, 2).normal(5))
    assert not np.array_equal(SimulationNoise(1, 2).normal(5), SimulationNoise(2, 1).normal(5))


def test_zero_numbers_are_no_error() -> None:
    """An empty request gives an empty array."""
    assert SecureNoise().normal(0).shape == (0,)
    assert SimulationNoise(0).normal(0).shape == (0,)
