"""The values of a score's parts for records."""

import numpy as np
import torch
from numpy.typing import NDArray

from fedlatent.shared.data.gaussian import DataGaussian
from fedlatent.shared.models.base import VAE
from fedlatent.shared.privacy.summaries import LatentDensity, squared_distance

_CHUNK = 4096


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
