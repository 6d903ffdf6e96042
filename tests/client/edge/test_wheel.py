"""The wheel for devices: what is in it, and that it works with its three dependencies alone."""

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import Parser
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from fedlatent.shared.keys import SigningKey
from tests.shared.bundle import tiny

ROOT = Path(__file__).parents[3]
MAX_BYTES = 170_000
MAX_PEAK_MB = 80 if sys.version_info < (3, 14) else 90
#: Top-level names of the declared dependencies and of what these import: all that the lean
#: process sees beside the standard library.
VISIBLE = ("numpy", "numpy.libs", "onnxruntime", "cryptography", "_cffi_backend", "h11")
EXTRAS = {"tuf", "securesystemslib", "urllib3", "paho"}

PROGRAM = """
import json, sys
sys.path += json.loads(sys.argv[1])
from fedlatent.client.edge.main import main
status = main(sys.argv[2:])
sys.stderr.write(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
sys.exit(status)
"""


def _build(command: Sequence[str], folder: Path) -> Path:
    """Run ``command`` in ``folder``; it ends with the output folder, which then holds a wheel."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = Path(command[-1]).glob("fedlatent_edge-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout as the README says."""
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    return _build([*pip, "./client/edge", "--wheel-dir", str(target)], ROOT)


@pytest.fixture(scope="module")
def lean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two folders for sys.path: the unpacked wheel, and links to its dependencies alone."""
    unpacked, linked = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("linked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    found = util.find_spec("numpy")
    assert found is not None
    assert found.origin is not None
    site = Path(found.origin).parents[1]
    for name in VISIBLE:
        for path in [site / name, *site.glob(f"{name}.*.so")]:
            if path.exists():
                (linked / path.name).symlink_to(path)
    return [str(unpacked), str(linked)]


def _run(lean: list[str], arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the wheel in an interpreter that sees nothing else."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM, json.dumps(lean), *arguments],
        cwd=lean[0],
        env={"PATH": os.environ["PATH"], "HOME": lean[0]},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_is_small(wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The wheel has at most 170 kB."""
    size = wheel.stat().st_size
    with capsys.disabled():
        print(f"\nedge wheel: {size / 1000:.0f} kB, {len(_names(wheel))} files")
    assert size <= MAX_BYTES


def test_wheel_holds_all_edge_modules_and_nothing_of_training(wheel: Path) -> None:
    """Every module of client/edge is in, the licence is in, and nothing that needs PyTorch is."""
    names = _names(wheel)
    found = (ROOT / "client/edge").rglob("*.py")
    edge = {f"fedlatent/{path.relative_to(ROOT).as_posix()}" for path in found}
    missing = sorted(edge - names)
    assert not missing, f"add them to client/edge/pyproject.toml: {', '.join(missing)}"
    rest = {name for name in names - edge if ".dist-info/" not in name}
    top = ("fedlatent/shared/", "fedlatent/client/__init__", "fedlatent/__init__", "fedlatent/api/")
    assert not {name for name in rest if not name.startswith(top)}
    assert not {name for name in names if not name.endswith(".py") and ".dist-info/" not in name}
    training = ("shared/bundle/build.py", "client/trainer.py", "api/training.py", "api/data.py")
    assert not {f"fedlatent/{name}" for name in training} & names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_is_closed_under_imports(wheel: Path) -> None:
    """Whatever a module of the wheel imports of ours, at its top or in a function, is in it."""
    names = _names(wheel)
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in names
        if name.endswith(".py")
    }
    wanted = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in names:
            if name.endswith(".py"):
                for node in ast.walk(ast.parse(archive.read(name))):
                    if isinstance(node, ast.ImportFrom) and node.module:
                        wanted.add((name, node.module))
                    elif isinstance(node, ast.Import):
                        wanted |= {(name, alias.name) for alias in node.names}
    ours = {pair for pair in wanted if pair[1].split(".")[0] == "fedlatent"}
    ours = {pair for pair in ours if pair[0] != "fedlatent/__init__.py"}  # for type checkers
    assert len(ours) > 20
    assert not {pair for pair in ours if pair[1] not in modules}
    others = {module.split(".")[0] for _, module in wanted} - {"fedlatent"}
    assert others - set(sys.stdlib_module_names) <= {*VISIBLE, *EXTRAS}


