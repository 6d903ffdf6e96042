"""Sums over records: moments, mixtures, scaling and histograms, and Gaussian noise on them.

Notation: z_i in R^k are latent means of the released encoder, clipped to a public radius R,
u_i = (z_i / R, 1). Un-noised sums and their noise are separate functions, so that tests can
check the sensitivity of the first and the variance of the second. Sensitivities are L2 under
zero-out: what one record adds to the sum beyond a null record. numpy only.

The number of records N is public under zero-out. Where a sum holds it, it leaves as it is, without
noise, and is no part of the sensitivity. A null record counts in N and adds nothing else, so
neighbouring data sets have the same N; a row with NaN or infinity is a null record. Counts of
components and of bins are not public, and get noise like all else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.privacy.noise import NoiseSource

#: How the moments of a client are released: with all products, or each dimension by itself.
Form = Literal["full", "diagonal"]

#: Names of the summaries' arrays in messages.
MOMENTS_KEY = "summary.moments"
DIAGONAL_KEY = "summary.diagonal"
MIXTURE_KEY = "summary.mixture"
SCALING_KEY = "summary.scaling"
HISTOGRAMS_KEY = "summary.histograms"

#: Frobenius sensitivity of ``moments``, the public count left out. With z = z_i / R, |z| <= 1, one
#: record adds u u^T but for its corner: |u u^T|_F^2 - 1 = |z|^4 + 2 |z|^2 <= 3.
MOMENTS_SENSITIVITY = math.sqrt(3.0)
#: L2 sensitivity of ``diagonal_moments`` and ``scaling_sums``, the public count left out: two parts
#: of norm 1 at most, since sum z_j^4 <= (sum z_j^2)^2.
DIAGONAL_SENSITIVITY = math.sqrt(2.0)
#: Frobenius sensitivity of ``mixture_moments``, whose counts are noised: |r|_2 |u|^2 <= 2.
MIXTURE_SENSITIVITY = 2.0
#: Public edges of squared latent distances, 128 logarithmic bins; the outer ones are open.
SCORE_EDGES = np.geomspace(1e-2, 1e4, 127)

#: The full covariance pays from so many records * epsilon for each k^2 (spectral error of 0.3).
FULL_FROM = 30.0

_ROUNDING = 1e-6
#: Of covariances of latents, where noise sets no higher one.
EIGENVALUE_FLOOR = 1e-3
#: Share of the noise level below which an eigenvalue counts as noise.
_NOISE_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class SummarySpec:
    """What one kind of summary is.

    Attributes:
        key: name of its array in messages.
        shape: of that array.
        sensitivity: L2 norm of what one record adds at most; Frobenius norm for matrices.
        symmetric: a symmetric matrix, or a stack of them.
        count: index of the entry that is the public number of records; None where there is none.
    """

    key: str
    shape: tuple[int, ...]
    sensitivity: float
    symmetric: bool
    count: tuple[int, ...] | None = None


def moments_spec(k: int) -> SummarySpec:
    """Of ``moments`` of k dimensions."""
    return SummarySpec(
        key=MOMENTS_KEY,
        shape=(k + 1, k + 1),
        sensitivity=MOMENTS_SENSITIVITY,
        symmetric=True,
        count=(k, k),
    )


def diagonal_spec(k: int) -> SummarySpec:
    """Of ``diagonal_moments`` of k dimensions."""
    return SummarySpec(
        key=DIAGONAL_KEY,
        shape=(2 * k + 1,),
        sensitivity=DIAGONAL_SENSITIVITY,
        symmetric=False,
        count=(0,),
    )


def mixture_spec(components: int, k: int) -> SummarySpec:
    """Of ``mixture_moments`` of so many components and k dimensions."""
    return SummarySpec(
        key=MIXTURE_KEY,
        shape=(components, k + 1, k + 1),
        sensitivity=MIXTURE_SENSITIVITY,
        symmetric=True,
    )


def scaling_spec(features: int) -> SummarySpec:
    """Of ``scaling_sums`` of so many features."""
    return SummarySpec(
        key=SCALING_KEY,
        shape=(2 * features + 1,),
        sensitivity=DIAGONAL_SENSITIVITY,
        symmetric=False,
        count=(0,),
    )


def threshold_spec(scores: int = 2) -> SummarySpec:
    """Of ``histograms`` of so many scores; one record adds one count to each."""
    return SummarySpec(
        key=HISTOGRAMS_KEY,
        shape=(scores, len(SCORE_EDGES) + 1),
        sensitivity=math.sqrt(scores),
        symmetric=False,
    )


def noisy_sum(
    exact: np.ndarray, spec: SummarySpec, noise_multiplier: float, noise: NoiseSource
) -> np.ndarray:
    """``exact`` with Gaussian noise of deviation s = sensitivity * noise_multiplier; 0 means none.

    A symmetric matrix gets a symmetric noise matrix of deviation s on the diagonal and s / sqrt(2)
    off it, that is, an isotropic Gaussian in the space of symmetric matrices with the Frobenius
    norm. The public number of records gets none; the noise of the rest is as it would be with it.

    Raises:
        ValueError: ``exact`` is not of the shape that ``spec`` states.
    """
    if exact.shape != spec.shape:
        raise ValueError(f"Expected a summary of shape {spec.shape}, got {exact.shape}.")
    draws = noise.normal(exact.size).reshape(exact.shape)
    if spec.symmetric:
        draws = (draws + draws.swapaxes(-1, -2)) / 2.0  # variance 1 on the diagonal, 1/2 off it
    if spec.count is not None:
        draws[spec.count] = 0.0
    released: np.ndarray = exact + draws * (spec.sensitivity * noise_multiplier)
    return released


def choose_form(records: int, clients: int, epsilon: float, k: int) -> Form:
    """Whether the pooled moments of several clients bear a full covariance.

    Each client adds its own noise, so that of the sum grows with the root of their number.

    Args:
        records: of all clients together; public.
        clients: how many release moments.
        epsilon: of the one release.
        k: latent dimensions.
    """
    strength = records * epsilon / math.sqrt(max(clients, 1))
    return "full" if strength >= FULL_FROM * k * k else "diagonal"


def default_radius(latent_dim: int) -> float:
    """The public clipping radius used when a run names none."""
    return 1.3 * math.sqrt(latent_dim)


def clip_rows(latents: np.ndarray, radius: float) -> np.ndarray:
    """Scale each row of ``latents`` [N, k] down to norm ``radius`` at most."""
    norms = np.linalg.norm(latents, axis=1, keepdims=True)
    clipped: np.ndarray = latents * np.minimum(1.0, radius / np.maximum(norms, 1e-12))
    return clipped


def moments(latents: np.ndarray, radius: float) -> np.ndarray:
    """Sum of u_i u_i^T over records [N, k]: float64 [k+1, k+1], without noise; the corner is N."""
    rows = _unit_rows(latents, radius)
    product: np.ndarray = rows.T @ rows
    product[-1, -1] = len(rows)
    return product


def diagonal_moments(latents: np.ndarray, radius: float) -> np.ndarray:
    """Sum of (1, z/R, z^2/R^2) over records [N, k]: float64 [2k+1], without noise.

    Each of the two parts beside N has a norm of at most 1, since |z/R| <= 1.
    """
    scaled = _unit_rows(latents, radius)[:, :-1]
    return np.concatenate([[len(scaled)], scaled.sum(axis=0), np.square(scaled).sum(axis=0)])


class Responsible(Protocol):
    """What shares a latent out over the components of a mixture."""

    def responsibilities(self, latents: np.ndarray) -> np.ndarray:
        """Shares [N, K] of each latent [N, k]: not negative, with a sum of 1."""
        ...


def mixture_moments(latents: np.ndarray, radius: float, mixture: Responsible) -> np.ndarray:
    """Stack of sum_i r_ik u_i u_i^T for each component: float64 [K, k+1, k+1], without noise.

    One step of expectation maximisation. The shares r_i of a record lie on the simplex, so
    |r_i|_2 <= 1 and the whole stack has the sensitivity of a single Gaussian's moments with its
    count, which is not public here. A null record belongs to no component.

    Raises:
        ValueError: shares do not lie on the simplex.
    """
    rows = _unit_rows(latents, radius)
    shares = np.asarray(mixture.responsibilities(rows[:, :-1] * radius), dtype=np.float64)
    if shares.min(initial=0.0) < 0 or not np.allclose(shares.sum(axis=1), 1.0):
        raise ValueError("Expected shares on the simplex, got others.")
    stack: np.ndarray = np.einsum("nK,ni,nj->Kij", shares, rows, rows, optimize=True)
    return stack


def scaling_sums(values: np.ndarray) -> np.ndarray:
    """Sum of (1, m / sqrt(d), q / sqrt(d)) over records: float64 [2d+1], without noise.

    m and q are the means of a record's values and of their squares over the last axis.

    Args:
        values: [N, d, T]: d features of a record at T places, within the public bounds, which are
            mapped to [-1, 1].

    Raises:
        ValueError: a finite value lies outside.
    """
    whole = np.asarray(values, dtype=np.float64)
    if whole.ndim != 3:
        raise ValueError(f"Expected values [N, d, T], got shape {whole.shape}.")
    there = np.isfinite(whole).all(axis=(1, 2), keepdims=True)
    whole = np.where(there, whole, 0.0)
    if np.abs(whole).max(initial=0.0) > 1.0:
        raise ValueError("Expected values [N, d, T] within [-1, 1], got others; map them first.")
    root = math.sqrt(whole.shape[1])
    firsts, seconds = whole.mean(axis=2), np.square(whole).mean(axis=2)
    return np.concatenate([[len(whole)], firsts.sum(axis=0) / root, seconds.sum(axis=0) / root])


def noisy_moments(
    latents: np.ndarray, radius: float, noise_multiplier: float, noise: NoiseSource
) -> np.ndarray:
    """The full moments [k+1, k+1] with noise; ``noise_multiplier`` 0 means none."""
    exact = moments(latents, radius)
    return noisy_sum(exact, moments_spec(len(exact) - 1), noise_multiplier, noise)


def as_matrix(released: np.ndarray) -> np.ndarray:
    """Released moments of either form as a matrix [k+1, k+1]; products left out are zero.

    What a diagonal release does not tell is taken as uncorrelated about the mean later on.
    """
    if released.ndim == 2:
        return released
    k = len(released) // 2
    matrix = np.zeros((k + 1, k + 1))
    matrix[-1, -1] = released[0]
    matrix[-1, :-1] = matrix[:-1, -1] = released[1 : k + 1]
    matrix[np.arange(k), np.arange(k)] = released[k + 1 :]
    return matrix


@dataclass(frozen=True, kw_only=True)
class LatentDensity:
    """A Gaussian picture of the latents of all clients.

    Attributes:
        count: number of records that it counts; public, so exact.
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
    def checked(cls, arrays: Mapping[str, np.ndarray], k: int) -> "LatentDensity":
        """Read what ``arrays`` wrote, from another party.

        Raises:
            ProtocolError: it is no density of ``k`` dimensions with positive covariances.
        """
        shapes = {"count": (1,), "mean": (k,), "covariance": (k, k), "within": (k, k)}
        fits = arrays.keys() == shapes.keys() and all(
            value.dtype.kind == "f" and value.shape == shapes[key] and np.isfinite(value).all()
            for key, value in arrays.items()
        )
        found = {key: np.asarray(value, dtype=np.float64) for key, value in arrays.items()}
        covariances = {key: found.get(key, np.zeros((k, k))) for key in ("covariance", "within")}
        if not fits or not all(symmetric(value) for value in covariances.values()):
            raise _no_density(k)
        # What differs by rounding is evened out, so that what is checked is what is inverted.
        even = {key: (value + value.T) / 2 for key, value in covariances.items()}
        if any(np.linalg.eigvalsh(value).min() <= 0 for value in even.values()):
            raise _no_density(k)
        return cls.from_arrays(found | even)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "LatentDensity":
        """Read what ``arrays`` wrote."""
        return cls(
            count=float(arrays["count"][0]),
            mean=np.asarray(arrays["mean"], dtype=np.float64),
            covariance=np.asarray(arrays["covariance"], dtype=np.float64),
            within=np.asarray(arrays["within"], dtype=np.float64),
        )


