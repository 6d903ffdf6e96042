"""What a request computes, on values alone: no ledger, no store, no door.

``client.node`` puts these between its books; the stacked simulation calls the same.
"""

import functools
import zlib
from collections.abc import Mapping
from typing import get_args

import numpy as np
import torch

from shared.config import RunConfig
from shared.errors import BudgetExceeded, ConfigError, ProtocolError
from shared.models import VAE, build, load_encoder, load_state
from shared.models.base import ENCODER_PREFIX
from shared.privacy import summaries
from shared.privacy.noise import NoiseSource, SecureNoise, SimulationNoise
from shared.privacy.plan import PrivacyPlan
from shared.wire import DENSITY_PREFIX, Kind

Arrays = Mapping[str, np.ndarray]

_ENCODE_CHUNK = 4096


def make_noise(run: RunConfig, site: str, round: int, kind: Kind) -> NoiseSource:
    """The noise of one request: fresh and secret, or in simulations a function of its place."""
    if run.privacy.rng == "secure":
        return SecureNoise()
    purpose = get_args(Kind).index(kind)
    return SimulationNoise(run.seed, zlib.crc32(site.encode()), round, purpose)


@functools.lru_cache(maxsize=16)
def run_plan(config_json: str) -> PrivacyPlan:
    """The plan of a run; solving for its noise takes a moment, so it is done once."""
    try:
        return PrivacyPlan.from_config(RunConfig.from_json(config_json))
    except ValueError:
        raise BudgetExceeded(
            "Expected a reachable epsilon, got one too small for its rounds and steps; "
            "raise privacy.epsilon or train less."
        ) from None


def run_model(run: RunConfig) -> VAE:
    """The run's model with its first weights; ProtocolError when it cannot be built."""
    try:
        return build(run.model.family, run.model.options, run.data.shape, run.seed)
    except ConfigError as error:  # its text is about the run file alone, so it may travel
        raise ProtocolError(f"Expected a model this node can build: {error}") from None


def load_weights(model: VAE, arrays: Arrays, *, whole: bool) -> None:
    """Write received weights into ``model``; ProtocolError when they are not its own."""
    bad = sorted(key for key, value in arrays.items() if value.dtype.kind != "f")
    if bad:
        raise ProtocolError(f"Expected floating-point weights, got others in {bad[:3]}.")
    with np.errstate(over="ignore"):  # a float64 too large becomes infinite and is refused below
        tensors = {key: torch.tensor(value.astype(np.float32)) for key, value in arrays.items()}
    (load_state if whole else load_encoder)(model, tensors)


def expected_arrays(model: VAE, prefix: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the trained parameters under ``prefix``: no buffer is among them."""
    return {name: tuple(p.shape) for name, p in model.named_parameters() if name.startswith(prefix)}


def tensors_of(model: VAE, prefix: str) -> dict[str, torch.Tensor]:
    """The model's tensors whose names start with ``prefix``."""
    return {k: v.detach() for k, v in model.state_dict().items() if k.startswith(prefix)}


def without_encoder(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What never leaves: everything outside the encoder."""
    return {key: value for key, value in state.items() if not key.startswith(ENCODER_PREFIX)}


def latent_radius(run: RunConfig, model: VAE) -> float:
    """The public radius that latents are clipped to."""
    return run.scoring.radius or summaries.default_radius(model.latent_dim)


def latents_of(model: VAE, records: torch.Tensor) -> np.ndarray:
    """Latent means [N, k] in float64; a record whose mean overflows counts as the origin.

    Without that, weights chosen so that one record overflows would make its presence show.
    """
    model.eval()
    with torch.no_grad():
        parts = [
            model.encode(part)[0].double().numpy() for part in torch.split(records, _ENCODE_CHUNK)
        ]
    latents = np.concatenate(parts)
    latents[~np.isfinite(latents).all(axis=1)] = 0.0
    return latents


def density_of(arrays: Arrays, latent_dim: int) -> summaries.LatentDensity:
    """The latent density of a threshold request; ProtocolError when it is none."""
    k = latent_dim
    shapes = {"count": (1,), "mean": (k,), "covariance": (k, k), "within": (k, k)}
    found = {
        key.removeprefix(DENSITY_PREFIX): np.asarray(value, dtype=np.float64)
        for key, value in arrays.items()
        if key.startswith(DENSITY_PREFIX) and value.dtype.kind == "f"
    }
    fits = found.keys() == shapes.keys() and all(
        found[key].shape == shape and np.isfinite(found[key]).all() for key, shape in shapes.items()
    )
    if not fits or any(
        np.linalg.eigvalsh((m + m.T) / 2).min() <= 0 for m in (found["covariance"], found["within"])
    ):
        raise ProtocolError(
            f"Expected a latent density of {k} dimensions with positive covariances, got "
            "another one; send LatentDensity.arrays()."
        )
    return summaries.LatentDensity.from_arrays(found)


def own_moments(
    run: RunConfig, model: VAE, latents: np.ndarray, plan: PrivacyPlan, noise: NoiseSource
) -> np.ndarray:
    """The noisy latent moments [k+1, k+1] that a client releases."""
    radius = latent_radius(run, model)
    return summaries.release_moments(latents, radius, plan.moments_multiplier, noise)


def own_histograms(
    latents: np.ndarray,
    density: summaries.LatentDensity,
    center: np.ndarray,
    plan: PrivacyPlan,
    noise: NoiseSource,
) -> np.ndarray:
    """The noisy histograms [2, bins] of a client's scores, about the common and its own centre."""
    return summaries.release_histograms(
        summaries.squared_distance(latents, density.mean, density.precision(recentred=False)),
        summaries.squared_distance(latents, center, density.precision(recentred=True)),
        plan.threshold_multiplier,
        noise,
    )
