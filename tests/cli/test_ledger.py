"""``client ledger --verify``, and the warning before one budget becomes two."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.home import USER_VARIABLE, ClientHome
from fedlatent.client.known import note_records
from fedlatent.client.service import ClientService
from fedlatent.shared.errors import DataError, LedgerError
from fedlatent.shared.toml import dumps
from tests.cli.conftest import Run
from tests.client.support import request, tiny_config, tiny_node, tiny_records, tiny_run, weights_of
from tests.client.test_chain import change, put_back

SECURE = tiny_run(privacy={"epsilon": 4.0, "rng": "secure"})


@pytest.fixture
def home(tmp_path: Path) -> ClientHome:
    """A node's home after two rounds."""
    made = ClientHome(tmp_path / "home")
    node = tiny_node(made.root, SECURE)
    for round in (1, 2):
        node.handle(request(SECURE, round), weights_of(SECURE, round))
        if round == 1:
            shutil.copy(made.ledger, tmp_path / "older.db")
    np.savez(made.root / "records.npz", X=tiny_records())
    tables = tiny_config(SECURE).model_dump(mode="json", by_alias=True, exclude_none=True)
    made.config.write_text(dumps(tables))
    return made


def test_verify_says_that_a_ledger_is_whole(run: Run, home: ClientHome) -> None:
    """Events, entries by state and the last hash, in words and as JSON."""
    status, out, _ = run("client", "ledger", "--home", home.root, "--verify")
    assert status == 0
    assert "whole: 4 events in one chain" in out
    assert "2 entries (0 reserved, 2 released, 0 failed)" in out
    status, out, _ = run("client", "ledger", "--home", home.root, "--verify", "--json")
    facts = json.loads(out)
    assert (status, facts["ok"], facts["events"], facts["released"]) == (0, True, 4, 2)
    assert len(facts["head"]) == 64
    status, out, _ = run("client", "ledger", "--home", home.root)
    assert status == 0
    assert "secure random numbers" in out.replace("\n", " ")


def test_verify_names_what_was_changed(run: Run, home: ClientHome) -> None:
    """A changed line ends with the ledger's exit code, event and entry."""
    change(home.ledger, "UPDATE entries SET steps = 1 WHERE id = 2")
    status, out, _ = run("client", "ledger", "--home", home.root, "--verify", "--json")
    error = json.loads(out)["error"]
    assert (status, error["code"]) == (LedgerError.exit_code, "ledger")
    assert (error["event"], error["entry"]) == (3, 2)
    status, _, text = run("client", "ledger", "--home", home.root, "--verify")
    assert status == LedgerError.exit_code
    assert "entry 2" in text


def test_no_epsilon_is_shown_of_an_older_or_missing_ledger(
    run: Run, home: ClientHome, tmp_path: Path
) -> None:
    """With or without --verify, a ledger that forgot a release is refused, and none is made."""
    put_back(tmp_path / "older.db", home.root)
    for extra in ((), ("--verify",)):
        status, out, _ = run("client", "ledger", "--home", home.root, "--json", *extra)
        assert (status, json.loads(out)["error"]["entry"]) == (LedgerError.exit_code, 2)
    home.ledger.unlink()
    assert run("client", "ledger", "--home", home.root)[0] == LedgerError.exit_code
    assert not home.ledger.exists()


def test_an_infinite_epsilon_is_null_in_json(run: Run, home: ClientHome) -> None:
    """Seeded noise where the policy allows none leaves no finite epsilon, and JSON says null."""
    seeded = tiny_run(name="seeded", privacy={"epsilon": 0.5})
    node = tiny_node(home.root, seeded)
    node.handle(request(seeded, 1, run_id="seeded-1"), weights_of(seeded))
    text = home.config.read_text()
    assert "allow_simulation_rng = true" in text
    home.config.write_text(text.replace("allow_simulation_rng = true", ""))
    status, out, _ = run("client", "ledger", "--home", home.root, "--json")
    facts = json.loads(out)
    assert (status, facts["epsilon"], facts["rng"]) == (0, None, "simulation")
    assert run("client", "ledger", "--home", home.root)[0] == 0