def standard_density(k: int) -> LatentDensity:
    """The standard normal law of k dimensions, as if of one record."""
    unit = np.eye(k)
    return LatentDensity(count=1.0, mean=np.zeros(k), covariance=unit, within=unit)


def symmetric(matrices: np.ndarray) -> bool:
    """Whether square matrices [..., k, k] are symmetric within rounding."""
    turned = matrices.swapaxes(-1, -2)
    return bool(np.abs(matrices - turned).max() <= _ROUNDING * np.abs(matrices).max())


def _no_density(k: int) -> ProtocolError:
    return ProtocolError(
        f"Expected a density of {k} dimensions with positive covariances, got another one; send "
        "LatentDensity.arrays()."
    )


def linear_deviation(*, diagonal: bool) -> float:
    """Deviation of the noise on the linear part of moments, at a noise multiplier of 1.

    It stands off the diagonal of a symmetric matrix.
    """
    return DIAGONAL_SENSITIVITY if diagonal else MOMENTS_SENSITIVITY / math.sqrt(2.0)


def latent_density(
    released: Sequence[np.ndarray],
    radius: float,
    noise_multiplier: float,
    factors: np.ndarray | None = None,
) -> LatentDensity:
    """Pool the released moments of several clients; post-processing, so free of privacy cost.

    Args:
        released: one noisy matrix [k+1, k+1] or vector [2k+1] per client, all of one form.
        radius: the public radius they were clipped with.
        noise_multiplier: of each release; used to take the noise's own variance out of the
            spread of client means.
        factors: [n] what each release, with its noise, has been multiplied by since; None for 1.

    Raises:
        ValueError: no matrix, or no record.
    """
    if not released:
        raise ValueError("Expected moments of at least one client, got none.")
    diagonal = released[0].ndim == 1
    total = as_matrix(np.sum(np.asarray(released, dtype=np.float64), axis=0))
    count = float(total[-1, -1])
    if count < 1:
        raise ValueError(f"Expected a pooled count of at least 1, got {count:g}; add records.")
    mean = total[-1, :-1] / count
    covariance = total[:-1, :-1] / count - np.outer(mean, mean)
    k = len(mean)
    gains = np.ones(len(released)) if factors is None else factors
    spreads = linear_deviation(diagonal=diagonal) * noise_multiplier * gains
    between = np.zeros((k, k))
    for one, spread in zip(released, spreads, strict=True):
        matrix = as_matrix(one)
        own_count = float(matrix[-1, -1])
        if own_count <= 0.0:
            continue
        offset = matrix[-1, :-1] / own_count - mean
        noise_variance = (spread / own_count) ** 2
        between += own_count * (np.outer(offset, offset) - noise_variance * np.eye(k))
    within = covariance - between / count
    scale = radius**2
    # The spectral norm of the pooled symmetric noise concentrates at 2 * tau * sqrt(k), where tau
    # is the deviation off the diagonal (Wigner): smaller eigenvalues than that are mostly noise.
    # Without products there is nothing to amplify: the noise of one entry counts.
    tau = float(np.linalg.norm(spreads)) / count
    level = _NOISE_SHARE * 2.0 * tau * (1.0 if diagonal else math.sqrt(k)) * scale
    floor = max(EIGENVALUE_FLOOR, level)
    if diagonal:
        covariance, within = np.diag(np.diag(covariance)), np.diag(np.diag(within))
    return LatentDensity(
        count=count,
        mean=mean * radius,
        covariance=floored(covariance * scale, floor),
        within=floored(within * scale, floor),
    )


