"""A detection threshold from a noisy histogram of normal scores; all of it is post-processing.

With few records the noise summed over the empty bins of the tail outweighs the records that a
0.99 quantile stands on. The number of records is public, so a curve with two parameters can be
fitted to all bins at once instead, and read off where the bins themselves say nothing.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from scipy import optimize, special, stats

from fedlatent.shared.privacy.robust import LEAST_SITES, falling, weighted_median
from fedlatent.shared.privacy.summaries import SCORE_EDGES

#: The empirical quantile is used where noise moves its tail count by less than this share.
_TRUSTED_SHARE = 0.2
#: Records over the deviation of a bin's noise that a site, or a group of them, is to have.
_GROUP_STRENGTH = 20.0
_LEAST_GROUPS = 5
_ROUNDING = 1e-6
_LOG_MEDIANS = np.linspace(math.log(0.05), math.log(2000.0), 30)


def threshold_from_histogram(
    counts: np.ndarray, quantile: float, *, total: int, noise_deviation: float
) -> float:
    """A score that a share ``quantile`` of normal records stays below.

    Where noise is small against the tail, the upper edge of the first bin that reaches the
    conformal rank ceil((total + 1) * quantile). Elsewhere the quantile of the gamma or
    log-normal law, whichever has the smaller squared error over all bins (squared Mahalanobis
    distances of Gaussian latents are gamma distributed; a mixture of clients has a longer tail).

    Args:
        counts: pooled noisy counts [128] on ``SCORE_EDGES``.
        quantile: share of normal records, above one half.
        total: number of records behind the counts; public.
        noise_deviation: standard deviation of the noise of each bin; 0 for exact counts.

    Raises:
        ValueError: no records.
    """
    return _Site(counts, total, noise_deviation).threshold(quantile)


def threshold_of_sites(
    counts: Sequence[np.ndarray] | np.ndarray,
    quantile: float,
    *,
    records: Sequence[int],
    weights: np.ndarray,
    noise_deviation: float,
) -> float:
    """The weighted median of the sites' own thresholds; one site cannot move it far.

    Where counts are noisy, each site takes the law with the longer tail, since its noise would
    decide between tails of much different length. A site whose threshold is far off the others
    weighs less, as in all pooled summaries. Where noise leaves single sites no threshold of their
    own, groups of them take their place, at least as many as ``_LEAST_GROUPS``; each group that
    holds a hostile site is lost. Two sites have no middle: they are pooled.

    Where sites differ, half of them flag more of their normal records than the quantile says.

    Args:
        counts: noisy counts [128] of each site on ``SCORE_EDGES``.
        quantile: share of normal records, above one half.
        records: of each site; public.
        weights: [n] of the sites in the median; one that outweighs all others decides alone.
        noise_deviation: standard deviation of the noise of each bin of a site.

    Raises:
        ValueError: a site without records.
    """
    groups = _groups(records, noise_deviation)
    sites = [
        _Site(
            np.sum([counts[i] for i in group], axis=0),
            sum(records[i] for i in group),
            noise_deviation * math.sqrt(len(group)),
        )
        for group in groups
    ]
    if len(sites) == 1:
        return sites[0].threshold(quantile)
    scores = np.asarray([site.cautious(quantile) for site in sites])
    logs = np.log(scores)
    own_weights = np.asarray([sum(weights[i] for i in group) for group in groups])
    return weighted_median(scores, own_weights * falling(np.abs(logs - np.median(logs))))


def silent(threshold: float) -> bool:
    """Whether a threshold lies in the last bin, above which no score can be told from another."""
    return not threshold <= SCORE_EDGES[-2]


def _groups(records: Sequence[int], noise_deviation: float) -> list[list[int]]:
    """Which sites are read together: each by itself where its noise allows that."""
    sites = len(records)
    if sites < LEAST_SITES:
        return [list(range(sites))]
    needed = max(1.0, _GROUP_STRENGTH * noise_deviation / float(np.median(records))) ** 2
    number = max(min(sites, _LEAST_GROUPS), int(sites / math.ceil(needed)))
    return [list(range(first, sites, number)) for first in range(number)]


@dataclass(frozen=True)
class _Site:
    """Noisy counts [128], the records behind them, and the deviation of each count's noise."""

    counts: np.ndarray
    total: int
    deviation: float

    def __post_init__(self) -> None:
        if self.total < 1:
            raise ValueError(f"Expected at least one record, got {self.total}.")

    def threshold(self, quantile: float) -> float:
        """By the counts, or by the law that fits them better."""
        found = self.empirical(quantile)
        return min(self.fits(quantile))[1] if found is None else found

    def cautious(self, quantile: float) -> float:
        """By the counts, or by the law with the longer tail."""
        found = self.empirical(quantile)
        return max(score for _, score in self.fits(quantile)) if found is None else found

    def empirical(self, quantile: float) -> float | None:
        """The edge above which the counts leave less than the rest; None where noise hides it.

        Counted from the top, so that the noise of the bins below does not add up.
        """
        above = np.maximum.accumulate(np.cumsum(self.counts[::-1]))  # of the highest bins
        rest = (1.0 - self._conformal(quantile)) * self.total
        index = max(int((above > rest + _ROUNDING).sum()) - 1, 0)
        noise = self.deviation * math.sqrt(len(above) - index)
        if noise > _TRUSTED_SHARE * rest:
            return None
        return float(SCORE_EDGES[min(index, len(SCORE_EDGES) - 1)])

    def fits(self, quantile: float) -> list[tuple[float, float]]:
        """Squared error and quantile of each law."""
        share, found = self._conformal(quantile), []
        for law in _LAWS:
            error, parameters = _fit(law, self.counts / self.total)
            score = law.quantile(parameters, share)
            found.append((error, float(np.clip(score, SCORE_EDGES[0], SCORE_EDGES[-1]))))
        return found

    def _conformal(self, quantile: float) -> float:
        return min(math.ceil((self.total + 1) * quantile) / self.total, 1.0 - 0.5 / self.total)


