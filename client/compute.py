"""What a request computes, on values alone: no ledger, no store, no door.

``fedlatent.client.node`` puts these between its books; the stacked simulation calls the same.
"""

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fedlatent.client.gradients.sums import steady
from fedlatent.client.policy import Caps, within
from fedlatent.client.store import RoundState
from fedlatent.client.trainer import averages_of
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.gaussian import DataGaussian
from fedlatent.shared.data.scaling import Scaling
from fedlatent.shared.detection.parts import score_parts
from fedlatent.shared.errors import BudgetExceeded, ConfigError, PolicyRefusal, ProtocolError
from fedlatent.shared.models import VAE, build_model, load_encoder, load_state
from fedlatent.shared.models.base import ENCODER_PREFIX, use_prior
from fedlatent.shared.models.priors import GaussianPrior, MixturePrior, Prior
from fedlatent.shared.models.size import TooLarge, at_most
from fedlatent.shared.models.warm_start import warm_start
from fedlatent.shared.privacy import summaries
from fedlatent.shared.privacy.noise import NoiseSource, SecureNoise, SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import Form, LatentDensity
from fedlatent.shared.schedule import Kind
from fedlatent.shared.summaries import (
    Federated,
    Summary,
    View,
    carried,
    latent_radius,
    read_parts,
    scaling_of,
    split_parts,
    stream_of,
)

Arrays = Mapping[str, np.ndarray]

_ENCODE_CHUNK = 4096
_SHRINK = 2.0
_ROUNDING = 1e-6
#: Arrays of a part that are inverted.
_COVARIANCES = ("covariance", "covariances", "within")


def make_noise(
    run: RunConfig, site: str, round: int, kind: Kind, sealed: bytes | None = None
) -> NoiseSource:
    """The noise of one request: secret, or in simulations a function of its place.

    Args:
        run: the run.
        site: name of the node.
        round: of the request.
        kind: of the request.
        sealed: key of the secure stream that the ledger's entry pays for; by default a fresh one.
    """
    if run.privacy.rng == "secure":
        return SecureNoise(sealed)
    return SimulationNoise(run.seed, zlib.crc32(site.encode()), round, stream_of(kind))


@functools.lru_cache(maxsize=16)
def run_plan(run: RunConfig) -> PrivacyPlan:
    """The plan of a run; solving for its noise takes a moment, so it is done once."""
    try:
        return PrivacyPlan.from_config(run)
    except ValueError:
        raise BudgetExceeded(
            "Expected a reachable epsilon, got one too small for its rounds and steps; "
            "raise privacy.epsilon or train less."
        ) from None


def run_model(run: RunConfig, most: int | None = None) -> VAE:
    """The run's model with its first weights, of ``most`` parameters where that is given.

    Raises:
        ProtocolError: it cannot be built.
        PolicyRefusal: it is larger; nothing of its size was made.
    """
    try:
        with at_most(most):
            return build_model(run)
    except TooLarge:
        raise PolicyRefusal(
            f"Expected a model of at most {most} parameters, got a larger one; choose narrower "
            "layers."
        ) from None
    except ConfigError as error:  # its text is about the run file alone, so it may travel
        raise ProtocolError(f"Expected a model this node can build: {error}") from None


def set_prior(model: VAE, prior: Prior | None) -> None:
    """Measure the model's rate against a broadcast prior; ProtocolError when it trains its own."""
    try:
        use_prior(model, prior)
    except ConfigError as error:
        raise ProtocolError(str(error)) from None  # about the run file alone, so it may travel


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


