"""The tiny runs, and one of them between homes that the command line made."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedlatent.cli.main import app
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation, hearts
from fedlatent.simulations.federation import Simulation, datasets, simulate

#: Every way to share and every kind of release appears in one of them.
RUNS: dict[str, dict[str, Any]] = {
    "everything": {
        "sharing": "encoder+summary",
        "summaries": {
            "prior": "mixture",
            "components": 2,
            "em_rounds": 1,
            "every": 1,
            "data": "scaling",
            "moments": "full",
        },
        "scoring": {"combined": True, "per_client": True},
    },
    "whole-model": {
        "sharing": "full",
        "training": {
            "rounds": 2,
            "steps_per_round": 3,
            "warm_start_steps": 2,
            "optimizer": "sgd",
            "momentum": 0.5,
        },
        "summaries": {"data": "gaussian", "features": 4, "moments": "diagonal"},
        "strategy": {"robust": "trimmed-mean"},
    },
    "own-models": {
        "strategy": {
            "name": "mr-mtl",
            "robust": "none",
            "weighting": "noise-aware",
            "server_optimizer": "adam",
        },
    },
    "summary-alone": {"sharing": "summary"},
    "no-privacy": {"privacy": {"mechanism": "none", "rng": "simulation"}},
}


def federation() -> Federation:
    """Three synthetic patients with few beats."""
    return hearts(3, seed=11, beats=120)


def tables(name: str) -> dict[str, Any]:
    """The run file of one of the runs."""
    plain = {
        "name": "tiny",
        "seed": 3,
        "data": {
            "name": "heart-beat-128",
            "shape": [128],
            "unit": "mV",
            "center": "median",
            "lower": -2.5,
            "upper": 2.5,
        },
        "model": {"options": {"hidden": [8], "latent_dim": 3}},
        "privacy": {"rng": "simulation", "epsilon": 4.0},
        "training": {"rounds": 2, "steps_per_round": 3},
        "federation": {"nodes": 3, "quorum": 2},
    }
    return plain | RUNS[name]


def simulated(name: str, engine: Any, folder: Path) -> Simulation:  # noqa: ANN401 - an engine
    """One of the runs in ``folder``."""
    run = RunConfig.parse(tables(name), name)
    return simulate(run, datasets(federation()), folder, engine=engine)


def fedlatent(*arguments: object) -> Any:  # noqa: ANN401 - JSON
    """What a command says to scripts."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception}"
    return json.loads(result.stdout)


@pytest.fixture(scope="package", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder; the user of these tests lives in it."""
    folder = tmp_path_factory.mktemp("golden").resolve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDLATENT_HOME", str(folder / "user"))
        yield folder


@dataclass(frozen=True)
class Finished:
    """The run with everything between nodes.

    Attributes:
        simulation: what is left of it.
        said: by the commands that made its homes and exported its bundles.
        server: home of the server.
        node: home of the first site.
        folder: holds both, and ``beats.npz``, ``normals.npz`` and ``records.npz``.
    """

    simulation: Simulation
    said: dict[str, Any]
    server: Path
    node: Path
    folder: Path

    def bundle(self, kind: str) -> tuple[Path, Path]:
        """The bundle "global" or "site", and the public key of its home."""
        home = self.server if kind == "global" else self.node
        return self.folder / f"{kind}.fedlatent", home / "keys" / "signing.pem.pub"


@pytest.fixture(scope="package")
def finished(place: Path) -> Finished:
    """The run with everything, between homes that the command line made, and its two bundles."""
    said = {}
    server, node = place / "server", place / "nodes" / "patient-000"
    said["server init"] = fedlatent("server", "init", "--home", server, "--port", 8443)
    site = federation().sites[0]
    np.savez(place / "beats.npz", X=site.test[:12])
    np.savez(place / "normals.npz", X=site.train[:10])
    np.savez(place / "records.npz", X=site.train)
    said["client init"] = fedlatent(
        *("client", "init", site.name, "--home", node, "--server", "127.0.0.1:9"),
        *("--ca", server / "tls" / "ca.crt", "--schema", server / "run.toml"),
        *("--data", place / "records.npz", "--data-name", "records"),
        *("--max-epsilon", 4, "--delta", 1e-5),
    )
    with (node / "node.toml").open("a") as policy:  # its table comes last
        policy.write("allow_simulation_rng = true\n")
    simulation = simulated("everything", "nodes", place)
    made = Finished(simulation, said, server, node, place)
    for kind, home in (("global", server), ("site", node)):
        target = made.bundle(kind)[0]
        said[f"export {kind}"] = fedlatent("export", kind, "--home", home, "--out", target)
    return made
