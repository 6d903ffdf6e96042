"""Statistics of releases with limits that a sound node passes but once in a hundred thousand times.

A check does not attack a record. It asks whether what left a node is distributed as its ledger
says: noise of the stated deviation on every number, fresh each time, and samples drawn by chance at
the stated rate. Every statistic has a known distribution when the claim is true, so its limits are
quantiles and nothing is tuned to the code under test.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Chance of one check to fail on a sound node.
ALPHA = 1e-5

#: Most checks that one audit makes, so that a sound node fails a whole audit once in a thousand.
MOST_CHECKS = 100

_LEAST_EXPECTED = 5.0  # of a cell of a chi-square


@dataclass(frozen=True, kw_only=True)
class Check:
    """One statistic of what a node released, with its limits.

    Attributes:
        name: what it looks at.
        what: the statistic, in a few words.
        statistic: its value.
        low: least value that a sound node gives, but for a chance of at most ``ALPHA``.
        high: largest such value.
        draws: how many numbers or releases it stands on.
    """

    name: str
    what: str
    statistic: float
    low: float
    high: float
    draws: int

    @property
    def good(self) -> bool:
        """Whether the statistic lies within its limits."""
        return self.low <= self.statistic <= self.high

    @property
    def verdict(self) -> str:
        """In a word."""
        return "holds" if self.good else "BROKEN"

    def to_json(self) -> dict[str, object]:
        """The check as JSON values; null stands for no limit and for a statistic beyond all."""
        numbers = {"statistic": self.statistic, "low": self.low, "high": self.high}
        return {
            "name": self.name,
            "what": self.what,
            **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
            "draws": self.draws,
            "verdict": self.verdict,
        }


def deviation(name: str, standard: np.ndarray) -> Check:
    """Root mean square of noise in units of its stated deviation: 1, by the chi-square law."""
    values = np.asarray(standard).ravel()
    limits = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], len(values)) / len(values)
    return Check(
        name=name,
        what="deviation, stated deviation = 1",
        statistic=float(np.sqrt(np.mean(np.square(values)))),
        low=math.sqrt(limits[0]),
        high=math.sqrt(limits[1]),
        draws=len(values),
    )


def spread(name: str, standard: np.ndarray) -> Check:
    """The release [R, D] whose noise is the smallest of all: none may go without."""
    count, size = standard.shape
    smallest = float(np.sqrt(np.square(standard).mean(axis=1)).min())
    low = math.sqrt(stats.chi2.ppf(ALPHA / count, size) / size)
    return Check(
        name=name,
        what="least deviation of one release",
        statistic=smallest,
        low=low,
        high=math.inf,
        draws=count,
    )


def normality(name: str, standard: np.ndarray) -> Check:
    """Largest distance between the distribution of the noise and the normal one (Kolmogorov)."""
    values = np.asarray(standard).ravel()
    return Check(
        name=name,
        what="distance to the normal law",
        statistic=float(stats.kstest(values, "norm").statistic),
        low=0.0,
        high=float(stats.kstwo.ppf(1 - ALPHA, len(values))),
        draws=len(values),
    )


def coordinates(name: str, standard: np.ndarray) -> Check:
    """Largest correlation of two coordinates over releases [R, D]."""
    return _largest(name, "correlation of two numbers of a release", standard.T)


def releases(name: str, standard: np.ndarray) -> Check:
    """Largest correlation of any two releases [R, D] over their coordinates."""
    return _largest(name, "correlation of two releases", standard)


def correlation(name: str, first: np.ndarray, second: np.ndarray) -> Check:
    """Correlation of two arrays of noise of one shape: 0, by Student's law."""
    one, two = np.asarray(first).ravel(), np.asarray(second).ravel()
    limit = _correlation_limit(len(one), 1)
    return Check(
        name=name,
        what="correlation",
        statistic=float(np.corrcoef(one, two)[0, 1]),
        low=-limit,
        high=limit,
        draws=len(one),
    )


def sampling_rate(name: str, counts: np.ndarray, steps: int, rate: float) -> Check:
    """Share of steps in which a record took part, from counts of whole numbers of any shape."""
    trials = counts.size * steps
    limits = stats.binom.ppf([ALPHA / 2, 1 - ALPHA / 2], trials, rate)
    return Check(
        name=name,
        what=f"sampling rate, stated {rate:g}",
        statistic=float(counts.sum()) / trials,
        low=float(limits[0]) / trials,
        high=float(limits[1]) / trials,
        draws=trials,
    )


