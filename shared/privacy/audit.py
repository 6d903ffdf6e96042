"""Lower bounds on epsilon from attacks: what an attacker's success proves about a release.

Scores are numbers an attacker computes from releases; larger means "the record was in". A bound
holds with the stated confidence whatever the attack was, since its threshold is chosen on one part
of the draws and judged on the rest: the best of many thresholds on one sample would look better
than it is.

Sources: Balle & Wang 2018 (theorem 8, the exact profile of a Gaussian), Zhu, Dong & Wang 2022 (of a
sampled one), Dong, Roth & Su 2019 (Gaussian differential privacy), Nasr et al. 2023 (auditing by
mu), Kairouz, Oh & Viswanath 2015 (error rates of any test), Steinke, Nasr & Jagielski 2023 (theorem
5.2, one run).
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, special, stats

#: Every so many draws one serves to choose the threshold; the others judge it.
PILOT = 5

#: Confidence by which the pilot draws rate thresholds; high, so that a lucky tail is not chosen.
_PILOT_CONFIDENCE = 1 - 1e-5
_MOST_THRESHOLDS = 512
_MOST_FOUND = 1 - 1e-12  # a rate of hits, so that its quantile is finite
_LARGEST_EPSILON = 1e4
_LARGEST_MU, _BISECTIONS = 64.0, 50


def gaussian_delta(epsilon: float, mu: float, sample_rate: float = 1.0) -> float:
    """Smallest delta at ``epsilon`` of one Gaussian release on a Poisson sample.

    The record is in the sample with probability ``sample_rate``. At rate 1 this is the profile of
    a mu-Gaussian DP mechanism. Removing the record is the worse of the two directions (Zhu, Dong &
    Wang 2022).
    """
    if mu <= 0:
        return 0.0
    log_odds = epsilon + math.log1p(-(1 - sample_rate) * math.exp(-epsilon))
    cut = (log_odds - math.log(sample_rate)) / mu + mu / 2
    first = sample_rate * float(special.ndtr(mu - cut))
    return max(first - math.exp(log_odds + float(special.log_ndtr(-cut))), 0.0)


def gaussian_epsilon(mu: float, delta: float, sample_rate: float = 1.0) -> float:
    """Smallest epsilon at ``delta`` of one Gaussian release on a Poisson sample.

    One release of noise multiplier sigma has mu = 1 / sigma, and T of them at sample rate 1 have
    mu = sqrt(T) / sigma together.

    Raises:
        ValueError: mu is negative, or delta lies outside (0, 1).
    """
    if mu < 0 or not 0 < delta < 1:
        raise ValueError(f"Expected mu >= 0 and 0 < delta < 1, got {mu} and {delta}.")
    return _largest(lambda epsilon: gaussian_delta(epsilon, mu, sample_rate) > delta)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Largest mu whose mechanism is (epsilon, delta)-DP: the inverse of ``gaussian_epsilon``."""
    if epsilon < 0 or not 0 < delta < 1:
        raise ValueError(f"Expected epsilon >= 0 and 0 < delta < 1, got {epsilon} and {delta}.")
    return _largest(lambda mu: gaussian_delta(epsilon, mu) <= delta)


def clopper_pearson(count: int, draws: int, confidence: float) -> tuple[float, float]:
    """One-sided limits of a rate: each lies beyond the true rate with 1 - ``confidence`` at most.

    Args:
        count: how often it happened.
        draws: out of how many.
        confidence: of each limit by itself.
    """
    low = 0.0 if count == 0 else float(stats.beta.ppf(1 - confidence, count, draws - count + 1))
    high = 1.0 if count == draws else float(stats.beta.ppf(confidence, count + 1, draws - count))
    return low, high


def gdp_lower_bound(
    scores_with: np.ndarray,
    scores_without: np.ndarray,
    delta: float,
    confidence: float = 0.95,
    *,
    sample_rate: float = 1.0,
) -> float:
    """Lower bound on epsilon at ``delta`` of one Gaussian release, of whatever noise.

    mu >= Phi^-1(1 - FPR) - Phi^-1(FNR) for every threshold on a release that holds the record.
    With a Poisson sample, the rates of releases that do hold it follow from the known rate. The
    bound does not hold for other mechanisms: use ``dp_lower_bound`` there.

    Args:
        scores_with: scores of independent draws with the record [N].
        scores_without: the same without it [M].
        delta: of the epsilon.
        confidence: that the bound is no larger than the true epsilon.
        sample_rate: probability that the record takes part in a draw.
    """

    def proven(fpr: np.ndarray, fnr: np.ndarray) -> np.ndarray:
        found = (1 - fnr - (1 - sample_rate) * fpr) / sample_rate
        return np.asarray(special.ndtri(np.clip(found, 0.0, _MOST_FOUND)) - special.ndtri(fpr))

    mu = _judged(scores_with, scores_without, confidence, proven)
    return gaussian_epsilon(max(mu, 0.0), delta, sample_rate)


