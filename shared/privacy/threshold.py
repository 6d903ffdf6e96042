"""A detection threshold from a noisy histogram of normal scores; all of it is post-processing.

With few records the noise summed over the empty bins of the tail outweighs the records that a
0.99 quantile stands on. The number of records is public, so a curve with two parameters can be
fitted to all bins at once instead, and read off where the bins themselves say nothing.
"""

import math
from typing import Protocol

import numpy as np
from scipy import optimize, special, stats

from shared.privacy.summaries import SCORE_EDGES

#: The empirical quantile is used where noise moves its tail count by less than this share.
_TRUSTED_SHARE = 0.2
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
    if total < 1:
        raise ValueError(f"Expected at least one record, got {total}.")
    share = min(math.ceil((total + 1) * quantile) / total, 1.0 - 0.5 / total)
    index = _empirical_bin(counts, share, total)
    tail_noise = noise_deviation * math.sqrt(len(counts) - index)
    if tail_noise <= _TRUSTED_SHARE * (1.0 - share) * total:
        return float(SCORE_EDGES[min(index, len(SCORE_EDGES) - 1)])
    fits = [_fit(law, counts / total) for law in (_GAMMA, _LOG_NORMAL)]
    _, law, parameters = min(fits, key=lambda one: one[0])
    return float(np.clip(law.quantile(parameters, share), SCORE_EDGES[0], SCORE_EDGES[-1]))


def _empirical_bin(counts: np.ndarray, share: float, total: int) -> int:
    cumulative = np.maximum.accumulate(np.cumsum(counts))
    rank = min(share * total, float(cumulative[-1]))
    return int(np.searchsorted(cumulative, rank - 1e-9, side="left"))


def _fit(law: "_Law", shares: np.ndarray) -> tuple[float, "_Law", np.ndarray]:
    """Least squares over all bins: squared error, law, parameters; from the best grid point."""

    def error(parameters: np.ndarray) -> float:
        below = np.concatenate([[0.0], law.cdf(parameters), [1.0]])
        return float(((shares - np.diff(below)) ** 2).sum())

    grid = [law.start(width, median) for width in law.widths for median in _LOG_MEDIANS]
    found = optimize.minimize(
        error, min(grid, key=error), method="Nelder-Mead", options={"maxiter": 400}
    )
    return float(found.fun), law, np.asarray(found.x)


class _Law(Protocol):
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


_GAMMA, _LOG_NORMAL = _Gamma(), _LogNormal()
