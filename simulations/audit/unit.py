"""Unit audits: many draws of one release, with and without one worst-case record.

The attacker knows all other records and the code, plants the record, and looks at where the
release lies along the direction in which the record pushes it: the likelihood ratio test of a
Gaussian. So the bound must come near the exact epsilon, and noise of any other size shows, as too
little or too much. Noise multipliers here are small, since then fewer draws prove more; the code
does the same for every multiplier.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlatent.client.compute import Asked, data_sums, latent_sums
from fedlatent.client.gradients.sums import NORM_FLOOR
from fedlatent.client.trainer import gradient_sums, train_round
from fedlatent.shared.config import RunConfig
from fedlatent.shared.detection.parts import score_names
from fedlatent.shared.models import VAE, build
from fedlatent.shared.privacy import summaries
from fedlatent.shared.privacy.accounting import epsilon_of
from fedlatent.shared.privacy.audit import gaussian_epsilon, gdp_lower_bound
from fedlatent.shared.privacy.mixture import LatentMixture
from fedlatent.shared.privacy.noise import NoiseSource, SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.specs import spec_of
from fedlatent.shared.privacy.summaries import Form, LatentDensity, SummarySpec
from fedlatent.shared.schedule import Kind
from fedlatent.simulations.audit.results import Finding, Watch

#: Noise multipliers of a training step and of a summary.
STEP_SIGMA, SUMMARY_SIGMA = 0.33, 1.0

DELTA = 1e-5
#: Not 1, so that a missing factor shows.
CLIP = 0.5
_SHAPE = (12,)
_LATENT = 3
_BOUND = 3.0  # of records
_OTHERS = 8  # records that are in both worlds
_FAR = 100.0  # a latent beyond any radius
_NULL = np.nan  # every value of a null record
_REPORTS = 20  # of progress, per audit


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Attack scores of independent releases.

    Attributes:
        with_: with the record [N].
        without: without it [N].
    """

    with_: np.ndarray
    without: np.ndarray


def audit_run() -> RunConfig:
    """A run of one step of a 12-4-3 autoencoder.

    Without latent noise gradients are functions of the records alone, and nothing but the privacy
    noise hides the canary.
    """
    return RunConfig.parse(
        {
            "name": "audit",
            "data": {"name": "audit", "shape": list(_SHAPE), "lower": -_BOUND, "upper": _BOUND},
            "model": {"options": {"hidden": [4], "latent_dim": _LATENT, "stochastic": False}},
            "privacy": {"rng": "simulation", "clip": CLIP, "delta": DELTA},
            "training": {
                "rounds": 1,
                "steps_per_round": 1,
                "optimizer": "sgd",
                "learning_rate": 1.0,
            },
        },
        "audit",
    )


def one_step_plan(
    sigma: float, *, sample_rate: float = 1.0, summaries: tuple[tuple[Kind, int, float], ...] = ()
) -> PrivacyPlan:
    """A plan of one DP-SGD step and of the given summaries."""
    return PrivacyPlan(
        private=True,
        delta=DELTA,
        clip=CLIP,
        sample_rate=sample_rate,
        noise_multiplier=sigma,
        steps_per_round=1,
        rounds=1,
        summaries=summaries,
        rng="simulation",
    )


def step_finding(name: str, sample_rate: float, draws: int, seed: int, watch: Watch) -> Finding:
    """One DP-SGD step of the client's trainer."""
    plan = one_step_plan(STEP_SIGMA, sample_rate=sample_rate)
    scores = step_draws(name, plan, draws, seed, watch)
    return Finding(
        name=name,
        claimed=claimed(plan, "train"),
        exact=gaussian_epsilon(1 / STEP_SIGMA, DELTA, sample_rate),
        lower=gdp_lower_bound(scores.with_, scores.without, DELTA, sample_rate=sample_rate),
        tight=True,
        draws=2 * draws,
        attack="projection on the canary's clipped gradient",
    )


