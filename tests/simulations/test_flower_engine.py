"""The same app by plain ``flwr run`` on Flower's own simulation engine, and who answers there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlatent.client.local import SIMULATION_VARIABLE, partition_node
from fedlatent.server.home import ServerHome
from fedlatent.server.results import RunFolder
from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.flower import FlowerEngine, flower_engine, run_on_flower
from tests.simulations.support import tiny_federation, tiny_run

RUN = """
name = "plain"
[data]
name = "heart-beat-128"
shape = [128]
unit = "mV"
center = "median"
lower = -2.5
upper = 2.5
[model.options]
hidden = [8]
latent_dim = 2
[training]
rounds = 1
steps_per_round = 2
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FlowerEngine]:
    """Flower's engine, with the homes of server and simulated nodes below the test's folder."""
    pytest.importorskip("ray", reason="Flower's simulation engine needs Ray")
    environment = {
        "FEDLATENT_SERVER_HOME": str(tmp_path / "server"),
        "FEDLATENT_HOME": str(tmp_path / "nodes"),
    }
    with flower_engine(tmp_path / "engine", environment) as started:
        yield started


def test_the_app_runs_on_flowers_own_engine(tmp_path: Path, engine: FlowerEngine) -> None:
    """Two simulated patients train one round under privacy and the result can be loaded."""
    log = tmp_path / "flwr.log"
    with engine.submit({"config": RUN, "run-id": "plain-1"}, 2, log) as process:
        status = process.wait(300)
    assert status == 0, log.read_text()[-4000:]
    result = RunFolder.load(tmp_path / "server" / "runs" / "plain-1" / "result")
    sites = result.facts["sites"]
    assert isinstance(sites, dict)
    assert len(sites) == 2
    assert all(key.startswith("encoder.") for key in result.arrays)


def test_a_partition_without_a_home_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A simulation with more nodes than homes says so, and gives no synthetic patient instead."""
    monkeypatch.setenv(SIMULATION_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="got 0 homes"):
        partition_node("run", 0, 7)


def test_a_run_is_not_repeated_in_its_folder(tmp_path: Path) -> None:
    """A second run of one name is refused before anything starts; the first one stays."""
    federation = tiny_federation(2)
    ServerHome(tmp_path / "server").run("again").mkdir(parents=True)
    with pytest.raises(ConfigError, match="'again'"):
        run_on_flower(tiny_run(federation), federation, tmp_path, run_id="again")
    assert not (tmp_path / "nodes").exists()
