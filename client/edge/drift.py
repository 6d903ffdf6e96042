"""Drift of latents: is this device still where it began, and where the model was released for?

The *distance* of the running mean from the released mean, in Mahalanobis units of the released
covariance, is reported and raises nothing: a device may rightly lie far from others. An alarm
compares blocks of records with the device's own first blocks. It begins when two blocks in a row
differ by more than chance, and by enough to matter:

- "mean": T squared of the exponentially weighted mean of blocks (Hotelling 1947; Lowry et al. 1992)
  passes its limit, and the *shift* of that mean is at least ``least``: a Mahalanobis distance in
  the released covariance within clients, so the largest shift in any direction, in deviations;
- "spread": the deviation within blocks is `LEAST_SPREAD` times the usual one, or its inverse.

It ends after `CALM` blocks in a row without; the shift must then be below half of ``least``.

Consecutive records are correlated (heart beats, overlapping windows). The variance of a block's
mean is that of a first-order autoregression in each direction (Bartlett 1946), raised where the
first blocks spread further. The covariance is the device's, shrunk to the released one within
clients. So that single anomalies are no drift, latents count up to four deviations only.
"""

import math
from statistics import NormalDist

import numpy as np

from fedlatent.shared.bundle.graphs import Density
from fedlatent.shared.errors import ConfigError

BASELINE = 16  # blocks
#: The smallest shift that counts, in deviations within a client. A threshold for 1 % of flags on
#: distances in 2, 8 or 32 latents then flags 4, 2.2 or 1.5 %.
LEAST = 1.0
LEAST_SPREAD = 1.25
CALM = 8
#: Of the mean's test. With ``least`` 0: one false alarm in 20,000 simulated blocks.
LEVEL = 0.00025
_T_QUANTILE = 3.29  # of Student's t with 15 degrees, at 0.9975
_CLIP = 4.0  # deviations
_LEAST_DEVIATION = 0.02  # of a latent on this device, in released deviations
_MAX_CORRELATION = 0.98
_FORGET = 0.2  # weight of a new block in the running means
_EPSILON = 1e-9


