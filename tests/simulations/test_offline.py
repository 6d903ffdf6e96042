"""Every command where there is no network: nobody is asked for, and nothing strays."""

import sys
from pathlib import Path

import pytest

from fedlatent.shared.errors import ServiceError
from fedlatent.simulations.offline import OURS, STEPS, Finding, Step, run_steps
from tests.cli.test_commands import FROZEN

#: Commands of `fedlatent.simulations.offline` that need no deployed federation, in one process.
QUICK = """
import shlex, sys
from fedlatent.cli import main

failed = []
for line, status in eval(sys.argv[1]):
    sys.argv = ["fedlatent", *shlex.split(line)]
    code = 0
    try:
        main.main()
    except SystemExit as end:
        code = end.code or 0
    failed += [line] if code != status else []
sys.exit(f"failed: {failed}" if failed else 0)
"""
FEDERATION = """
import sys
from pathlib import Path

import numpy as np

from fedlatent.server.export import export_global
from fedlatent.server.home import ServerHome
from fedlatent.shared.keys import SigningKey
from fedlatent.simulations.federation import datasets, simulate
from tests.simulations.support import tiny_federation, tiny_run

folder, federation = Path(sys.argv[1]), tiny_federation()
simulate(tiny_run(federation), datasets(federation), folder / "demo")
home = ServerHome(folder / "demo" / "server")
SigningKey.generate(home.signing_key)
export_global(home)
np.savez(folder / "demo" / "device.npz", X=federation.sites[0].test)
(folder / "demo" / "publisher.pub").write_bytes(SigningKey.load(home.signing_key).public.to_pem())
"""
HEAVY = (
    "demo",
    "train",
    "server start",
    "audit",
    "simulate bench",
    "simulate run",
    "simulate report",
    "simulate compare",
)
DEPLOYED = ("@node@", "@server@/tls", "edge serve")

LOUD = """
import os, socket
os.environ["ORT_DISABLE_TELEMETRY"] = "0"
import onnxruntime
onnxruntime.SessionOptions()
try:
    socket.getaddrinfo("events.example", 443)
except OSError:
    pass
"""


def alone(steps: list[Step], folder: Path) -> list[Finding]:
    """Run steps, or skip where this machine makes no namespaces."""
    try:
        return run_steps(steps, folder, trace=False)
    except ServiceError as error:
        pytest.skip(str(error))


def test_every_command_is_watched() -> None:
    """A new command joins the steps, or is named here with the reason why not."""
    excepted = {
        "client approve",  # needs a run that waits for its answer, as the next
        "client refuse",
        "edge rollback",  # needs two installed bundles
        "edge stream",  # reads and scores as `edge score` does
        "release page",  # may ask npm for ONNX Runtime's web package, and says so
        "simulate check",  # is this
        "server readmit",  # needs a site that a run left out
        "server resume",  # needs a paused run
        "server run",  # what `demo` does
    }
    known = {line.split(":")[0] for line in FROZEN.read_text().splitlines()}
    watched = {" ".join(step.argv[3:5]) for step in STEPS} | {step.argv[3] for step in STEPS}
    assert {name for name in known if name not in watched} == excepted


def test_commands_look_nothing_up_and_leave_nothing_behind(tmp_path: Path) -> None:
    """In an empty home, without a network: no lookup, no file but where they were told to."""
    lines = [
        (" ".join(one.argv[3:]), one.status) for one in STEPS if "fedlatent.cli.main" in one.argv
    ]
    quick = [
        (line, status)
        for line, status in lines
        if not line.startswith(HEAVY) and not any(part in line for part in DEPLOYED)
    ]
    assert len(quick) > 25
    steps = [
        Step(argv=(sys.executable, "-c", FEDERATION, "@work@")),
        Step(argv=(sys.executable, "-c", QUICK, repr(quick))),
    ]
    for found in alone(steps, tmp_path):
        assert found.quiet, found


def test_a_loud_program_is_found_out(tmp_path: Path) -> None:
    """The trap holds: who reports its use is caught by its lookup and by its files."""
    (found,) = alone([Step(argv=(sys.executable, "-c", LOUD))], tmp_path)
    assert "events.example" in found.lookups
    assert any(path.startswith("~/.cache/Microsoft") for path in found.strays)
    assert not any(path.startswith(f"~/{own}") for path in found.strays for own in OURS)
    assert not found.quiet
