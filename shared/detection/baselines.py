"""Detectors without a network that a VAE must beat to have a case.

Each function fits on normal records [N, ...] and returns a scorer: records [B, ...] -> [B], higher
for anomalies. Records are those of `Schema.preprocess`; they are flattened here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.privacy.noise import NoiseSource
from shared.privacy.summaries import (
    LatentDensity,
    latent_density,
    release_moments,
    squared_distance,
)

Scorer = Callable[[ArrayLike], NDArray[np.float64]]


def pca(normals: ArrayLike, components: int = 8) -> Scorer:
    """Score by the squared error that is left after projection on the main components.

    Raises:
        ValueError: If there are fewer than two records or `components` is not positive.
    """
    rows = _rows(normals, least=2)
    if components < 1:
        raise ValueError(f"Expected at least 1 component, got {components}.")
    mean = rows.mean(axis=0)
    _, _, directions = np.linalg.svd(rows - mean, full_matrices=False)
    basis = directions[: min(components, len(rows) - 1)]

    def score(records: ArrayLike) -> NDArray[np.float64]:
        offset = _rows(records) - mean
        rest = offset - offset @ basis.T @ basis
        return np.asarray((rest**2).sum(axis=1))

    return score


def mahalanobis(normals: ArrayLike, ridge: float = 1e-2) -> Scorer:
    """Score by the squared Mahalanobis distance, with `ridge` added to every variance.

    Raises:
        ValueError: If there are fewer than two records or `ridge` is not positive.
    """
    rows = _rows(normals, least=2)
    if ridge <= 0.0:
        raise ValueError(f"Expected a positive ridge, got {ridge}.")
    mean = rows.mean(axis=0)
    centred = rows - mean
    covariance = centred.T @ centred / (len(rows) - 1) + ridge * np.eye(rows.shape[1])
    precision = np.linalg.inv(covariance)
    return lambda records: squared_distance(_rows(records), mean, precision)


def knn(normals: ArrayLike, neighbours: int = 5) -> Scorer:
    """Score by the Euclidean distance to the `neighbours`-th nearest normal record.

    Raises:
        ValueError: If there are fewer records than neighbours.
    """
    from sklearn.neighbors import NearestNeighbors

    if neighbours < 1:
        raise ValueError(f"Expected at least 1 neighbour, got {neighbours}.")
    index = NearestNeighbors(n_neighbors=neighbours).fit(_rows(normals, least=neighbours))
    return lambda records: np.asarray(index.kneighbors(_rows(records))[0][:, -1], dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivateGaussian:
    """The scorer that `dp_mahalanobis` fits: a public map and a released density.

    Attributes:
        projection: float64 [features, size], public.
        density: Mean and covariances of the projected records, released with noise.
    """

    projection: NDArray[np.float64]
    density: LatentDensity

    def __call__(self, records: ArrayLike) -> NDArray[np.float64]:
        """Return squared distances [B] to the common mean."""
        precision = self.density.precision(recentred=False)
        return squared_distance(_rows(records) @ self.projection.T, self.density.mean, precision)

    def recentre(self, normals: ArrayLike) -> Scorer:
        """Score by the distance to the mean of a site's own few normal records, kept at home.

        The covariance is the one within sites, as for a re-centred latent distance.

        Raises:
            ValueError: If there is no record.
        """
        center = (_rows(normals, least=1) @ self.projection.T).mean(axis=0)
        precision = self.density.precision(recentred=True)
        return lambda records: squared_distance(
            _rows(records) @ self.projection.T, center, precision
        )


def dp_mahalanobis(
    sites: Sequence[ArrayLike],
    *,
    features: int,
    radius: float,
    noise_multiplier: float,
    noise: NoiseSource,
) -> PrivateGaussian:
    """Score by Mahalanobis distance under moments that each site releases with noise.

    Records pass a public linear map (the lowest `features` frequencies of an orthonormal cosine
    transform, along each axis alike), then each site makes one `release_moments`, and the sum
    gives mean and covariance. Privacy per site: one Gaussian release with `noise_multiplier`.

    Args:
        sites: Normal records of each site, [N_i, ...].
        features: Number of coefficients kept.
        radius: Public norm that a record's features are clipped to, for the moments only.
        noise_multiplier: sigma of each release; 0 gives the same detector without privacy.
        noise: Source of the noise.

    Raises:
        ValueError: If there is no site, `radius` is not positive, or `features` lies outside
            1 to the size of a record.
    """
    if not sites or radius <= 0.0:
        raise ValueError(f"Expected sites and a positive radius, got {len(sites)} and {radius}.")
    projection = _cosines(np.asarray(sites[0]).shape[1:], features)
    released = [
        release_moments(_rows(site) @ projection.T, radius, noise_multiplier, noise)
        for site in sites
    ]
    density = latent_density(released, radius, noise_multiplier)
    return PrivateGaussian(projection=projection, density=density)


def _cosines(shape: tuple[int, ...], features: int) -> NDArray[np.float64]:
    """Return the lowest rows of the orthonormal cosine transform (DCT-II): [features, size]."""
    size = int(np.prod(shape))
    if not 1 <= features <= size:
        raise ValueError(f"Expected 1 to {size} features, got {features}.")
    matrix: NDArray[np.float64] = np.ones((1, 1))
    order: NDArray[np.float64] = np.zeros(1)
    for length in shape:
        index = np.arange(length)
        axis = np.cos(np.pi * index[:, None] * (2 * index + 1) / (2 * length))
        axis *= np.sqrt(np.where(index == 0, 1.0, 2.0) / length)[:, None]
        matrix = np.asarray(np.kron(matrix, axis), dtype=np.float64)
        order = (order[:, None] + index / length).ravel()
    return matrix[np.argsort(order, kind="stable")[:features]]


def _rows(records: ArrayLike, least: int = 0) -> NDArray[np.float64]:
    """Flatten records to float64 [N, size]; raise ValueError for fewer than `least`."""
    array = np.asarray(records, dtype=np.float64)
    if array.ndim < 2 or len(array) < least:
        raise ValueError(f"Expected at least {least} records [N, ...], got shape {array.shape}.")
    return array.reshape(len(array), int(np.prod(array.shape[1:])))
