"""Federated expectation maximisation: the server's side, on released stacks alone."""

import math

import numpy as np

from fedlatent.shared.privacy.mixture import LatentMixture
from fedlatent.shared.privacy.summaries import (
    MIXTURE_SENSITIVITY,
    LatentDensity,
    choose_form,
    floored,
)

#: Components whose count is below so many deviations of its noise are dropped.
_LEAST_DEVIATIONS = 3.0
#: Least variance of a component, as a share of the density's mean variance.
_VARIANCE_SHARE = 0.05
_START_SHRINK = 0.5  # of the density's covariance, for each first component


def first_mixture(density: LatentDensity, components: int, seed: int) -> LatentMixture:
    """Components spread over a released Gaussian: seeded draws from it, with equal weights."""
    rng = np.random.default_rng(seed)
    factor = np.linalg.cholesky(density.covariance)
    normal = rng.standard_normal((components, len(density.mean)))
    return LatentMixture(
        weights=np.full(components, 1.0 / components),
        means=density.mean + normal @ factor.T,
        covariances=np.repeat(_START_SHRINK * density.covariance[None], components, axis=0),
    )


def next_mixture(
    previous: LatentMixture,
    total: np.ndarray,
    *,
    radius: float,
    clients: int,
    noise_multiplier: float,
    epsilon: float,
    density: LatentDensity,
) -> LatentMixture:
    """The maximisation step from the sum of the clients' released stacks.

    A component that noise drowns is dropped; one whose count does not bear products of dimensions
    takes the covariance within components, which the density gives less the spread of their means.
    Of no component left, the previous mixture stays.

    Args:
        previous: the mixture that the clients shared their records out over.
        total: sum of the released ``mixture_moments`` [K, k+1, k+1].
        radius: they were clipped with.
        clients: how many released.
        noise_multiplier: of each release.
        epsilon: of one release; decides whose covariance is its own.
        density: of all latents; sets the least variance and the covariance that is shared.
    """
    deviation = MIXTURE_SENSITIVITY * noise_multiplier * math.sqrt(clients)
    k = len(density.mean)
    floor = _VARIANCE_SHARE * float(np.trace(density.covariance)) / k
    counts, means, own = [], [], []
    for matrix in total:
        count = float(matrix[-1, -1])
        if count < max(_LEAST_DEVIATIONS * deviation, 1.0):
            continue
        mean = matrix[-1, :-1] / count
        norm = float(np.linalg.norm(mean))
        mean = mean / max(norm, 1.0)  # a mean of points within the ball lies within it
        counts.append(count)
        means.append(mean * radius)
        own.append((matrix[:-1, :-1] / count - np.outer(mean, mean)) * radius**2)
    if not counts:
        return previous
    weights = np.asarray(counts) / np.sum(counts)
    shared = _within(density, weights, np.stack(means))
    covariances = []
    for count, covariance in zip(counts, own, strict=True):
        if noise_multiplier and choose_form(int(count), clients, epsilon, k) == "diagonal":
            covariances.append(shared)
        else:
            level = max(floor, deviation * radius**2 / count)
            covariances.append(floored(covariance, level))
    return LatentMixture(weights=weights, means=np.stack(means), covariances=np.stack(covariances))


def _within(density: LatentDensity, weights: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Covariance [k, k] that is left within components; not below the density's least variance."""
    offset = means - weights @ means
    between = (weights[:, None] * offset).T @ offset
    return floored(density.covariance - between, np.linalg.eigvalsh(density.covariance).min())
