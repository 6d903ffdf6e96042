"""Flower apps: our three packages for Flower's own engine, and a stub for our server.

Flower's engine runs what it is sent. Our server and nodes run what is installed with them, but
``flwr run`` insists on an app, so it gets one that does nothing.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from shared.errors import ServiceError
from shared.toml import dumps

PACKAGES = ("client", "server", "shared")

APP = {
    "publisher": "fedlatent",
    "fab-include": [f"{package}/**/*.py" for package in PACKAGES],
    "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
    "config": {"config": "", "run-id": "", "resume": ""},
}
"""The ``[tool.flwr.app]`` table; equal to the one in this repository's ``pyproject.toml``."""


_STUB = "app = None  # the installed app runs, never this one\n"


@contextlib.contextmanager
def stub_dir() -> Iterator[Path]:
    """Yield a temporary folder that ``flwr run`` takes as an app, without code of ours."""
    components = {"serverapp": "stub:app", "clientapp": "stub:app"}
    app = {"publisher": "fedlatent", "fab-include": ["stub.py"], "components": components}
    with _folder(app) as folder:
        (folder / "stub.py").write_text(_STUB, encoding="utf-8")
        yield folder


@contextlib.contextmanager
def app_dir() -> Iterator[Path]:
    """Yield a temporary folder that ``flwr run`` takes as an app.

    It is copied from the packages that this process imports, so it is the same from a checkout
    and from an installation, and holds nothing but their Python files.

    Raises:
        ServiceError: One of the packages is not installed here.
    """
    with _folder(APP) as folder:
        for package in PACKAGES:
            _copy_sources(_package_folder(package), folder / package)
        yield folder


@contextlib.contextmanager
def _folder(app: Mapping[str, object]) -> Iterator[Path]:
    """A temporary folder with the project file of an app."""
    with tempfile.TemporaryDirectory(prefix="fedlatent-app-") as name:
        folder = Path(name) / "fedlatent"
        folder.mkdir()
        (folder / "pyproject.toml").write_text(dumps(_project(app)), encoding="utf-8")
        yield folder


def _copy_sources(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*.py")):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ServiceError(f"Expected the package {package!r} to be installed, found none.")
    return Path(spec.origin).parent


def _project(app: Mapping[str, object]) -> dict[str, object]:
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
    return {"project": project, "tool": {"flwr": {"app": app}}}
