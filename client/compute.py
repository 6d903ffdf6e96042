"""What a request computes, on values alone: no ledger, no store, no door.

``fedlatent.client.node`` puts these between its books; the stacked simulation calls the same.
"""

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch

from fedlatent.client.gradients.sums import steady
from fedlatent.client.policy import Caps, within
from fedlatent.client.store import RoundState
from fedlatent.client.trainer import averages_of
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.gaussian import (
    DataGaussian,
    data_features,
    feature_basis,
    feature_radius,
)
from fedlatent.shared.data.scaling import Scaling, bounded_values
from fedlatent.shared.detection.density import ScoreDensity, score_radius, statistics
from fedlatent.shared.detection.parts import score_centres, score_names, score_parts
from fedlatent.shared.errors import BudgetExceeded, ConfigError, PolicyRefusal, ProtocolError
from fedlatent.shared.models import VAE, build_model, load_encoder, load_state
from fedlatent.shared.models.base import ENCODER_PREFIX, use_prior
from fedlatent.shared.models.priors import GaussianPrior, MixturePrior, Prior
from fedlatent.shared.models.size import TooLarge, at_most
from fedlatent.shared.models.warm_start import warm_start
from fedlatent.shared.privacy import summaries
from fedlatent.shared.privacy.mixture import LatentMixture
from fedlatent.shared.privacy.noise import NoiseSource, SecureNoise, SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.specs import latent_radius
from fedlatent.shared.privacy.summaries import Form, LatentDensity
from fedlatent.shared.schedule import Kind
from fedlatent.shared.wire import (
    DATA_PREFIX,
    DENSITY_PREFIX,
    EXTRA_PREFIXES,
    MIXTURE_PREFIX,
    SCALING_PREFIX,
    SCORES_PREFIX,
    below,
)

Arrays = Mapping[str, np.ndarray]

_ENCODE_CHUNK = 4096
_SHRINK = 2.0
_ROUNDING = 1e-6


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
class Asked:
    """The arrays of a request, taken apart and checked; what it does not hold is None.

    Attributes:
        weights: of the model.
        scaling: of the records' features.
        gaussian: of the data, for first weights.
        density: of the latents.
        mixture: of the latents.
        scores: of the score's parts.
    """

    weights: Arrays
    scaling: Scaling | None = None
    gaussian: DataGaussian | None = None
    density: LatentDensity | None = None
    mixture: LatentMixture | None = None
    scores: ScoreDensity | None = None

    def prior(self, run: RunConfig) -> Prior | None:
        """The broadcast prior that the rate is measured against; None where there is none yet."""
        if run.summaries.prior == "mixture" and self.mixture is not None:
            return MixturePrior.of(self.mixture)
        if run.summaries.prior != "none" and self.density is not None:
            return GaussianPrior.of(self.density)
        return None


def take_apart(
    run: RunConfig, kind: Kind, arrays: Arrays, latent_dim: int, caps: Caps | None = None
) -> Asked:
    """Check what a request of a kind brings: weights against ``caps``, all else in full.

    Args:
        run: the run.
        kind: of the request.
        arrays: that came.
        latent_dim: of the run's model.
        caps: of the node's policy; None where the arrays are the caller's own.

    Raises:
        ProtocolError: an array is missing, unknown or not what its name says.
        PolicyRefusal: a number lies outside of what this node computes with.
    """
    found = {prefix: below(arrays, prefix) for prefix in EXTRA_PREFIXES}
    needed = {
        SCALING_PREFIX: run.summaries.data == "scaling" and kind != "data",
        DATA_PREFIX: run.summaries.data == "gaussian" and kind == "scores",
        DENSITY_PREFIX: kind in ("scores", "threshold"),
        SCORES_PREFIX: run.scoring.combined and kind == "threshold",
        MIXTURE_PREFIX: kind == "mixture",
    }
    missing = [prefix for prefix, wanted in needed.items() if wanted and not found[prefix]]
    if missing:
        raise ProtocolError(
            f"Expected arrays {missing[0]}* with a request of kind {kind!r}, got none; "
            "run the same fedlatent release on both sides."
        )
    scaling, data = found[SCALING_PREFIX], found[DATA_PREFIX]
    density, mixture = found[DENSITY_PREFIX], found[MIXTURE_PREFIX]
    scores = found[SCORES_PREFIX]
    asked = Asked(
        weights={key: v for key, v in arrays.items() if not key.startswith(EXTRA_PREFIXES)},
        scaling=Scaling.from_arrays(scaling, run.data) if scaling else None,
        gaussian=DataGaussian.from_arrays(run, data) if data else None,
        density=LatentDensity.checked(density, latent_dim) if density else None,
        mixture=LatentMixture.checked(mixture, latent_dim) if mixture else None,
        scores=ScoreDensity.of(run, latent_dim, scores) if scores else None,
    )
    if caps is not None:
        check_caps(asked, run, caps)
    return asked


