"""Latent summaries: moments and histograms, each a Gaussian release of stated sensitivity.

Notation: z_i in R^k are latent means of the released encoder, clipped to a public radius R,
u_i = (z_i / R, 1). Un-noised sums and their releases are separate functions, so that tests can
check the sensitivity of the first and the variance of the second. numpy only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.privacy.noise import NoiseSource

#: L2 sensitivity of ``moments`` under zero-out: |u|^2 <= 2 in Frobenius norm.
MOMENTS_SENSITIVITY = 2.0
#: L2 sensitivity of ``histograms``: one record adds one count to each of two histograms.
HISTOGRAM_SENSITIVITY = math.sqrt(2.0)
#: Public edges of squared latent distances, 128 logarithmic bins; the outer ones are open.
SCORE_EDGES = np.geomspace(1e-2, 1e4, 127)

_EIGENVALUE_FLOOR = 1e-3
#: Share of the noise level below which an eigenvalue counts as noise.
_NOISE_SHARE = 0.25


def default_radius(latent_dim: int) -> float:
    """The public clipping radius used when a run names none."""
    return 1.3 * math.sqrt(latent_dim)


def clip_rows(latents: np.ndarray, radius: float) -> np.ndarray:
    """Scale each row of ``latents`` [N, k] down to norm ``radius`` at most."""
    norms = np.linalg.norm(latents, axis=1, keepdims=True)
    clipped: np.ndarray = latents * np.minimum(1.0, radius / np.maximum(norms, 1e-12))
    return clipped


def moments(latents: np.ndarray, radius: float) -> np.ndarray:
    """Sum of u_i u_i^T over records: float64 [k+1, k+1], without noise."""
    scaled = clip_rows(np.asarray(latents, dtype=np.float64), radius) / radius
    rows = np.hstack([scaled, np.ones((len(scaled), 1))])
    product: np.ndarray = rows.T @ rows
    return product


def release_moments(
    latents: np.ndarray, radius: float, noise_multiplier: float, noise: NoiseSource
) -> np.ndarray:
    """The moments with symmetric Gaussian noise; ``noise_multiplier`` 0 means none.

    The noise has deviation s = 2 * noise_multiplier on the diagonal and s / sqrt(2) off it, that
    is, an isotropic Gaussian in the space of symmetric matrices with the Frobenius norm.
    """
    exact = moments(latents, radius)
    size = len(exact)
    draws = noise.normal(size * size).reshape(size, size)
    symmetric = (draws + draws.T) / 2.0  # variance 1 on the diagonal, 1/2 off it
    released: np.ndarray = exact + symmetric * (MOMENTS_SENSITIVITY * noise_multiplier)
    return released


@dataclass(frozen=True, kw_only=True)
class LatentDensity:
    """A Gaussian picture of the latents of all clients.

    Attributes:
        count: noisy number of records.
        mean: [k].
        covariance: [k, k] of all records about the common mean.
        within: [k, k] of records about their own client's mean; used after re-centring.
    """

    count: float
    mean: np.ndarray
    covariance: np.ndarray
    within: np.ndarray

    def precision(self, *, recentred: bool) -> np.ndarray:
        """Inverse covariance [k, k] for scoring, within clients when ``recentred``."""
        inverse: np.ndarray = np.linalg.inv(self.within if recentred else self.covariance)
        return inverse

    def arrays(self) -> dict[str, np.ndarray]:
        """The density as float64 arrays, for files and messages."""
        return {
            "count": np.asarray([self.count]),
            "mean": self.mean,
            "covariance": self.covariance,
            "within": self.within,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "LatentDensity":
        """Read what ``arrays`` wrote."""
        return cls(
            count=float(arrays["count"][0]),
            mean=np.asarray(arrays["mean"], dtype=np.float64),
            covariance=np.asarray(arrays["covariance"], dtype=np.float64),
            within=np.asarray(arrays["within"], dtype=np.float64),
        )


def latent_density(
    released: Sequence[np.ndarray], radius: float, noise_multiplier: float
) -> LatentDensity:
    """Pool the released moments of several clients; post-processing, so free of privacy cost.

    Args:
        released: one noisy matrix [k+1, k+1] per client.
        radius: the public radius they were clipped with.
        noise_multiplier: of each release; used to take the noise's own variance out of the
            spread of client means.

    Raises:
        ValueError: no matrix, or a total count that noise has driven below one.
    """
    if not released:
        raise ValueError("Expected moments of at least one client, got none.")
    total = np.sum(np.asarray(released, dtype=np.float64), axis=0)
    count = float(total[-1, -1])
    if count < 1:
        raise ValueError(f"Expected a pooled count of at least 1, got {count:.1f}; add records.")
    mean = total[-1, :-1] / count
    covariance = total[:-1, :-1] / count - np.outer(mean, mean)
    k = len(mean)
    between = np.zeros((k, k))
    for matrix in released:
        own_count = max(float(matrix[-1, -1]), 1.0)
        offset = matrix[-1, :-1] / own_count - mean
        noise_variance = (MOMENTS_SENSITIVITY * noise_multiplier) ** 2 / 2.0 / own_count**2
        between += own_count * (np.outer(offset, offset) - noise_variance * np.eye(k))
    within = covariance - between / count
    scale = radius**2
    # The spectral norm of the pooled symmetric noise concentrates at 2 * tau * sqrt(k), where tau
    # is the deviation off the diagonal (Wigner): smaller eigenvalues than that are mostly noise.
    tau = MOMENTS_SENSITIVITY * noise_multiplier * math.sqrt(len(released) / 2.0) / count
    floor = max(_EIGENVALUE_FLOOR, _NOISE_SHARE * 2.0 * tau * math.sqrt(k) * scale)
    return LatentDensity(
        count=count,
        mean=mean * radius,
        covariance=_positive(covariance * scale, floor),
        within=_positive(within * scale, floor),
    )


def client_mean(released: np.ndarray, radius: float) -> np.ndarray:
    """A client's own latent mean [k] from its released moments."""
    mean: np.ndarray = released[-1, :-1] / max(float(released[-1, -1]), 1.0) * radius
    return mean


def squared_distance(latents: np.ndarray, center: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance of each row of ``latents`` [N, k]; float64 [N]."""
    offset = np.asarray(latents, dtype=np.float64) - center
    distance: np.ndarray = np.einsum("ni,ij,nj->n", offset, precision, offset)
    return distance


def histograms(absolute: np.ndarray, recentred: np.ndarray) -> np.ndarray:
    """Counts of two scores of the same records on the public bins: float64 [2, 128]."""
    return np.stack(
        [
            np.bincount(
                np.searchsorted(SCORE_EDGES, scores, side="right"),
                minlength=len(SCORE_EDGES) + 1,
            ).astype(np.float64)
            for scores in (absolute, recentred)
        ]
    )


def release_histograms(
    absolute: np.ndarray,
    recentred: np.ndarray,
    noise_multiplier: float,
    noise: NoiseSource,
) -> np.ndarray:
    """The two histograms with Gaussian noise of deviation sqrt(2) * noise_multiplier."""
    exact = histograms(absolute, recentred)
    draws = noise.normal(exact.size).reshape(exact.shape)
    return exact + draws * (HISTOGRAM_SENSITIVITY * noise_multiplier)


def _positive(matrix: np.ndarray, floor: float) -> np.ndarray:
    """The nearest symmetric matrix with eigenvalues of at least ``floor``."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    floored: np.ndarray = (vectors * np.maximum(values, floor)) @ vectors.T
    return floored
