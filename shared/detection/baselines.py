"""Detectors without a network that a VAE must beat to have a case.

Each function fits on normal records [N, ...] and returns a scorer: records [B, ...] -> [B], higher
for anomalies. Records are those of `Schema.preprocess`; they are flattened here. The two private
ones, `dp_mahalanobis` and `dp_gaussian_mixture`, fit on one set of records per site.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlatent.shared.data.frequencies import cosine_basis
from fedlatent.shared.privacy.accounting import GaussianEvent, epsilon_of
from fedlatent.shared.privacy.em import first_mixture, next_mixture
from fedlatent.shared.privacy.mixture import LatentMixture
from fedlatent.shared.privacy.noise import NoiseSource
from fedlatent.shared.privacy.summaries import (
    LatentDensity,
    latent_density,
    mixture_moments,
    mixture_spec,
    noisy_moments,
    noisy_sum,
    squared_distance,
)

Scorer = Callable[[ArrayLike], NDArray[np.float64]]

#: Most records that the kernel methods keep; fitting or scoring takes time in proportion to them.
MOST_NEIGHBOURS, MOST_VECTORS = 20_000, 4_000

_FORM_DELTA = 1e-5  # of the epsilon that only decides on the form of a covariance


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


def knn(normals: ArrayLike, neighbours: int = 5, seed: int = 0) -> Scorer:
    """Score by the Euclidean distance to the `neighbours`-th nearest normal record.

    Of more than `MOST_NEIGHBOURS` records so many are drawn by `seed`, which bounds the time.

    Raises:
        ValueError: If there are fewer records than neighbours.
    """
    from sklearn.neighbors import NearestNeighbors

    if neighbours < 1:
        raise ValueError(f"Expected at least 1 neighbour, got {neighbours}.")
    rows = _drawn(_rows(normals, least=neighbours), max(MOST_NEIGHBOURS, neighbours), seed)
    index = NearestNeighbors(n_neighbors=neighbours).fit(rows)
    return lambda records: np.asarray(index.kneighbors(_rows(records))[0][:, -1], dtype=np.float64)


def rolling_z_score(records: ArrayLike, ridge: float = 1e-3) -> NDArray[np.float64]:
    """Score windows by how far their last row lies from those before it; nothing is fitted.

    Args:
        records: Windows [B, T] or [B, C, T], T of at least 2.
        ridge: Least deviation of the earlier rows that is divided by.

    Returns:
        The largest distance of a channel's last value from the mean of its earlier ones, in their
        standard deviations: [B].

    Raises:
        ValueError: If a window has one row.
    """
    rows = np.asarray(records, dtype=np.float64)
    if rows.shape[-1] < 2:
        raise ValueError(f"Expected windows of at least 2 rows, got {rows.shape[-1]}.")
    before, last = rows[..., :-1], rows[..., -1]
    scores = np.abs(last - before.mean(axis=-1)) / np.maximum(before.std(axis=-1), ridge)
    return np.asarray(scores.reshape(len(rows), -1).max(axis=1))


def isolation_forest(normals: ArrayLike, trees: int = 100, seed: int = 0) -> Scorer:
    """Score by how few random cuts set a record apart (Liu, Ting and Zhou 2008).

    Each tree grows on 256 records that `seed` draws, so the size of the set costs nothing. The
    score is that of the paper, 2^(-depth / expected depth), in (0, 1].

    Raises:
        ValueError: If there are fewer than two records or `trees` is not positive.
    """
    from sklearn.ensemble import IsolationForest

    if trees < 1:
        raise ValueError(f"Expected at least 1 tree, got {trees}.")
    forest = IsolationForest(n_estimators=trees, random_state=seed).fit(_rows(normals, least=2))
    return lambda records: -np.asarray(forest.score_samples(_rows(records)), dtype=np.float64)


def one_class_svm(normals: ArrayLike, outliers: float = 0.1, seed: int = 0) -> Scorer:
    """Score by the negative value of a one-class support vector machine (Schoelkopf et al. 2001).

    The kernel is Gaussian with exponent |x - y|^2 / (size * variance of all values). Of more than
    `MOST_VECTORS` records so many are drawn by `seed`: fitting takes quadratic time.

    Args:
        normals: Records [N, ...].
        outliers: nu, the share of the records that may lie outside.
        seed: Draws records where there are too many.

    Raises:
        ValueError: If there are fewer than two records or `outliers` lies outside (0, 1].
    """
    from sklearn.svm import OneClassSVM

    if not 0.0 < outliers <= 1.0:
        raise ValueError(f"Expected a share of outliers in (0, 1], got {outliers}.")
    rows = _drawn(_rows(normals, least=2), MOST_VECTORS, seed)
    machine = OneClassSVM(kernel="rbf", gamma="scale", nu=outliers).fit(rows)
    return lambda records: -np.asarray(machine.score_samples(_rows(records)), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicMap:
    """A linear map from records to few features that depends on no record.

    Attributes:
        projection: float64 [features, size], orthonormal rows.
        center: Taken from every value of a record first.
    """

    projection: NDArray[np.float64]
    center: float

    def __call__(self, records: ArrayLike, least: int = 0) -> NDArray[np.float64]:
        """Return features [B, features]; raise ValueError for fewer than `least` records."""
        return (_rows(records, least) - self.center) @ self.projection.T


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivateGaussian:
    """The scorer that `dp_mahalanobis` fits: a public map and a released density.

    Attributes:
        features: The public map.
        density: Mean and covariances of the records' features, released with noise.
    """

    features: PublicMap
    density: LatentDensity

    def __call__(self, records: ArrayLike) -> NDArray[np.float64]:
        """Return squared distances [B] to the common mean."""
        precision = self.density.precision(recentred=False)
        return squared_distance(self.features(records), self.density.mean, precision)

    def recentre(self, normals: ArrayLike) -> Scorer:
        """Score by the distance to the mean of a site's own few normal records, kept at home.

        The covariance is the one within sites, as for a re-centred latent distance.

        Raises:
            ValueError: If there is no record.
        """
        center = self.features(normals, least=1).mean(axis=0)
        precision = self.density.precision(recentred=True)
        return lambda records: squared_distance(self.features(records), center, precision)


def dp_mahalanobis(
    sites: Sequence[ArrayLike],
    *,
    features: int,
    radius: float,
    noise_multiplier: float,
    noise: NoiseSource,
    center: float = 0.0,
) -> PrivateGaussian:
    """Score by Mahalanobis distance under moments that each site releases with noise.

    Records pass a public linear map (`cosine_basis`: the lowest `features` frequencies along each
    axis alike, or the values themselves where `features` is not below their number, as suits
    tables), then each site makes one `noisy_moments`, and the sum gives mean and covariance.
    Privacy per site: one Gaussian release with `noise_multiplier`.

    Args:
        sites: Normal records of each site, [N_i, ...].
        features: Number of coefficients kept; more than a record's values means all of these.
        radius: Public norm that a record's features are clipped to, for the moments only.
        noise_multiplier: sigma of each release; 0 gives the same detector without privacy.
        noise: Source of the noise.
        center: Public value taken from every value of a record first. Where records lie about the
            middle of their bounds rather than about 0, that middle lets `radius` be smaller, and
            with it the noise.

    Raises:
        ValueError: If there is no site, `radius` or `features` is not positive, or noise has
            driven the pooled count below one.
    """
    public = _public_map(sites, features, radius, center)
    density = _released_density(list(map(public, sites)), radius, noise_multiplier, noise)
    return PrivateGaussian(features=public, density=density)


@dataclass(frozen=True, kw_only=True, eq=False)
class PrivateMixture:
    """The scorer that `dp_gaussian_mixture` fits: a public map and a released mixture.

    Attributes:
        features: The public map.
        mixture: Of the records' features, fitted on releases with noise alone.
    """

    features: PublicMap
    mixture: LatentMixture

    def __call__(self, records: ArrayLike) -> NDArray[np.float64]:
        """Return negative logarithms of the density, in nats [B]."""
        return -self.mixture.log_density(self.features(records))


def dp_gaussian_mixture(
    sites: Sequence[ArrayLike],
    *,
    features: int,
    radius: float,
    components: int,
    em_rounds: int,
    noise_multiplier: float,
    noise: NoiseSource,
    center: float = 0.0,
    seed: int = 0,
) -> PrivateMixture:
    """Score by the density of a mixture of Gaussians, fitted by federated EM on noisy releases.

    Records pass the map of `dp_mahalanobis`. Each site first releases its moments; components
    start as seeded draws from that Gaussian, so that the start reads no record either. Then each
    round of expectation maximisation is one release of `mixture_moments` per site (Park et al.
    2017, "DP-EM", with the releases of a whole component stack at once).

    Privacy per site: 1 + `em_rounds` Gaussian releases with `noise_multiplier` each, which cost as
    much as a single one with `noise_multiplier` / sqrt(1 + `em_rounds`). To spend what
    `dp_mahalanobis` spends at sigma, give sigma * sqrt(1 + `em_rounds`).

    Args:
        sites: Normal records of each site, [N_i, ...].
        features: Number of coefficients kept; more than a record's values means all of these.
        radius: Public norm that a record's features are clipped to, for the releases only.
        components: Gaussians at the start; those that noise drowns are dropped.
        em_rounds: Rounds of expectation maximisation.
        noise_multiplier: sigma of each release; 0 gives the same detector without privacy.
        noise: Source of the noise.
        center: Public value taken from every value of a record first, as in `dp_mahalanobis`.
        seed: Draws where the components start, in the released Gaussian.

    Raises:
        ValueError: As `dp_mahalanobis`, or if `components` or `em_rounds` is not positive.
    """
    if components < 1 or em_rounds < 1:
        raise ValueError(
            f"Expected positive components and rounds, got {components} and {em_rounds}."
        )
    public = _public_map(sites, features, radius, center)
    rows = list(map(public, sites))
    density = _released_density(rows, radius, noise_multiplier, noise)
    mixture = first_mixture(density, components, seed)
    event = [GaussianEvent(noise_multiplier=noise_multiplier)] if noise_multiplier else []
    for _ in range(em_rounds):
        stacks = [mixture_moments(one, radius, mixture) for one in rows]
        spec = mixture_spec(len(mixture.weights), rows[0].shape[1])
        released = [noisy_sum(one, spec, noise_multiplier, noise) for one in stacks]
        mixture = next_mixture(
            mixture,
            np.sum(released, axis=0),
            radius=radius,
            clients=len(sites),
            noise_multiplier=noise_multiplier,
            epsilon=epsilon_of(event, _FORM_DELTA),
            density=density,
        )
    return PrivateMixture(features=public, mixture=mixture)


def _public_map(
    sites: Sequence[ArrayLike], features: int, radius: float, center: float
) -> PublicMap:
    """Return the public map of the sites' records, after checking arguments."""
    if not sites or radius <= 0.0 or features < 1:
        raise ValueError(
            "Expected sites, a positive radius and at least 1 feature, "
            f"got {len(sites)}, {radius} and {features}."
        )
    projection = cosine_basis(np.asarray(sites[0]).shape[1:], features)
    return PublicMap(projection=projection, center=center)


def _released_density(
    rows: Sequence[NDArray[np.float64]], radius: float, noise_multiplier: float, noise: NoiseSource
) -> LatentDensity:
    """Pool one release of the moments of each site's rows [N_i, features]."""
    released = [noisy_moments(one, radius, noise_multiplier, noise) for one in rows]
    return latent_density(released, radius, noise_multiplier)


def _drawn(rows: NDArray[np.float64], most: int, seed: int) -> NDArray[np.float64]:
    """Return at most so many of the rows, drawn without replacement."""
    if len(rows) <= most:
        return rows
    return rows[np.random.default_rng(seed).choice(len(rows), most, replace=False)]


def _rows(records: ArrayLike, least: int = 0) -> NDArray[np.float64]:
    """Flatten records to float64 [N, size]; raise ValueError for fewer than `least`."""
    array = np.asarray(records, dtype=np.float64)
    if array.ndim < 2 or len(array) < least:
        raise ValueError(f"Expected at least {least} records [N, ...], got shape {array.shape}.")
    return array.reshape(len(array), int(np.prod(array.shape[1:])))
