"""What the disk refuses: one sentence with an exit code, and nothing half-written stays."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedlatent.server.home import ServerHome
from fedlatent.shared.errors import ServiceError, StorageError
from fedlatent.shared.keys import generate_node_key
from fedlatent.simulations.federation import Simulation
from tests.cli.conftest import Run

FORBIDDEN = Path("/sys/fedlatent")  # a folder that not even root can make

EXPERIMENT = """
name = "tiny"
description = "Tiny."
grid = "stacked"
seeds = [0]
data = { source = "hearts", clients = 4, absent = 2 }
[run.model]
options = { hidden = [8], latent_dim = 2 }
[run.training]
rounds = 1
steps_per_round = 1
"""


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file of this process grows beyond ``size`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(folder: Path) -> set[Path]:
    """Every file below a folder, but for empty locks."""
    return {path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def material(
    finished: tuple[Simulation, ServerHome, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """What the commands read."""
    _, home, bundle = finished
    folder = tmp_path_factory.mktemp("material")
    generate_node_key(folder / "node")
    (folder / "tiny.toml").write_text(EXPERIMENT)
    return {
        "server": home.root,
        "bundle": bundle,
        "key": home.signing_key.with_name("signing.pem.pub"),
        "records": home.root.parent / "beats.npz",
        "normals": home.root.parent / "normals.npz",
        "experiment": folder / "tiny.toml",
    }


#: Commands that write; {target} is a path in a folder, {name} something of the material.
WRITERS = [
    "keys new {target}",
    "server init --home {target}",
    "export global --home {server} --out {target}",
    "release init {target}",
    "simulate run {experiment} --out {target}",
    "demo --out {target}",
    "edge calibrate {bundle} {normals} --key {key} --quantile 0.8 --out {target}",
    "edge score {bundle} {records} --key {key} --out {target}",
    "edge encode {bundle} {records} --key {key} --out {target}",
    "edge verify {bundle} --key {key} --extract {target}",
]


def words(command: str, material: dict[str, Path], target: Path) -> list[str]:
    """A command line."""
    return [word.format(target=target, **material) for word in command.split()]


@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_is_a_sentence(
    run: Run, material: dict[str, Path], tmp_path: Path, command: str
) -> None:
    """The command ends with a sentence and its exit code, and leaves no part of a file."""
    before = files(tmp_path)
    with room(0):
        code, _, text = run(*words(command, material, tmp_path / "new"))
    assert code in (StorageError.exit_code, ServiceError.exit_code), text
    assert "error (" in text
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_may_not_be_written_is_a_sentence(
    run: Run, material: dict[str, Path], command: str
) -> None:
    """It names the path."""
    line = words(command, material, FORBIDDEN / "new")
    code, _, text = run(*line)
    assert code == StorageError.exit_code, text
    assert "permi" in text
    assert str(FORBIDDEN) in text
