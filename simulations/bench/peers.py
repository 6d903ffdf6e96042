"""Which systems can run here, and how each is started."""

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import fedlatent
from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.bench.plain import Task
from fedlatent.simulations.bench.remote import Command

#: Names the Python of the environment in which pfl-research is installed.
PFL_PYTHON = "FEDLATENT_PFL_PYTHON"

#: Always compared.
OURS = ("stacked", "stacked_dp", "simulated", "simulated_dp")
#: May be left out, or be missing.
PEERS = ("plain_loop", "opacus_hooks", "opacus_ghost", "pfl", "flower")
#: Train one client's records; these have a convolutional task as well.
TRAINERS = ("plain_loop", "opacus_hooks", "opacus_ghost", "stacked", "stacked_dp")

_PACKAGES = str(Path(fedlatent.__file__).resolve().parents[1])


def choose(wanted: str) -> tuple[str, ...]:
    """Peers by a comma-separated list, ``all`` or ``none``.

    Raises:
        ConfigError: a name is unknown.
    """
    if wanted in ("all", "none"):
        return PEERS if wanted == "all" else ()
    names = tuple(name.strip() for name in wanted.split(",") if name.strip())
    for name in names:
        if name not in PEERS:
            raise ConfigError(
                f"Expected peers out of {', '.join(PEERS)} (or all, or none), got {name!r}; "
                "correct the list."
            )
    return names


def missing(names: Sequence[str]) -> dict[str, str]:
    """Why those of ``names`` that cannot run here cannot, and what to do."""
    reasons = {name: _reason(name) for name in names}
    return {name: reason for name, reason in reasons.items() if reason}


def command_of(name: str, task: Task, rounds: int) -> Command:
    """How to start a system.

    Args:
        name: of ``OURS`` or ``PEERS``.
        task: what it does.
        rounds: that it will be asked for.
    """
    work = ("--task", task.to_json())
    if name == "pfl":
        return Command(
            argv=(os.environ.get(PFL_PYTHON, ""), "-m", "fedlatent.simulations.bench.pfl", *work),
            modules=("pfl",),
            env={"PFL_PYTORCH_DEVICE": task.device},
        )
    env = {"PYTHONPATH": os.pathsep.join([_PACKAGES, os.environ.get("PYTHONPATH", "")])}
    if name == "flower":
        return Command(
            argv=(sys.executable, "-m", "fedlatent.simulations.bench.flower", *work), env=env
        )
    argv = (sys.executable, "-m", "fedlatent.simulations.bench.worker", name, *work)
    return Command(argv=(*argv, "--rounds", str(rounds)), env=env)


def _reason(name: str) -> str:
    if name == "flower" and find_spec("ray") is None:
        return (
            "not installed: Flower's simulation engine needs Ray; pip install '.[simulation]' "
            "gets it"
        )
    return _pfl_reason() if name == "pfl" else ""


def _pfl_reason() -> str:
    python = os.environ.get(PFL_PYTHON)
    if not python:
        return (
            "not installed: pfl-research needs a virtual environment of its own; make one as "
            f"docs/benchmarks.md says and set {PFL_PYTHON} to its python"
        )
    try:
        found = subprocess.run(
            [python, "-c", "import pfl, torch"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        return f"not installed: {PFL_PYTHON} is {python!r}, which does not run ({error.strerror})"
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no word"])[-1]
        return f"not installed: {python} cannot import pfl and torch ({last})"
    return ""
