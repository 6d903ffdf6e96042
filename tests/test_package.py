"""The distribution: what it installs, and where."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("client", "server", "shared", "simulations")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from what a clone of this checkout holds."""
    copy, target = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    names = ("fedlatent", *FOLDERS, "pyproject.toml", "README.md", "LICENSE")
    subprocess.run(["cp", "-a", *names, str(copy)], cwd=ROOT, check=True)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, ".", "--wheel-dir", str(target)],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("fedlatent-*.whl")
    return built


def test_the_wheel_takes_one_name_in_a_shared_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed beside others' packages, it adds ``fedlatent`` and its metadata, nothing else."""
    site = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    added = {path.name for path in site.iterdir()} - {"bin"}
    assert {name.split("-")[0] for name in added} == {"fedlatent"}
    assert {path.name for path in (site / "bin").iterdir()} == {"fedlatent", "fedlatent-edge"}


def test_the_wheel_holds_every_module_of_the_checkout(wheel: Path) -> None:
    """Each Python file of the five folders is in, under the one name, and so is ``py.typed``."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("fedlatent/")}
    ours = {
        f"fedlatent/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    } | {path.relative_to(ROOT).as_posix() for path in (ROOT / "fedlatent" / "cli").glob("*.py")}
    assert ours <= held
    assert {"fedlatent/__init__.py", "fedlatent/py.typed"} <= held
    assert not {name for name in held if name.endswith(".py")} - ours - {"fedlatent/__init__.py"}


def test_the_package_is_free_to_import() -> None:
    """``import fedlatent`` loads none of the dependencies."""
    program = (
        "import sys, fedlatent; heavy = {'torch', 'numpy', 'flwr', 'onnxruntime', 'pydantic'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_modules_are_imported_by_one_name() -> None:
    """No file imports ``client`` or another folder by itself: that would be a second copy."""
    wrong = []
    for path in sorted(ROOT.glob("*/**/*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] not in (*FOLDERS, "fedlatent", "tests"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path}: {name}" for name in modules if name.split(".")[0] in FOLDERS]
    assert not wrong
