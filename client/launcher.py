"""Runs Flower's ClientApp from this installation's code, never from what the server sent.

Flower ships an app's code with each run and puts it first on the import path of the node's
process: whoever controls the server could run anything next to the private records. The
SuperExec of a node finds this program under the name ``flwr-clientapp``. It imports the
installed ``client.app`` first, so that Flower takes that one, and from then on refuses to read
any code below Flower's app folder. A run whose app names another module fails at the node.
"""

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

_CODE = (".py", ".pyc", ".so")


def forbid_code_below(folder: Path) -> None:
    """Make this process unable to open a code file below ``folder`` for reading."""
    prefix = os.path.join(os.path.realpath(folder), "")

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes):
            return
        path = os.fsdecode(arguments[0])
        writes = isinstance(arguments[1], str) and set(arguments[1]) & set("wax")
        if path.endswith(_CODE) and not writes and os.path.realpath(path).startswith(prefix):
            raise PermissionError("this node runs no code that a server sent")

    sys.addaudithook(refuse)


def main() -> None:
    """Stand in for ``flwr-clientapp``, with the same arguments."""
    import client.app  # noqa: F401 - must be in sys.modules before Flower looks for it

    forbid_code_below(Path(os.environ["FLWR_HOME"]) / "apps")
    (program,) = entry_points(group="console_scripts", name="flwr-clientapp")
    program.load()()


if __name__ == "__main__":
    main()