def step_draws(
    name: str, plan: PrivacyPlan, draws: int, seed: int, watch: Watch, copies: int = 1
) -> Draws:
    """Scores of released weights after one step of ``fedlatent.client.trainer.train_round``.

    The null record that takes the canary's place without it is NaN: the trainer leaves such
    records out, and the number of records stays the same. Copies of the canary come and go
    together.
    """
    run, rng = audit_run(), np.random.default_rng(seed)
    records = torch.from_numpy(rng.normal(0, 1, (_OTHERS + copies, *_SHAPE)).astype(np.float32))
    canary = torch.from_numpy(rng.choice([-_BOUND, _BOUND], _SHAPE).astype(np.float32))
    records[-copies:] = canary
    absent = records.clone()
    absent[-copies:] = torch.nan
    model = build(run.model.family, run.model.options, _SHAPE, seed)
    direction = _canary_gradient(model, run, records[-1])
    worlds = []
    for world, data in enumerate((records, absent)):
        scores = np.empty(draws)
        for draw in range(draws):
            noise = SimulationNoise(seed, world, draw)
            scores[draw] = _released_step(model, data, plan, run, noise) @ direction
            if draw % math.ceil(draws / _REPORTS) == 0:
                watch(name, (world + draw / draws) / 2)
        worlds.append(scores)
    watch(name, 1.0)
    return Draws(with_=worlds[0], without=worlds[1])


def _released_step(
    model: VAE, records: Tensor, plan: PrivacyPlan, run: RunConfig, noise: SimulationNoise
) -> np.ndarray:
    """The noisy sum of gradients [P] as one step of SGD leaves it in the weights."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    after = train_round(model, records, plan, run.training, noise, {}).state
    moved = torch.cat([(before[key] - after[key]).reshape(-1).double() for key in before])
    model.load_state_dict(before)
    return moved.numpy() * (plan.sample_rate * len(records) / run.training.learning_rate)


def _canary_gradient(model: VAE, run: RunConfig, canary: Tensor) -> np.ndarray:
    """Unit vector [P] along the canary's gradient, which must reach the clip."""
    plan = one_step_plan(STEP_SIGMA)
    with gradient_sums(model.train(), plan, run.training) as sums:
        gradient = sums(canary[None], torch.arange(1), SimulationNoise(0)).numpy()
    norm = float(np.linalg.norm(gradient))
    if norm < plan.clip * (1 - 1e-3) - NORM_FLOOR:
        raise ValueError(f"Expected a canary whose gradient is clipped, got norm {norm:.3g}.")
    return np.asarray(gradient / norm)


@dataclass(frozen=True, kw_only=True)
class SummaryCase:
    """One kind of summary with the record that moves it most.

    Attributes:
        name: of the release.
        kind: of its phase.
        with_: exact sums with the canary.
        without: exact sums with a null record in its place.
        spec: what the release is.
    """

    name: str
    kind: Kind
    with_: np.ndarray
    without: np.ndarray
    spec: SummarySpec


def summary_findings(draws: int, seed: int, watch: Watch) -> Iterator[Finding]:
    """Every kind of summary that a client can release."""
    for number, case in enumerate(summary_cases(seed)):
        plan = one_step_plan(1.0, summaries=((case.kind, 1, SUMMARY_SIGMA),))
        scores = summary_draws(case, plan, draws, SimulationNoise(seed, number), watch)
        yield Finding(
            name=case.name,
            claimed=claimed(plan, case.kind),
            exact=gaussian_epsilon(1 / SUMMARY_SIGMA, DELTA),
            lower=gdp_lower_bound(scores.with_, scores.without, DELTA),
            tight=True,
            draws=2 * draws,
            attack="projection on what the canary adds",
        )


def summary_draws(
    case: SummaryCase, plan: PrivacyPlan, draws: int, noise: NoiseSource, watch: Watch
) -> Draws:
    """Scores of releases of one summary by ``fedlatent.shared.privacy.summaries.release``."""
    direction = case.with_ - case.without
    worlds = []
    for world, exact in enumerate((case.with_, case.without)):
        scores = np.empty(draws)
        for draw in range(draws):
            released = summaries.release(exact, case.spec, plan.multiplier(case.kind), noise)
            scores[draw] = np.vdot(released, direction)
        watch(case.name, (world + 1) / 2)
        worlds.append(scores)
    return Draws(with_=worlds[0], without=worlds[1])


