"""The same app by plain ``flwr run`` on Flower's own simulation engine, one node on each of two."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.fab import app_dir
from server.results import RunResult
from server.service import free_port
from shared.supervisor import child_environment, program
from tests.simulations.support import answers

RUN = """
config = '''
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
'''
run-id = "plain-1"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Homes of Flower, server and simulated nodes below the test's folder."""
    return child_environment() | {
        "FLWR_HOME": str(tmp_path / "flower"),
        "FEDLATENT_SERVER_HOME": str(tmp_path / "server"),
        "FEDLATENT_HOME": str(tmp_path / "nodes"),
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@pytest.fixture
def connection(tmp_path: Path, environment: dict[str, str]) -> Iterator[str]:
    """A SuperLink with Flower's simulation engine; its folder is empty, as Flower needs."""
    port = free_port()
    (tmp_path / "empty").mkdir()
    (tmp_path / "flower").mkdir()
    (tmp_path / "flower" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    with (tmp_path / "superlink.log").open("w") as log:
        process = subprocess.Popen(
            [program("flower-superlink"), "--insecure", "--simulation", "--port", str(port)],
            cwd=tmp_path / "empty",
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while not answers(port):
            assert time.monotonic() < deadline, "the SuperLink did not start"
            time.sleep(0.2)
        yield "here"
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


def test_the_app_runs_on_flowers_own_engine(
    tmp_path: Path, environment: dict[str, str], connection: str
) -> None:
    """Two simulated patients train one round under privacy and the result can be loaded."""
    pytest.importorskip("ray", reason="Flower's simulation engine needs Ray")
    settings = tmp_path / "run.toml"
    settings.write_text(RUN)
    options = ["--stream", "--run-config", str(settings), "--federation-config"]
    sizes = "num-supernodes=2 client-resources-num-cpus=1"
    with app_dir() as app:
        done = subprocess.run(
            [program("flwr"), "run", str(app), connection, *options, sizes],
            env=environment,
            cwd=tmp_path / "empty",
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = RunResult.load(tmp_path / "server" / "runs" / "plain-1" / "result")
    sites = result.facts["sites"]
    assert isinstance(sites, dict)
    assert len(sites) == 2
    assert all(key.startswith("encoder.") for key in result.arrays)
