"""The C++ example: compiled against ONNX Runtime's C header, it scores as the Python runtime."""

import contextlib
import os
import shutil
import subprocess
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from fedlatent.client.edge.main import main
from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.shared.data.schema import Center
from fedlatent.shared.keys import SigningKey
from tests.shared.bundle import tiny

EXAMPLE = Path(__file__).parents[3] / "client/edge/examples/cpp"
HEADER = "onnxruntime_c_api.h"
RELATIVE = 1e-5


def _include() -> Path:
    """Folder of the C header, fetched once where Debian's archive is reached, or a skip."""
    cache = Path.home() / ".cache/fedlatent/include"
    folders = [
        Path(os.environ.get("ORT_INCLUDE", "/nowhere")),
        Path("/usr/include/onnxruntime"),
        cache / "onnxruntime",
    ]
    if not any((folder / HEADER).exists() for folder in folders) and shutil.which("apt-get"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            fetch = [str(EXAMPLE / "get-header.sh"), str(cache)]
            subprocess.run(fetch, capture_output=True, timeout=120, check=False)
    for folder in folders:
        if (folder / HEADER).exists():
            return folder
    pytest.skip(f"no {HEADER}: Python's wheel lacks it, and get-header.sh found none")


def _library() -> Path:
    """The shared library that Python's wheel ships."""
    found = util.find_spec("onnxruntime")
    assert found is not None
    assert found.origin is not None
    libraries = sorted(Path(found.origin).parent.glob("capi/libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("this build of onnxruntime has no shared library of its own")
    return libraries[-1]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built by its own CMake file without warnings."""
    if not shutil.which("cmake") or not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("no cmake and C++ compiler on this machine")
    include, library = _include(), _library()
    target = tmp_path_factory.mktemp("build")
    places = [f"-DORT_INCLUDE={include}", f"-DORT_LIBRARY={library}"]
    strict = ["-DCMAKE_CXX_FLAGS=-Werror", "-DCMAKE_BUILD_TYPE=Release"]
    for command in (
        ["cmake", "-S", str(EXAMPLE), "-B", str(target), *places, *strict],
        ["cmake", "--build", str(target)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return target / "score"


def _extract(tmp_path: Path, signing_key: SigningKey, center: str = "median") -> EdgeModel:
    """Write a bundle, extract it to ``parts`` by the command line, and load it in Python."""
    schema = replace(tiny.SCHEMA, center=cast(Center, center))
    base = replace(tiny.manifest(), schema=schema)
    bundle = tiny.write(tmp_path / "tiny.fedlatent", signing_key, base)
    key = tmp_path / "publisher.pub"
    key.write_bytes(signing_key.public.to_pem())
    arguments = ["verify", str(bundle), "--key", str(key), "--extract", str(tmp_path / "parts")]
    assert main(arguments) == 0
    return EdgeModel.load(bundle, [signing_key.public])


def _score(program: Path, folder: Path, text: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), str(folder), *more],
        input=text,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _csv(records: np.ndarray) -> str:
    return "".join(",".join(str(value) for value in row) + "\n" for row in records)


@pytest.mark.parametrize("center", ["none", "median", "mean"])
def test_scores_equal_those_of_the_python_runtime(
    program: Path, tmp_path: Path, signing_key: SigningKey, center: str
) -> None:
    """Every output agrees to 1e-5, relative to max(|score|, 1), for each kind of centring."""
    model = _extract(tmp_path, signing_key, center)
    records = tiny.raw_records(40)
    expected = model.score(records).parts
    for name in ("score", "recentred_distance"):
        done = _score(program, tmp_path / "parts", _csv(records), name)
        assert done.returncode == 0, done.stderr
        scores = np.array([float(line) for line in done.stdout.split()])
        scale = np.maximum(np.abs(expected[name]), 1)
        assert scores.shape == expected[name].shape
        assert (np.abs(scores - expected[name]) / scale).max() <= RELATIVE


def test_the_runtime_library_leaves_no_identity_behind(
    program: Path, tmp_path: Path, signing_key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime writes neither a device id nor events, whatever the environment says."""
    _extract(tmp_path, signing_key)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert _score(program, tmp_path / "parts", _csv(tiny.raw_records(2))).returncode == 0
    assert list(home.iterdir()) == []


def test_own_center_is_used(program: Path, tmp_path: Path, signing_key: SigningKey) -> None:
    """A center of the device's own in center.f32 gives the distance of a re-centred model."""
    model = _extract(tmp_path, signing_key).recentre(tiny.raw_records(12, seed=3), anyway=True)
    assert model.center is not None
    (tmp_path / "parts/center.f32").write_bytes(model.center.astype("<f4").tobytes())
    records = tiny.raw_records(6)
    done = _score(program, tmp_path / "parts", _csv(records), "recentred_distance")
    scores = [float(line) for line in done.stdout.split()]
    np.testing.assert_allclose(scores, model.score(records).score, rtol=RELATIVE, atol=RELATIVE)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1,2,3\n", 3),
        ("1,2,3,4,5,6,7\n", 3),
        ("1,2,three,4,5,6\n", 3),
        ("1,2,nan,4,5,6\n", 3),
        ("1,2,1e308,4,5,-1e999\n", 3),
        ("1 2 3 4 5 6\n", 3),
    ],
)
def test_wrong_record_is_refused(
    program: Path, tmp_path: Path, signing_key: SigningKey, text: str, code: int
) -> None:
    """A record of another length or with a cell that is no finite number ends with code 3."""
    _extract(tmp_path, signing_key)
    done = _score(program, tmp_path / "parts", "1,2,3,4,5,6\n" + text)
    assert done.returncode == code
    assert len(done.stdout.split()) == 1
    assert done.stderr.startswith("error: Expected")
    assert "three" not in done.stderr


@pytest.mark.parametrize("name", ["manifest.json", "center.f32", "scorer.onnx"])
def test_missing_or_damaged_part_is_refused(
    program: Path, tmp_path: Path, signing_key: SigningKey, name: str
) -> None:
    """Without one of the extracted files, or with a damaged one, the program ends with code 8."""
    _extract(tmp_path, signing_key)
    path = tmp_path / "parts" / name
    for change in (lambda: path.write_bytes(b"{}"), path.unlink):
        change()
        done = _score(program, tmp_path / "parts", "1,2,3,4,5,6\n")
        assert done.returncode == 8
        assert done.stdout == ""
        assert done.stderr.startswith("error: Expected")


def test_wrong_call_is_refused(program: Path, tmp_path: Path, signing_key: SigningKey) -> None:
    """No folder is a usage error, an output that the scorer lacks an error of the bundle."""
    _extract(tmp_path, signing_key)
    bare = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert bare.returncode == 2
    assert "score DIR" in bare.stderr
    done = _score(program, tmp_path / "parts", "1,2,3,4,5,6\n", "nothing")
    assert done.returncode == 8