def sampling_law(name: str, counts: np.ndarray, steps: int, rate: float) -> Check:
    """Chi-square of how often a record took part against independent draws at each step."""
    expected = stats.binom.pmf(np.arange(steps + 1), steps, rate) * counts.size
    possible = (counts >= 0) & (counts <= steps)
    found = np.bincount(counts[possible].astype(int), minlength=steps + 1)
    # Rare numbers of steps are taken together, so that the law of chi-square is near.
    rare = expected < _LEAST_EXPECTED
    cells = [(found[rare].sum(), expected[rare].sum())] if rare.any() else []
    cells += list(zip(found[~rare], expected[~rare], strict=True))
    value = math.fsum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    return Check(
        name=name,
        what="chi-square of the number of steps with a record",
        statistic=value if possible.all() else math.inf,
        low=0.0,
        high=float(stats.chi2.ppf(1 - ALPHA, len(cells) - 1)),
        draws=counts.size,
    )


def sample_sizes(name: str, counts: np.ndarray, steps: int, rate: float) -> Check:
    """Variance of the records that rounds [R, N] take together, over that of Poisson sampling."""
    rounds, records = counts.shape
    stated = records * steps * rate * (1 - rate)
    limits = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], rounds - 1) / (rounds - 1)
    return Check(
        name=name,
        what="variance of sample sizes, Poisson = 1",
        statistic=float(counts.sum(axis=1).var(ddof=1) / stated),
        low=float(limits[0]),
        high=float(limits[1]),
        draws=rounds,
    )


def sample_repeats(name: str, counts: np.ndarray, steps: int, rate: float) -> Check:
    """Most records that two rounds [R, N] took equally often."""
    rounds, records = counts.shape
    law = stats.binom.pmf(np.arange(steps + 1), steps, rate)
    equal = np.array(
        [np.max((counts == one).sum(1)[np.arange(rounds) != r]) for r, one in enumerate(counts)]
    )
    pairs = rounds * (rounds - 1) / 2
    return Check(
        name=name,
        what="records that two rounds took equally often",
        statistic=float(equal.max()),
        low=0.0,
        high=float(stats.binom.isf(ALPHA / pairs, records, float(np.sum(law**2)))),
        draws=rounds,
    )


def equal(name: str, what: str, value: float, expected: float, draws: int) -> Check:
    """A number that is no matter of chance: equal to what is expected to six digits."""
    margin = 1e-6 * abs(expected)
    return Check(
        name=name,
        what=what,
        statistic=value,
        low=expected - margin,
        high=expected + margin,
        draws=draws,
    )


def at_most(name: str, what: str, value: float, limit: float, draws: int) -> Check:
    """A number that may not pass a limit."""
    return Check(name=name, what=what, statistic=value, low=0.0, high=limit, draws=draws)


def all_good(checks: Sequence[Check]) -> bool:
    """Whether every check holds."""
    return all(one.good for one in checks)


def _largest(name: str, what: str, rows: np.ndarray) -> Check:
    """Largest absolute correlation of two rows [N, M]; a row without any spread counts as 1."""
    count, size = rows.shape
    centred = rows - rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(norms > 0, norms, 1.0)
    found = np.abs(unit @ unit.T)
    np.fill_diagonal(found, np.where(norms[:, 0] > 0, 0.0, 1.0))
    return Check(
        name=name,
        what=what,
        statistic=float(min(found.max(), 1.0)),
        low=0.0,
        high=_correlation_limit(size, count * (count - 1) // 2),
        draws=count,
    )


def _correlation_limit(size: int, pairs: int) -> float:
    """Largest absolute correlation of two independent normal vectors [size] among ``pairs``."""
    freedom = size - 2
    t = float(stats.t.isf(ALPHA / (2 * pairs), freedom))
    return t / math.sqrt(freedom + t * t)


def largest_normal(count: int) -> float:
    """What the largest absolute value of so many standard normal numbers stays below."""
    return float(stats.norm.isf(ALPHA / (2 * count)))
