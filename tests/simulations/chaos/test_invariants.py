"""The checks of a storm: silent about what is whole, and loud about each thing that is not."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlatent.shared.arrays import Arrays
from fedlatent.simulations.chaos.invariants import Excuses, Witness
from fedlatent.simulations.federation import datasets, simulate
from tests.simulations.support import tiny_federation, tiny_run

SITE = "patient-000"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the homes of a run that is complete."""
    folder, federation = tmp_path_factory.mktemp("finished"), tiny_federation()
    simulate(tiny_run(federation), datasets(federation), folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def witness(folder: Path, excuses: Excuses | None = None) -> Witness:
    """Of all homes in a folder."""
    nodes = {path.parent.name: path.parent for path in folder.glob("nodes/*/ledger.db")}
    assert len(nodes) == 3
    return Witness(server=folder / "server", nodes=nodes, excuses=excuses or Excuses())


def change(path: Path, statement: str) -> None:
    """Change a database by hand."""
    base = sqlite3.connect(path)
    with base:
        assert base.execute(statement).rowcount > 0
    base.close()


def ledger(folder: Path) -> Path:
    """Of one site."""
    return folder / "nodes" / SITE / "ledger.db"


def journal(folder: Path) -> Path:
    """Of one site."""
    return folder / "nodes" / SITE / "releases.jsonl"


def newest(folder: Path, pattern: str) -> Path:
    """The last of some files by name."""
    return sorted(folder.glob(pattern))[-1]


def forget_release(folder: Path) -> None:
    """The log tells of a release that the ledger takes for reserved."""
    change(ledger(folder), "UPDATE entries SET state = 'reserved' WHERE id = 1")


def pay_other_bytes(folder: Path) -> None:
    """The ledger paid for other bytes."""
    change(ledger(folder), "UPDATE entries SET sha256 = 'x' WHERE id = 2")


def break_chain(folder: Path) -> None:
    """A line of the chain is another one."""
    change(ledger(folder), "UPDATE events SET line = line || ' ' WHERE seq = 2")


def charge_twice(folder: Path) -> None:
    """One more charge of the same phase."""
    names = (
        "dataset, run_id, round, kind, basis, noise_multiplier, sample_rate, steps, rng, cap, "
        "reserved_at, epsilon_after, state"
    )
    change(
        ledger(folder),
        f"INSERT INTO entries ({names}, request_digest) SELECT {names}, 'another' FROM entries "
        "WHERE id = 1",
    )


def lose_line(folder: Path) -> None:
    """What the server counted stands in no log."""
    lines = journal(folder).read_text().splitlines(keepends=True)
    journal(folder).write_text("".join(lines[1:]))


def tear_line(folder: Path) -> None:
    """Half a line stands in the log."""
    with journal(folder).open("a") as stream:
        stream.write('{"time": "20\n')


def swap_payload(folder: Path) -> None:
    """The outbox keeps something else than what left."""
    path = newest(folder / "nodes" / SITE / "outbox", "*/train-*.bin")
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")


def claim_more(folder: Path) -> None:
    """The server counted an answer that nobody paid for."""
    change(
        folder / "server" / "registry.db",
        f"UPDATE site_rounds SET epsilon = 0.5 WHERE site = '{SITE}' AND number = 1",
    )


def skip_phase(folder: Path) -> None:
    """The registry lacks a phase."""
    change(folder / "server" / "registry.db", "DELETE FROM site_rounds WHERE number = 2")
    change(folder / "server" / "registry.db", "DELETE FROM rounds WHERE number = 2")


def repeat_phase(folder: Path) -> None:
    """A checkpoint tells of a phase twice."""
    path = newest(folder / "server", "runs/*/checkpoints/*.json")
    facts = json.loads(path.read_bytes())
    facts["history"].append(facts["history"][-1])
    path.write_text(json.dumps(facts))


def tear_json(folder: Path) -> None:
    """Half of a JSON file is there."""
    path = newest(folder / "server", "runs/*/config.json")
    path.write_bytes(path.read_bytes()[:20])


def tear_checkpoints(folder: Path) -> None:
    """No checkpoint has its arrays."""
    for path in folder.glob("server/runs/*/checkpoints/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])


def lose_result(folder: Path) -> None:
    """A run is complete and has no result."""
    newest(folder / "server", "runs/*/result/result.json").unlink()


DAMAGES = {
    forget_release: "for which nothing was paid",
    pay_other_bytes: "other bytes left",
    break_chain: "the ledger's chain breaks at event 2",
    charge_twice: "was charged 2 times",
    lose_line: "which no log tells of",
    tear_line: "has a torn line",
    swap_payload: "is not what was paid for",
    claim_more: "for 0.5, unpaid",
    skip_phase: "the registry has phases",
    repeat_phase: "tells of phases",
    tear_json: "is torn",
    tear_checkpoints: "no checkpoint is whole",
    lose_result: "without a result",
}


def test_a_run_that_was_left_alone_violates_nothing(folder: Path) -> None:
    """Everything is looked at and nothing found; what is there is more than nothing."""
    looker = witness(folder)
    assert looker.look() == []
    assert {len(entries) for entries in looker.entries.values()} == {4}
    assert looker.litter() == 0


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_each_damage_is_told(folder: Path, damage: Callable[[Path], None]) -> None:
    """Whatever is changed by hand in the files of a whole run is found, and told once."""
    looker = witness(folder)
    damage(folder)
    found = looker.look()
    assert any(DAMAGES[damage] in one for one in found), found
    assert looker.look() == []


def test_a_charge_that_was_seen_cannot_go(folder: Path) -> None:
    """An older ledger, whole in itself, lacks what a look saw before."""
    looker = witness(folder)
    assert looker.look() == []
    ledger(folder).unlink()
    assert any("no ledger, of 4 charges" in one for one in looker.look())


def test_a_model_must_be_made_of_what_left(tmp_path: Path) -> None:
    """Where the replies of a round are other ones, its model cannot have come of them."""
    federation = tiny_federation()

    def end(number: int, _arrays: Arrays) -> None:
        if number == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        simulate(tiny_run(federation), datasets(federation), tmp_path, after_round=end)
    assert witness(tmp_path).look() == []
    for home in witness(tmp_path).nodes.values():
        reply = newest(home, "outbox/*/train-000002-*.bin")
        reply.write_bytes(newest(home, "outbox/*/train-000001-*.bin").read_bytes())
    found = witness(tmp_path).look()
    assert any("after round 2 is not made of what left" in one for one in found), found


def test_what_a_fault_took_is_not_asked_for(folder: Path) -> None:
    """A log that the storm itself has damaged is excused, and nothing beside it."""
    tear_line(folder)
    lose_line(folder)
    pay_other_bytes(folder)
    found = witness(folder, Excuses(lines=frozenset({SITE}))).look()
    assert not any("torn line" in one or "no log" in one for one in found)
    assert any("other bytes left" in one for one in found)


def test_temporary_files_are_counted(folder: Path) -> None:
    """A file that an interrupted atomic write has left is litter, one of another name is not."""
    (folder / "server" / ".result.json.ab12_xyz").touch()
    (folder / "server" / ".hidden").touch()
    assert witness(folder).litter() == 1
