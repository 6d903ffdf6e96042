"""Drift of latents: is this device still where the model was released for, and where it began?

Two questions, two figures. The *distance* compares the running mean of the latents with the
released mean, in Mahalanobis units of the released covariance; it is reported and raises nothing,
since a device may rightly lie far from the others. The *tests* compare blocks of records with the
device's own first blocks, its baseline: a Hotelling-type test of the block's mean and of the
exponentially weighted mean of blocks, which finds smaller shifts later, and a test of the block's
spread. An alarm needs two blocks in a row beyond the limit.

Consecutive records are correlated (heart beats, overlapping windows), so that a block of b records
says less than b independent ones. The variance of a block's mean is taken as that of a first-order
autoregression per direction, (1 + rho) / (1 - rho) times the independent one, and is raised where
the means of the baseline blocks spread further than that. The covariance is the baseline's,
shrunk to the released one within clients.

So that single anomalies do not count as drift, each latent counts only up to four of the
device's own deviations (by the median) from its median in the first block.

Sources: Hotelling, "Multivariate quality control" (1947); Lowry et al., "A multivariate
exponentially weighted moving average control chart" (1992); Wilson and Hilferty, "The distribution
of chi-square" (1931); Paulson, "An approximate normalization of the analysis of variance
distribution" (1942); the effective sample size of a correlated series after Bartlett, "On the
theoretical specification and sampling properties of autocorrelated time-series" (1946).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from shared.errors import ConfigError

#: Level of each test on one block; two blocks in a row must pass. Measured on 15,000 blocks for
#: 2, 8 and 32 latents at lag-1 correlations of 0, 0.5 and 0.9: at most 0.4 false alarms in 1,000
#: blocks. Half a deviation in one latent is found after 2 to 4 blocks (median) at correlation 0 and
#: 5 to 10 at 0.5; at 0.9 such blocks are too short to find it: make them longer.
LEVEL = 0.005
_CLIP = 4.0  # deviations
_LEAST_DEVIATION = 0.02  # of a latent on this device, in released deviations
_MAX_CORRELATION = 0.98
_FORGET = 0.2  # weight of a new block in the running mean
_TREND_SHARE = 50  # level of a block's test over that of the weighted mean, which has memory
_EPSILON = 1e-9

Kind = Literal["mean", "spread"]


@dataclass(frozen=True, kw_only=True)
class DriftEvent:
    """A change of state.

    Attributes:
        kind: of the test: "mean" or "spread".
        drifted: whether drift has begun or, after two blocks within the limit, ended.
        block: number of the block, from 1, baseline included.
        statistic: T squared, of the block or of the weighted mean, whichever is larger beside its
            limit; or the ratio of the block's spread to the baseline's.
        limit: of that T squared; None for the spread.
        distance: of the running mean from the released mean, in released deviations.
    """

    kind: Kind
    drifted: bool
    block: int
    statistic: float
    limit: float | None
    distance: float


@dataclass(frozen=True, kw_only=True)
class _Baseline:
    """What the tests compare with.

    Attributes:
        mean: [k], of clipped latents in whitened coordinates.
        whiten: [k, k], rows give uncorrelated directions of variance 1.
        inflation: [k], variance of a block's mean in each direction, times the block's length.
        limit: of T squared of a block.
        trend_limit: of T squared of the weighted mean.
        variances: [k], of clipped latents within blocks.
        log_spread: mean of the logarithm of a block's spread.
        log_spread_limit: how far another block's may lie from that.
    """

    mean: np.ndarray
    whiten: np.ndarray
    inflation: np.ndarray
    limit: float
    trend_limit: float
    variances: np.ndarray
    log_spread: float
    log_spread_limit: float

    def spread(self, clipped: np.ndarray) -> float:
        """Logarithm of the variance of a block's latents [b, k], as a share of the baseline's."""
        return _log_spread(clipped.var(axis=0), self.variances)


class DriftMonitor:
    """Watches latents in blocks; memory does not grow with their number.

    Attributes:
        block: records in a block.
        blocks: finished ones.
        distance: see `DriftEvent`; None before the first block is full.
        scale: mean squared length of the running latents about the baseline in units of the
            released covariance within clients, per dimension; 1 is as released; None before the
            baseline is full.
        alarms: how often drift has begun.
    """

    def __init__(
        self,
        mean: np.ndarray,
        covariance: np.ndarray,
        within: np.ndarray,
        *,
        block: int = 128,
        baseline: int = 16,
        level: float = LEVEL,
    ) -> None:
        """Start without a baseline.

        Args:
            mean: released mean [k].
            covariance: released covariance [k, k] about it.
            within: released covariance [k, k] about a client's own mean.
            block: records in a block; a few correlation times.
            baseline: blocks in the baseline.
            level: of each test on one block.

        Raises:
            ConfigError: a block or baseline that is too short, or a level not in (0, 0.5).
        """
        if block < 8 or baseline < 4 or not 0 < level < 0.5:
            raise ConfigError(
                "Expected blocks of at least 8 records, a baseline of at least 4 blocks and a "
                f"level below 0.5, got {block}, {baseline} and {level:g}."
            )
        self.block = block
        self.blocks = self.alarms = 0
        self.distance: float | None = None
        self.scale: float | None = None
        self._k = len(mean)
        self._released = np.asarray(mean, dtype=np.float64)
        self._total = _whitener(covariance)
        self._within = _whitener(within)
        self._running: np.ndarray | None = None
        self._held = np.zeros((block, self._k))
        self._filled = 0
        self._learner = _Learner(self._k, block, baseline, level)
        self._baseline: _Baseline | None = None
        self._baseline_blocks = baseline
        self._trend = np.zeros(self._k)
        self._trend_variance = 0.0
        self._mean_state = _TwoInARow()
        self._spread_state = _TwoInARow()

    @property
    def drifted(self) -> bool:
        """Whether a test is in alarm."""
        return self._mean_state.on or self._spread_state.on

    @property
    def ready(self) -> bool:
        """Whether the baseline is full, so that tests are made."""
        return self._baseline is not None

    def update(self, latents: np.ndarray) -> list[DriftEvent]:
        """Take latent means [B, k] in the order of their records.

        Returns:
            What has changed, mostly nothing.
        """
        events: list[DriftEvent] = []
        start = 0
        while start < len(latents):
            taken = latents[start : start + self.block - self._filled]
            self._held[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            start += len(taken)
            if self._filled == self.block:
                events += self._close_block()
        return events

    def report(self) -> dict[str, object]:
        """The state as JSON-ready values."""
        return {
            "distance": self.distance,
            "scale": self.scale,
            "drifted": self.drifted,
            "ready": self.ready,
            "blocks": self.blocks,
            "alarms": self.alarms,
        }

    def _close_block(self) -> list[DriftEvent]:
        self._filled = 0
        self.blocks += 1
        centred = self._held - self._released
        moved = centred.mean(axis=0)
        running = (
            moved if self._running is None else self._running + _FORGET * (moved - self._running)
        )
        self._running = running
        self.distance = float(np.linalg.norm(self._total @ running))
        clipped = self._learner.clip(centred @ self._within.T)
        if self._baseline is None:
            self._learner.add(clipped)
            if self._learner.blocks == self._baseline_blocks:
                self._baseline = self._learner.finish()
            return []
        return self._test(self._baseline, clipped)

    def _test(self, baseline: _Baseline, clipped: np.ndarray) -> list[DriftEvent]:
        deviations = clipped - baseline.mean
        scale = float((deviations**2).mean())
        self.scale = scale if self.scale is None else self.scale + _FORGET * (scale - self.scale)
        whitened = deviations @ baseline.whiten.T
        mean = whitened.mean(axis=0)
        self._trend += _FORGET * (mean - self._trend)
        # In variances of a block's mean.
        self._trend_variance += _FORGET * (_FORGET - (2 - _FORGET) * self._trend_variance)
        tests = (
            (mean, 1.0, baseline.limit),
            (self._trend, self._trend_variance, baseline.trend_limit),
        )
        statistic, limit = max(
            ((self._t_squared(baseline, value, share), limit) for value, share, limit in tests),
            key=lambda pair: pair[0] / pair[1],
        )
        moved = baseline.spread(clipped) - baseline.log_spread
        events = []
        if self._mean_state.step(statistic > limit):
            events.append(self._event("mean", self._mean_state.on, statistic, limit))
        if self._spread_state.step(abs(moved) > baseline.log_spread_limit):
            ratio = math.exp(moved)
            events.append(self._event("spread", self._spread_state.on, ratio, None))
        return events

    def _t_squared(self, baseline: _Baseline, value: np.ndarray, share: float) -> float:
        """T squared of a mean with ``share`` of the variance of a block's."""
        error = share + 1 / self._baseline_blocks  # with the baseline's own
        return float((value**2 * self.block / (baseline.inflation * error)).sum())

    def _event(
        self, kind: Kind, drifted: bool, statistic: float, limit: float | None
    ) -> DriftEvent:
        self.alarms += drifted
        return DriftEvent(
            kind=kind,
            drifted=drifted,
            block=self.blocks,
            statistic=statistic,
            limit=limit,
            distance=0.0 if self.distance is None else self.distance,
        )


