"""A tiny federation of synthetic patients, folders of data sets, whether a port answers."""

import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from fedlatent.client.home import ClientHome
from fedlatent.client.ledger import Ledger
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.catalog import absent, paths
from fedlatent.shared.data.sources import Federation, hearts


def tiny_federation(sites: int = 3) -> Federation:
    """A few patients with few beats."""
    return hearts(sites, seed=11, beats=120)


def tiny_run(federation: Federation, /, **changes: object) -> RunConfig:
    """Two rounds of three steps on a small model, with seeded noise."""
    count = len(federation.sites)
    tables: dict[str, object] = {
        "name": "tiny",
        "seed": 3,
        "data": federation.schema.to_dict(),
        "model": {"options": {"hidden": [8], "latent_dim": 3}},
        "privacy": {"rng": "simulation", "epsilon": 4.0},
        "training": {"rounds": 2, "steps_per_round": 3},
        "federation": {"nodes": count, "quorum": max(1, count - 1)},
    }
    return RunConfig.parse(tables | changes, "test")


def simulated_ledger(home: ClientHome, epsilon: float, delta: float) -> Ledger:
    """The ledger of a home whose noise may be seeded."""
    return Ledger(home.ledger, "records", epsilon, delta, allow_simulation_rng=True)


def answers(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def folder_of(data_dir: Path, names: Iterable[str], folder: Path) -> Path:
    """A data folder with links to the files of these data sets and to nothing else.

    Skips the test where ``data_dir`` lacks one.
    """
    missing = absent(data_dir, names)
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {data_dir}")
    for name in dict.fromkeys(names):
        for path in paths(data_dir, name):
            (folder / path.name).symlink_to(path.resolve())
    return folder
