"""One score from several: standardise each part on normal records and add.

A detector's parts (squared latent distance, reconstruction error, ...) have different units. The
combination is affine, so it can be baked into an exported graph as constants:

    score = sum_j weights[j] * (part_j - mean[j]) / scale[j]

The default adds the reconstruction error and the re-centred latent distance. On real heart beats
(MIT-BIH, ventricular against normal, one split) no other sum was better, for known and for new
patients; the absolute latent distance, the latent norm and the posterior log-variance diluted it,
and taking logarithms first did not help. These constants come from private records: a site that
fits them keeps them at home.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

DEFAULT_PARTS = ("reconstruction_error", "recentred_distance")

_LEAST_SCALE = 1e-12
#: Of a part's mean. Dividing by less would raise the rounding of single precision, on which two
#: machines may differ, above the tolerance of an exported score.
_LEAST_SPREAD = 1e-2


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreCombination:
    """Constants of an affine sum of named parts.

    Attributes:
        names: The parts, in the order of the other fields.
        mean: float64 [m], subtracted from each part.
        scale: float64 [m], positive; each part is divided by it.
        weights: float64 [m], weight of each standardised part.

    Raises:
        ValueError: If names repeat, lengths differ, a number is not finite or a scale not positive.
    """

    names: tuple[str, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Check that the fields agree."""
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"Expected different names of parts, got {self.names}.")
        for key in ("mean", "scale", "weights"):
            values = np.asarray(getattr(self, key), dtype=np.float64)
            if values.shape != (len(self.names),) or not np.isfinite(values).all():
                raise ValueError(
                    f"Expected {len(self.names)} finite numbers as {key}, got {values.tolist()}."
                )
            object.__setattr__(self, key, values)
        if not (self.scale > 0.0).all():
            raise ValueError(f"Expected positive scales, got {self.scale.tolist()}.")

    @classmethod
    def fit(
        cls,
        parts: Mapping[str, ArrayLike],
        names: Sequence[str] = DEFAULT_PARTS,
        weights: Sequence[float] | None = None,
    ) -> "ScoreCombination":
        """Take mean and deviation of each part over normal records.

        A deviation below a hundredth of the mean counts as that hundredth.

        Args:
            parts: Scores [N] of the same N normal records, by name; others than `names` are
                not used.
            names: The parts to add.
            weights: One per name; None means 1 each.

        Raises:
            ValueError: If a named part is absent, holds fewer than two records or is not finite.
        """
        columns = _columns(parts, tuple(names))
        if columns.shape[1] < 2:
            raise ValueError(f"Expected at least 2 normal records, got {columns.shape[1]}.")
        return cls(
            names=tuple(names),
            mean=columns.mean(axis=1),
            scale=np.maximum(
                columns.std(axis=1), _LEAST_SCALE + _LEAST_SPREAD * np.abs(columns.mean(axis=1))
            ),
            weights=np.ones(len(names)) if weights is None else np.asarray(weights, dtype=float),
        )

    def __call__(self, parts: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """Combine scores [B] by name into one score [B].

        Raises:
            ValueError: If a part is absent or lengths differ.
        """
        standard = (_columns(parts, self.names) - self.mean[:, None]) / self.scale[:, None]
        return np.asarray(self.weights @ standard)


def _columns(parts: Mapping[str, ArrayLike], names: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the named parts as float64 [m, B]."""
    missing = [name for name in names if name not in parts]
    if missing:
        raise ValueError(f"Expected the parts {', '.join(names)}, got none for {missing}.")
    columns = [np.asarray(parts[name], dtype=np.float64) for name in names]
    if any(column.ndim != 1 or column.shape != columns[0].shape for column in columns):
        raise ValueError(
            f"Expected parts of equal length [B], got shapes {[c.shape for c in columns]}."
        )
    return np.stack(columns)
