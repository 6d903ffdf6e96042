"""Hostile weights: a server that picks every number so that one record escapes its clip.

The weights are built so that the gradient of one record's hidden unit is a sum that cancels to
exactly zero: two rows of the encoder's head, -aA and bA, meet gradients of b m and a m. A node that
takes norms in one backward pass and sums scaled gradients in another finds that scaled numbers no
longer cancel: a rounding error of them, times A, escapes the clip. For all other records the hidden
unit is saturated, so only the chosen one tells. Which constants work depends on the processor's
kernels, so the attacker searches for them at home.
"""

from pathlib import Path

import numpy as np
import torch

from fedlatent.client.node import Node
from fedlatent.client.trainer import gradient_sums
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.models import VAE, build_model
from fedlatent.shared.models.base import ENCODER_PREFIX
from fedlatent.shared.privacy.accounting import epsilon_of
from fedlatent.shared.privacy.audit import dp_lower_bound
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.schedule import phases
from fedlatent.simulations.audit import checks
from fedlatent.simulations.audit.checks import Check
from fedlatent.simulations.audit.nodes import BOUND, ask, audit_config, audit_node
from fedlatent.simulations.audit.results import Finding, Watch
from fedlatent.simulations.audit.unit import DELTA

_FEATURES, _RECORDS = 12, 200
_FIRST = 2.0**10  # weight of the first layer: saturates the hidden unit of all other records
#: What a clipped contribution may be beyond the clip, for rounding.
ROUNDING = 1e-4

Constants = tuple[float, float, int, int]
#: A, m, a and b of the attack that was found first.
KNOWN: Constants = (2.0**50, 2.0**20, 7, 11)


def hostile_run() -> RunConfig:
    """One step on nearly all of the records; only the encoder leaves."""
    return audit_config(
        name="hostile",
        data={"shape": [_FEATURES]},
        model={"options": {"hidden": [1], "latent_dim": 2}},
        privacy={"epsilon": 0.6, "sample_rate": 0.9},
        training={"learning_rate": 1.0},
    )


def hostile_records(seed: int) -> np.ndarray:
    """Records [200, 12], of which the first lies apart on its first feature."""
    records = np.random.default_rng(seed).normal(0, 0.5, (_RECORDS, _FEATURES))
    records = np.clip(records, -2.0, 2.0).astype(np.float32)
    records[0, 0] = BOUND
    return records


def hostile_weights(model: VAE, constants: Constants) -> Arrays:
    """Encoder weights by which the first record's hidden gradient cancels exactly."""
    large, small, a, b = constants
    first_weight, first_bias, head_weight, head_bias = (
        np.zeros(tuple(value.shape), np.float32)
        for key, value in model.state_dict().items()
        if key.startswith(ENCODER_PREFIX)
    )
    first_weight[0, 0], first_bias[0] = _FIRST, -_FIRST * BOUND
    head_weight[:2, 0] = -a * large, b * large
    head_bias[:2] = b * small, a * small
    keys = [key for key in model.state_dict() if key.startswith(ENCODER_PREFIX)]
    return dict(zip(keys, (first_weight, first_bias, head_weight, head_bias), strict=True))


def search(run: RunConfig, record: np.ndarray, tries: int, seed: int) -> tuple[float, Constants]:
    """The largest contribution of the record in clips over ``tries`` constants, and the best.

    The known constants are the first of them.
    """
    rng = np.random.default_rng(seed)
    model, plan = build_model(run), PrivacyPlan.from_config(run)
    best = (0.0, KNOWN)
    with gradient_sums(model.train(), plan, run.training) as sums:
        for number in range(tries):
            constants = KNOWN if number == 0 else _constants(rng)
            state = {k: torch.from_numpy(v) for k, v in hostile_weights(model, constants).items()}
            model.load_state_dict(state, strict=False)
            record_only = torch.from_numpy(record[None])
            total = sums(record_only, torch.arange(1), SimulationNoise(seed, number))
            best = max(best, (float(total.norm()) / plan.clip, constants))
    return best


def _constants(rng: np.random.Generator) -> Constants:
    a, b = (int(2 * rng.integers(1, 64) + 1) for _ in range(2))
    return 2.0 ** int(rng.integers(10, 60)), 2.0 ** int(rng.integers(0, 30)), a, b


def hostile(folder: Path, draws: int, tries: int, seed: int, watch: Watch) -> tuple[Finding, Check]:
    """Attack a real node: does one paid round tell whether the chosen record is there?

    Args:
        folder: for the homes of two nodes.
        draws: rounds of each.
        tries: of the search for constants.
        seed: of records and constants.
        watch: told about progress.

    Returns:
        The attack by the best constants, and whether any constants push the record past its clip.
    """
    name = "real node, hostile weights"
    run, records = hostile_run(), hostile_records(seed)
    watch(name, 0.0)
    largest, constants = search(run, records[0], tries, seed)
    away = records.copy()
    away[0] = np.nan  # a null record: it counts in N and has no gradient
    worlds: list[np.ndarray] = []
    for world, held in (("with", records), ("without", away)):
        node = audit_node(folder / world, run, held)
        worlds.append(_scores(node, run, constants, draws))
        watch(name, len(worlds) / 2)
    finding = Finding(
        name=name,
        claimed=epsilon_of([PrivacyPlan.from_config(run).required("train")], DELTA),
        lower=dp_lower_bound(worlds[0], worlds[1], DELTA),
        draws=2 * draws,
        attack="a bias moves by more than a clipped record",
    )
    most = 1.0 + ROUNDING
    return finding, checks.at_most(f"{name}: part of one record", "clips", largest, most, tries)


def _scores(node: Node, run: RunConfig, constants: Constants, draws: int) -> np.ndarray:
    """Of each round, 1 where the first bias moved by more than a clip and noise explain."""
    sent = hostile_weights(build_model(run), constants)
    bias, scores = list(sent)[1], []
    for number in range(draws):
        answer = ask(node, run, f"hostile-{number}", phases(run)[0], "full", sent)
        moved = np.abs(answer.arrays[bias].astype(np.float64) - sent[bias]).max()
        most = 1.0 + answer.entry.noise_multiplier * checks.largest_normal(draws)
        unit = run.training.learning_rate * run.privacy.clip
        scores.append(moved > most * unit / (run.privacy.sample_rate * _RECORDS))
    return np.asarray(scores, dtype=np.float64)