class _Learner:
    """Moments of the baseline's records and blocks."""

    def __init__(self, k: int, block: int, count: int, level: float) -> None:
        self.blocks = 0
        self._k, self._block, self._count, self._level = k, block, count, level
        self._center: np.ndarray | None = None
        self._reach = np.zeros(k)
        self._means = np.zeros((count, k))
        self._square = np.zeros((k, k))  # sum of products at lag 0
        self._lagged = np.zeros((k, k))  # and at lag 1, within blocks
        self._variances = np.zeros((count, k))

    def clip(self, values: np.ndarray) -> np.ndarray:
        """Latents [b, k], each within its reach; the first block sets that."""
        if self._center is None:
            self._center = np.median(values, axis=0)
            spread = 1.4826 * np.median(np.abs(values - self._center), axis=0)
            self._reach = _CLIP * np.maximum(spread, _LEAST_DEVIATION)
        center = self._center
        return np.asarray(np.clip(values - center, -self._reach, self._reach))

    def add(self, clipped: np.ndarray) -> None:
        """One block."""
        self._means[self.blocks] = clipped.mean(axis=0)
        self._variances[self.blocks] = clipped.var(axis=0)
        self._square += clipped.T @ clipped
        self._lagged += clipped[:-1].T @ clipped[1:]
        self.blocks += 1

    def finish(self) -> _Baseline:
        """Estimate everything that the tests need."""
        records = self._count * self._block
        mean = self._means.mean(axis=0)
        outer = np.outer(mean, mean)
        covariance = self._square / records - outer
        lagged = self._lagged / (records - self._count) - outer
        usual = np.maximum(np.diag(covariance), _EPSILON)
        factor = _correlation_factor(np.diag(lagged) / usual)
        effective = max(records / float(factor.mean()), 1.0)  # independent records' worth
        prior = self._k + 2
        shrunk = (effective * covariance + prior * np.eye(self._k)) / (effective + prior)
        whiten = _whitener(shrunk)
        inflation = _correlation_factor(np.einsum("ij,jk,ik->i", whiten, lagged, whiten))
        means = (self._means - mean) @ whiten.T
        seen = self._block * (means**2).sum(axis=0) / (self._count - 1)
        inflation = inflation * max(1.0, float((seen / inflation).mean()))
        variances = self._variances.mean(axis=0)
        spreads = np.array([_log_spread(row, variances) for row in self._variances])
        quantile = t_quantile(1 - self._level / 2, self._count - 1)
        error = math.sqrt(1 + 1 / self._count)
        return _Baseline(
            mean=mean,
            whiten=whiten,
            inflation=inflation,
            limit=hotelling_quantile(1 - self._level, self._k, effective),
            trend_limit=hotelling_quantile(1 - self._level / _TREND_SHARE, self._k, effective),
            variances=variances,
            log_spread=float(spreads.mean()),
            log_spread_limit=max(quantile * error * float(spreads.std(ddof=1)), _EPSILON),
        )


