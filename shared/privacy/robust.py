"""Pooling of what sites release, so that one of them cannot move the result far.

Each site's summary is taken per record, and a part of it that lies further from the middle of the
sites than ``REACH`` times the median site does is drawn in to that distance. What is left is
pooled by weight. Honest sites that differ alike are not touched; of n sites of equal weight a
hostile one moves a part by ``REACH`` median deviations over n at most. It does not cover sites
that agree among themselves and are half of all, nor tell a hostile site from an honest one whose
data are of a kind of their own: that one is drawn in, too. All of it is post-processing, free of
privacy cost. numpy only.

The moments of a site have two parts: its mean, and the spread about it, in units of the middle
spread. Spread is bounded direction by direction (eigenvalue by eigenvalue), so that no site can
make a direction vanish for all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.privacy.summaries import (
    EIGENVALUE_FLOOR,
    LatentDensity,
    floored,
    latent_density,
    linear_deviation,
    noise_floor,
)

#: Median deviations that a site's part may lie from the middle of the sites.
REACH = 2.0
#: Fewer have no middle: they are pooled as they are.
LEAST_SITES = 3

#: Deviations of noise by which a spread may lie below zero.
_NOISE_REACH = 3.0
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Tempered:
    """Sums of sites as if each had as many records as it weighs, far parts drawn in.

    Attributes:
        sums: one for each site, of the shape that was released.
        noise: [n] what the noise of each site's release has been multiplied by.
    """

    sums: list[np.ndarray]
    noise: np.ndarray


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The value [n] with half the weight [n] on either side; the middle of two at a tie.

    Raises:
        ValueError: no values, or a weight that is not positive.
    """
    if not len(values) or not (np.asarray(weights) > 0).all():
        raise ValueError("Expected values of positive weight, got none.")
    order = np.argsort(values, kind="stable")
    sorted_values, reached = np.asarray(values)[order], np.cumsum(np.asarray(weights)[order])
    half = reached[-1] / 2
    lower = int(np.searchsorted(reached, half * (1 - 1e-12)))
    upper = int(np.searchsorted(reached, half * (1 + 1e-12)))
    return float((sorted_values[lower] + sorted_values[upper]) / 2)


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
    return latent_density(tempered.sums, radius, noise_multiplier, tempered.noise)


def temper_moments(
    released: Sequence[np.ndarray], weights: np.ndarray, noise_multiplier: float, least: float
) -> Tempered:
    """Released moments of either form with mean and spread of each site bounded.

    Args:
        released: as :func:`pooled_density`; of three sites or more.
        weights: [n] that each site is to count for.
        noise_multiplier: of each release.
        least: variance of a dimension that is taken for its spread where it is smaller.
    """
    diagonal = released[0].ndim == 1
    counts = np.asarray([max(float(one[0] if diagonal else one[-1, -1]), 1.0) for one in released])
    noises = linear_deviation(diagonal=diagonal) * noise_multiplier / counts
    rows = np.stack([one / count for one, count in zip(released, counts, strict=True)])
    shares, drawn = (_diagonal if diagonal else _full)(rows, noises, least)
    sums = [weight * one for weight, one in zip(weights, drawn, strict=True)]
    return Tempered(sums=sums, noise=shares * weights / counts)


def temper_stacks(
    released: Sequence[np.ndarray], records: Sequence[int], weights: np.ndarray
) -> Tempered:
    """Released ``mixture_moments`` [K, k+1, k+1], each site's stack bounded as a whole.

    Component by component a site with records of a kind of its own would lose its component.

    Args:
        released: one of each site, of three sites or more.
        records: of each; public.
        weights: [n] that each site is to count for.
    """
    counts = np.asarray(records, dtype=np.float64)
    flat = np.stack([one.ravel() / count for one, count in zip(released, counts, strict=True)])
    middle = np.median(flat, axis=0)
    shares = _shares(np.linalg.norm(flat - middle, axis=1))
    drawn = middle + shares[:, None] * (flat - middle)
    stacks = drawn.reshape(len(released), *released[0].shape)
    sums = [weight * stack for weight, stack in zip(weights, stacks, strict=True)]
    return Tempered(sums=sums, noise=shares * weights / counts)


def _full(rows: np.ndarray, noises: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Moments per record [n, k+1, k+1] bounded, after what is left of each site's mean [n]."""
    means, k = rows[:, -1, :-1], rows.shape[1] - 1
    spreads = rows[:, :-1, :-1] - np.einsum("ni,nj->nij", means, means)
    center, middle = np.median(means, axis=0), np.median(spreads, axis=0)
    floor = max(least, noise_floor(_middle_noise(noises), k, diagonal=False))
    values, vectors = np.linalg.eigh(floored(middle, floor))
    wide = (vectors * np.sqrt(values)) @ vectors.T
    narrow = (vectors / np.sqrt(values)) @ vectors.T
    shares = _shares(np.linalg.norm((means - center) @ narrow, axis=1))
    means = center + shares[:, None] * (means - center)
    # No spread is negative but by noise.
    possible = [
        floored(one, -_NOISE_REACH * noise * np.sqrt(k))
        for one, noise in zip(spreads, noises, strict=True)
    ]
    excess, turned = np.linalg.eigh(narrow @ np.stack(possible) @ narrow - np.eye(k))
    reach = _reach(np.abs(excess).max(axis=1))
    bounded = (turned * (1.0 + np.clip(excess, -reach, reach))[:, None, :]) @ turned.swapaxes(1, 2)
    drawn = np.empty_like(rows)
    drawn[:, :-1, :-1] = wide @ bounded @ wide + np.einsum("ni,nj->nij", means, means)
    drawn[:, -1, :-1] = drawn[:, :-1, -1] = means
    drawn[:, -1, -1] = 1.0
    return shares, drawn


def _diagonal(rows: np.ndarray, noises: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """The same of moments per record [n, 2k+1], each dimension by itself."""
    k = rows.shape[1] // 2
    means = rows[:, 1 : k + 1]
    spreads = np.maximum(rows[:, k + 1 :] - means**2, -_NOISE_REACH * noises[:, None])
    floor = max(least, noise_floor(_middle_noise(noises), k, diagonal=True))
    center, middle = np.median(means, axis=0), np.maximum(np.median(spreads, axis=0), floor)
    offsets, excess = (means - center) / np.sqrt(middle), spreads / middle - 1.0
    reach, reach_of_excess = (_reach(np.abs(one).max(axis=1)) for one in (offsets, excess))
    bounded = np.clip(offsets, -reach, reach)
    lengths = np.linalg.norm(offsets, axis=1)
    shares = np.linalg.norm(bounded, axis=1) / np.maximum(lengths, _TINY)
    means = center + bounded * np.sqrt(middle)
    spreads = middle * (1.0 + np.clip(excess, -reach_of_excess, reach_of_excess))
    drawn = np.concatenate([np.ones((len(rows), 1)), means, spreads + means**2], axis=1)
    return np.where(lengths > _TINY, shares, 1.0), drawn


def _middle_noise(noises: np.ndarray) -> float:
    """Deviation of the noise in a median of sites, about."""
    return float(np.median(noises)) / float(np.sqrt(len(noises)))


def _shares(deviations: np.ndarray) -> np.ndarray:
    """What is left of each deviation [n] when none is longer than ``REACH`` times the median."""
    left: np.ndarray = np.minimum(1.0, _reach(deviations) / np.maximum(deviations, _TINY))
    return left


def _reach(deviations: np.ndarray) -> float:
    return REACH * max(float(np.median(deviations)), _TINY)