def client_mean(released: np.ndarray, radius: float) -> np.ndarray:
    """A client's own latent mean [k] from its released moments of either form."""
    matrix = as_matrix(released)
    mean: np.ndarray = matrix[-1, :-1] / max(float(matrix[-1, -1]), 1.0) * radius
    return mean


def squared_distance(latents: np.ndarray, center: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance of each row of ``latents`` [N, k]; float64 [N]."""
    offset = np.asarray(latents, dtype=np.float64) - center
    distance: np.ndarray = np.einsum("ni,ij,nj->n", offset, precision, offset)
    return distance


def histograms(*scores: np.ndarray) -> np.ndarray:
    """Counts of several scores [N] of the same records on the public bins: float64 [scores, 128].

    Infinity falls into an outer bin. NaN is the score of a null record and falls into none.
    """
    bins = len(SCORE_EDGES) + 1
    return np.stack(
        [
            np.bincount(np.searchsorted(SCORE_EDGES, one, side="right"), minlength=bins).astype(
                np.float64
            )
            for one in (score[~np.isnan(score)] for score in scores)
        ]
    )


def _unit_rows(latents: np.ndarray, radius: float) -> np.ndarray:
    """(z/R, 1) of each latent, clipped; zeros for a null record: float64 [N, k+1]."""
    rows = np.asarray(latents, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"Expected rows [N, k], got shape {rows.shape}.")
    there = np.isfinite(rows).all(axis=1, keepdims=True)
    scaled = clip_rows(np.where(there, rows, 0.0), radius) / radius
    # Rounding may leave a norm above 1 by an ulp, which a sensitivity may not.
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    scaled = scaled / np.maximum(norms, 1.0)
    return np.hstack([scaled, there.astype(np.float64)])


def floored(matrix: np.ndarray, floor: float) -> np.ndarray:
    """The nearest matrix with eigenvalues of at least ``floor``, symmetric to the last bit.

    A receiver makes what it gets symmetric, and must compute with the same numbers as the sender.
    """
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    raised = (vectors * np.maximum(values, floor)) @ vectors.T
    made: np.ndarray = (raised + raised.T) / 2
    return made
