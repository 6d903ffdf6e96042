"""The threshold keeps its promised share of normals, with exact, noisy and very noisy counts."""

import math

import numpy as np
import pytest
from scipy import stats

from fedlatent.server.strategies.weighting import bounded
from fedlatent.shared.privacy.summaries import SCORE_EDGES, histograms, threshold_spec
from fedlatent.shared.privacy.threshold import silent, threshold_from_histogram, threshold_of_sites


def noisy(scores: np.ndarray, clients: int, sigma: float, seed: int) -> tuple[np.ndarray, float]:
    """Pooled counts of ``clients`` releases at ``sigma``, and the deviation of a bin."""
    deviation = threshold_spec().sensitivity * sigma * math.sqrt(clients)
    exact = histograms(scores, scores)[0]
    noise = np.random.default_rng([seed, 1]).normal(size=exact.shape) * deviation
    return exact + noise, deviation


def test_exact_counts_give_the_conformal_quantile() -> None:
    """Without noise at most 1 % of the scores lie above the 99 % threshold, and some do."""
    scores = np.random.default_rng(2).chisquare(8, size=5000)
    threshold = threshold_from_histogram(
        histograms(scores, scores)[0], 0.99, total=5000, noise_deviation=0.0
    )
    assert 0 < (scores > threshold).mean() <= 0.01
    assert threshold in SCORE_EDGES


@pytest.mark.parametrize(("clients", "records", "sigma"), [(3, 333, 2.9), (5, 450, 5.2)])
def test_a_small_federation_gets_a_usable_threshold(
    clients: int, records: int, sigma: float
) -> None:
    """At demo size the share of flagged normals stays between 0.02 % and 3 % in every draw."""
    for seed in range(8):
        scores = np.random.default_rng(seed).chisquare(8, size=clients * records)
        counts, deviation = noisy(scores, clients, sigma, seed)
        threshold = threshold_from_histogram(
            counts, 0.99, total=len(scores), noise_deviation=deviation
        )
        fresh = np.random.default_rng(100 + seed).chisquare(8, size=100_000)
        assert 0.0002 < (fresh > threshold).mean() < 0.03


def test_clients_of_different_spread_get_a_longer_tail() -> None:
    """A mixture of clients keeps the flagged share of normals under 5 % in every draw."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scores = rng.chisquare(8, 15 * 450) * np.repeat(rng.lognormal(0, 0.6, 15), 450)
        counts, deviation = noisy(scores, 15, 5.2, seed)
        threshold = threshold_from_histogram(
            counts, 0.99, total=len(scores), noise_deviation=deviation
        )
        assert (scores > threshold).mean() < 0.05


def test_noise_alone_still_gives_a_score_in_the_public_range() -> None:
    """Counts that are nothing but noise give a finite threshold; no records are an error."""
    counts = np.random.default_rng(0).normal(size=len(SCORE_EDGES) + 1) * 50
    value = threshold_from_histogram(counts, 0.99, total=20, noise_deviation=50.0)
    assert SCORE_EDGES[0] <= value <= SCORE_EDGES[-1]
    with pytest.raises(ValueError, match="at least one record"):
        threshold_from_histogram(counts, 0.99, total=0, noise_deviation=1.0)


def histogram(records: int, seed: int, scale: float = 1.0) -> np.ndarray:
    """Exact counts of one site's scores."""
    return histograms(scale * np.random.default_rng(seed).chisquare(8, records))[0]


def test_one_of_five_cannot_silence_the_threshold() -> None:
    """1.1 % of one site's claimed records in the last bin silence the pooled threshold alone."""
    counts = [histogram(400, seed) for seed in range(4)]
    false = histogram(19_760, 9)
    false[-1] += 240
    sizes = [*[400] * 4, 20_000]
    pooled = threshold_from_histogram(
        np.sum([*counts, false], axis=0), 0.99, total=sum(sizes), noise_deviation=0.0
    )
    assert silent(pooled)
    own = [threshold_from_histogram(one, 0.99, total=400, noise_deviation=0.0) for one in counts]
    for lie in (false, np.eye(128)[-1] * 20_000, np.eye(128)[0] * 20_000):
        found = threshold_of_sites(
            [*counts, lie], 0.99, records=sizes, weights=bounded(sizes), noise_deviation=0.0
        )
        assert min(own) <= found <= max(own)
    # The further off, the less it weighs: what lies in an outer bin does not count at all.
    weights, sizes = bounded([400] * 4), [400] * 4
    alone = threshold_of_sites(counts, 0.99, records=sizes, weights=weights, noise_deviation=0.0)
    assert found == alone


@pytest.mark.parametrize(("sites", "records", "sigma"), [(15, 450, 5.2), (30, 60, 4.0)])
def test_noisy_sites_agree_on_a_usable_threshold(sites: int, records: int, sigma: float) -> None:
    """Sites too small for a threshold of their own are read in groups; about as promised."""
    deviation = threshold_spec().sensitivity * sigma
    shares = []
    for seed in range(4):
        counts = [
            histogram(records, 100 * seed + i)
            + np.random.default_rng([seed, i]).normal(size=128) * deviation
            for i in range(sites)
        ]
        found = threshold_of_sites(
            counts,
            0.99,
            records=[records] * sites,
            weights=np.full(sites, float(records)),
            noise_deviation=deviation,
        )
        shares.append(stats.chi2.sf(found, 8))
    assert 0.0002 < np.median(shares) < 0.02


def test_two_sites_are_pooled() -> None:
    """Two sites have no middle: their threshold is that of their sum."""
    counts, sizes = [histogram(300, 1), histogram(900, 2, 3.0)], [300, 900]
    found = threshold_of_sites(
        counts, 0.99, records=sizes, weights=bounded(sizes), noise_deviation=0.0
    )
    assert found == threshold_from_histogram(
        counts[0] + counts[1], 0.99, total=1200, noise_deviation=0.0
    )


def test_the_last_bin_is_silent() -> None:
    """A threshold says nothing in the last bin and at its edges, nor as no number."""
    assert silent(float(SCORE_EDGES[-1]))
    assert silent(float("nan"))
    assert not silent(float(SCORE_EDGES[-2]))
