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

from fedlatent.client.gradients.sums import NORM_FLOOR
from fedlatent.client.trainer import gradient_sums, train_round
from fedlatent.shared.config import RunConfig
from fedlatent.shared.models import VAE, build
from fedlatent.shared.privacy import summaries
from fedlatent.shared.privacy.accounting import epsilon_of
from fedlatent.shared.privacy.audit import gaussian_epsilon, gdp_lower_bound
from fedlatent.shared.privacy.noise import NoiseSource, SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import SummarySpec
from fedlatent.shared.schedule import Kind
from fedlatent.shared.summaries import SUMMARIES
from fedlatent.simulations.audit.results import Finding, Watch

#: Noise multipliers of a training step and of a summary.
STEP_SIGMA, SUMMARY_SIGMA = 0.33, 1.0

DELTA = 1e-5
#: Not 1, so that a missing factor shows.
CLIP = 0.5
_SHAPE = (12,)
_LATENT = 3
_BOUND = 3.0  # of records
#: Draws follow from a case's place, so the kinds of the published audit keep theirs.
_FIRST = ("moments", "mixture", "threshold", "scores", "data")
_OTHERS = 8  # records that are in both worlds
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

    @property
    def moved(self) -> float:
        """L2 norm of what the canary adds."""
        return float(np.linalg.norm(self.with_ - self.without))


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
    """Scores of releases of one summary by ``fedlatent.shared.privacy.summaries.noisy_sum``."""
    direction = case.with_ - case.without
    worlds = []
    for world, exact in enumerate((case.with_, case.without)):
        scores = np.empty(draws)
        for draw in range(draws):
            released = summaries.noisy_sum(exact, case.spec, plan.multiplier(case.kind), noise)
            scores[draw] = np.vdot(released, direction)
        watch(case.name, (world + 1) / 2)
        worlds.append(scores)
    return Draws(with_=worlds[0], without=worlds[1])


def summary_cases(seed: int) -> list[SummaryCase]:
    """The sums of every kind over the same other records, with and without its worst record."""
    run, rng = audit_run(), np.random.default_rng(seed)
    first = [kind for kind in _FIRST if kind in SUMMARIES]
    order = dict.fromkeys([*first, *SUMMARIES])
    return [case for kind in order for case in cases_of(kind, run, _LATENT, rng)]


def cases_of(
    kind: Kind, run: RunConfig, latent_dim: int, rng: np.random.Generator
) -> list[SummaryCase]:
    """The sums of one kind, in each of its forms."""
    summary = SUMMARIES[kind]
    return [
        SummaryCase(
            name=case.name,
            kind=kind,
            with_=summary.exact(case.run, case.state, case.present),
            without=summary.exact(case.run, case.state, case.absent),
            spec=summary.spec(case.run, latent_dim, case.state),
        )
        for case in summary.worst_cases(run, latent_dim, rng)
    ]


def claimed(plan: PrivacyPlan, kind: Kind) -> float:
    """Epsilon by the accounting of the ledger."""
    event = plan.event(kind)
    if event is None:
        raise ValueError("Expected a private plan, got one without noise.")
    return epsilon_of([event], plan.delta)