def _fit(law: "_Law", shares: np.ndarray) -> tuple[float, np.ndarray]:
    """Least squares over all bins: squared error and parameters; from the best grid point."""

    def error(parameters: np.ndarray) -> float:
        return float(((shares - _bins(law, parameters)) ** 2).sum())

    points, bins = _grid(law)
    first = points[int(np.argmin(np.square(shares - bins).sum(axis=1)))]
    found = optimize.minimize(error, first, method="Nelder-Mead", options={"maxiter": 400})
    return float(found.fun), np.asarray(found.x)


def _bins(law: "_Law", parameters: np.ndarray) -> np.ndarray:
    """Share of a law in each bin [128]."""
    return np.diff(np.concatenate([[0.0], law.cdf(parameters), [1.0]]))


@cache
def _grid(law: "_Law") -> tuple[list[np.ndarray], np.ndarray]:
    """Parameters to begin with, and the shares [points, 128] that they give."""
    points = [law.start(width, median) for width in law.widths for median in _LOG_MEDIANS]
    return points, np.stack([_bins(law, point) for point in points])


class _Law(Hashable, Protocol):
    """A law of positive scores with two parameters on logarithmic scales."""

    widths: np.ndarray

    def start(self, width: float, log_median: float) -> np.ndarray:
        """Parameters with that width and median."""
        ...

    def cdf(self, parameters: np.ndarray) -> np.ndarray:
        """Share below each score edge."""
        ...

    def quantile(self, parameters: np.ndarray, share: float) -> float:
        """The score with that share below."""
        ...


class _Gamma:
    """Parameters: logarithms of shape and scale."""

    widths = np.linspace(-1.5, 4.0, 12)

    def start(self, width: float, log_median: float) -> np.ndarray:
        return np.array([width, log_median - math.log(stats.gamma.median(math.exp(width)))])

    def cdf(self, parameters: np.ndarray) -> np.ndarray:
        shape, scale = np.exp(np.clip(parameters, -20.0, 20.0))
        return np.asarray(special.gammainc(shape, SCORE_EDGES / scale))

    def quantile(self, parameters: np.ndarray, share: float) -> float:
        shape, scale = np.exp(np.clip(parameters, -20.0, 20.0))
        return float(special.gammaincinv(shape, share) * scale)


class _LogNormal:
    """Parameters: logarithm of the deviation, and mean, of the logarithm of a score."""

    widths = np.linspace(-2.0, 1.0, 10)

    def start(self, width: float, log_median: float) -> np.ndarray:
        return np.array([width, log_median])

    def cdf(self, parameters: np.ndarray) -> np.ndarray:
        deviation = math.exp(float(np.clip(parameters[0], -20.0, 20.0)))
        return np.asarray(special.ndtr((np.log(SCORE_EDGES) - parameters[1]) / deviation))

    def quantile(self, parameters: np.ndarray, share: float) -> float:
        deviation = math.exp(float(np.clip(parameters[0], -20.0, 20.0)))
        return math.exp(min(parameters[1] + deviation * float(special.ndtri(share)), 700.0))


_LAWS: tuple[_Law, _Law] = (_Gamma(), _LogNormal())
