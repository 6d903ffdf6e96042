"""What the commands say and do about processes: orphans, damaged runs, a closed terminal."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedlatent.client.home import ClientHome
from fedlatent.server.home import ServerHome
from fedlatent.shared.processes import MARK
from fedlatent.shared.toml import dumps
from tests.cli.conftest import Run
from tests.conftest import REPOSITORY

TIDY = """
import time
from fedlatent.cli import main
def app(args):
    try:
        print("up", flush=True)
        time.sleep(300)
    finally:
        print("tidy", flush=True)
main.app = app
main.main()
"""


def test_orphans_and_damaged_runs_are_shown(run: Run, tmp_path: Path) -> None:
    """Status names what a killed server left behind and what is damaged; stop ends the former."""
    home = ServerHome(tmp_path / "server")
    assert run("server", "init", "--home", home.root, "--port", 0)[0] == 0
    (home.run("old[1]") / "x").mkdir(parents=True)
    (home.run("old[1]") / "submission.json").write_text("{")
    argv, environment = ("/bin/sleep", "300"), os.environ | {MARK: str(home.services)}
    with subprocess.Popen(argv, env=environment) as orphan:
        status, out, _ = run("server", "status", "--home", home.root, "--json")
        facts = json.loads(out)
        assert status == 0
        assert [one["state"] for one in facts["processes"]] == ["orphaned"]
        assert "server resume old[1]" in facts["damaged"]["old[1]"]
        assert (
            "damaged: Expected a submission in" in run("server", "status", "--home", home.root)[1]
        )
        status, out, _ = run("server", "stop", "--home", home.root)
        assert (status, out) == (0, "ended what a killed server had left behind\n")
        assert orphan.wait(120) == -signal.SIGTERM
    assert run("server", "stop", "--home", home.root)[:2] == (0, "no server runs here\n")


def test_a_node_is_stopped(run: Run, tmp_path: Path) -> None:
    """The data holder has a command that ends a node, and all that a killed one left."""
    home = ClientHome(tmp_path / "node")
    assert run("client", "stop", "--home", home.root)[0] == 2
    home.create()
    data = {"path": "x.npz", "schema": {"name": "d", "shape": [2]}}
    tables = {"site": "ward", "data": data, "policy": {"max_epsilon": 1.0}}
    home.config.write_text(dumps(tables))
    assert run("client", "stop", "--home", home.root)[:2] == (0, "no node runs here\n")
    argv, environment = ("/bin/sleep", "300"), os.environ | {MARK: str(home.services)}
    with subprocess.Popen(argv, env=environment) as orphan:
        out = run("client", "stop", "--home", home.root)[1]
        assert out == "ended what a killed node had left behind\n"
        assert orphan.wait(120) == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_tidies_up_when_it_is_ended(number: signal.Signals) -> None:
    """SIGTERM and a closed terminal unwind a command, so that what it began ends with it."""
    argv = [sys.executable, "-c", TIDY]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "up\n"
        command.send_signal(number)
        assert command.stdout.readline() == "tidy\n"
        assert command.wait(120) == 143


@pytest.mark.parametrize("module", ["fedlatent.client.service", "fedlatent.server.service"])
def test_a_service_without_a_home_says_so(module: str, tmp_path: Path) -> None:
    """Started by itself, a service ends with a sentence and the status of its error."""
    ended = subprocess.run(
        [sys.executable, "-m", module, "--home", str(tmp_path / "none")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("Expected ")
    assert "Traceback" not in ended.stderr
