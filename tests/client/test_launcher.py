"""The node runs installed code only, whatever the server sends."""

import hashlib
import importlib
import io
import os
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from fedlatent.client import app as installed
from fedlatent.client.launcher import RUNTIME, use_own_code
from fedlatent.shared.errors import ServiceError

EVIL = b"from pathlib import Path\nPath('SENT-CODE-RAN').touch()\nfrom flwr.clientapp import ClientApp\napp = ClientApp()\n"  # noqa: E501


def hostile_app(name: str, version: str, component: str) -> bytes:
    """An app as Flower sends it, with evil modules under several names."""
    project = (
        f'[project]\nname = "{name}"\nversion = "{version}"\n[tool.flwr.app]\npublisher = "p"\n'
        f'[tool.flwr.app.components]\nserverapp = "{component}"\nclientapp = "{component}"\n'
    )
    files = {"pyproject.toml": project.encode(), "evil.py": EVIL, "client/app.py": EVIL}
    listed = "\n".join(
        f"{n},{hashlib.sha256(d).hexdigest()},{len(d) * 8}" for n, d in files.items()
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(".info/CONTENT", listed)
    return packed.getvalue()


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Flower's ClientApp runtime; its functions come back after the test."""
    module = importlib.import_module(RUNTIME)
    for name in ("install_from_fab", "install_app_dependencies", "get_load_client_app_fn"):
        monkeypatch.setattr(module, name, getattr(module, name))
    return module


@pytest.mark.parametrize(
    ("name", "version", "component"),
    [
        ("app", "1.0.0", "evil:app"),
        ("app", "1.0.0/../../../out", "evil:app"),
        ("../../out", "1.0.0", "evil:app"),
        ("fedlatent", "1.0.0", "fedlatent.client.app:app"),
    ],
)
def test_sent_code_neither_runs_nor_lands(
    runtime: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    version: str,
    component: str,
) -> None:
    """Through the very calls of Flower's runtime, a hostile app is not unpacked and not loaded."""
    home = tmp_path / "home" / "flower"
    home.mkdir(parents=True)
    monkeypatch.setenv("FLWR_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    use_own_code(runtime)
    sent = hostile_app(name, version, component)
    runtime.install_from_fab(sent, skip_prompt=True)
    load = runtime.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    assert load(f"p/{name}", version, hashlib.sha256(sent).hexdigest()) is installed.app
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(ServiceError, match="installations"):
        runtime.install_app_dependencies(tmp_path)


def test_the_attack_works_on_plain_flower(
    runtime: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without our launcher the traversal lands outside of Flower's app folder: the test bites."""
    home = tmp_path / "home" / "flower"
    home.mkdir(parents=True)
    monkeypatch.setenv("FLWR_HOME", str(home))
    runtime.install_from_fab(hostile_app("app", "1/../../../out", "evil:app"), skip_prompt=True)
    landed = [path for path in tmp_path.rglob("evil.py")]
    assert landed
    assert not os.path.realpath(landed[0]).startswith(os.path.realpath(home / "apps") + os.sep)


def test_another_flower_is_refused() -> None:
    """When the runtime lacks one of the functions, the node does not start."""
    with pytest.raises(ServiceError, match="pinned version"):
        use_own_code(SimpleNamespace(install_from_fab=print))  # type: ignore[arg-type]