def test_the_python_side_works_there(lean: list[str], tmp_path: Path) -> None:
    """`fedlatent.load` is on devices; what is not there says what to install."""
    bundle = tiny.write(tmp_path / "tiny.fedlatent", SigningKey.generate(tmp_path / "key.pem"))
    code = (
        "import json, sys\nsys.path += json.loads(sys.argv[1])\nimport fedlatent as fl\n"
        "model = fl.load(sys.argv[2], key=sys.argv[3])\n"
        "print(model.bundle.manifest.name)\n"
        "try:\n    fl.train\nexcept ImportError as error:\n    print(error)\n"
    )
    words = ["-c", code, json.dumps(lean), str(bundle), str(tmp_path / "key.pem.pub")]
    done = subprocess.run(
        [sys.executable, "-S", "-I", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    name, sentence = done.stdout.splitlines()
    assert name
    assert "for fedlatent.train, got none; install 'fedlatent[all]'" in sentence


def test_metadata_agrees_with_the_main_project(wheel: Path) -> None:
    """Version, Python, dependencies and extras are those of the main project; the script is set."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = _metadata(wheel)
    assert found["Version"] == project["version"]
    assert found["Requires-Python"] == project["requires-python"]
    own = tomllib.loads((ROOT / "client/edge/pyproject.toml").read_text())["project"]
    assert set(own["dependencies"]) <= set(project["dependencies"])
    assert {line.split(">")[0] for line in own["dependencies"]} <= set(VISIBLE)
    extras = own["optional-dependencies"]
    assert extras == {name: project["optional-dependencies"][name] for name in extras}
    assert set(found.get_all("Provides-Extra") or []) == {"update", "mqtt"}
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert b"fedlatent-edge = fedlatent.client.edge.main:main" in archive.read(name)


def test_two_builds_have_equal_bytes(wheel: Path, tmp_path: Path) -> None:
    """A build of a copy elsewhere, by another front end and with other file times, is the same."""
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("client", "shared", "fedlatent"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            ignore=skipped,
            copy_function=shutil.copyfile,
            symlinks=True,
        )
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d"]
    again = _build([*command, str(tmp_path / "dist")], tmp_path / "client/edge")
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_wheel_scores_with_its_dependencies_alone(
    lean: list[str],
    tmp_path: Path,
    signing_key: SigningKey,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An interpreter with nothing else verifies a bundle and scores records in at most 80 MB."""
    bundle = tiny.write(tmp_path / "tiny.fedlatent", signing_key)
    key = tmp_path / "publisher.pub"
    key.write_bytes(signing_key.public.to_pem())
    records = tiny.raw_records(2000)
    np.savetxt(tmp_path / "records.csv", records, fmt="%d", delimiter=",")
    checked = _run(lean, ["verify", str(bundle), "--key", str(key), "--json"])
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["ok"] is True
    files = [str(bundle), str(tmp_path / "records.csv")]
    done = _run(lean, ["score", *files, "--key", str(key), "--json"])
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    expected = ((tiny.latents(records) - tiny.CENTER) ** 2).sum(axis=1)
    np.testing.assert_allclose(facts["scores"], expected, rtol=1e-5, atol=1e-6)
    process = facts["process"]
    with capsys.disabled():
        print(
            f"\nedge wheel: first score {process['first_score_s']:.2f} s after start of the "
            f"interpreter, peak {process['peak_rss_mb']:.0f} MB"
        )
    assert process["peak_rss_mb"] <= MAX_PEAK_MB
    assert 0 < process["first_score_s"] < 30
    imported = set(json.loads(done.stderr.splitlines()[-1]))
    allowed = {*VISIBLE, *sys.stdlib_module_names, "fedlatent", "__main__"}
    assert {name for name in imported if not name.startswith("_")} <= allowed


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["update", "/nowhere", "--state", "state"], "update"),
        (["stream", "BUNDLE", "mqtt://127.0.0.1/beats", "--key", "KEY"], "mqtt"),
    ],
)
def test_missing_extra_is_a_sentence(
    lean: list[str], tmp_path: Path, signing_key: SigningKey, arguments: list[str], extra: str
) -> None:
    """A command whose extra is not installed says which one, without a traceback."""
    key = tmp_path / "publisher.pub"
    key.write_bytes(signing_key.public.to_pem())
    places = {"BUNDLE": str(tiny.write(tmp_path / "tiny.fedlatent", signing_key)), "KEY": str(key)}
    done = _run(lean, [places.get(word, word) for word in arguments])
    assert done.returncode != 0
    assert f"fedlatent-edge[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
