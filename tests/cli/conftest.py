"""The command line in this process, for every test of a command."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedlatent.cli import main as cli_main
from fedlatent.server.export import export_global
from fedlatent.server.home import ServerHome
from fedlatent.shared.keys import SigningKey
from fedlatent.simulations.federation import Simulation, datasets, simulate
from tests.simulations.support import tiny_federation, tiny_run

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call ``fedlatent`` in this process: exit code, standard output and standard error."""
    monkeypatch.setenv("FEDLATENT_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("COLUMNS", raising=False)  # workers of pytest are given one

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedlatent", *map(str, arguments)])
        code = 0
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            cli_main.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Simulation, ServerHome, Path]:
    """A finished tiny federation, its server home and its global bundle."""
    folder = tmp_path_factory.mktemp("finished")
    federation = tiny_federation()
    simulation = simulate(tiny_run(federation), datasets(federation), folder)
    home = ServerHome(folder / "server")
    SigningKey.generate(home.signing_key)
    bundle = export_global(home).path
    np.savez(folder / "beats.npz", X=federation.sites[0].test)
    np.savez(folder / "normals.npz", X=federation.sites[0].train[:10])
    return simulation, home, bundle
