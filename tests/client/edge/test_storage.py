"""What the system refuses is one sentence with an exit code, and leaves no half a file."""

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.edge.main import main
from fedlatent.shared.errors import StorageError
from fedlatent.shared.keys import SigningKey
from tests.shared.bundle import tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path, signing_key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a bundle, its key and records; brackets in its name are plain text."""
    made = tmp_path / "[red]beats[/] [x"
    made.mkdir(parents=True)
    tiny.write(made / "b.fedlatent", signing_key)
    (made / "k.pub").write_bytes(signing_key.public.to_pem())
    np.savetxt(made / "r.csv", tiny.raw_records(200) // 2, fmt="%d", delimiter=",")
    (made / "file").touch()
    monkeypatch.chdir(made)
    return made


MODEL = ["b.fedlatent", "--key", "k.pub"]
WRITERS = {
    "score": ["score", *MODEL, "r.csv", "--out", "OUT"],
    "encode": ["encode", *MODEL, "r.csv", "--out", "OUT"],
    "calibrate": ["calibrate", *MODEL, "r.csv", "--out", "OUT"],
    "verify": ["verify", *MODEL, "--extract", "OUT"],
    "stream": [
        "stream",
        MODEL[0],
        "r.csv",
        *MODEL[1:],
        "--calibrate",
        "150",
        "--save-calibration",
        "OUT",
    ],
}


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> list[str]:
    """A command that writes to OUT."""
    return WRITERS[request.param]


def _call(writer: list[str], out: str) -> int:
    return main([out if word == "OUT" else word for word in writer])


@pytest.mark.parametrize("out", ["file/out", "n" * 300])
def test_what_cannot_be_written_is_a_sentence(
    folder: Path, writer: list[str], out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command names the path that it cannot write, exits with 13 and leaves nothing there."""
    before = sorted(folder.iterdir())
    assert _call(writer, out) == StorageError.exit_code
    said = capsys.readouterr().err
    assert said.startswith("error (storage): Expected ")
    assert out in said
    assert said.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_paths_are_printed_as_they_are(
    folder: Path, writer: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets in a path are no markup: it is written to, and named as it is."""
    out = folder / "[/b] out [green]"
    assert _call(writer, str(out)) == 0
    assert out.exists()
    if writer[0] in ("encode", "calibrate"):
        assert str(out) in capsys.readouterr().out


def test_state_folder_that_cannot_be_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A place that no folder can be made in is a sentence, as JSON where that is asked for."""
    status = main(["status", "--state", "file/state", "--json"])
    found = json.loads(capsys.readouterr().out)["error"]
    assert (status, found["code"]) == (2, "config")
    assert "provision" in found["message"]


def _limited(arguments: list[str], cwd: Path, stdout: int | io.IOBase) -> tuple[int, str]:
    """Run a command that may not write a file of more than 64 bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "fedlatent.client.edge.main", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stderr


def test_full_disk(folder: Path) -> None:
    """A file that does not fit leaves the old one as it was, with one sentence and no traceback."""
    (folder / "out.csv").write_text("old")
    words = [word.replace("OUT", "out.csv") for word in WRITERS["score"]]
    status, said = _limited(words, folder, subprocess.DEVNULL)
    assert (status, said.count("\n")) == (StorageError.exit_code, 1)
    assert "out.csv to be usable, got no room for it" in said
    assert (folder / "out.csv").read_text() == "old"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_full_disk_under_the_output(folder: Path, more: list[str]) -> None:
    """Output that has no room is a sentence too, on standard error."""
    with Path("/dev/full").open("w") as full:
        status, said = _limited(["info", *MODEL, *more], folder, full)
    assert status == StorageError.exit_code
    assert said.startswith("error (storage): Expected ")
    assert said.count("\n") == 1