def init(run: Run, folder: Path, data: Path, name: str, *extra: object) -> tuple[str | None, str]:
    """Make a node; the warning as JSON has it."""
    server = folder / "server"
    if not server.exists():
        assert run("server", "init", "--home", server, "--port", 0)[0] == 0
        run_file = folder / "run.toml"
        run_file.write_text(dumps({"data": SECURE.data.to_dict()}))
    arguments = ("--server", "127.0.0.1:9", "--ca", server / "tls" / "ca.crt", "--data", data)
    arguments += ("--schema", folder / "run.toml", "--home", folder / name)
    status, out, text = run("client", "init", name, *arguments, "--json", *extra)
    assert status == 0, out + text
    warning: str | None = json.loads(out)["warning"]
    return warning, text


def test_records_in_a_second_home_are_warned_of(run: Run, tmp_path: Path) -> None:
    """The same records in another order, file and home are known again; others are not."""
    records = tiny_records()
    np.savez(tmp_path / "a.npz", X=records)
    np.savez(tmp_path / "b.npz", X=records[::-1])
    np.savez(tmp_path / "c.npz", X=tiny_records(seed=1))
    assert init(run, tmp_path, tmp_path / "a.npz", "north")[0] is None
    assert init(run, tmp_path, tmp_path / "c.npz", "south")[0] is None
    warning, _ = init(run, tmp_path, tmp_path / "b.npz", "copy")
    assert warning is not None
    assert str(tmp_path / "north") in warning
    registry = tmp_path / "user" / "records.json"
    assert registry.stat().st_mode & 0o077 == 0


def test_a_start_warns_of_a_second_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node started with another data.name says so; under the old name it says nothing."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ClientService, "start", stop)
    np.savez(tmp_path / "a.npz", X=tiny_records())
    init(run, tmp_path, tmp_path / "a.npz", "north")
    place = ClientHome(tmp_path / "north")
    assert "warning" not in run("client", "start", "--home", place.root)[2]
    text = place.config.read_text()
    place.config.write_text(text.replace('name = "records"', 'name = "again"', 1))
    said = run("client", "start", "--home", place.root)[2].replace("\n", " ")
    assert "warning" in said
    assert "data set 'records'" in said
    place.config.write_text(text)
    moved = tmp_path / "moved"
    place.root.rename(moved)
    assert "two ledgers" in run("client", "start", "--home", moved)[2]  # of the second name


def test_a_moved_home_is_known_again_and_a_copied_one_is_not(tmp_path: Path) -> None:
    """A home that moved with its ledger is no second one; a copy beside it is."""
    home, records = ClientHome(tmp_path / "first"), tiny_records()
    tiny_node(home.root, SECURE)
    assert note_records(home, "records", records) is None
    moved = ClientHome(tmp_path / "moved")
    home.root.rename(moved.root)
    assert note_records(moved, "records", records) is None
    copied = ClientHome(tmp_path / "copied")
    shutil.copytree(moved.root, copied.root)
    warning = note_records(copied, "records", records)
    assert warning is not None
    assert str(moved.root) in warning
    assert note_records(moved, "records", records) is not None
    (tmp_path / "user" / "records.json").write_text('{"salt": "zz"}')
    with pytest.raises(DataError, match="only the warning"):
        note_records(moved, "records", records)


