"""Federated expectation maximisation: the server's side, on released stacks alone."""

import math

import numpy as np

from shared.privacy.mixture import LatentMixture
from shared.privacy.summaries import MOMENTS_SENSITIVITY, LatentDensity, choose_form

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

    A component that noise drowns is dropped; where its count does not bear products of
    dimensions, they are left out. Of no component left, the previous mixture stays.

    Args:
        previous: the mixture that the clients shared their records out over.
        total: sum of the released ``mixture_moments`` [K, k+1, k+1].
        radius: they were clipped with.
        clients: how many released.
        noise_multiplier: of each release.
        epsilon: of one release; decides on the form of covariances.
        density: of all latents; sets the least variance.
    """
    deviation = MOMENTS_SENSITIVITY * noise_multiplier * math.sqrt(clients)
    k = len(density.mean)
    floor = _VARIANCE_SHARE * float(np.trace(density.covariance)) / k
    weights, means, covariances = [], [], []
    for matrix in total:
        count = float(matrix[-1, -1])
        if count < max(_LEAST_DEVIATIONS * deviation, 1.0):
            continue
        mean = matrix[-1, :-1] / count
        norm = float(np.linalg.norm(mean))
        mean = mean / max(norm, 1.0)  # a mean of points within the ball lies within it
        covariance = (matrix[:-1, :-1] / count - np.outer(mean, mean)) * radius**2
        if noise_multiplier and choose_form(int(count), clients, epsilon, k) == "diagonal":
            covariance = np.diag(np.diag(covariance))
        level = max(floor, deviation * radius**2 / count)
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        weights.append(count)
        means.append(mean * radius)
        covariances.append((vectors * np.maximum(values, level)) @ vectors.T)
    if not weights:
        return previous
    return LatentMixture(
        weights=np.asarray(weights) / np.sum(weights),
        means=np.stack(means),
        covariances=np.stack(covariances),
    )