def latents_of(model: VAE, records: torch.Tensor) -> np.ndarray:
    """Latent means [N, k] in float64; a record whose mean overflows counts as the origin.

    Without that, weights chosen so that one record overflows would make its presence show.
    """
    model.eval()
    with torch.no_grad(), steady():
        parts = [
            model.encode(part)[0].double().numpy() for part in torch.split(records, _ENCODE_CHUNK)
        ]
    latents = np.concatenate(parts)
    finite = np.isfinite(latents).all(axis=1, keepdims=True)
    return np.where(finite, latents, 0.0)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a request brings, parsed and checked.

    Attributes:
        weights: of the model.
        state: what the federation has released, as far as the request tells it.
    """

    weights: Arrays
    state: Federated = field(default_factory=Federated)


def parse_request(
    run: RunConfig,
    kind: Kind,
    arrays: Arrays,
    latent_dim: int,
    caps: Caps | None = None,
    form: Form = "full",
) -> Request:
    """Check what a request of a kind brings: weights against ``caps``, all else in full.

    Args:
        run: the run.
        kind: of the request.
        arrays: that came.
        latent_dim: of the run's model.
        caps: of the node's policy; None where the arrays are the caller's own.
        form: of moments that it names.

    Raises:
        ProtocolError: an array is missing, unknown or not what its name says.
        PolicyRefusal: a number lies outside of what this node computes with.
    """
    weights, parts = split_parts(run, arrays)
    needed = scaling_of(run) if kind == "train" else carried(run, kind)
    missing = [name for name in needed if name not in parts]
    if missing:
        raise ProtocolError(
            f"Expected arrays {missing[0]}.* with a request of kind {kind!r}, got none; "
            "run the same fedlatent release on both sides."
        )
    state = replace(read_parts(run, latent_dim, parts), form=form)
    request = Request(weights=weights, state=state)
    if caps is not None:
        check_caps(request, run, caps)
    return request


def out_of_turn(summary: Summary) -> ProtocolError:
    """For a summary that builds on a release which this client has not made."""
    return ProtocolError(
        f"Expected {summary.builds_on} of this node before its {summary.kind}, got none in this "
        f"run; ask for {summary.builds_on} first."
    )


def prior_of(run: RunConfig, state: Federated) -> Prior | None:
    """The broadcast prior that the rate is measured against; None where there is none yet."""
    if run.summaries.prior == "mixture" and state.mixture is not None:
        return MixturePrior.of(state.mixture)
    if run.summaries.prior != "none" and "density" in state.parts:
        return GaussianPrior.of(state.density)
    return None


def check_caps(request: Request, run: RunConfig, caps: Caps) -> None:
    """Refuse arrays outside of what this node computes with.

    Raises:
        PolicyRefusal: naming the first.
    """
    for name, value in request.weights.items():
        if (np.abs(value) > caps.largest_weight).any():  # NaN is found where they are loaded
            raise PolicyRefusal(
                f"Expected weights of at most {caps.largest_weight:g}, got larger ones in "
                f"{name[:80]}; go on from an earlier round, with a smaller learning rate."
            )
    for name, part in request.state.parts.items():
        if isinstance(part, Scaling):
            _check_scaling(part, run, caps)
            continue
        for key, value in part.arrays().items():
            if key in _COVARIANCES:
                _check_covariances(f"{name}.{key}", value, caps)
            elif key != "count":
                largest, what = float(np.abs(value).max(initial=0.0)), key.removesuffix("s")
                within(f"the largest {what} of {name}", largest, 0.0, caps.largest_weight)


def _check_covariances(name: str, covariances: np.ndarray, caps: Caps) -> None:
    found = np.linalg.eigvalsh(covariances)
    for extreme in (float(found.min()), float(found.max())):
        least, most = caps.smallest_eigenvalue, caps.largest_eigenvalue
        within(f"eigenvalues of {name}", extreme, least, most)


def _check_scaling(scaling: Scaling, run: RunConfig, caps: Caps) -> None:
    middle, half = (run.data.upper + run.data.lower) / 2, (run.data.upper - run.data.lower) / 2
    offset = float(np.abs(scaling.mean - middle).max()) / half
    within("the largest mean of scaling, in half ranges", offset, 0.0, 1.0 + _ROUNDING)
    for extreme in (float(scaling.deviation.min()), float(scaling.deviation.max())):
        least, most = caps.smallest_deviation, caps.largest_deviation
        within("deviations of scaling, in half ranges", extreme / half, least, most)


def scaled(records: torch.Tensor, scaling: Scaling | None) -> torch.Tensor:
    """Preprocessed records as the model takes them."""
    return records if scaling is None else torch.from_numpy(scaling(records.numpy()))


def first_model(run: RunConfig, gaussian: DataGaussian | None) -> VAE:
    """The model with which a client begins: its seed's weights, or those of a warm start."""
    model = run_model(run)
    if gaussian is not None and run.training.warm_start_steps:
        warm_start(model, run, gaussian)
    return model


def view_of(
    run: RunConfig, model: VAE, records: torch.Tensor, request: Request, latents: np.ndarray
) -> View:
    """Preprocessed records [N, *shape] as a summary sees them, given their latents [N, k]."""
    state, parts = request.state, {}
    if run.scoring.combined and "density" in state.parts:
        taken = scaled(records, state.scaling)
        with steady():
            parts = score_parts(model, records, taken, state.density, state.gaussian)
    return View(records=records.numpy(), latents=latents, score_parts=parts)


def site_density(
    run: RunConfig, latents: np.ndarray, released: LatentDensity
) -> tuple[LatentDensity, np.ndarray]:
    """A client's exact density [k] and centre, drawn to the released ones where it is small.

    They stay with the client, for the bundle of its own devices.

    Args:
        run: the run.
        latents: means [N, k] of the client's records under its own model.
        released: of all clients; its spread within clients counts as much as ``_SHRINK`` records
            for each dimension.
    """
    radius, k = latent_radius(run, latents.shape[1]), latents.shape[1]
    exact = summaries.latent_density([summaries.moments(latents, radius)], radius, 0.0)
    share = len(latents) / (len(latents) + _SHRINK * k)
    within = share * exact.covariance + (1.0 - share) * released.within
    density = LatentDensity(
        count=float(len(latents)), mean=exact.mean, covariance=within, within=within
    )
    return density, exact.mean


def site_weights(
    run: RunConfig,
    model: VAE,
    state: RoundState | None,
    request: Request,
) -> dict[str, torch.Tensor]:
    """All weights of a site's own model: the final encoder with its newest decoder.

    A run that shares whole models sends the final decoder, too; with averaged weights the
    average of the site's decoder over rounds takes the place of the newest.

    Args:
        run: the run.
        model: with the final encoder loaded.
        state: what the last training round left, if there was one.
        request: what the threshold request brought.
    """
    whole = dict(model.state_dict())
    if state is not None:
        averaged = averages_of(state.optimizer) if run.training.ema else {}
        whole |= {**state.decoder, **{k: averaged[k] for k in state.decoder if k in averaged}}
    if run.shares_decoder:
        sent = {key: torch.tensor(value) for key, value in request.weights.items()}
        whole |= sent
    return {key: value.detach() for key, value in whole.items()}
