"""Statistics of releases: sound ones pass, and each kind of fault has a check that sees it."""

from collections.abc import Callable

import numpy as np
import pytest

from fedlatent.simulations.audit import checks
from fedlatent.simulations.audit.checks import ALPHA, MOST_CHECKS, Check

STEPS, RATE = 4, 0.3


def sound() -> np.ndarray:
    """Noise [60, 40] as it should be."""
    return np.random.default_rng(0).normal(size=(60, 40))


def counts() -> np.ndarray:
    """How often each of 64 records took part in each of 60 rounds."""
    return np.random.default_rng(1).binomial(STEPS, RATE, (60, 64)).astype(float)


def noise_checks(noise: np.ndarray) -> list[Check]:
    """All checks of noise."""
    return [
        checks.deviation("deviation", noise),
        checks.spread("spread", noise),
        checks.normality("law", noise),
        checks.coordinates("coordinates", noise),
        checks.releases("releases", noise),
        checks.correlation("neighbours", noise[:-1], noise[1:]),
    ]


def sample_checks(taken: np.ndarray) -> list[Check]:
    """All checks of samples."""
    law = (STEPS, RATE)
    return [
        checks.sampling_rate("rate", taken, *law),
        checks.sampling_law("law", taken, *law),
        checks.sample_sizes("sizes", taken, *law),
        checks.sample_repeats("repeats", taken, *law),
    ]


def broken(found: list[Check]) -> set[str]:
    """Names of the checks that failed."""
    return {one.name for one in found if not one.good}


def test_a_sound_release_passes_every_check() -> None:
    """Standard normal noise and binomial counts lie within all limits."""
    assert broken(noise_checks(sound())) == set()
    assert broken(sample_checks(counts())) == set()


def one_without(noise: np.ndarray) -> np.ndarray:
    """One release goes without noise."""
    noise[7] = 0.0
    return noise


def halves(noise: np.ndarray) -> np.ndarray:
    """The second half of each release repeats the first."""
    noise[:, 20:] = noise[:, :20]
    return noise


def repeated(noise: np.ndarray) -> np.ndarray:
    """Two releases far apart have the same noise."""
    noise[41] = noise[3]
    return noise


def partly_repeated(noise: np.ndarray) -> np.ndarray:
    """A third of the variance of each release is that of the one before."""
    fresh = np.vstack([noise[-1:], noise[:-1]])
    return np.asarray((noise * np.sqrt(2) + fresh) / np.sqrt(3))


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (lambda noise: 0.9 * noise, {"deviation"}),
        (lambda noise: 1.1 * noise, {"deviation"}),
        (one_without, {"spread"}),
        (halves, {"coordinates"}),
        (repeated, {"releases"}),
        (partly_repeated, {"neighbours"}),
        (lambda noise: np.sign(noise), {"law"}),
    ],
)
def test_a_fault_of_the_noise_is_seen(
    spoil: Callable[[np.ndarray], np.ndarray], names: set[str]
) -> None:
    """Each fault breaks the check that is meant for it."""
    assert names <= broken(noise_checks(spoil(sound())))


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (lambda taken: taken + 1.0, {"law", "rate"}),
        (lambda taken: np.where(taken > 1, STEPS, 0.0), {"law"}),
        (lambda taken: np.sort(taken, axis=1), {"repeats"}),
        (lambda taken: taken[:, np.newaxis, 0] + 0.0 * taken, {"sizes"}),
    ],
)
def test_a_fault_of_the_samples_is_seen(
    spoil: Callable[[np.ndarray], np.ndarray], names: set[str]
) -> None:
    """Each fault breaks the check that is meant for it."""
    assert names <= broken(sample_checks(spoil(counts())))


def test_samples_of_one_size_are_no_poisson_samples() -> None:
    """Batches of a fixed size have no variance, though each record's count looks right."""
    rng = np.random.default_rng(2)
    taken = np.zeros((60, 64))
    for one in taken:
        for _ in range(STEPS):
            one[rng.choice(64, 19, replace=False)] += 1
    assert broken(sample_checks(taken)) == {"sizes"}


def test_limits_are_quantiles_of_the_stated_chance() -> None:
    """Of many sound releases at a large chance of failure, so many fail."""
    rng = np.random.default_rng(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "ALPHA", 0.1)
        rates = np.mean(
            [[not one.good for one in noise_checks(rng.normal(size=(12, 30)))] for _ in range(200)],
            axis=0,
        )
    # Neighbours share releases, and Bonferroni's inequality leaves the largest of many below.
    np.testing.assert_array_less(rates, 0.18)
    np.testing.assert_array_less(0.03, rates[[0, 2, 5]])


def test_a_sound_node_fails_a_whole_audit_once_in_a_thousand() -> None:
    """The chances of all checks together."""
    assert ALPHA * MOST_CHECKS <= 1e-3