def group_mu_lower_bound(
    scores_with: np.ndarray,
    scores_without: np.ndarray,
    shares: np.ndarray,
    confidence: float = 0.95,
) -> float:
    """Lower bound on 1 / sigma of one Gaussian release that a person moves by a random number.

    With the person the release is moved by k with known probability ``shares[k]``, so a threshold
    of false positive rate FPR has power ``sum_k shares[k] Phi(k mu + Phi^-1(FPR))``, which grows
    with mu. The bound does not hold for other mechanisms.

    Args:
        scores_with: scores of independent draws with the person [N].
        scores_without: the same without [M].
        shares: of each number of the person's records in a draw [m + 1].
        confidence: that the bound is no larger than the true 1 / sigma.
    """
    counts = np.arange(len(shares))

    def proven(fpr: np.ndarray, fnr: np.ndarray) -> np.ndarray:
        base, wanted = special.ndtri(fpr), 1 - fnr
        low, high = np.zeros(len(fpr)), np.full(len(fpr), _LARGEST_MU)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            power = special.ndtr(np.outer(middle, counts) + base[:, None]) @ shares
            low, high = (
                np.where(power < wanted, middle, low),
                np.where(power < wanted, high, middle),
            )
        return low

    return _judged(scores_with, scores_without, confidence, proven)


def dp_lower_bound(
    scores_with: np.ndarray, scores_without: np.ndarray, delta: float, confidence: float = 0.95
) -> float:
    """Lower bound on epsilon at ``delta`` of any mechanism, without assumptions about its noise.

    An (epsilon, delta)-DP mechanism has 1 - FNR <= e^epsilon FPR + delta and 1 - FPR <= e^epsilon
    FNR + delta. With N draws no bound exceeds about log(N / 4).

    Args:
        scores_with: scores of independent draws with the record [N].
        scores_without: the same without it [M].
        delta: of the epsilon.
        confidence: that the bound is no larger than the true epsilon.
    """

    def proven(fpr: np.ndarray, fnr: np.ndarray) -> np.ndarray:
        odds = np.maximum((1 - delta - fnr) / fpr, (1 - delta - fpr) / fnr)
        return np.asarray(np.log(np.maximum(odds, 1.0)))

    return max(_judged(scores_with, scores_without, confidence, proven), 0.0)


def one_run_lower_bound(
    canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95
) -> float:
    """Lower bound on epsilon at ``delta`` from guesses about canaries in one run.

    Each canary took part with probability one half, independently, and the attacker may abstain
    (Steinke, Nasr & Jagielski 2023, theorem 5.2).

    Args:
        canaries: m, in all.
        guesses: r, that were made.
        correct: v, that were right.
        delta: of the epsilon.
        confidence: that the bound is no larger than the true epsilon.

    Raises:
        ValueError: not 0 <= correct <= guesses <= canaries.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            f"Expected correct <= guesses <= canaries, got {correct}, {guesses}, {canaries}."
        )

    def chance(epsilon: float) -> float:
        """Of so many right guesses, at most, when the mechanism is (epsilon, delta)-DP."""
        right = float(special.expit(epsilon))
        tail = stats.binom.sf(np.arange(correct, -1, -1) - 1, guesses, right)
        steps = np.arange(1, correct + 1)
        alpha = float(((tail[1:] - tail[0]) / steps).max(initial=0.0))
        return min(1.0, float(tail[0]) + 2 * canaries * delta * alpha)

    return _largest(lambda epsilon: chance(epsilon) <= 1 - confidence)


def _judged(
    scores_with: np.ndarray,
    scores_without: np.ndarray,
    confidence: float,
    proven: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> float:
    """What the best threshold of the pilot draws proves on the others.

    ``proven`` takes upper limits of false positive and false negative rates; each of the two
    limits gets half of the error probability, so that both hold at once.
    """
    with_, without = np.asarray(scores_with), np.asarray(scores_without)
    if min(len(with_), len(without)) < 2 * PILOT:
        raise ValueError(
            f"Expected at least {2 * PILOT} draws of each kind, got {len(with_)} and "
            f"{len(without)}; draw more."
        )
    if not (np.isfinite(with_).all() and np.isfinite(without).all()):
        raise ValueError("Expected finite scores, got NaN or infinity.")
    pilots = [values[::PILOT] for values in (with_, without)]
    rest = [np.delete(values, np.s_[::PILOT]) for values in (with_, without)]
    # Between neighbouring scores, so that no threshold touches one.
    edges = np.unique(np.concatenate(pilots))
    edges = (edges[1:] + edges[:-1]) / 2 if len(edges) > 1 else edges
    edges = edges[:: max(1, len(edges) // _MOST_THRESHOLDS)]
    rated = proven(*_error_limits(pilots[0], pilots[1], edges, _PILOT_CONFIDENCE))
    best = edges[[int(np.argmax(rated))]]
    return float(proven(*_error_limits(rest[0], rest[1], best, (1 + confidence) / 2))[0])


def _error_limits(
    scores_with: np.ndarray, scores_without: np.ndarray, thresholds: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Upper limits of false positive and false negative rates at thresholds [T], each [T]."""
    positives = len(scores_without) - np.searchsorted(np.sort(scores_without), thresholds)
    negatives = np.searchsorted(np.sort(scores_with), thresholds)
    return (
        _upper(positives, len(scores_without), level),
        _upper(negatives, len(scores_with), level),
    )


def _upper(counts: np.ndarray, draws: int, level: float) -> np.ndarray:
    high = stats.beta.ppf(level, counts + 1, np.maximum(draws - counts, 1e-9))
    return np.where(counts >= draws, 1.0, high)


def _largest(holds: Callable[[float], bool]) -> float:
    """The number up to which ``holds`` is true, to 1e-9; 0 where it never is."""
    if not holds(0.0):
        return 0.0
    high = 1.0
    while holds(high):
        high *= 2
        if high > _LARGEST_EPSILON:
            return math.inf
    return float(optimize.bisect(lambda x: 0.5 - holds(x), 0.0, high, xtol=1e-9))
