"""The Flower app that a run sends: built, unpacked and loaded as Flower does."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from server.fab import APP, app_dir, stub_dir
from shared.supervisor import child_environment, program

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_FAB_BYTES = 10 * 1024 * 1024

LOAD = """
import json, sys
folder, module = sys.argv[1:]
sys.path.insert(0, folder)
loaded = __import__(module, fromlist=["app"])
packages = ("client", "server", "shared")
ours = [m for m in sys.modules.values() if m.__name__.split(".")[0] in packages]
print(json.dumps({
    "kind": type(loaded.app).__name__,
    "outside": [m.__name__ for m in ours if not m.__file__.startswith(folder)],
    "torch": "torch" in sys.modules,
}))
"""


def load(folder: Path, module: str) -> dict[str, object]:
    """Import one app in a fresh interpreter that sees nothing of this checkout."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, str(folder), module],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_fab_builds_and_both_apps_load(tmp_path: Path) -> None:
    """Flower builds the app; what it packs is enough to load both apps from it alone."""
    with app_dir() as app:
        environment = child_environment() | {"FLWR_HOME": str(tmp_path / "flower")}
        subprocess.run(
            [program("flwr"), "build", "--app", str(app)],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
        )
    assert not app.exists()
    (fab,) = tmp_path.glob("*.fab")
    assert fab.stat().st_size < MAX_FAB_BYTES
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(fab) as archive:
        archive.extractall(folder)
    assert load(folder, "server.app") == {
        "kind": "ServerApp",
        "outside": [],
        "torch": True,
    }
    assert load(folder, "client.app") == {"kind": "ClientApp", "outside": [], "torch": False}


def test_the_app_equals_the_checkout(tmp_path: Path) -> None:
    """``flwr run .`` in the checkout and our own runs use the same components and settings."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"] == APP
    with app_dir() as app:
        staged = tomllib.loads((app / "pyproject.toml").read_text())
        assert staged["tool"]["flwr"]["app"] == APP
        for package in ("client", "server", "shared"):
            ours = {path.relative_to(REPOSITORY) for path in (REPOSITORY / package).rglob("*.py")}
            assert {path.relative_to(app) for path in (app / package).rglob("*.py")} == ours


def test_the_stub_builds_without_code_of_ours(tmp_path: Path) -> None:
    """Flower takes the stub for an app; it holds one file that does nothing."""
    with stub_dir() as app:
        subprocess.run(
            [program("flwr"), "build", "--app", str(app)],
            cwd=tmp_path,
            env=child_environment() | {"FLWR_HOME": str(tmp_path / "flower")},
            check=True,
            capture_output=True,
        )
    assert not app.exists()
    (fab,) = tmp_path.glob("*.fab")
    with zipfile.ZipFile(fab) as archive:
        files = [name for name in archive.namelist() if not name.startswith(".info")]
        assert sorted(files) == ["pyproject.toml", "stub.py"]
        assert archive.read("stub.py").startswith(b"app = None")
