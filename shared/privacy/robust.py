"""Pooling of what sites release, so that one of them cannot move the result far.

A site's summary is taken per record and held against the middle of the sites, the median of each
entry. Where it lies further off than ``REACH`` times the median site, its weight falls with the
fourth power of that distance: of n sites of equal weight one moves the result by ``REACH`` median
deviations over n at most, and the further off it is the less, in second moments, too. Sites that
differ alike are pooled as they are. It does not cover sites that agree among themselves and are
half of all, nor tell a hostile site from an honest one whose data are of a kind of their own: that
one counts less, too.
All of it is post-processing, free of privacy cost. numpy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedlatent.shared.privacy.summaries import (
    EIGENVALUE_FLOOR,
    LatentDensity,
    floored,
    latent_density,
    linear_deviation,
)

#: Median deviations from the middle of the sites up to which a site counts whole.
REACH = 3.0
#: Fewer have no middle: they are pooled as they are.
LEAST_SITES = 3

_LEAST_SHARE = 0.01
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Tempered:
    """Sums of sites, each multiplied by what the site counts for over its records.

    Attributes:
        sums: one for each site, of the shape that was released.
        factors: [n] of the sites; their noise has been multiplied by them, too.
    """

    sums: list[np.ndarray]
    factors: np.ndarray


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The value [n] with half the weight [n] on either side, between two values where need be.

    Raises:
        ValueError: no weight, or a negative one.
    """
    found = np.asarray(weights, dtype=np.float64)
    if not (found >= 0).all() or not found.sum() > 0:
        raise ValueError("Expected weights of 0 or more, one of them positive, got others.")
    order = np.argsort(values)
    order = order[found[order] > 0]
    middles = np.cumsum(found[order]) - found[order] / 2
    return float(np.interp(found.sum() / 2, middles, np.asarray(values)[order]))


def falling(deviations: np.ndarray) -> np.ndarray:
    """What each site [n] counts for by its distance from the middle: 1 within reach, 0 far off."""
    reach = REACH * float(np.median(deviations))
    left = np.minimum(1.0, (reach + _TINY) / (deviations + _TINY)) ** 4
    return np.where(left < _LEAST_SHARE, 0.0, left)


def pooled_density(
    released: Sequence[np.ndarray],
    radius: float,
    noise_multiplier: float,
    weights: np.ndarray | None = None,
) -> LatentDensity:
    """The density of several sites' released moments, robust where they have ``weights``.

    Args:
        released: one noisy matrix [k+1, k+1] or vector [2k+1] per site, all of one form.
        radius: the public radius they were clipped with.
        noise_multiplier: of each release.
        weights: [n] records that each site counts for at most; None counts all, without bounds.

    Raises:
        ValueError: no matrix, or no record.
    """
    if weights is None or len(released) < LEAST_SITES:
        return latent_density(released, radius, noise_multiplier)
    least = EIGENVALUE_FLOOR / radius**2
    tempered = temper_moments(released, weights, noise_multiplier, least)
    return latent_density(tempered.sums, radius, noise_multiplier, tempered.factors)


def temper_moments(
    released: Sequence[np.ndarray], weights: np.ndarray, noise_multiplier: float, least: float
) -> Tempered:
    """Released moments of either form, by how far each site's mean and spread are off.

    Both are taken in units of the middle spread, along its axes.

    Args:
        released: as :func:`pooled_density`; of three sites or more.
        weights: [n] records that each site counts for at most.
        noise_multiplier: of each release.
        least: variance of a dimension that is its unit where its spread is smaller.
    """
    diagonal = released[0].ndim == 1
    counts = np.asarray([max(float(one[0] if diagonal else one[-1, -1]), 1.0) for one in released])
    rows = np.stack([one / count for one, count in zip(released, counts, strict=True)])
    noise = linear_deviation(diagonal=diagonal) * noise_multiplier / float(np.median(counts))
    offsets, excess = (_diagonal if diagonal else _full)(rows, noise, least)
    return _tempered(released, counts, weights * np.minimum(falling(offsets), falling(excess)))


def temper_stacks(
    released: Sequence[np.ndarray], records: Sequence[int], weights: np.ndarray
) -> Tempered:
    """Released ``mixture_moments`` [K, k+1, k+1], by how far each site's whole stack is off.

    Component by component a site with records of a kind of its own would lose its component.

    Args:
        released: one of each site, of three sites or more.
        records: of each; public.
        weights: [n] records that each site counts for at most.
    """
    counts = np.asarray(records, dtype=np.float64)
    rows = np.stack([one.ravel() / count for one, count in zip(released, counts, strict=True)])
    lengths = np.linalg.norm(rows - np.median(rows, axis=0), axis=1)
    return _tempered(released, counts, weights * falling(lengths))


def _tempered(released: Sequence[np.ndarray], counts: np.ndarray, weights: np.ndarray) -> Tempered:
    factors = weights / counts
    sums = [factor * one for factor, one in zip(factors, released, strict=True)]
    return Tempered(sums=sums, factors=factors)


def _full(rows: np.ndarray, noise: float, least: float) -> tuple[np.ndarray, np.ndarray]:
    """How far mean and spread [n] of moments per record [n, k+1, k+1] are off."""
    means, k = rows[:, -1, :-1], rows.shape[1] - 1
    spreads = rows[:, :-1, :-1] - np.einsum("ni,nj->nij", means, means)
    # What is smaller than the noise of a site (its spectral norm, see `latent_density`) tells none.
    middle = floored(np.median(spreads, axis=0), max(least, 2.0 * noise * float(np.sqrt(k))))
    values, vectors = np.linalg.eigh(middle)
    narrow = vectors / np.sqrt(values)
    offsets = np.linalg.norm((means - np.median(means, axis=0)) @ narrow, axis=1)
    excess = np.linalg.eigvalsh(narrow.T @ (spreads - middle) @ narrow)
    return offsets, np.abs(excess).max(axis=1)


def _diagonal(rows: np.ndarray, noise: float, least: float) -> tuple[np.ndarray, np.ndarray]:
    """The same of moments per record [n, 2k+1], by the dimension that is furthest off."""
    k = rows.shape[1] // 2
    means = rows[:, 1 : k + 1]
    spreads = rows[:, k + 1 :] - means**2
    middle = np.maximum(np.median(spreads, axis=0), max(least, 2.0 * noise))
    offsets = np.abs(means - np.median(means, axis=0)) / np.sqrt(middle)
    return offsets.max(axis=1), (np.abs(spreads - middle) / middle).max(axis=1)
