"""The Gaussian of the data that clients release together: low frequencies with mean and covariance.

It is made of released moments, so all that is computed from it is free of privacy cost: draws to
train first weights on, and a distance that tells an unusual record without any network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.frequencies import cosine_basis
from fedlatent.shared.data.scaling import data_radius
from fedlatent.shared.privacy.robust import pooled_density
from fedlatent.shared.privacy.summaries import LatentDensity, squared_distance


@dataclass(frozen=True, kw_only=True, eq=False)
class DataGaussian:
    """Mean and covariance of the records' features, as released.

    Attributes:
        density: of the features [m] about the middle of the bounds.
        basis: float64 [m, size], public.
        middle: of the bounds.
        shape: of one record.
    """

    density: LatentDensity
    basis: NDArray[np.float64]
    middle: float
    shape: tuple[int, ...]

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """The density of the features as float64 arrays, for files and messages."""
        return self.density.arrays()

    def features(self, records: NDArray[np.float32]) -> NDArray[np.float64]:
        """Features [N, m] of preprocessed records [N, *shape]."""
        return data_features(records, self.basis, self.middle)

    def distance(self, records: NDArray[np.float32]) -> np.ndarray:
        """Squared Mahalanobis distance [N] of preprocessed records to the mean."""
        precision = self.density.precision(recentred=False)
        return squared_distance(self.features(records), self.density.mean, precision)

    def recentred(self, normals: NDArray[np.float32]) -> Self:
        """The same about a device's own normal records [N, *shape], with the spread in clients."""
        density, mean = self.density, self.features(normals).mean(axis=0)
        return replace(self, density=replace(density, mean=mean, covariance=density.within))

    def draws(self, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Synthetic preprocessed records [count, *shape]; what the features leave out is zero."""
        factor = np.linalg.cholesky(self.density.covariance)
        normal = rng.standard_normal((count, len(self.basis)))
        features = self.density.mean + normal @ factor.T
        values = features @ self.basis + self.middle
        return values.reshape(count, *self.shape).astype(np.float32)

    @classmethod
    def pooled(
        cls,
        run: RunConfig,
        released: Sequence[np.ndarray],
        noise_multiplier: float,
        weights: np.ndarray | None = None,
    ) -> Self:
        """Pool what clients released in the phase "data"; robust where they have ``weights``.

        Raises:
            ValueError: nobody released, or nobody has records.
        """
        return cls._of(
            run, pooled_density(released, feature_radius(run), noise_multiplier, weights)
        )

    @classmethod
    def from_arrays(cls, run: RunConfig, arrays: Mapping[str, np.ndarray]) -> Self:
        """Read ``LatentDensity.arrays`` of the features.

        Raises:
            ProtocolError: they are not a density of the run's features.
        """
        return cls._of(run, LatentDensity.checked(arrays, len(feature_basis(run))))

    @classmethod
    def _of(cls, run: RunConfig, density: LatentDensity) -> Self:
        return cls(
            density=density,
            basis=feature_basis(run),
            middle=(run.data.lower + run.data.upper) / 2,
            shape=run.data.shape,
        )


def feature_basis(run: RunConfig) -> NDArray[np.float64]:
    """The public map of a run from records to features [m, size]."""
    return cosine_basis(run.data.shape, run.summaries.features)


def feature_radius(run: RunConfig) -> float:
    """The public radius that the features of a record are clipped to."""
    return run.summaries.data_radius or data_radius(run.data)


def data_features(
    records: NDArray[np.float32], basis: NDArray[np.float64], middle: float
) -> NDArray[np.float64]:
    """Features [N, m] of preprocessed records [N, *shape] about the middle of their bounds."""
    flat = records.reshape(len(records), basis.shape[1]).astype(np.float64) - middle
    return np.asarray(flat @ basis.T)
