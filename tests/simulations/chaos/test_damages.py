"""Each file of a home in turn is cut, emptied, junk or gone: we go on, or say no in a sentence."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.border import Border
from fedlatent.client.home import USER_VARIABLE, ClientHome
from fedlatent.client.local import open_node
from fedlatent.client.policy import NodeConfig
from fedlatent.client.service import ClientService, init_client
from fedlatent.server.authority import ensure_certificate
from fedlatent.server.checkpoint import Checkpoint, CheckpointStore
from fedlatent.server.control import Control
from fedlatent.server.home import ServerHome
from fedlatent.server.registry import Registry
from fedlatent.server.seal import Seal
from fedlatent.server.service import ServerService, init_server
from fedlatent.server.settings import load_settings
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import HEARTS_SCHEMA, hearts
from fedlatent.shared.errors import FedlatentError
from fedlatent.shared.files import write_json
from fedlatent.simulations.chaos.faults import damage
from fedlatent.simulations.chaos.plan import DAMAGES

RUN = "run-1"
CONFIG = RunConfig.parse({"name": "damages", "data": {"name": "x", "shape": [3]}}, "test")


def server_steps(home: ServerHome) -> list[Callable[[], object]]:
    """What a server reads of its home when it starts, admits and drives a run."""

    def registry() -> None:
        with Registry(home.registry) as opened:
            opened.start_run(RUN, name="run", digest="d", config="{}", phases=3)
            opened.rounds(RUN)

    return [
        lambda: ServerService(home),
        lambda: ensure_certificate(home, load_settings(home).names),
        lambda: Control(home).sites(),
        lambda: Control(home).submission(RUN),
        registry,
        CheckpointStore(home.run(RUN) / "checkpoints", CONFIG).load,
        lambda: Seal.of(home),
    ]


def node_steps(home: ClientHome) -> list[Callable[[], object]]:
    """What a node reads of its home when it starts."""
    return [
        lambda: ClientService(home),
        lambda: Border.of(home, NodeConfig.load(home.config)),
        lambda: open_node(home),
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    """A server's home with a run that has begun."""
    home = ServerHome(tmp_path_factory.mktemp("server") / "home")
    init_server(home, port=0)
    store = CheckpointStore(home.run(RUN) / "checkpoints", CONFIG)
    for done in (0, 1):
        weights = {"encoder.x": np.zeros(3, np.float32)}
        store.save(Checkpoint(run_id=RUN, digest="d", done=done, encoder=weights))
    write_json(home.sites, [])
    submission = {"run_id": RUN, "config": "{}", "state": "open", "reason": ""}
    more = {"flower_runs": ["1"], "submitted": "2026-01-01T00:00:00+00:00", "launched": 1.0}
    write_json(home.run(RUN) / "submission.json", submission | more)
    for step in server_steps(home):
        step()
    return home


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, server: ServerHome) -> ClientHome:
    """A node's home that was opened once."""
    home = ClientHome(tmp_path_factory.mktemp("node") / "home")
    init_client(
        home,
        site="ward",
        server="127.0.0.1:8443",
        ca_certificate=server.ca_certificate.read_bytes(),
        data={"path": "beats.npz", "schema": HEARTS_SCHEMA.to_dict()},
        policy={"max_epsilon": 10.0, "delta": 1e-4},
    )
    np.savez(home.root / "beats.npz", X=hearts(1, seed=1, beats=120).sites[0].train)
    for step in node_steps(home):
        step()
    return home


def damaged_each(
    root: Path, copy: Path, steps: Callable[[], list[Callable[[], object]]]
) -> tuple[int, list[str]]:
    """Damage every file of a copy of a home in every way; how many refusals, and what was none."""
    refusals, wrong, draw = 0, [], random.Random(7)
    for path in sorted(one.relative_to(root) for one in root.rglob("*") if one.is_file()):
        for how in DAMAGES:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(root, copy)
            if not (copy / path).stat().st_size:
                continue
            damage(copy / path, how, draw)
            for step in steps():
                try:
                    step()
                except FedlatentError as error:
                    refusals += "Expected" in str(error)
                except Exception as error:
                    wrong.append(f"{path} {how}: {type(error).__name__}: {error}")
    return refusals, wrong


def test_a_damaged_server_says_so(server: ServerHome, tmp_path: Path) -> None:
    """No file of a server's home, whatever became of it, ends in anything but a sentence."""
    copy = tmp_path / "home"
    refusals, wrong = damaged_each(server.root, copy, lambda: server_steps(ServerHome(copy)))
    assert wrong == []
    assert refusals > 10


def test_a_damaged_node_says_so(
    node: ClientHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does any file of a node's."""
    monkeypatch.setenv(USER_VARIABLE, str(tmp_path / "user"))
    copy = tmp_path / "home"
    refusals, wrong = damaged_each(node.root, copy, lambda: node_steps(ClientHome(copy)))
    assert wrong == []
    assert refusals > 10
