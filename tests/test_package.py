"""The distribution: what it installs, and where."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("client", "server", "shared", "simulations")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both distributions by name, built from what a clone of this checkout holds."""
    copy, target = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    names = ("fedlatent", *FOLDERS, "pyproject.toml", "README.md", "LICENSE")
    subprocess.run(["cp", "-a", *names, str(copy)], cwd=ROOT, check=True)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, ".", "./client/edge", "-w", str(target)],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {path.name.split("-")[0]: path for path in target.glob("*.whl")}


@pytest.mark.parametrize("name", ["fedlatent", "fedlatent_edge"])
def test_a_wheel_takes_one_name_in_a_shared_environment(
    wheels: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Installed beside others' packages, it adds ``fedlatent`` and its metadata, nothing else."""
    site = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(site), str(wheels[name])]
    subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True)
    added = {path.name for path in site.iterdir()} - {"bin"}
    assert {name.split("-")[0] for name in added} == {"fedlatent", name}
    commands = {"fedlatent", "fedlatent-edge"} if name == "fedlatent" else {"fedlatent-edge"}
    assert {path.name for path in (site / "bin").iterdir()} == commands


def test_the_edge_wheel_is_a_part_of_the_whole(wheels: dict[str, Path]) -> None:
    """Its modules are those of the whole package, byte for byte; it states the same needs."""
    with (
        zipfile.ZipFile(wheels["fedlatent"]) as whole,
        zipfile.ZipFile(wheels["fedlatent_edge"]) as edge,
    ):
        modules = [name for name in edge.namelist() if name.startswith("fedlatent/")]
        assert modules
        assert all(edge.read(name) == whole.read(name) for name in modules)
    ours, its = (
        tomllib.loads((ROOT / at / "pyproject.toml").read_text())["project"]
        for at in (".", "client/edge")
    )
    assert set(its["dependencies"]) <= set(ours["dependencies"])
    assert all(
        ours["optional-dependencies"][name] == its["optional-dependencies"][name]
        for name in ("update", "mqtt")
    )
    assert its["requires-python"] == ours["requires-python"]
    assert set(ours["classifiers"]) <= set(its["classifiers"])


def test_the_metadata_would_be_taken_by_an_index(wheels: dict[str, Path]) -> None:
    """``twine check --strict`` has nothing to say of either wheel: the long texts render."""
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, wheels.values())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_flowers_pins_bind_nobody_who_does_without_flower() -> None:
    """What Flower bounds from above is bounded by ``federation`` alone, mostly through ``flwr``.

    Except numpy, whose next major version changes what our own code sees.
    """
    bounded = {
        one.name.lower()
        for one in map(Requirement, requires("flwr") or ())
        if one.marker is None and any(part.operator in ("<", "<=", "==") for part in one.specifier)
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = {"": project["dependencies"]} | project["optional-dependencies"]
    again = {
        f"{extra}: {line}"
        for extra, lines in lists.items()
        if extra != "federation"
        for line in lines
        if (one := Requirement(line)).name.lower() in bounded - {"numpy"}
        and any(part.operator in ("<", "<=", "==") for part in one.specifier)
    }
    assert {"typer", "rich", "starlette"} <= bounded
    assert not again


def test_the_wheel_holds_every_module_of_the_checkout(wheels: dict[str, Path]) -> None:
    """Each Python file of the five folders is in, under the one name, and so is ``py.typed``."""
    with zipfile.ZipFile(wheels["fedlatent"]) as archive:
        held = {name for name in archive.namelist() if name.startswith("fedlatent/")}
    ours = {
        f"fedlatent/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    } | {
        path.relative_to(ROOT).as_posix()
        for own in (".", "api", "cli")
        for path in (ROOT / "fedlatent" / own).glob("*.py")
    }
    assert ours <= held
    assert {"fedlatent/__init__.py", "fedlatent/py.typed"} <= held
    assert not {name for name in held if name.endswith(".py")} - ours


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
