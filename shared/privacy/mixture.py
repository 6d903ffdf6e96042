"""A mixture of Gaussians over latents, as a federation has released it. numpy only."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.privacy.summaries import symmetric

#: Components that a message may bring at most.
MAX_COMPONENTS = 64

_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentMixture:
    """Weights, means and covariances of K components.

    Attributes:
        weights: [K], positive, with a sum of 1.
        means: [K, k].
        covariances: [K, k, k], positive definite.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def log_density(self, latents: np.ndarray) -> np.ndarray:
        """Logarithm of the density in nats of latents [N, k]: [N]."""
        parts = self._log_parts(latents)
        top = parts.max(axis=1, keepdims=True)
        total: np.ndarray = top[:, 0] + np.log(np.exp(parts - top).sum(axis=1))
        return total

    def responsibilities(self, latents: np.ndarray) -> np.ndarray:
        """Share [N, K] of each component in latents [N, k]; rows add up to 1.

        A latent that is too far from every component for a finite density has equal shares.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            parts = np.nan_to_num(self._log_parts(latents), nan=-np.inf, neginf=-np.inf)
            top = parts.max(axis=1, keepdims=True)
            shares = np.exp(parts - np.where(np.isfinite(top), top, 0.0))
        # Covariances chosen so that one record overflows must not make its presence show.
        lost = ~np.isfinite(top[:, 0])
        shares[lost] = 1.0
        normalised: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
        return normalised

    def arrays(self) -> dict[str, np.ndarray]:
        """The mixture as float64 arrays, for files and messages."""
        return {"weights": self.weights, "means": self.means, "covariances": self.covariances}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "LatentMixture":
        """Read what ``arrays`` wrote."""
        return cls(**{key: np.asarray(value, dtype=np.float64) for key, value in arrays.items()})

    @classmethod
    def checked(cls, arrays: Mapping[str, np.ndarray], k: int) -> "LatentMixture":
        """Read what ``arrays`` wrote, from another party.

        Raises:
            ProtocolError: it is no mixture of ``k`` dimensions.
        """
        wrong = ProtocolError(
            f"Expected a mixture of 1 to {MAX_COMPONENTS} Gaussians of {k} dimensions, got another "
            "one; send LatentMixture.arrays()."
        )
        if arrays.keys() != {"weights", "means", "covariances"}:
            raise wrong
        count = len(np.atleast_1d(arrays["weights"]))
        shapes = {"weights": (count,), "means": (count, k), "covariances": (count, k, k)}
        if not 1 <= count <= MAX_COMPONENTS or any(
            value.shape != shapes[key] or value.dtype.kind != "f" or not np.isfinite(value).all()
            for key, value in arrays.items()
        ):
            raise wrong
        made = cls.from_arrays(arrays)
        whole = (made.weights > 0).all() and abs(made.weights.sum() - 1.0) <= _ROUNDING
        if not whole or not symmetric(made.covariances):
            raise wrong
        # What differs by rounding is evened out, so that what is checked is what is inverted.
        even = (made.covariances + made.covariances.swapaxes(1, 2)) / 2
        if np.linalg.eigvalsh(even).min() <= 0:
            raise wrong
        return replace(made, covariances=even)

    def _log_parts(self, latents: np.ndarray) -> np.ndarray:
        """Logarithm of weight times density of each component: [N, K]."""
        rows = np.asarray(latents, dtype=np.float64)
        precisions = np.linalg.inv(self.covariances)
        _, log_determinants = np.linalg.slogdet(self.covariances)
        offset = rows[:, None, :] - self.means
        square = np.einsum("nKi,Kij,nKj->nK", offset, precisions, offset, optimize=True)
        constant = log_determinants + rows.shape[1] * math.log(2.0 * math.pi)
        parts: np.ndarray = np.log(self.weights) - 0.5 * (square + constant)
        return parts
