"""A small density of a detector's parts, fitted under differential privacy, and its one score.

Parts have different units and long tails, so each is mapped to [-1, 1] by a public function first:
the logarithm about a public centre, squashed. Then one record's part in the released moments is
bounded, and a Gaussian of few dimensions pools what sites release. The score adds what stands out
above the mean of normal records, in deviations; a part below its mean says nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.config import RunConfig
from fedlatent.shared.privacy.robust import pooled_density
from fedlatent.shared.privacy.summaries import LatentDensity

#: Parts in their order, each with the width of its logarithm that is resolved.
PARTS: dict[str, float] = {
    "latent_distance": 3.0,
    "data_distance": 3.0,
    "reconstruction_error": 4.0,
    "posterior_logvar": 4.0,
}

_PRIOR_RECORDS = 10.0
_EXPECTED_ERROR = 0.05  # of one value of a record, in squared units; only a public centre
_EXPECTED_LOGVAR = -2.0
#: Of a mapped part, so that one that hardly varies does not decide alone.
LEAST_DEVIATION = 0.02
#: Of a distance before its logarithm.
FLOOR = 1e-9
#: Of what lies below the mean: enough to order normal records.
WEIGHT_BELOW = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreDensity:
    """Means and deviations of mapped parts on normal records, as released.

    Attributes:
        names: the parts, out of ``PARTS``.
        centres: public centre of each; of a logarithm but for the log-variance.
        density: of the mapped parts.
    """

    names: tuple[str, ...]
    centres: tuple[float, ...]
    density: LatentDensity

    @classmethod
    def of(
        cls, run: RunConfig, latent_dim: int, arrays: Mapping[str, np.ndarray]
    ) -> "ScoreDensity":
        """Read ``density.arrays()`` of a run's parts.

        Raises:
            ProtocolError: they are not a density of that many parts.
        """
        names = score_names(run)
        return cls(
            names=names,
            centres=score_centres(run, latent_dim),
            density=LatentDensity.checked(arrays, len(names)),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The density of the parts as float64 arrays, for files and messages."""
        return self.density.arrays()

    def recentred(self, parts: Mapping[str, NDArray[np.float64]]) -> "ScoreDensity":
        """About a device's own normal records, given their parts [N]; few of them count little."""
        mapped = statistics(parts, self.names, self.centres)
        share = len(mapped) / (len(mapped) + _PRIOR_RECORDS)
        mean = share * mapped.mean(axis=0) + (1.0 - share) * self.density.mean
        return replace(self, density=replace(self.density, mean=mean))

    def __call__(self, parts: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """One score [B] from the parts [B] by name; higher is more anomalous."""
        mapped = statistics(parts, self.names, self.centres)
        deviation = np.sqrt(np.maximum(np.diag(self.density.covariance), LEAST_DEVIATION**2))
        standard = (mapped - self.density.mean) / deviation
        return np.asarray(
            np.maximum(standard, 0.0).sum(axis=1) + WEIGHT_BELOW * standard.sum(axis=1)
        )


def score_names(run: RunConfig) -> tuple[str, ...]:
    """The parts that everyone who has a run's result can compute."""
    names = ["latent_distance", "posterior_logvar"]
    if run.summaries.data == "gaussian":
        names.append("data_distance")
    if run.shares_decoder:
        names.append("reconstruction_error")
    return tuple(names)


def score_centres(run: RunConfig, latent_dim: int) -> tuple[float, ...]:
    """Public centres of the parts of ``score_names``."""
    size = math.prod(run.data.shape)
    centres = {
        "latent_distance": math.log(latent_dim),
        "posterior_logvar": _EXPECTED_LOGVAR,
        "data_distance": math.log(min(run.summaries.features, size)),
        "reconstruction_error": math.log(size * _EXPECTED_ERROR),
    }
    return tuple(centres[name] for name in score_names(run))


def statistics(
    parts: Mapping[str, NDArray[np.float64]], names: Sequence[str], centres: Sequence[float]
) -> NDArray[np.float64]:
    """The parts by name, mapped to [-1, 1]: [B, parts]. What is not finite counts as 1."""
    columns = []
    for name, centre in zip(names, centres, strict=True):
        values = np.asarray(parts[name], dtype=np.float64)
        if name != "posterior_logvar":
            values = np.log(np.maximum(values, FLOOR))
        mapped = np.tanh((values - centre) / PARTS[name])
        columns.append(np.where(np.isfinite(mapped), mapped, 1.0))
    return np.stack(columns, axis=1)


def score_radius(parts: int) -> float:
    """Clipping radius of mapped parts: none is clipped, since each lies in [-1, 1]."""
    return math.sqrt(parts)


def pool_scores(
    released: Sequence[np.ndarray],
    names: Sequence[str],
    centres: Sequence[float],
    noise_multiplier: float,
    weights: np.ndarray | None = None,
) -> ScoreDensity:
    """Pool the released moments [m+1, m+1] of several sites; robust where they have ``weights``.

    Raises:
        ValueError: nobody released, or nobody has records.
    """
    radius = score_radius(len(names))
    density = pooled_density(released, radius, noise_multiplier, weights)
    return ScoreDensity(names=tuple(names), centres=tuple(centres), density=density)