@pytest.fixture(autouse=True)
def _user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the user for each test."""
    monkeypatch.setenv(USER_VARIABLE, str(tmp_path / "user"))


def test_a_name_that_a_server_chose_forges_no_line_and_no_style(run: Run, home: ClientHome) -> None:
    """Line ends, escapes of a terminal and brackets in the name of an array stay text."""
    node = tiny_node(home.root, SECURE)
    name = "w\u2028[/bold]\x1b[2K\x85released 1 arrays"
    sent = weights_of(SECURE) | {name: np.full(3, 1e9, dtype=np.float32)}
    out = node.handle(request(SECURE, 3), sent)
    assert (out.header.code, out.header.text.isprintable()) == ("policy", True)
    assert len(home.release_journal.read_text("utf-8").splitlines()) == 3
    assert "\x1b" not in home.release_log.read_text("utf-8")
    status, text, _ = run("client", "releases", "--home", home.root)
    assert status == 0
    assert "3 messages" in text


@pytest.mark.parametrize(
    "torn",
    [
        '{"what": "refused: ä'.encode()[:-1],
        b'{"what": "refused"}',
        b'{"time": 7, "run": [], "round": NaN, "kind": "?", "what": 1, "bytes": -1, "sha256": 0}',
        b"[" * 100_000,
    ],
    ids=["cut", "fields", "types", "deep"],
)
def test_releases_are_shown_after_a_line_that_a_crash_cut_short(
    run: Run, home: ClientHome, torn: bytes
) -> None:
    """A torn line of the journal, whatever is left of it, hides no other and is counted."""
    with home.release_journal.open("ab") as stream:
        stream.write(torn)
    node = tiny_node(home.root, SECURE)
    assert node.handle(request(SECURE, 3), weights_of(SECURE)).header.status == "ok"
    status, text, warning = run("client", "releases", "--home", home.root)
    assert status == 0
    assert "3 messages" in text
    assert "got 1 cut short" in warning
    status, text, _ = run("client", "releases", "--home", home.root, "--json")
    assert (status, len(json.loads(text))) == (0, 3)


def test_releases_are_whole_where_a_script_reads_them(run: Run, home: ClientHome) -> None:
    """Hashes are whole in a pipe, and CSV has the rows of the JSON without the receipts."""
    where = ("client", "releases", "--home", home.root)
    said = json.loads(run(*where, "--json")[1])
    _, shown, _ = run(*where)
    assert all(one["sha256"] in shown for one in said)
    rows = list(csv.DictReader(io.StringIO(run(*where, "--csv")[1])))
    assert [one["sha256"] for one in rows] == [one["sha256"] for one in said]
    assert set(rows[0]) == set(said[0]) - {"receipt"}
    _, shown, _ = run("client", "ledger", "--home", home.root, "--csv")
    entries = list(csv.DictReader(io.StringIO(shown)))
    assert [one["kind"] for one in entries] == [one["kind"] for one in said]


def test_rebuild_makes_a_lost_ledger_again_and_says_what_it_made(
    run: Run, home: ClientHome
) -> None:
    """In words and as JSON; the sentence about a lost ledger names the command."""
    home.ledger.unlink()
    status, out, _ = run("client", "ledger", "--home", home.root, "--json")
    assert (status, "ledger --rebuild" in json.loads(out)["error"]["message"]) == (12, True)
    status, out, _ = run("client", "ledger", "--home", home.root, "--rebuild")
    assert status == 0
    assert "2 releases and 0 charges" in out.replace("\n", " ")
    assert run("client", "ledger", "--home", home.root, "--verify")[0] == 0
    status, out, _ = run("client", "ledger", "--home", home.root, "--rebuild", "--json")
    assert (status, json.loads(out)["error"]["code"]) == (9, "service")
    home.ledger.write_bytes(b"junk" * 5000)
    status, out, _ = run("client", "ledger", "--home", home.root, "--rebuild", "--json")
    made = json.loads(out)
    assert (status, made["released"], made["failed"]) == (0, 2, 0)
    assert made["epsilon"] == pytest.approx(made["said"])
    assert Path(made["kept"]).read_bytes() == b"junk" * 5000


def test_a_damaged_run_that_asked_hides_no_other(run: Run, home: ClientHome) -> None:
    """The whole ones are shown, and the damaged one is counted."""
    node = tiny_node(home.root, SECURE, approval="each-run")
    for name in ("asked-1", "asked-2"):
        node.handle(request(SECURE, 1, run_id=name), weights_of(SECURE, 1))
    (home.approvals / "asked-1.json").write_bytes(b"{")
    status, out, warning = run("client", "runs", "--home", home.root, "--json")
    assert (status, [one["run"] for one in json.loads(out)]) == (0, ["asked-2"])
    assert "asked-1.json" in warning


def test_a_home_made_anew_in_the_same_place_is_warned_of(tmp_path: Path) -> None:
    """The ledger of the node that lay there before is gone, and what it paid for is not."""
    home, records = ClientHome(tmp_path / "home"), tiny_records()
    tiny_node(home.root, SECURE)
    assert note_records(home, "records", records) is None
    shutil.rmtree(home.root)
    tiny_node(home.root, SECURE)
    warning = note_records(home, "records", records)
    assert warning is not None
    assert "an earlier node in this home" in warning