def check_caps(asked: Asked, run: RunConfig, caps: Caps) -> None:
    """Refuse arrays outside of what this node computes with.

    Raises:
        PolicyRefusal: naming the first.
    """
    for name, value in asked.weights.items():
        if (np.abs(value) > caps.largest_weight).any():  # NaN is found where they are loaded
            raise PolicyRefusal(
                f"Expected weights of at most {caps.largest_weight:g}, got larger ones in "
                f"{name[:80]}; go on from an earlier round, with a smaller learning rate."
            )
    densities = {
        "data": asked.gaussian.density if asked.gaussian else None,
        "density": asked.density,
        "scores": asked.scores.density if asked.scores else None,
    }
    means, covariances = {}, {}
    for name, one in densities.items():
        if one is not None:
            means[name] = one.mean
            covariances[f"{name}.covariance"] = one.covariance
            covariances[f"{name}.within"] = one.within
    if asked.mixture is not None:
        means["mixture"] = asked.mixture.means
        covariances["mixture.covariances"] = asked.mixture.covariances
    for name, value in means.items():
        largest = float(np.abs(value).max())
        within(f"the largest mean of {name}", largest, 0.0, caps.largest_weight)
    for name, value in covariances.items():
        found = np.linalg.eigvalsh(value)
        for extreme in (float(found.min()), float(found.max())):
            least, most = caps.smallest_eigenvalue, caps.largest_eigenvalue
            within(f"eigenvalues of {name}", extreme, least, most)
    if asked.scaling is not None:
        _check_scaling(asked.scaling, run, caps)


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


def data_sums(run: RunConfig, records: np.ndarray) -> np.ndarray:
    """The un-noised statistics of preprocessed records in the phase "data"."""
    if run.summaries.data == "scaling":
        return summaries.scaling_sums(bounded_values(records, run.data))
    middle = (run.data.lower + run.data.upper) / 2
    features = data_features(records, feature_basis(run), middle)
    return summaries.moments(features, feature_radius(run))


def parts_of(
    run: RunConfig, model: VAE, records: torch.Tensor, asked: Asked
) -> Mapping[str, np.ndarray]:
    """The parts [N] of the combined score by name; none where the run has no such score."""
    if not run.scoring.combined or asked.density is None:
        return {}
    taken = scaled(records, asked.scaling)
    with steady():
        return score_parts(model, records, taken, asked.density, asked.gaussian)


def latent_sums(
    run: RunConfig,
    kind: Kind,
    form: Form,
    latents: np.ndarray,
    asked: Asked,
    center: np.ndarray,
    parts: Mapping[str, np.ndarray],
) -> np.ndarray:
    """The un-noised statistics of a summary phase that looks at records through the model.

    Args:
        run: the run.
        kind: "moments", "mixture", "scores" or "threshold".
        form: of moments.
        latents: means [N, k] under the released encoder; NaN for a null record.
        asked: what the request brought.
        center: the client's own released mean [k]; only "threshold" looks at it.
        parts: of the combined score; only "scores" and "threshold" look at them.

    Raises:
        ProtocolError: the request does not hold what its kind needs.
    """
    k = latents.shape[1]
    radius = latent_radius(run, k)
    null = ~np.isfinite(latents).all(axis=1)
    if kind == "moments":
        of_form = summaries.moments if form == "full" else summaries.diagonal_moments
        return of_form(latents, radius)
    if kind == "mixture" and asked.mixture is not None:
        return summaries.mixture_moments(latents, radius, asked.mixture)
    if kind == "scores" and parts:
        names = score_names(run)
        mapped = statistics(parts, names, score_centres(run, k))
        mapped[null] = np.nan
        return summaries.moments(mapped, score_radius(len(names)))
    density = asked.density
    if kind != "threshold" or density is None:
        raise ProtocolError(f"Expected a request that {kind!r} can answer, got another one.")
    with np.errstate(over="ignore", invalid="ignore"):
        scores = [
            summaries.squared_distance(latents, density.mean, density.precision(recentred=False)),
            summaries.squared_distance(latents, center, density.precision(recentred=True)),
        ]
        if asked.scores is not None:
            scores.append(asked.scores(parts))
    # A density chosen so that one record's score overflows must not make its presence show.
    scores = [np.where(np.isnan(one), np.inf, one) for one in scores]
    return summaries.histograms(*(np.where(null, np.nan, one) for one in scores))


def own_density(
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
    asked: Asked,
) -> dict[str, torch.Tensor]:
    """All weights of a site's own model: the final encoder with its newest decoder.

    A run that shares whole models sends the final decoder, too; with averaged weights the
    average of the site's decoder over rounds takes the place of the newest.

    Args:
        run: the run.
        model: with the final encoder loaded.
        state: what the last training round left, if there was one.
        asked: what the threshold request brought.
    """
    whole = dict(model.state_dict())
    if state is not None:
        averaged = averages_of(state.optimizer) if run.training.ema else {}
        whole |= {**state.decoder, **{k: averaged[k] for k in state.decoder if k in averaged}}
    if run.shares_decoder:
        sent = {key: torch.tensor(value) for key, value in asked.weights.items()}
        whole |= sent
    return {key: value.detach() for key, value in whole.items()}
