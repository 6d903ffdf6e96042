"""One-run audit of a whole federation: many canaries, each in with probability one half.

A run with everything that clients release is overheard, and the attacker guesses for the canaries
of which it is surest whether they were in. All of training, sampling, aggregation and accounting
is in it, at the price of a looser bound (Steinke, Nasr & Jagielski 2023).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.data.sources import HEARTS_SCHEMA, hearts
from fedlatent.shared.models import VAE, build_model, load_state
from fedlatent.shared.models.objective import record_loss
from fedlatent.shared.privacy.audit import one_run_lower_bound
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.simulations.audit.results import Finding, Watch
from fedlatent.simulations.audit.transcript import Heard, Transcript, record
from fedlatent.simulations.federation import datasets

#: Clients, and records of each beside its canaries.
_CLIENTS, _BEATS = 3, 120
#: Share of the canaries that the attacker guesses about; chosen before any run.
GUESSED = 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Canaries:
    """Planted records of one client.

    Attributes:
        records: float32 [m, *shape].
        present: whether each took part, bool [m].
    """

    records: np.ndarray
    present: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class OneRun:
    """What the attacker made of one run.

    Attributes:
        finding: the bound.
        scores: of all canaries [m].
        present: whether each took part, bool [m].
        guesses: how many.
        correct: of them.
    """

    finding: Finding
    scores: np.ndarray
    present: np.ndarray
    guesses: int
    correct: int


def federated_run(seed: int, epsilon: float, rounds: int) -> RunConfig:
    """A run that gives the attacker all it can: one step a round, whole models, no latent noise."""
    return RunConfig.parse(
        {
            "name": "audit-run",
            "seed": seed,
            "sharing": "full",
            "data": HEARTS_SCHEMA.to_dict(),
            "model": {"options": {"hidden": [16], "latent_dim": 4, "stochastic": False}},
            "privacy": {"rng": "simulation", "sample_rate": 0.5, "epsilon": epsilon},
            "training": {
                "rounds": rounds,
                "steps_per_round": 1,
                "optimizer": "sgd",
                "learning_rate": 0.1,
            },
            "federation": {"nodes": _CLIENTS, "quorum": _CLIENTS},
        },
        "audit",
    )


def one_run(
    name: str,
    run: RunConfig,
    canaries: int,
    folder: Path,
    watch: Watch,
    *,
    claimed: float | None = None,
) -> OneRun:
    """Attack one run.

    Args:
        name: of the finding.
        run: what to train.
        canaries: in all clients together.
        folder: of the run's files.
        watch: told about progress.
        claimed: epsilon that a run with far less noise pretends to; makes the finding a control.
    """
    planted, sites = plant(run, canaries)
    watch(name, 0.1)
    transcript = record(run, sites, folder)
    watch(name, 0.6)
    scores, present = score(run, transcript, planted, sites)
    guesses = int(GUESSED * len(scores)) // 2 * 2
    order = np.argsort(scores)
    half = guesses // 2
    correct = int((~present[order[:half]]).sum() + present[order[-half:]].sum())
    watch(name, 1.0)
    epsilon = claimed if claimed is not None else transcript.epsilon
    if epsilon is None:
        raise ValueError("Expected a private run or a claim for it, got neither.")
    finding = Finding(
        name=name,
        control=claimed is not None,
        claimed=epsilon,
        lower=one_run_lower_bound(len(scores), guesses, correct, run.privacy.delta),
        draws=len(scores),
        attack=f"{correct} of {guesses} guesses right",
    )
    return OneRun(finding=finding, scores=scores, present=present, guesses=guesses, correct=correct)


def plant(run: RunConfig, count: int) -> tuple[dict[str, Canaries], dict[str, Dataset]]:
    """Canaries by site, and what the sites train on.

    A canary that is not in is replaced by a record of NaN, which training leaves out: the public
    number of records stays the same, as zero-out adjacency has it.
    """
    rng = np.random.default_rng((run.seed, 1))
    planted, sites = {}, {}
    for site, data in datasets(hearts(_CLIENTS, run.seed, beats=_BEATS)).items():
        size = (count // _CLIENTS, *data.schema.shape)
        bounds = (data.schema.lower, data.schema.upper)
        records = rng.choice(bounds, size).astype(np.float32)
        present = rng.random(len(records)) < 0.5
        held = np.where(present.reshape(-1, *[1] * len(data.schema.shape)), records, np.nan)
        planted[site] = Canaries(records=records, present=present)
        whole = np.concatenate([data.records, held.astype(np.float32)])
        sites[site] = Dataset(records=whole, schema=data.schema)
    return planted, sites


def score(
    run: RunConfig,
    transcript: Transcript,
    planted: Mapping[str, Canaries],
    sites: Mapping[str, Dataset],
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [m] of all canaries, and whether each was in.

    From each update the attacker takes off what the records that it knows are expected to add, and
    explains the rest by the canaries' gradients at the weights that the client got, by ridge
    regression: how much of each canary is in it. Scores are sums over rounds, less the mean of the
    client's canaries.
    """
    model = build_model(run)
    plan = PrivacyPlan.from_config(run)
    totals = {site: np.zeros(len(one.present)) for site, one in planted.items()}
    for heard in transcript.heard:
        if heard.kind == "train":
            totals[heard.site] += _shares(
                model, run, plan, heard, planted[heard.site], sites[heard.site]
            )
    return (
        np.concatenate([total - total.mean() for total in totals.values()]),
        np.concatenate([one.present for one in planted.values()]),
    )


def _shares(
    model: VAE,
    run: RunConfig,
    plan: PrivacyPlan,
    heard: Heard,
    canaries: Canaries,
    data: Dataset,
) -> np.ndarray:
    """How much of each canary one update holds, about 1 of a canary that is in it; [m]."""
    load_state(model, {key: torch.tensor(value) for key, value in heard.sent.items()})
    moved = torch.cat(
        [
            torch.from_numpy(heard.sent[name] - heard.released[name]).reshape(-1)
            for name, _ in model.named_parameters()
        ]
    )
    moved *= len(data) / run.training.learning_rate
    known = torch.from_numpy(data.records[: len(data) - len(canaries.present)])
    moved -= clipped_gradients(model, run, known).sum(0)
    rows = clipped_gradients(model, run, torch.from_numpy(canaries.records))
    # The prior variance of a canary's share is 1/4; the noise has deviation sigma * C / q.
    ridge = 4.0 * (plan.noise_multiplier * plan.clip / plan.sample_rate) ** 2
    inner = rows @ rows.T + ridge * torch.eye(len(rows))
    return np.asarray(torch.linalg.solve(inner, rows @ moved).double())


def clipped_gradients(model: VAE, run: RunConfig, records: Tensor) -> Tensor:
    """Clipped gradient of the loss of each record at its posterior mean: [m, P]."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    eps = torch.zeros(1, model.noise_dim)

    def loss(values: dict[str, Tensor], record: Tensor) -> Tensor:
        terms = torch.func.functional_call(model, values, (record[None], eps))
        return record_loss(terms, run.training, 1.0, 1).sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, records)
    rows = torch.cat([found[name].reshape(len(records), -1) for name in parameters], 1)
    clipped: Tensor = rows * (run.privacy.clip / rows.norm(dim=1, keepdim=True)).clamp(max=1.0)
    return clipped
