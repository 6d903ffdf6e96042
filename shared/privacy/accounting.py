"""Epsilon of a list of Gaussian releases: by Renyi differential privacy, and by loss distributions.

Every release this project makes is a (possibly Poisson-subsampled) Gaussian mechanism, so one event
type and one composition rule serve DP-SGD, latent moments and histograms alike. The adjacency is
zero-out (one record replaced by a null record), with the sensitivities and the accounting of
add/remove; the number of records is public.

``epsilon_of`` (RDP) is the guard: plans are solved and ledgers charge by it. ``pld_epsilon_of`` is
tighter and shown beside it. It holds for releases whose parameters were fixed beforehand, as those
of one run are. It cannot guard runs that are chosen after earlier answers: to stop by composed loss
distributions is no valid filter (Regehr et al. 2026).

Source: Mironov 2017 (RDP), Mironov, Talwar & Zhang 2019 (sampled Gaussian), Canonne, Kamath &
Steinke 2020 (conversion to epsilon), to the last bit as Opacus computes them. Koskela, Jaelkoe &
Honkela 2020 (loss distributions), Doroshenko et al. 2022 (rounding them), as implemented in
dp-accounting.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

ADJACENCY = "zero-out"
#: Epsilons above it are RDP's in both figures: they promise nothing, and their losses fill memory.
PLD_LIMIT = 100.0

#: Renyi orders. Whole orders have a closed form, so that independent implementations agree to the
#: last digit (fractional ones differ by 1e-5); they cost under 1 % of epsilon. Orders beyond 63
#: matter for epsilons under 0.5.
ORDERS: tuple[float, ...] = (
    *map(float, range(2, 64)),
    *(80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 1024.0),
)

_PLD_INTERVAL = 1e-4  # between losses that are told apart, for epsilons up to 1


@dataclass(frozen=True, kw_only=True)
class GaussianEvent:
    """One or more releases of a Gaussian mechanism with the same parameters.

    Attributes:
        noise_multiplier: standard deviation of the noise divided by the L2 sensitivity.
        sample_rate: probability q with which each record takes part in one step.
        steps: how many times the mechanism runs.
    """

    noise_multiplier: float
    sample_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        """Refuse parameters that have no epsilon."""
        if not self.noise_multiplier > 0:
            raise ValueError(f"Expected noise_multiplier > 0, got {self.noise_multiplier}.")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"Expected 0 < sample_rate <= 1, got {self.sample_rate}.")
        if self.steps < 0:
            raise ValueError(f"Expected steps >= 0, got {self.steps}.")


def rdp_of(events: Iterable[GaussianEvent]) -> np.ndarray:
    """Renyi divergences of the composition of ``events`` at ``ORDERS``; shape [len(ORDERS)]."""
    total = np.zeros(len(ORDERS))
    for sigma, q, steps in merged_events(events):
        total += _rdp_of_one_step(sigma, q) * steps
    return total


def merged_events(events: Iterable[GaussianEvent]) -> tuple[tuple[float, float, int], ...]:
    """Noise multiplier, sampling rate and steps of equal events together, in order."""
    merged: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.noise_multiplier, event.sample_rate)
        merged[key] = merged.get(key, 0) + event.steps
    return tuple((sigma, q, steps) for (sigma, q), steps in sorted(merged.items()) if steps)


@functools.lru_cache(maxsize=4096)
def _rdp_of_one_step(noise_multiplier: float, sample_rate: float) -> np.ndarray:
    """Renyi divergences of one step; kept, since a ledger asks for the same ones all its life.

    At a whole order a of a sampled Gaussian it is the logarithm of the sum over i <= a of
    ``binom(a, i) q^i (1 - q)^(a - i) exp((i^2 - i) / (2 sigma^2))``, divided by a - 1.
    """
    orders, twice = np.asarray(ORDERS), 2 * noise_multiplier**2
    if sample_rate == 1.0:
        return orders / twice
    taken, left = math.log(sample_rate), math.log(1 - sample_rate)
    sums = [
        np.logaddexp.reduce(ways + i * taken + i[::-1] * left + (i * i - i) / twice)
        for i, ways in _log_binomials()
    ]
    return np.asarray(sums / (orders - 1))


@functools.cache
def _log_binomials() -> list[tuple[np.ndarray, np.ndarray]]:
    """For each of ``ORDERS`` the numbers of 0 to a, and in how many ways so many are chosen."""
    numbers = [np.arange(int(order) + 1) for order in ORDERS]
    # Not np.log, whose last bit depends on the processor.
    return [(i, np.array([math.log(one) for one in special.binom(i[-1], i)])) for i in numbers]


def epsilon_of(events: Iterable[GaussianEvent], delta: float, order: float | None = None) -> float:
    """Epsilon at ``delta`` of the composition of ``events``; 0.0 for no event.

    Args:
        events: everything that was ever released about one data set.
        delta: target delta, strictly between 0 and 1.
        order: the one of ``ORDERS`` to convert at; None takes the best.
    """
    if not 0 < delta < 1:
        raise ValueError(f"Expected 0 < delta < 1, got {delta}.")
    rdp = rdp_of(events)
    if not rdp.any():
        return 0.0
    epsilon = rdp + _conversion(delta)
    return float(max(0.0, np.nanmin(epsilon) if order is None else epsilon[ORDERS.index(order)]))


def filter_order(events: Iterable[GaussianEvent], epsilon: float, delta: float) -> float:
    """The one of ``ORDERS`` at which a budget holds ``events`` the most often.

    To be taken before the first release. Releases whose parameters are chosen after earlier answers
    compose in RDP at an order that was fixed beforehand (Feldman & Zrnic 2021): stopping before the
    sum of their divergences passes a fixed budget is a valid privacy filter, at no cost. An order
    chosen in hindsight has no such theorem.

    Args:
        events: what is known in advance, such as the whole of a first run.
        epsilon: the budget.
        delta: of the budget.
    """
    left = epsilon - _conversion(delta)
    with np.errstate(invalid="ignore"):
        times = left / rdp_of(events)
    return ORDERS[int(np.nanargmax(times))]


def _conversion(delta: float) -> np.ndarray:
    """What epsilon at ``delta`` is above the divergence of each order: [len(ORDERS)]."""
    orders = np.asarray(ORDERS)
    above: np.ndarray = np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)
    return above


def pld_epsilon_of(events: Iterable[GaussianEvent], delta: float) -> float:
    """Epsilon at ``delta`` of the composition of ``events`` by their privacy loss distribution.

    The adjacency is the one that dp-accounting calls "replace special": a record against a null
    record that adds zero, N public. Whether a null record is sampled makes no difference, so a step
    is q N(1, s^2) + (1 - q) N(0, s^2) against N(0, s^2), which is the dominating pair of add/remove
    (Zhu, Dong & Wang 2022). Its two directions are composed apart, since one data set holds the
    record in every release and the other in none; the worse one counts. Losses are rounded so that
    the figure is never below the true one; nor is it above that of ``epsilon_of``.

    Args:
        events: releases whose parameters were fixed before the first of them.
        delta: target delta, strictly between 0 and 1.
    """
    merged = merged_events(events)
    bound = epsilon_of(
        [GaussianEvent(noise_multiplier=s, sample_rate=q, steps=k) for s, q, k in merged], delta
    )
    return min(bound, _pld_epsilon(merged, delta, bound)) if 0 < bound <= PLD_LIMIT else bound


@functools.lru_cache(maxsize=256)
def _pld_epsilon(merged: tuple[tuple[float, float, int], ...], delta: float, bound: float) -> float:
    """Of merged events; ``bound`` from RDP sets how finely losses are told apart."""
    # Here, since the import takes a second that no node needs.
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    def loss(sigma: float, q: float) -> "PrivacyLossDistribution":
        return privacy_loss_distribution.from_gaussian_mechanism(
            sigma,
            sampling_prob=q,
            value_discretization_interval=_PLD_INTERVAL * max(1.0, bound),
            pessimistic_estimate=True,
            neighboring_relation=NeighboringRelation.REPLACE_SPECIAL,
        )

    sampled = [loss(sigma, q).self_compose(steps) for sigma, q, steps in merged if q < 1.0]
    # Gaussians compose to one Gaussian: the squares of 1 / sigma add up.
    whole = sum(steps / sigma**2 for sigma, q, steps in merged if q == 1.0)
    parts = [*sampled, *([loss(whole**-0.5, 1.0)] if whole else [])]
    return float(functools.reduce(lambda a, b: a.compose(b), parts).get_epsilon_for_delta(delta))


def calibrate(
    epsilon: float, delta: float, events: Callable[[float], list[GaussianEvent]]
) -> float:
    """Smallest scale (to 1e-4 relative) at which ``events(scale)`` costs at most ``epsilon``.

    Args:
        epsilon: target.
        delta: target.
        events: the releases as a function of one number by which every noise multiplier grows.

    Raises:
        ValueError: no scale up to 1e6 is private enough.
    """
    if not epsilon > 0:
        raise ValueError(f"Expected epsilon > 0, got {epsilon}.")
    high = 1.0
    while epsilon_of(events(high), delta) > epsilon:
        high *= 2
        if high > 1e6:
            raise ValueError(f"Expected a reachable epsilon, got {epsilon} at delta {delta}.")
    low = high / 2
    while low > 1e-3 and epsilon_of(events(low), delta) <= epsilon:
        low, high = low / 2, low
    while high / low > 1 + 1e-4:
        middle = (low * high) ** 0.5
        if epsilon_of(events(middle), delta) > epsilon:
            low = middle
        else:
            high = middle
    return high
