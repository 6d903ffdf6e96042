"""Epsilon of one person who owns several records: group privacy of the very mechanisms used.

Neighbours are two data sets that differ in all records of one person, at most m, each replaced by a
null record; the number of records stays the same and is public. An un-sampled Gaussian release
moves by at most m sensitivities (triangle inequality), so its noise multiplier is sigma / m. In a
step on a Poisson sample the number of the person's records is Binomial(m, q), so the pair that
dominates every other is ``sum_k Binomial(m, q)(k) N(k, sigma^2)`` against ``N(0, sigma^2)``: all
clipped gradients of the person of full length and in one direction. Records whose gradients point
elsewhere, or fewer records, are covered, since vectors may be replaced by larger norms.

The losses are put on a grid so that the result is an upper bound in both directions, and composed
by ``dp-accounting``.

Sources: Ganesh 2024, arXiv 2401.10294 (the pair for a group under Poisson sampling, tight when
every step is seen), Choquette-Choo, Ganesh, Steinke & Thakurta 2024, arXiv 2310.15526, corollary
4.7 (vectors to norms), Doroshenko et al. 2022 (losses on a grid, "connect the dots").
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from fedlatent.shared.privacy.accounting import GaussianEvent
from fedlatent.shared.privacy.audit import gaussian_epsilon

#: Steps of the grid of privacy losses, and most points of one mechanism's.
_FINEST, _COARSEST, _MOST_POINTS = 1e-4, 1.0, 20_000
#: Share of delta that may be given to the ends of all losses, which count as certain disclosure.
_TAIL_SHARE = 1e-4
_NEWTON_STEPS = 4
_INVERSION_POINTS = 4096
_MOST_COUNTS = 256  # of the person's records in a sample that are told apart


def person_epsilon(events: Iterable[GaussianEvent], delta: float, records: int) -> float:
    """Epsilon at ``delta`` of the composition of ``events`` for one person; 0.0 for no event.

    Args:
        events: everything that was ever released about one data set.
        delta: target delta, strictly between 0 and 1.
        records: most records m of one person in any one of the releases.
    """
    return capped_epsilon([(event, records) for event in events], delta)


def capped_epsilon(events: Iterable[tuple[GaussianEvent, int]], delta: float) -> float:
    """As ``person_epsilon``, where each release has its own most records of one person."""
    if not 0 < delta < 1:
        raise ValueError(f"Expected 0 < delta < 1, got {delta}.")
    merged: dict[tuple[float, float, int], int] = {}
    for event, records in events:
        if records < 1:
            raise ValueError(f"Expected at least one record of a person, got {records}.")
        key = (event.noise_multiplier, event.sample_rate, records)
        merged[key] = merged.get(key, 0) + event.steps
    return _composed(tuple((*key, steps) for key, steps in sorted(merged.items()) if steps), delta)


@functools.lru_cache(maxsize=64)
def _composed(events: tuple[tuple[float, float, int, int], ...], delta: float) -> float:
    """Of (sigma, q, records, steps); kept, since a ledger asks again and again."""
    whole = sum(steps * (m / sigma) ** 2 for sigma, q, m, steps in events if q == 1.0)
    mixtures = [one for one in events if one[1] < 1.0]
    # Without sampling the loss is Gaussian and exact. It also covers what is sampled.
    unsampled = math.sqrt(sum(steps * (m / sigma) ** 2 for sigma, _, m, steps in events))
    most = gaussian_epsilon(unsampled, delta)
    if not mixtures:
        return most
    log_tail = math.log(_TAIL_SHARE * delta / (1 + sum(steps for *_, steps in mixtures)))
    pairs = [(_Pair.sampled(sigma, q, m, log_tail), steps) for sigma, q, m, steps in mixtures]
    if whole:
        pairs.append((_Pair.gaussian(1 / math.sqrt(whole), log_tail), 1))
    step = max(_FINEST, max(pair.width for pair, _ in pairs) / _MOST_POINTS)
    # On a coarser grid there is nothing to be found that protects anyone.
    return min(most, _epsilon(pairs, step, delta)) if step <= _COARSEST else most


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pair:
    """``sum_k p_k N(k, sigma^2)`` against ``N(0, sigma^2)``, without the ends of both.

    Attributes:
        sigma: deviation of the noise.
        counts: k, growing [K].
        log_shares: logarithms of p_k [K].
        low: points below count as ends.
        high: points above count as ends.
    """

    sigma: float
    counts: np.ndarray
    log_shares: np.ndarray
    low: float
    high: float

    @classmethod
    def sampled(cls, sigma: float, rate: float, records: int, log_tail: float) -> "_Pair":
        """The sum of a Poisson sample of so many aligned records."""
        counts = np.arange(records + 1)
        log_shares = stats.binom.logpmf(counts, records, rate)
        keep = log_shares > log_tail - math.log(records + 1)
        # Shares too small to matter count as the next larger number of records, or as all of them.
        first, last = int(keep.argmax()), records - int(keep[::-1].argmax())
        shares = np.exp(log_shares[first : last + 1])
        shares[0] += stats.binom.cdf(first - 1, records, rate)
        found = counts[first : last + 1]
        if last < records:
            found = np.append(found, records)
            shares = np.append(shares, stats.binom.sf(last, records, rate))
        # Many are told apart in groups, which count as their largest.
        starts = np.arange(0, len(found), math.ceil(len(found) / _MOST_COUNTS))
        found = found[np.append(starts[1:], len(found)) - 1]
        shares = np.add.reduceat(shares, starts)
        return cls._cut(sigma, found[shares > 0], np.log(shares[shares > 0]), log_tail)

    @classmethod
    def gaussian(cls, sigma: float, log_tail: float) -> "_Pair":
        """Without sampling: a shift by one."""
        return cls._cut(sigma, np.ones(1), np.zeros(1), log_tail)

    @classmethod
    def _cut(
        cls, sigma: float, counts: np.ndarray, log_shares: np.ndarray, log_tail: float
    ) -> "_Pair":
        far = -sigma * float(special.ndtri_exp(log_tail))

        def above(x: float) -> float:
            logs = log_shares + special.log_ndtr((counts - x) / sigma)
            return float(special.logsumexp(logs)) - log_tail

        high = float(optimize.brentq(above, 0.0, far + counts[-1] + 1.0))
        return cls(sigma=sigma, counts=counts, log_shares=log_shares, low=-far, high=high)

    def loss(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The privacy loss at points [N], which grows with them, and its slope."""
        powers = np.outer(x, self.counts) - self.counts**2 / 2
        powers = powers / self.sigma**2 + self.log_shares
        most = powers.max(axis=1, keepdims=True)
        weights = np.exp(powers - most)
        sums = weights.sum(axis=1)
        slope = weights @ self.counts / sums / self.sigma**2
        return most[:, 0] + np.log(sums), slope

    @property
    def width(self) -> float:
        """From the smallest to the largest loss between the ends."""
        low, high = self.loss(np.array([self.low, self.high]))[0]
        return float(high - low)

    def points(self, losses: np.ndarray) -> np.ndarray:
        """Where each of the growing losses [N] is reached, by Newton's method within a cell."""
        grid = np.linspace(self.low, self.high, _INVERSION_POINTS)
        known = self.loss(grid)[0]
        cell = np.clip(np.searchsorted(known, losses) - 1, 0, len(grid) - 2)
        x = np.interp(losses, known, grid)
        for _ in range(_NEWTON_STEPS):
            value, slope = self.loss(x)
            x = np.clip(x - (value - losses) / slope, grid[cell], grid[cell + 1])
        return np.asarray(x)

    def masses(self, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probability between neighbouring edges [N]: of the mixture and of the noise alone."""
        parts = [
            math.exp(share) * _between((edges - count) / self.sigma)
            for count, share in zip(self.counts, self.log_shares, strict=True)
        ]
        return np.sum(parts, axis=0), _between(edges / self.sigma)


def _between(edges: np.ndarray) -> np.ndarray:
    """Standard normal probability between neighbouring edges, from the nearer tail."""
    left, right = edges[:-1], edges[1:]
    upper = left > 0
    high = special.ndtr(np.where(upper, -left, right))
    return np.asarray(high - special.ndtr(np.where(upper, -right, left)))


def _epsilon(pairs: list[tuple[_Pair, int]], step: float, delta: float) -> float:
    """Of all pairs, each so many times; the worse of the two directions."""
    from dp_accounting.pld import pld_pmf

    totals: list[Any] = [None, None]
    for pair, times in pairs:
        for place, one in enumerate(_distributions(pair, step)):
            # The library's bounds on tails may overflow, and then are not the ones it takes.
            with np.errstate(over="ignore"):
                many = one.self_compose(times) if times > 1 else one
            before = totals[place]
            totals[place] = many if before is None else pld_pmf.compose_pmfs(before, many, 1e-15)
    return max(float(total.get_epsilon_for_delta(delta)) for total in totals)


def _distributions(pair: _Pair, step: float) -> tuple[Any, Any]:
    """Losses of a pair on a grid, with the person and without; pessimistic in both directions.

    The mass between two neighbouring losses of the grid is put on these two so that both sums stay
    as they are: no test can tell that from less than the true pair. The ends of the direction in
    which they are bad count as certain disclosure, the other ends as the last loss of the grid.
    """
    from dp_accounting.pld import pld_pmf

    limits = pair.loss(np.array([pair.low, pair.high]))[0] / step
    first, last = math.floor(limits[0]), math.ceil(limits[1])
    inner = np.arange(first + 1, last) * step
    edges = np.concatenate([[pair.low], pair.points(inner), [pair.high]])
    with_, without = pair.masses(edges)
    with np.errstate(divide="ignore", invalid="ignore"):
        above = np.log(with_ / without) - np.arange(first, last) * step
    above = np.clip(above, 0.0, step)
    # Where nothing can be told from rounding, the worse neighbour takes all.
    up = np.where(np.isnan(above), 1.0, np.expm1(-above) / math.expm1(-step))
    down = np.where(np.isnan(above), 0.0, np.expm1(above) / math.expm1(step))
    present, absent = (np.zeros(len(edges)) for _ in range(2))
    for masses, share, target in ((with_, up, present), (without, down, absent)):
        target[1:] += masses * share
        target[:-1] += masses * (1 - share)
    ends = np.array([-np.inf, pair.low, pair.high, np.inf])
    (with_low, _, with_high), (without_low, _, without_high) = pair.masses(ends)
    present[0] += with_low
    absent[-1] += without_high
    return (
        pld_pmf.DensePLDPmf(step, first, present, float(with_high), True),
        pld_pmf.DensePLDPmf(step, -last, absent[::-1], float(without_low), True),
    )
