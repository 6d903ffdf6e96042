"""Epsilon of a list of Gaussian releases, by Renyi differential privacy.

Every release this project makes is a (possibly Poisson-subsampled) Gaussian mechanism, so one event
type and one composition rule serve DP-SGD, latent moments and histograms alike. The adjacency is
zero-out (one record replaced by a null record), with the sensitivities and the accounting of
add/remove; the number of records is public.

Source: Mironov 2017 (RDP), Mironov, Talwar & Zhang 2019 (sampled Gaussian), Canonne, Kamath &
Steinke 2020 (conversion to epsilon), as implemented in Opacus.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from opacus.accountants.analysis import rdp as opacus_rdp

ADJACENCY = "zero-out"

#: Renyi orders. Whole orders have a closed form, so that independent implementations agree to the
#: last digit (fractional ones differ by 1e-5); they cost under 1 % of epsilon. Orders beyond 63
#: matter for epsilons under 0.5.
ORDERS: tuple[float, ...] = (
    *map(float, range(2, 64)),
    *(80.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 1024.0),
)


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
    merged: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.noise_multiplier, event.sample_rate)
        merged[key] = merged.get(key, 0) + event.steps
    total = np.zeros(len(ORDERS))
    for (sigma, q), steps in sorted(merged.items()):
        if steps:
            total += _rdp_of_one_step(sigma, q) * steps
    return total


@functools.lru_cache(maxsize=4096)
def _rdp_of_one_step(noise_multiplier: float, sample_rate: float) -> np.ndarray:
    """Renyi divergences of one step; kept, since a ledger asks for the same ones all its life."""
    return np.asarray(
        opacus_rdp.compute_rdp(
            q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=ORDERS
        )
    )


def epsilon_of(events: Iterable[GaussianEvent], delta: float) -> float:
    """Epsilon at ``delta`` of the composition of ``events``; 0.0 for no event.

    Args:
        events: everything that was ever released about one data set.
        delta: target delta, strictly between 0 and 1.
    """
    if not 0 < delta < 1:
        raise ValueError(f"Expected 0 < delta < 1, got {delta}.")
    rdp = rdp_of(events)
    if not rdp.any():
        return 0.0
    orders = np.asarray(ORDERS)
    epsilon = rdp - (np.log(delta) + np.log(orders)) / (orders - 1) + np.log1p(-1 / orders)
    return float(max(0.0, np.nanmin(epsilon)))


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
