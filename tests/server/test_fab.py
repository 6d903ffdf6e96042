"""The Flower app that a run sends: built as Flower does."""

import subprocess
import tomllib
import zipfile
from pathlib import Path

from fedlatent.server.fab import APP, app_dir
from fedlatent.shared.supervisor import child_environment, program

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_app_is_a_token(tmp_path: Path) -> None:
    """Flower builds the app; it holds a project file that names the installed apps, and no code."""
    with app_dir() as app:
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
        assert files == ["pyproject.toml"]
        project = tomllib.loads(archive.read("pyproject.toml").decode())
    assert project["tool"]["flwr"]["app"]["components"] == APP["components"]


def test_the_app_equals_the_checkout() -> None:
    """``flwr run .`` in the checkout and our own runs use the same components and settings."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"] == APP
