"""The score that clients released a density for, as a part of the scorer graph.

Shape suffixes: B records, m features of the data, p parts of the score.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedlatent.shared.data.gaussian import DataGaussian
from fedlatent.shared.detection.density import (
    FLOOR,
    LEAST_DEVIATION,
    PARTS,
    WEIGHT_BELOW,
    ScoreDensity,
)

DATA_DISTANCE = "data_distance"
RECONSTRUCTION_ERROR = "reconstruction_error"


@dataclass(frozen=True, kw_only=True, eq=False)
class Released:
    """What a combined score is made of.

    Attributes:
        scores: the released density of its parts.
        gaussian: the released Gaussian of the data; None when no part needs it.
        threshold: the released one of the combined score.
    """

    scores: ScoreDensity
    gaussian: DataGaussian | None
    threshold: float

    @property
    def needs_decoder(self) -> bool:
        """Whether one part is the reconstruction error."""
        return RECONSTRUCTION_ERROR in self.scores.names


class ReleasedScore(nn.Module):
    """`ScoreDensity` and `DataGaussian.distance` in float32."""

    def __init__(self, released: Released) -> None:
        """Bake the constants."""
        super().__init__()
        scores = released.scores
        self.names = scores.names
        deviation = np.sqrt(np.diag(scores.density.covariance))
        constants = {
            "centres": scores.centres,
            "widths": [PARTS[name] for name in scores.names],
            "mean": scores.density.mean,
            "deviation": np.maximum(deviation, LEAST_DEVIATION),
        }
        gaussian = released.gaussian
        self.middle = 0.0 if gaussian is None else gaussian.middle
        if gaussian is not None:
            factor = np.linalg.cholesky(gaussian.density.precision(recentred=False))
            # |L^T (F x - mu)|^2: one product with (L^T F)^T, one offset
            constants["whitened"] = gaussian.basis.T @ factor
            constants["offset"] = gaussian.density.mean @ factor
        for name, value in constants.items():
            self.register_buffer(name, torch.tensor(np.asarray(value), dtype=torch.float32))

    def distance(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis distance `[B]` of preprocessed records `[B, *shape]` to the data."""
        flat = x.flatten(1) - self.middle
        return (flat @ self.get_buffer("whitened") - self.get_buffer("offset")).square().sum(1)

    def forward(self, parts: Mapping[str, Tensor]) -> Tensor:
        """One score `[B]` from the parts `[B]` by name; `posterior_logvar` is a mean here."""
        columns = [
            parts[name] if name == "posterior_logvar" else parts[name].clamp(min=FLOOR).log()
            for name in self.names
        ]
        spread = (torch.stack(columns, 1) - self.get_buffer("centres")) / self.get_buffer("widths")
        standard_Bp = (spread.tanh() - self.get_buffer("mean")) / self.get_buffer("deviation")
        return standard_Bp.clamp(min=0).sum(1) + WEIGHT_BELOW * standard_Bp.sum(1)
