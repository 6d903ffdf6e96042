"""Runs Flower's programs for a node: behind a Unix socket, and installed code alone.

Flower ships an app's code with each run, unpacks it at the node and imports it: whoever controls
the server could run anything next to the private records. (Nor does Flower 1.41 check the names
in a sent app, so one with ``../`` in its version is unpacked wherever it likes.) The SuperExec of
a node starts this file for each task. It puts three functions of Flower's runtime out of service
before that runtime starts: sent apps stay packed, no dependency is installed, and the app that
runs is the installed ``fedlatent.client.app``, whatever the run names. Tasks of other kinds, such
as the agents that a server may ask for, are not started.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

from flwr.clientapp import ClientApp

from fedlatent.client.home import ClientHome
from fedlatent.client.tls import context_for, identity_of
from fedlatent.shared import flower

MODULE = "fedlatent.client.launcher"
"""Of this file, for ``python -m``."""

RUNTIME = "flwr.supernode.runtime.run_clientapp"

_PROGRAMS = {
    "supernode": "flower-supernode",
    "superexec": "flower-superexec",
    "clientapp": "flwr-clientapp",
}


def use_own_code(runtime: ModuleType) -> None:
    """Make Flower's ClientApp runtime load the installed app and nothing else.

    Raises:
        ServiceError: this Flower has another runtime; the node must not start with it.
    """
    flower.use_own_code(runtime, {"get_load_client_app_fn": _load_installed}, RUNTIME)


def _load_installed(*_: object, **__: object) -> Callable[..., ClientApp]:
    """Stands in for ``get_load_client_app_fn``: any app id gives the installed app."""
    from fedlatent.client.app import app

    return lambda *_args, **_kwargs: app


def _prepare(role: str, program: str) -> list[str]:
    """Change Flower for one role; gives further arguments of its program."""
    if role == "supernode":
        home = ClientHome.find()
        flower.connect(lambda: context_for(home.ca_certificate, identity_of(home)))
        flower.listen(program)
        flower.keep_objects_flat()
        flower.beat_often()
        return []
    flower.connect()
    return flower.prepare_task(role, "clientapp", MODULE, use_own_code, RUNTIME)


def main() -> NoReturn:
    """Command line: ``python -m fedlatent.client.launcher ROLE``, then Flower's own arguments."""
    flower.start(_PROGRAMS, _prepare)


if __name__ == "__main__":
    main()
