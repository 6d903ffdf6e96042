"""What clients release about the records themselves: feature scaling, or a Gaussian of the data.

Bounds come from the schema, which is public, so that one record's part in a sum is bounded. A
record of shape [d] has d features; one of shape [C, ...] has C features, each at many places.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.privacy.robust import LEAST_SITES, temper_moments
from fedlatent.shared.privacy.summaries import DIAGONAL_SENSITIVITY

#: Scaled values are clipped to this many deviations.
LIMIT = 8.0

_LEAST_DEVIATION = 0.02  # of the half range


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """Mean and deviation of each feature, as released.

    Attributes:
        mean: [d], in units of preprocessed records.
        deviation: [d], positive.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def __call__(self, records: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise preprocessed records [N, *shape], clipped to ``LIMIT`` deviations."""
        places = (len(self.mean),) + (1,) * (records.ndim - 2)
        shifted = records - self.mean.astype(np.float32).reshape(places)
        shifted /= self.deviation.astype(np.float32).reshape(places)
        return np.asarray(np.clip(shifted, -LIMIT, LIMIT), dtype=np.float32)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """The scaling as float64 arrays, for files and messages."""
        return {"mean": self.mean, "deviation": self.deviation}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], data: Schema) -> Self:
        """Read what ``arrays`` wrote.

        Raises:
            ProtocolError: they are not mean and deviation of the records' features.
        """
        shape = (features_of(data),)
        fits = arrays.keys() == {"mean", "deviation"} and all(
            value.shape == shape and value.dtype.kind == "f" and np.isfinite(value).all()
            for value in arrays.values()
        )
        if not fits or not (np.asarray(arrays["deviation"]) > 0).all():
            raise ProtocolError(
                f"Expected mean and positive deviation of {shape[0]} features, got others; send "
                "Scaling.arrays()."
            )
        return cls(
            mean=arrays["mean"].astype(np.float64), deviation=arrays["deviation"].astype(np.float64)
        )


def features_of(data: Schema) -> int:
    """Number of features of a record: the length of its first axis."""
    return data.shape[0]


def bounded_values(records: NDArray[np.float32], data: Schema) -> NDArray[np.float64]:
    """Preprocessed records [N, *shape] mapped from the bounds to [-1, 1]: [N, d, T]."""
    middle, half = (data.upper + data.lower) / 2, (data.upper - data.lower) / 2
    values = (records.astype(np.float64) - middle) / half
    places = math.prod(data.shape[1:])
    return np.clip(values, -1.0, 1.0).reshape(len(records), features_of(data), places)


def pool_scaling(
    released: Sequence[np.ndarray],
    data: Schema,
    noise_multiplier: float,
    weights: np.ndarray | None = None,
) -> Scaling:
    """Mean and deviation from the released ``scaling_sums`` [2d+1] of several clients.

    A variance that noise may have made up is floored at the level of that noise.

    Args:
        released: of each client.
        data: the schema.
        noise_multiplier: of each release.
        weights: [n] records that each counts for at most, which makes the pooling robust; None
            counts all.

    Raises:
        ValueError: no release, or no record.
    """
    if not released:
        raise ValueError("Expected scaling of at least one client, got none.")
    features = len(released[0]) // 2
    root = math.sqrt(features)
    noise = np.full(len(released), noise_multiplier * root)
    sums = [np.concatenate([one[:1], one[1:] * root]) for one in released]
    if weights is not None and len(released) >= LEAST_SITES:
        tempered = temper_moments(sums, weights, noise_multiplier * root, _LEAST_DEVIATION**2)
        sums, noise = tempered.sums, tempered.factors * noise
    total = np.sum(sums, axis=0)
    count = float(total[0])
    if count < 1:
        raise ValueError(f"Expected a pooled count of at least 1, got {count:g}; add records.")
    mean = np.clip(total[1 : features + 1] / count, -1.0, 1.0)
    second = np.clip(total[features + 1 :] / count, 0.0, 1.0)
    level = DIAGONAL_SENSITIVITY * float(np.linalg.norm(noise)) / count
    variance = np.maximum(second - mean**2, max(level, _LEAST_DEVIATION**2))
    middle, half = (data.upper + data.lower) / 2, (data.upper - data.lower) / 2
    return Scaling(mean=mean * half + middle, deviation=np.sqrt(variance) * half)


def data_radius(data: Schema) -> float:
    """Clipping radius of a record about the middle of its bounds when a run names none.

    A quarter of the half range at each place, as a root mean square over the record.
    """
    return 0.25 * (data.upper - data.lower) / 2 * math.sqrt(math.prod(data.shape))