class DriftMonitor:
    """Watches latents in blocks; memory does not grow with their number.

    Attributes:
        block: records in a block.
        blocks: finished ones.
        distance: from the released mean; None before the first block is full.
        shift: from the baseline's mean; None before the baseline is full.
        spread: deviation within the last block, in the baseline's; None likewise.
        alarms: how often drift has begun.
    """

    def __init__(self, density: Density, *, block: int = 128, least: float = LEAST) -> None:
        """Start without a baseline.

        Args:
            density: the released one.
            block: records in a block; a few correlation times.
            least: smallest shift of the mean that counts.

        Raises:
            ConfigError: the block is shorter than 8, or ``least`` is negative.
        """
        if block < 8 or not least >= 0:
            raise ConfigError(
                "Expected drift blocks of at least 8 records and a least shift of 0 or more, "
                f"got {block} and {least:g}."
            )
        self.block = block
        self.blocks = self.alarms = 0
        self.distance: float | None = None
        self.shift: float | None = None
        self.spread: float | None = None
        self._least = least
        self._center = density.mean
        self._released, self._within = _whitener(density.covariance), _whitener(density.within)
        self._held = np.zeros((block, len(density.mean)))
        self._filled = 0
        self._running = np.zeros(len(density.mean))
        self._first: list[np.ndarray] = []
        self._baseline: _Baseline | None = None
        self._trend = np.zeros(len(density.mean))
        self._trend_variance = 0.0  # in variances of a block's mean
        self._states = {"mean": _State(), "spread": _State()}

    @property
    def drifted(self) -> bool:
        """Whether there is an alarm."""
        return any(state.on for state in self._states.values())

    def update(self, latents: np.ndarray) -> list[dict[str, object]]:
        """Take latent means [B, k] in the order of their records.

        Returns:
            Of each alarm that begins or ends, ``kind``, whether it has ``begun``, and `report`.
        """
        events: list[dict[str, object]] = []
        while len(latents):
            left = self.block - self._filled
            taken, latents = latents[:left], latents[left:]
            self._held[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            if self._filled == self.block:
                events += self._close_block(self._held - self._center)
        return events

    def report(self) -> dict[str, object]:
        """The state as JSON-ready values."""
        names = ("distance", "shift", "spread", "drifted", "blocks", "alarms")
        return {name: getattr(self, name) for name in names}

    def _close_block(self, centred: np.ndarray) -> list[dict[str, object]]:
        self._filled = 0
        self.blocks += 1
        weight = _FORGET if self.blocks > 1 else 1.0
        self._running += weight * (centred.mean(axis=0) - self._running)
        self.distance = float(np.linalg.norm(self._released @ self._running))
        latents = centred @ self._within
        if self._baseline is not None:
            return self._test(self._baseline, latents)
        self._first.append(latents)
        if len(self._first) == BASELINE:
            self._baseline, self._first = _Baseline(np.stack(self._first)), []
        return []

    def _test(self, baseline: "_Baseline", latents: np.ndarray) -> list[dict[str, object]]:
        mean, log_spread = baseline.measure(latents)
        self._trend += _FORGET * (mean - self._trend)
        self._trend_variance += _FORGET * (_FORGET - (2 - _FORGET) * self._trend_variance)
        self.shift = float(np.linalg.norm(self._trend))
        self.spread = math.exp(log_spread)
        least = self._least / 2 if self._states["mean"].on else self._least
        passed = {
            "mean": self.shift >= least and baseline.is_far(self._trend, self._trend_variance),
            "spread": abs(log_spread) > baseline.spread_limit,
        }
        events: list[dict[str, object]] = []
        for kind, state in self._states.items():
            if state.step(passed[kind]):
                self.alarms += state.on
                events.append({"kind": kind, "begun": state.on, **self.report()})
        return events


class _Baseline:
    """What later blocks are compared with, learnt from latents [n, b, k] of the first n blocks.

    Latents are in released deviations within clients.
    """

    def __init__(self, first: np.ndarray) -> None:
        count, block, k = first.shape
        flat = first.reshape(-1, k)
        self._center = np.median(flat, axis=0)
        usual = 1.4826 * np.median(np.abs(flat - self._center), axis=0)
        self._reach = _CLIP * np.maximum(usual, _LEAST_DEVIATION)
        clipped = self._clip(first, np.maximum(self._reach, _CLIP))
        self._mean = clipped.mean(axis=(0, 1))
        clipped -= self._mean
        covariance = _products(clipped, clipped)
        lagged = _products(clipped[:, :-1], clipped[:, 1:])
        variances = np.maximum(np.diag(covariance), _EPSILON)
        factor = float(_correlation_factor(np.diag(lagged) / variances).mean())
        effective = max(count * block / factor, 1.0)  # independent records' worth
        prior = k + 2
        self._whiten = _whitener((effective * covariance + prior * np.eye(k)) / (effective + prior))
        inflation = _correlation_factor(np.diag(self._whiten @ lagged @ self._whiten))
        means = clipped.mean(axis=1) @ self._whiten
        seen = block * (means**2).sum(axis=0) / (count - 1)
        inflation *= max(1.0, float((seen / inflation).mean()))
        self._variance = inflation / block  # of a block's mean, in each direction
        self._limit = hotelling_quantile(1 - LEVEL, k, effective)
        within = self._clip(first, self._reach).var(axis=1)
        self._variances = within.mean(axis=0)
        spreads = [self._log_spread(row) for row in within]
        self._usual_spread = float(np.mean(spreads))
        limit = _T_QUANTILE * math.sqrt(1 + 1 / count) * float(np.std(spreads, ddof=1))
        self.spread_limit = max(limit, math.log(LEAST_SPREAD))

    def measure(self, latents: np.ndarray) -> tuple[np.ndarray, float]:
        """Mean [k] of a block [b, k] about the baseline's, and the log ratio of deviations."""
        mean = self._clip(latents, np.maximum(self._reach, _CLIP)).mean(axis=0) - self._mean
        spread = self._log_spread(self._clip(latents, self._reach).var(axis=0))
        return mean, spread - self._usual_spread

    def is_far(self, mean: np.ndarray, share: float) -> bool:
        """Whether a mean with ``share`` of the variance of a block's passes the limit."""
        error = self._variance * (share + 1 / BASELINE)  # with the baseline's own
        return float(((self._whiten @ mean) ** 2 / error).sum()) > self._limit

    def _clip(self, latents: np.ndarray, reach: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip(latents - self._center, -reach, reach))

    def _log_spread(self, variances: np.ndarray) -> float:
        """Of a block, beside the baseline's; latents that stand still count little."""
        least = _LEAST_DEVIATION**2
        return math.log(float(((variances + least) / (self._variances + least)).mean())) / 2


class _State:
    """On after two passes in a row, off after `CALM` misses in a row."""

    def __init__(self) -> None:
        self.on = False
        self._other = 0

    def step(self, passed: bool) -> bool:
        """Whether the state has changed."""
        self._other = self._other + 1 if passed != self.on else 0
        if self._other < (CALM if self.on else 2):
            return False
        self.on, self._other = passed, 0
        return True


def hotelling_quantile(probability: float, dimensions: int, records: float) -> float:
    """Quantile of T squared with a covariance from so many independent records.

    Its F quantile is Paulson's (1942), after Wilson and Hilferty's (1931) for chi-square.
    """
    spare = max(records - dimensions, records / 3)
    z = NormalDist().inv_cdf(probability)
    a, b = 2 / (9 * dimensions), min(2 / (9 * spare), 0.9 / max(z, 1.0) ** 2)
    # The root x of ((1 - b) x - (1 - a)) / sqrt(b x^2 + a) = z.
    square, line, rest = (1 - b) ** 2 - z * z * b, (1 - a) * (1 - b), (1 - a) ** 2 - z * z * a
    root = (line + math.sqrt(line * line - square * rest)) / square
    return dimensions * (records / spare) * max(root, 0.0) ** 3


def _products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mean outer product [k, k] of rows of two arrays [n, b, k]."""
    k = left.shape[-1]
    return np.asarray(left.reshape(-1, k).T @ right.reshape(-1, k) * (k / left.size))


def _correlation_factor(rho: np.ndarray) -> np.ndarray:
    """How many times the variance of a mean is that of independent records, given rho at lag 1."""
    clipped = np.clip(rho, 0.0, _MAX_CORRELATION)
    return np.asarray((1 + clipped) / (1 - clipped))


def _whitener(covariance: np.ndarray) -> np.ndarray:
    """Symmetric inverse root [k, k] of a covariance; tiny and negative variances are raised."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    floor = max(float(values[-1]) * _EPSILON, 1e-12)
    return np.asarray((vectors / np.sqrt(np.maximum(values, floor))) @ vectors.T)