def summary_cases(seed: int) -> list[SummaryCase]:
    """The sums of ``client.compute`` over the same other records, with and without a canary.

    Without it, a null record stands in its place: NaN. So the public number of records is the same.
    """
    run, rng = audit_run(), np.random.default_rng(seed)
    return [
        *(_latent_case(run, rng, *one) for one in _LATENT_KINDS),
        _scores_case(run, rng),
        _data_case(run, rng, "scaling", "feature scaling"),
        _data_case(run, rng, "gaussian", "Gaussian of the data"),
    ]


_LATENT_KINDS: tuple[tuple[str, Kind, Form], ...] = (
    ("moments, full", "moments", "full"),
    ("moments, diagonal", "moments", "diagonal"),
    ("moments of a mixture", "mixture", "full"),
    ("histograms of scores", "threshold", "full"),
)


def _latent_case(
    run: RunConfig, rng: np.random.Generator, name: str, kind: Kind, form: Form
) -> SummaryCase:
    others = rng.normal(0, 1, (_OTHERS, _LATENT))
    # Along an axis, so that the squares of a diagonal release reach their norm, too.
    canary = np.zeros((1, _LATENT))
    canary[0, 0] = _FAR
    unit = np.eye(_LATENT)
    asked = Asked(
        weights={},
        density=LatentDensity(count=1.0, mean=np.zeros(_LATENT), covariance=unit, within=unit),
        # One component takes the whole canary: shares of one record have no larger norm.
        mixture=LatentMixture(
            weights=np.array([0.5, 0.5]),
            means=np.stack([_FAR * unit[0], -_FAR * unit[0]]),
            covariances=np.stack([unit, unit]),
        ),
    )
    sums = [
        latent_sums(run, kind, form, latents, asked, np.zeros(_LATENT), {})
        for latents in (np.vstack([others, canary]), np.vstack([others, _NULL * canary]))
    ]
    spec = spec_of(run, kind, form, _LATENT, 2)
    return SummaryCase(name=name, kind=kind, with_=sums[0], without=sums[1], spec=spec)


def _scores_case(run: RunConfig, rng: np.random.Generator) -> SummaryCase:
    """Parts of a combined score; the canary's are so large that all map to the end of the scale."""
    names = score_names(run)
    canary = np.append(np.zeros(_OTHERS), np.inf)
    parts = {name: rng.uniform(0.5, 2.0, _OTHERS + 1) + canary for name in names}
    asked, center = Asked(weights={}), np.zeros(_LATENT)
    present = np.zeros((_OTHERS + 1, _LATENT))
    absent = present.copy()
    absent[-1] = _NULL
    sums = [
        latent_sums(run, "scores", "full", latents, asked, center, parts)
        for latents in (present, absent)
    ]
    spec = spec_of(run, "scores", "full", _LATENT, 0)
    return SummaryCase(
        name="parts of the score", kind="scores", with_=sums[0], without=sums[1], spec=spec
    )


def _data_case(run: RunConfig, rng: np.random.Generator, data: str, name: str) -> SummaryCase:
    """Summaries of the records themselves; the canary lies on the bounds everywhere."""
    features = {"scaling": 1, "gaussian": _LATENT}[data]
    chosen = run.model_copy(
        update={"summaries": run.summaries.model_copy(update={"data": data, "features": features})}
    )
    others = rng.normal(0, 1, (_OTHERS, *_SHAPE)).astype(np.float32)
    canary = np.full((1, *_SHAPE), _BOUND, dtype=np.float32)
    null = np.full_like(canary, _NULL)
    sums = [data_sums(chosen, np.vstack([others, last])) for last in (canary, null)]
    spec = spec_of(chosen, "data", "full", _LATENT, 0)
    return SummaryCase(name=name, kind="data", with_=sums[0], without=sums[1], spec=spec)


def claimed(plan: PrivacyPlan, kind: Kind) -> float:
    """Epsilon by the accounting of the ledger."""
    event = plan.event(kind)
    if event is None:
        raise ValueError("Expected a private plan, got one without noise.")
    return epsilon_of([event], plan.delta)
