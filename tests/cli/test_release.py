"""``fedlatent release``: from an empty folder to a device, as a person would type it."""

import json
import shutil
from pathlib import Path

import pytest

from fedlatent.client.edge.update import provision, update
from fedlatent.server.home import HOME_VARIABLE, ServerHome
from fedlatent.shared.bundle.sealed import RecipientKey
from fedlatent.shared.keys import SigningKey
from tests.cli.conftest import Run
from tests.shared.bundle import tiny

MODEL = "tiny-hearts"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of version 3, signed by the key in the server's home."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    key = SigningKey.generate(ServerHome.find(None).signing_key)
    return tiny.write(tmp_path / "tiny.fedlatent", key)


@pytest.fixture
def folder(tmp_path: Path, run: Run, bundle: Path) -> Path:
    """A release made by `init` with its defaults."""
    made = tmp_path / "hearts"
    code, out, _ = run("release", "init", made)
    assert code == 0
    assert "root-1.pem, root-2.pem, root-3.pem" in out
    return made


def test_first_use(run: Run, folder: Path, bundle: Path, tmp_path: Path) -> None:
    """Two commands publish; a device installs from the folder."""
    code, out, _ = run("release", "add", folder, bundle)
    assert (code, "100 % of devices" in out) == (0, True)
    root = json.loads(run("release", "init", tmp_path / "other", "--json")[1])["root"]
    assert Path(root).name == "1.root.json"
    state = tmp_path / "state"
    provision(state, (folder / "metadata" / "1.root.json").read_bytes(), MODEL)
    assert update(state, folder).version == 3
    names = {path.name for path in tmp_path.joinpath("hearts-keys").glob("*.pem")}
    assert names == {"root-1.pem", "root-2.pem", "root-3.pem", "targets.pem", "online.pem"}


def test_life_of_a_version(run: Run, folder: Path, bundle: Path) -> None:
    """A version goes to some, to more, and is withdrawn; status shows each state."""
    added = ("release", "add", folder, bundle, "--percent", 5, "--cohort", "pilot", "--json")
    made = json.loads(run(*added)[1])
    assert made["rollout"] == {"percent": 5, "cohorts": ["pilot"], "devices": []}
    code, out, _ = run("release", "rollout", folder, MODEL, 3, "--percent", 50, "--device-id", "d1")
    assert (code, "50 % of devices and 1 named devices" in out) == (0, True)
    wanted = ("release", "rollout", folder, MODEL, 3, "--downgrade-from", 7, "--json")
    assert json.loads(run(*wanted)[1])["rollout"]["percent"] == 100
    status = json.loads(run("release", "status", folder, "--json")[1])
    assert status["targets"][0]["custom"]["downgrade_from"] == 7
    assert status["roles"]["root"]["threshold"] == 2
    code, out, _ = run("release", "withdraw", folder, MODEL, 3)
    assert (code, "is withdrawn" in out) == (0, True)
    code, out, _ = run("release", "status", folder)
    assert (code, "withdrawn" in out) == (0, True)
    code, _, err = run("release", "add", folder, bundle)
    assert (code, "never published" in err) == (2, True)


def test_sealed(run: Run, folder: Path, bundle: Path, tmp_path: Path) -> None:
    """A bundle is sealed to a public key and opens on the device that has the other half."""
    RecipientKey.generate(tmp_path / "group.key")
    code, out, _ = run("release", "add", folder, bundle, "--recipient", tmp_path / "group.key.pub")
    assert (code, "sealed" in out) == (0, True)
    state, root = tmp_path / "state", folder / "metadata" / "1.root.json"
    provision(state, root.read_bytes(), MODEL)
    shutil.copy(tmp_path / "group.key", state / "recipient.key")
    assert update(state, folder).version == 3


def test_refresh_without_root_keys(run: Run, folder: Path, tmp_path: Path) -> None:
    """With the root keys moved away, refreshing works and rotating asks for them."""
    keys, away = tmp_path / "hearts-keys", tmp_path / "away"
    away.mkdir()
    for number in (1, 2, 3):
        (keys / f"root-{number}.pem").rename(away / f"root-{number}.pem")
    first = json.loads(run("release", "refresh", folder, "--json")[1])
    assert set(first) == {"root", "targets", "snapshot", "timestamp"}
    code, out, _ = run("release", "refresh", folder, "--targets")
    assert (code, "first to expire" in out) == (0, True)
    code, _, err = run("release", "rotate", folder, "online", "--new")
    assert (code, "Expected 2 of the 3 root keys" in " ".join(err.split())) == (2, True)
    signed = [f"--signing-key={away / f'root-{number}.pem'}" for number in (1, 3)]
    code, out, _ = run("release", "rotate", folder, "online", "--new", *signed)
    assert (code, "root version 2" in out) == (0, True)
    assert (keys / "online-2.pem").exists()
    assert run("release", "refresh", folder)[0] == 0
    assert run("release", "refresh", folder, "--repair")[0] == 0
    made = json.loads(run("release", "rotate", folder, "root", *signed, "--json")[1])
    assert made["root_version"] == 3


def test_release_that_was_put_back(run: Run, folder: Path, bundle: Path, tmp_path: Path) -> None:
    """What the web server shows is checked against the publisher's own folder before signing."""
    before = tmp_path / "before"
    shutil.copytree(folder, before)
    assert run("release", "add", folder, bundle)[0] == 0
    assert run("release", "status", folder)[0] == 0
    shutil.rmtree(folder)
    before.rename(folder)
    for arguments in (("status", folder), ("refresh", folder, "--repair")):
        code, _, err = run("release", *arguments)
        assert (code, "as new as it was" in " ".join(err.split())) == (3, True)


def test_wrong_arguments(run: Run, folder: Path, tmp_path: Path) -> None:
    """Unknown roles, missing keys and impossible thresholds get one sentence."""
    for arguments, words in (
        (("rotate", folder, "captain"), "Expected targets or online or root"),
        (("rotate", folder, "root", "--new"), "Expected targets or online"),
        (("init", folder), "Expected no release"),
        (("init", tmp_path / "x", "--root-threshold", 4), "1 to 16 root keys"),
        (("init", tmp_path / "x", "--online-days", 0), "1 to 36500 days"),
        (("refresh", folder, "--keys", tmp_path / "none"), "Expected root.json and private keys"),
    ):
        code, _, err = run("release", *arguments)
        assert code == 2, arguments
        assert words in " ".join(err.split()), arguments
    assert run("release", "status", tmp_path / "none")[0] == 3
