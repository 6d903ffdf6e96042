"""The command line in this process, for every test of a command."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import main as cli_main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call ``fedlatent`` in this process: exit code, standard output and standard error."""
    monkeypatch.setenv("FEDLATENT_HOME", str(tmp_path / "user"))

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
