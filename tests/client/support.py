"""Tiny real nodes, runs and requests for the tests of the client."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedlatent.client.compute import make_noise
from fedlatent.client.home import ClientHome
from fedlatent.client.local import assemble
from fedlatent.client.node import Node, NoiseFactory
from fedlatent.client.policy import NodeConfig
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.models import build_model, encoder_state
from fedlatent.shared.wire import PROTOCOL, Kind, RequestHeader

SHAPE = (12,)
RECORDS = 200
RUN_ID = "tiny-1"

Sections = Mapping[str, Mapping[str, Any]]


def tiny_run(**sections: Any) -> RunConfig:  # noqa: ANN401
    """A run of a 12-6-2 model, three rounds of four steps; sections replace the defaults."""
    values: dict[str, Any] = {
        "name": "tiny",
        "data": {"name": "tiny", "shape": list(SHAPE), "unit": "mV", "lower": -3.0, "upper": 3.0},
        "model": {"options": {"hidden": [6], "latent_dim": 2}},
        "training": {"rounds": 3, "steps_per_round": 4},
        "privacy": {"epsilon": 4.0, "rng": "simulation"},
    }
    for key, value in sections.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return RunConfig.parse(values, "test run")


def tiny_records(count: int = RECORDS, seed: int = 0) -> np.ndarray:
    """Raw records [count, 12]."""
    return np.random.default_rng(seed).normal(size=(count, *SHAPE))


def tiny_config(run: RunConfig, **policy: Any) -> NodeConfig:  # noqa: ANN401
    """A node that allows simulations, with a budget of 5."""
    return NodeConfig.model_validate(
        {
            "site": "north",
            "data": {"path": "records.npz", "schema": run.data.to_dict()},
            "policy": {"max_epsilon": 5.0, "allow_simulation_rng": True, **policy},
        }
    )


def tiny_node(
    root: Path,
    run: RunConfig,
    noise_factory: NoiseFactory = make_noise,
    **policy: Any,  # noqa: ANN401
) -> Node:
    """A node with 200 records and its files below ``root``."""
    schema = run.data
    dataset = Dataset(records=schema.preprocess(tiny_records()), schema=schema)
    return assemble(tiny_config(run, **policy), dataset, ClientHome(root), noise_factory)


def weights_of(run: RunConfig, seed: int | None = None) -> dict[str, np.ndarray]:
    """Encoder weights as a server sends them, the initial ones or other ones."""
    state = encoder_state(build_model(run))
    if seed is None:
        return {key: value.numpy() for key, value in state.items()}
    generator = torch.Generator().manual_seed(seed)
    return {
        key: (value + 0.1 * torch.randn(value.shape, generator=generator)).numpy()
        for key, value in state.items()
    }


def request(
    run: RunConfig,
    round: int,
    kind: Kind = "train",
    deadline_s: float = 30.0,
    run_id: str = RUN_ID,
) -> RequestHeader:
    """The header of one request."""
    return RequestHeader(
        protocol=PROTOCOL,
        run_id=run_id,
        round=round,
        kind=kind,
        config=run,
        deadline_s=deadline_s,
    )
