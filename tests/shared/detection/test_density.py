"""The density of a detector's parts: bounded statistics, one release a site, one score."""

import numpy as np
import pytest

from fedlatent.shared.detection.density import PARTS, pool_scores, score_radius, statistics
from fedlatent.shared.detection.metrics import auroc
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.summaries import clip_rows, moments, noisy_moments

NAMES = tuple(PARTS)
CENTRES = (np.log(8.0), np.log(16.0), np.log(3.0), -2.0)


def parts(count: int, seed: int, shift: float = 0.0, only: str = "") -> dict[str, np.ndarray]:
    """Draw parts of very different units; `only` names one that is exp(shift) times as large."""
    rng = np.random.default_rng(seed)
    drawn = {
        "latent_distance": rng.chisquare(8, count),
        "data_distance": rng.chisquare(16, count),
        "reconstruction_error": rng.chisquare(6, count) / 2.0,
        "posterior_logvar": rng.normal(-2.0, 0.3, count),
    }
    if only == "posterior_logvar":
        drawn[only] = drawn[only] + shift
    elif only:
        drawn[only] = drawn[only] * np.exp(shift)
    return drawn


def mapped(values: dict[str, np.ndarray]) -> np.ndarray:
    """All parts as statistics."""
    return statistics(values, NAMES, CENTRES)


def test_no_record_is_clipped_or_breaks_the_bound() -> None:
    """Statistics lie in [-1, 1] for any number, so that the radius holds every record."""
    wild = np.array([0.0, -5.0, 1e-300, 1.0, 1e300, np.inf, -np.inf, np.nan])
    found = mapped(dict.fromkeys(NAMES, wild))
    assert found.shape == (8, 4)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 1.0
    radius = score_radius(len(NAMES))
    np.testing.assert_array_equal(clip_rows(found, radius), found)
    for row in found:
        null = np.vstack([found, np.full_like(row, np.nan)])
        added = moments(np.vstack([found, row]), radius) - moments(null, radius)
        assert np.linalg.norm(added) <= np.sqrt(3.0) + 1e-9
    np.testing.assert_array_equal(found[-1], 1.0)  # what cannot be told counts as anomalous


def test_statistics_rise_with_their_part() -> None:
    """Each statistic is monotone in its own part and does not read the others."""
    steps = np.geomspace(1e-2, 1e1, 50)
    for index, name in enumerate(NAMES):
        values = dict.fromkeys(NAMES, np.ones(50)) | {name: steps}
        found = mapped(values)
        assert (np.diff(found[:, index]) > 0).all()
        assert (np.delete(found, index, axis=1) == np.delete(found, index, axis=1)[0]).all()


@pytest.mark.parametrize("sigma", [0.0, 4.0])
@pytest.mark.parametrize("name", NAMES)
def test_one_large_part_is_enough(name: str, sigma: float) -> None:
    """A record that stands out in one part alone scores high, under noise too."""
    radius = score_radius(len(NAMES))
    released = [
        noisy_moments(mapped(parts(400, site)), radius, sigma, SimulationNoise(site))
        for site in range(5)
    ]
    density = pool_scores(released, NAMES, CENTRES, sigma)
    normal, odd = parts(300, 98), parts(300, 99, shift=2.5, only=name)
    scores = np.concatenate([density(normal), density(odd)])
    assert auroc(np.repeat([0, 1], 300), scores) > 0.9


def test_small_parts_are_no_anomaly() -> None:
    """A part far below its mean lowers the score rather than raising it."""
    density = pool_scores([moments(mapped(parts(2000, 0)), 2.0)], NAMES, CENTRES, 0.0)
    usual = density(parts(500, 1))
    for name in NAMES:
        assert density(parts(500, 1, shift=-4.0, only=name)).mean() < usual.mean()


def test_pooled_sites_are_one_set() -> None:
    """Without noise, several releases give the mean of all records' statistics."""
    sites = [mapped(parts(count, seed)) for seed, count in enumerate((100, 300))]
    density = pool_scores([moments(one, 2.0) for one in sites], NAMES, CENTRES, 0.0).density
    np.testing.assert_allclose(density.mean, np.concatenate(sites).mean(axis=0))
    assert density.count == pytest.approx(400)


def test_recentring_follows_a_shifted_site() -> None:
    """A site whose parts are larger throughout becomes usual; few records move it little."""
    density = pool_scores([moments(mapped(parts(2000, 0)), 2.0)], NAMES, CENTRES, 0.0)
    name = "reconstruction_error"
    shifted = parts(400, 1, shift=1.5, only=name)
    few = {key: values[:2] for key, values in shifted.items()}
    before = density(shifted).mean()
    assert before > density(parts(400, 1)).mean() + 1.0
    assert density.recentred(shifted)(shifted).mean() < before - 1.0
    moved = density.recentred(few).density.mean - density.density.mean
    whole = density.recentred(shifted).density.mean - density.density.mean
    assert np.linalg.norm(moved) < 0.4 * np.linalg.norm(whole)
