"""The Flower app that a run sends: a token, since the installed code is what runs.

``flwr run`` insists on an app. Ours is a project file alone, which names the installed apps.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedlatent.shared.toml import dumps

APP = {
    "publisher": "fedlatent",
    "fab-include": ["pyproject.toml"],
    "components": {
        "serverapp": "fedlatent.server.app:app",
        "clientapp": "fedlatent.client.app:app",
    },
    "config": {"config": "", "run-id": "", "resume": ""},
}
"""The ``[tool.flwr.app]`` table; equal to the one in this repository's ``pyproject.toml``."""


@contextlib.contextmanager
def app_dir() -> Iterator[Path]:
    """Yield a temporary folder that ``flwr run`` takes as an app; it holds no code."""
    try:
        own_version = version("fedlatent")
    except PackageNotFoundError:  # a checkout that was never installed
        own_version = "0.0.0"
    project = {
        "name": "fedlatent",
        "version": own_version,
        "description": "Federated variational autoencoders under differential privacy.",
        "license": "Apache-2.0",
    }
    with tempfile.TemporaryDirectory(prefix="fedlatent-app-") as name:
        folder = Path(name) / "fedlatent"
        folder.mkdir()
        text = dumps({"project": project, "tool": {"flwr": {"app": APP}}})
        (folder / "pyproject.toml").write_text(text, encoding="utf-8")
        yield folder