class _TwoInARow:
    """On after two passes in a row, off after two misses in a row."""

    def __init__(self) -> None:
        self.on = False
        self._other = 0

    def step(self, passed: bool) -> bool:
        """Whether the state has changed."""
        self._other = self._other + 1 if passed != self.on else 0
        if self._other < 2:
            return False
        self.on, self._other = passed, 0
        return True


def hotelling_quantile(probability: float, dimensions: int, records: float) -> float:
    """Quantile of T squared with a covariance from so many independent records.

    Its F quantile comes from Paulson's extension of the chi-square quantile of Wilson and
    Hilferty, which it equals for many records.
    """
    spare = max(records - dimensions, records / 3)
    z = NormalDist().inv_cdf(probability)
    a, b = 2 / (9 * dimensions), min(2 / (9 * spare), 0.9 / max(z, 1.0) ** 2)
    # The root x of ((1 - b) x - (1 - a)) / sqrt(b x^2 + a) = z.
    square, line, rest = (1 - b) ** 2 - z * z * b, (1 - a) * (1 - b), (1 - a) ** 2 - z * z * a
    root = (line + math.sqrt(line * line - square * rest)) / square
    return dimensions * (records / spare) * max(root, 0.0) ** 3


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t for 10 degrees and more, by the expansion of Cornish and Fisher."""
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def _log_spread(variances: np.ndarray, usual: np.ndarray) -> float:
    """Logarithm of the mean ratio of variances [k]; latents that stand still count little."""
    least = _LEAST_DEVIATION**2
    return math.log(float(((variances + least) / (usual + least)).mean()))


def _correlation_factor(rho: np.ndarray) -> np.ndarray:
    """How many times the variance of a mean is that of independent records, given rho at lag 1."""
    clipped = np.clip(rho, 0.0, _MAX_CORRELATION)
    return np.asarray((1 + clipped) / (1 - clipped))


def _whitener(covariance: np.ndarray) -> np.ndarray:
    """Symmetric inverse root [k, k] of a covariance; tiny and negative variances are raised."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    floor = max(float(values[-1]) * _EPSILON, 1e-12)
    return np.asarray((vectors / np.sqrt(np.maximum(values, floor))) @ vectors.T)
