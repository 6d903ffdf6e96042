"""At the edges of what a node accepts every answer has one shape, whoever is among the records."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlatent.client.compute import run_model
from fedlatent.client.door import Outgoing
from fedlatent.client.home import ClientHome
from fedlatent.client.local import assemble
from fedlatent.client.node import Node
from fedlatent.client.policy import Caps, NodeConfig
from fedlatent.shared.arrays import Arrays, add_prefix
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.data.gaussian import feature_basis
from fedlatent.shared.detection.density import score_names
from fedlatent.shared.models.base import ENCODER_PREFIX
from fedlatent.shared.schedule import Kind, phases
from fedlatent.testing import Case
from tests.client.support import request
from tests.shared.models.cases import CASES

RECORDS = 24
CAPS = Caps()
#: Whole models with a Gaussian of the data; encoders with a scaling and a broadcast mixture.
MODES: dict[str, dict[str, Any]] = {
    "full": {"sharing": "full", "summaries": {"data": "gaussian"}},
    "encoder": {
        "sharing": "encoder+summary",
        "summaries": {"data": "scaling", "prior": "mixture", "every": 1},
    },
}
DEEP = Case(
    family="gaussian",
    options={"hidden": [9] * 9, "latent_dim": 3, "activation": "relu"},
    shape=(12,),
)
TESTED = {
    "deep": DEEP,
    **{name: CASES[name] for name in ("conv1d", "recurrent", "vq-fsq", "vq-codebook", "gumbel")},
    **{name: CASES[name] for name in ("hierarchical", "mixed", "sequence-masked", "diffusion")},
}


def edge_run(case: Case, mode: Mapping[str, Any]) -> RunConfig:
    """A run with every kind of phase whose numbers lie at the edges of the caps."""
    tables: dict[str, Any] = {
        "name": "edge",
        "data": {"name": "edge", "shape": list(case.shape), "lower": 0.0, "upper": case.upper},
        "model": {"family": case.family, "options": dict(case.options)},
        "training": {
            "rounds": 2,
            "steps_per_round": 1,
            "optimizer": "sgd",
            "learning_rate": CAPS.largest_learning_rate,
            "beta": CAPS.largest_beta,
        },
        "privacy": {"epsilon": 4.0, "sample_rate": 1.0, "clip": CAPS.largest_clip},
        "scoring": {"combined": True},
        **mode,
    }
    tables["summaries"] = {"features": 3, "components": 2, "em_rounds": 1, **mode["summaries"]}
    if case.family == "sequence":  # trains a prior of its own
        tables["summaries"]["prior"] = "none"
    return RunConfig.parse(tables, "edge")


def edge_node(root: Path, case: Case, run: RunConfig, *, drop: bool) -> Node:
    """A node whose first record lies in a corner of the bounds, or the same without that record."""
    rng = np.random.default_rng(5)
    records = rng.uniform(0.3, 0.7, (RECORDS, *case.shape)) * case.upper
    records[0] = rng.choice([0.0, case.upper], case.shape)
    config = NodeConfig.model_validate(
        {
            "site": "north",
            "data": {"path": "x.npz", "schema": run.data.to_dict()},
            "policy": {"max_epsilon": 100.0, "allowed_sharing": ["full", "encoder+summary"]},
        }
    )
    kept = records[1:] if drop else records
    dataset = Dataset(records=kept.astype(np.float32), schema=run.data)
    return assemble(config, dataset, ClientHome(root))


def edge_weights(run: RunConfig, pattern: str, *, whole: bool) -> Arrays:
    """Weights at the edges: all large, of either sign, or below the smallest normal number."""
    rng = np.random.default_rng(1)
    most = CAPS.largest_weight
    shapes = {k: tuple(v.shape) for k, v in run_model(run).state_dict().items()}
    draws = {
        "large": lambda shape: np.full(shape, most),
        "signs": lambda shape: rng.choice([-most, most], shape),
        "subnormal": lambda shape: rng.choice([-1e-40, 1e-42], shape),
    }
    return {
        key: draws[pattern](shape).astype(np.float32)
        for key, shape in shapes.items()
        if whole or key.startswith(ENCODER_PREFIX)
    }


def covariance(k: int, seed: int) -> np.ndarray:
    """A turned covariance whose eigenvalues span all that is accepted."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(k, k)))
    values = np.geomspace(1.1 * CAPS.smallest_eigenvalue, 0.9 * CAPS.largest_eigenvalue, k)
    matrix = (turn * values) @ turn.T
    return (matrix + matrix.T) / 2


def edge_extras(run: RunConfig, k: int, kind: Kind) -> Arrays:
    """Every other array of a request, at the edges."""

    def density(size: int) -> dict[str, np.ndarray]:
        mean = np.full(size, CAPS.largest_weight)
        spreads = {"covariance": covariance(size, 0), "within": covariance(size, 1)}
        return {"count": np.ones(1), "mean": mean, **spreads}

    mixture = {
        "weights": np.asarray([1.0 - 1e-12, 1e-12]),
        "means": np.full((2, k), -CAPS.largest_weight),
        "covariances": np.stack([covariance(k, 2), CAPS.smallest_eigenvalue * 1.1 * np.eye(k)]),
    }
    arrays = {
        **add_prefix("density.", density(k)),
        **add_prefix("scores.", density(len(score_names(run)))),
        **add_prefix("mixture.", mixture),
    }
    if run.summaries.data == "gaussian":
        return arrays | add_prefix("data.", density(len(feature_basis(run))))
    half = (run.data.upper - run.data.lower) / 2
    least = np.full(run.data.shape[0], 1.01 * CAPS.smallest_deviation * half)
    scaling = {"mean": np.full(run.data.shape[0], run.data.upper), "deviation": least}
    return arrays if kind == "data" else arrays | add_prefix("scaling.", scaling)


def answers(node: Node, run: RunConfig, pattern: str) -> list[Outgoing]:
    """What a node says to every phase of a run, asked with arrays at the edges."""
    found = []
    k = run_model(run).latent_dim
    for phase in phases(run):
        whole = run.shares_decoder and phase.kind in ("train", "scores", "threshold")
        arrays = {
            **edge_weights(run, pattern, whole=whole),
            **edge_extras(run, k, phase.kind),
        }
        found.append(node.handle(request(run, phase.number, phase.kind), arrays))
    return found


PATTERNS = ("large", "signs", "subnormal")
QUICK = [("deep", "full", "signs"), ("deep", "encoder", "large"), ("vq-fsq", "full", "large")]
SLOW = [one for one in itertools.product(TESTED, MODES, PATTERNS) if one not in QUICK]


@pytest.mark.parametrize(
    ("name", "mode", "pattern"),
    [*QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)],
)
def test_one_record_changes_no_status_and_no_text(
    tmp_path: Path, name: str, mode: str, pattern: str
) -> None:
    """Every phase is answered, with and without the one extreme record, and no warning is raised.

    Warnings are errors here: an overflow that nobody expected would end the computation.
    """
    case = TESTED[name]
    run = edge_run(case, MODES[mode])
    said = []
    for drop in (False, True):
        node = edge_node(tmp_path / str(drop), case, run, drop=drop)
        said.append([(o.header.status, o.header.text) for o in answers(node, run, pattern)])
    assert said[0] == said[1]
    assert {status for status, _ in said[0]} == {"ok"}, said[0]
