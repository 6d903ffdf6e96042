"""Runs Flower's ClientApp from this installation's code, never from what the server sent.

Flower ships an app's code with each run, unpacks it at the node and imports it: whoever controls
the server could run anything next to the private records. (Nor does Flower 1.41 check the names
in a sent app, so one with ``../`` in its version is unpacked wherever it likes.) The SuperExec of
a node finds this program under the name ``flwr-clientapp``. It puts three functions of Flower's
runtime out of service before that runtime starts: sent apps stay packed, no dependency is
installed, and the app that runs is the installed ``client.app``, whatever the run names.
"""

import importlib
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from flwr.clientapp import ClientApp

from shared.errors import ServiceError

RUNTIME = "flwr.supernode.runtime.run_clientapp"


def use_own_code(runtime: ModuleType) -> None:
    """Make Flower's ClientApp runtime load the installed app and nothing else.

    Raises:
        ServiceError: this Flower has another runtime; the node must not start with it.
    """
    replacements = {
        "install_from_fab": _leave_packed,
        "install_app_dependencies": _refuse_installation,
        "get_load_client_app_fn": _load_installed,
    }
    missing = [name for name in replacements if not callable(getattr(runtime, name, None))]
    if missing:
        raise ServiceError(
            f"Expected {RUNTIME} with {', '.join(missing)}, got another Flower, which could run "
            "code that a server sends; install the pinned version of flwr."
        )
    for name, replacement in replacements.items():
        setattr(runtime, name, replacement)


def _leave_packed(_fab: object, *_: object, **__: object) -> Path:
    """Stands in for ``install_from_fab``: nothing is written."""
    return Path()


def _refuse_installation(*_: object, **__: object) -> None:
    raise ServiceError("Expected a run without installations, got one with; this node has none.")


def _load_installed(*_: object, **__: object) -> Callable[..., ClientApp]:
    """Stands in for ``get_load_client_app_fn``: any app id gives the installed app."""
    from client.app import app

    return lambda *_args, **_kwargs: app


def main() -> None:
    """Stand in for ``flwr-clientapp``, with the same arguments."""
    try:
        use_own_code(importlib.import_module(RUNTIME))
    except ServiceError as error:
        sys.exit(str(error))
    (program,) = entry_points(group="console_scripts", name="flwr-clientapp")
    program.load()()


if __name__ == "__main__":
    main()
