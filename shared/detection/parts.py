"""The parts of a run's score: which it has, their public centres, and their values for records."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.gaussian import DataGaussian
from fedlatent.shared.models.base import VAE
from fedlatent.shared.privacy.summaries import LatentDensity, squared_distance

_CHUNK = 4096
_EXPECTED_ERROR = 0.05  # of one value of a record, in squared units; only a public centre
_EXPECTED_LOGVAR = -2.0


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


def score_parts(
    model: VAE,
    records: torch.Tensor,
    taken: torch.Tensor,
    density: LatentDensity,
    gaussian: DataGaussian | None,
    center: NDArray[np.float64] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Every part [N] that model, density and data Gaussian give, by name.

    Args:
        model: with the run's weights.
        records: preprocessed [N, *shape].
        taken: the same as the model takes them.
        density: of the latents.
        gaussian: of the data, or None.
        center: the latent centre [k] of a re-centred device; None for the common mean.
    """
    model.eval()
    latents, logvars, errors = [], [], []
    with torch.no_grad():
        for part in torch.split(taken, _CHUNK):
            mu, logvar = model.encode(part)
            latents.append(mu.double().numpy())
            logvars.append(logvar.double().mean(1).numpy())
            error = model.reconstruction_error(part, model.decode(mu))
            errors.append(error.double().numpy())
    mean = density.mean if center is None else center
    precision = density.precision(recentred=center is not None)
    parts = {
        "latent_distance": squared_distance(np.concatenate(latents), mean, precision),
        "posterior_logvar": np.concatenate(logvars),
        "reconstruction_error": np.concatenate(errors),
    }
    if gaussian is not None:
        parts["data_distance"] = gaussian.distance(records.numpy())
    return parts
