"""Runs Flower's programs for the server: behind Unix sockets, and installed code alone.

Flower sends an app's code with each run and runs it as the operator. Here a ServerApp's process
neither unpacks nor loads what was sent: it looks for a submission in the server's home that names
its run, runs the installed ``fedlatent.server.app`` with the settings in there, and refuses any run
that has none. So only someone who can write the operator's files can make a run.
"""

import time
from types import ModuleType
from typing import NoReturn

from fedlatent.server.home import ServerHome
from fedlatent.shared import flower
from fedlatent.shared.errors import ServiceError

MODULE = "fedlatent.server.launcher"
"""Of this file, for ``python -m``."""

RUNTIME = "flwr.superlink.runtime.run_serverapp"

_PROGRAMS = {
    "superlink": "flower-superlink",
    "superexec": "flower-superexec",
    "serverapp": "flwr-serverapp",
    "flwr": "flwr",
}
_PATIENCE_S = 20.0  # between the start of Flower's run and our note of its number
_POLL_S = 0.1


def use_own_code(runtime: ModuleType) -> None:
    """Make Flower's ServerApp runtime run the installed app, for a run of ours and no other.

    Raises:
        ServiceError: this Flower has another runtime; the server must not start with it.
    """
    replacements = {
        "get_fab_metadata": lambda *_, **__: ("", ""),
        "get_project_dir": flower.leave_packed,
        "get_project_config": lambda *_, **__: _COMPONENTS,
        "get_fused_config_from_dir": lambda *_, **__: {},
        "run_": _run_installed,
    }
    flower.use_own_code(runtime, replacements, RUNTIME)


def settings_of(home: ServerHome, flower_run: int, patience_s: float) -> dict[str, str]:
    """The settings of the run that a run of Flower's carries, as ``server.app`` reads them.

    Args:
        home: The server's home, whose submissions are read.
        flower_run: Flower's number of its run.
        patience_s: How long to wait for the submission, which names the run a moment after its
            start.

    Raises:
        ServiceError: No open submission names this run as its newest.
    """
    from fedlatent.server.control import Control

    deadline = time.monotonic() + patience_s
    while True:
        for one in Control(home).submissions():
            if one.state == "open" and one.flower_runs[-1:] == (str(flower_run),):
                resume = one.run_id if len(one.flower_runs) > 1 else ""
                return {"config": one.config, "run-id": one.run_id, "resume": resume}
        if time.monotonic() > deadline:
            raise ServiceError(
                f"Expected a run that was submitted to {home.root}, got Flower's run {flower_run}, "
                "which no submission names; start runs with 'fedlatent server run'."
            )
        time.sleep(_POLL_S)


_COMPONENTS = {"tool": {"flwr": {"app": {"components": {"serverapp": "fedlatent.server.app:app"}}}}}


def _run_installed(**arguments: object) -> object:
    """Stands in for Flower's ``run``: any run gives the installed app, with our settings."""
    grid, context = arguments["grid"], arguments["context"]
    context.run_config = settings_of(ServerHome.find(), context.run_id, _PATIENCE_S)  # type: ignore[attr-defined]
    from fedlatent.server.app import app

    app(grid=grid, context=context)  # type: ignore[arg-type]
    return context


def _prepare(role: str, program: str) -> list[str]:
    """Change Flower for one role; gives further arguments of its program."""
    flower.connect()
    if role == "superlink":
        flower.listen(program)
        flower.keep_objects_flat()
    return flower.prepare_task(role, "serverapp", MODULE, use_own_code, RUNTIME)


def main() -> NoReturn:
    """Command line: ``python -m fedlatent.server.launcher ROLE``, then Flower's own arguments."""
    flower.start(_PROGRAMS, _prepare)


if __name__ == "__main__":
    main()
