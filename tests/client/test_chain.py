"""The ledger's chain, what it is compared with at a start, and ledgers of older releases."""

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.chain import GENESIS
from fedlatent.client.ledger import Ledger
from fedlatent.client.ledger_file import UNSEALED, VERSION
from fedlatent.client.node import Node
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import BudgetExceeded, LedgerError, ServiceError
from fedlatent.shared.privacy.accounting import GaussianEvent
from fedlatent.shared.privacy.noise import SecureNoise
from tests.client.support import RUN_ID, request, tiny_node, tiny_run, weights_of
from tests.client.test_ledger import STEP, reference_epsilon
from tests.client.test_node import PowerCut

RUN = tiny_run(privacy={"epsilon": 4.0, "rng": "secure"})
VERSION_1 = """
CREATE TABLE runs (
    dataset TEXT NOT NULL, run_id TEXT NOT NULL, config_digest TEXT NOT NULL,
    started REAL NOT NULL, PRIMARY KEY (dataset, run_id)
);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    dataset TEXT NOT NULL, run_id TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL,
    request_digest TEXT NOT NULL, noise_multiplier REAL NOT NULL, sample_rate REAL NOT NULL,
    steps INTEGER NOT NULL, rng TEXT NOT NULL, reserved_at REAL NOT NULL,
    epsilon_after REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'released')),
    released_at REAL, sha256 TEXT, nbytes INTEGER,
    UNIQUE (dataset, run_id, round, kind, request_digest)
);
INSERT INTO runs VALUES ('records', 'old', 'd', 1.0);
INSERT INTO entries VALUES (3, 'records', 'old', 1, 'train', 'a', 2.0, 0.1, 20, 'secure', 1.5,
    0.7, 'released', 2.5, 'ff', 10);
INSERT INTO entries VALUES (4, 'records', 'old', 2, 'train', 'b', 2.0, 0.1, 20, 'secure', 3.5,
    0.9, 'reserved', NULL, NULL, NULL);
INSERT INTO entries VALUES (7, 'other', 'open', 1, 'train', 'c', 0.0, 1.0, 1, 'secure', 4.5,
    9e999, 'released', 5.5, 'ee', 11);
PRAGMA user_version = 1;
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger with an entry of each state, and one without noise."""
    made = Ledger(tmp_path / "ledger.db", "records", 50.0, 1e-5)
    for number in (1, 2, 3):
        made.reserve("r", number, "train", "a", STEP, "secure", "basis")
    made.released(1, "f" * 64, 10)
    made.reserve("r", 2, "train", "a", STEP, "secure", "another basis")
    made.reserve("open", 1, "train", "a", None, "secure")
    return made


def change(path: Path, *statements: str) -> None:
    """Edit a ledger's file behind its back."""
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_a_whole_chain_says_how_long_it_is(tmp_path: Path, ledger: Ledger) -> None:
    """Charges, releases and failures are one event each; the last hash changes with every one."""
    found = ledger.verify()
    assert [payment.state for payment in found.payments.values()] == [
        *("released", "failed", "reserved", "reserved", "reserved")
    ]
    assert found.events == 5 + 2
    ledger.released(3, "e" * 64, 10)
    later = Ledger(tmp_path / "ledger.db", "records", 50.0, 1e-5).verify()
    assert later.events == found.events + 1
    assert len({GENESIS, found.head, later.head}) == 3
    empty = Ledger(tmp_path / "empty.db", "records", 50.0, 1e-5).verify()
    assert (empty.events, empty.head) == (0, GENESIS)


@pytest.mark.parametrize(
    ("statement", "event", "entry"),
    [
        ("UPDATE entries SET noise_multiplier = 20.0 WHERE id = 2", 2, 2),
        ("UPDATE entries SET steps = 1 WHERE id = 1", 1, 1),
        ("UPDATE entries SET epsilon_after = 0.1 WHERE id = 3", 3, 3),
        ("UPDATE entries SET rng = 'simulation' WHERE id = 3", 3, 3),
        ("UPDATE entries SET dataset = 'others' WHERE id = 1", 1, 1),
        ("UPDATE entries SET sha256 = 'aa' WHERE id = 1", 4, 1),
        ("UPDATE entries SET state = 'reserved' WHERE id = 1", None, 1),
        ("UPDATE entries SET state = 'released' WHERE id = 3", None, 3),
        ("DELETE FROM entries WHERE id = 2", 2, 2),
        ("DELETE FROM events WHERE seq = 2", 2, 3),
        ("DELETE FROM events WHERE seq = 7", None, 5),
        ("UPDATE events SET line = replace(line, '2.0', '9.0') WHERE seq = 2", 2, 2),
        ("UPDATE events SET hash = 'ab' WHERE seq = 3", 3, 3),
        (
            "INSERT INTO entries (dataset, run_id, round, kind, request_digest, basis, "
            "noise_multiplier, sample_rate, steps, rng, reserved_at, epsilon_after, state) SELECT "
            "dataset, run_id, 9, kind, request_digest, basis, noise_multiplier, sample_rate, steps,"
            " rng, reserved_at, epsilon_after, 'released' FROM entries WHERE id = 1",
            None,
            6,
        ),
    ],
)
def test_a_changed_ledger_is_found(
    tmp_path: Path, ledger: Ledger, statement: str, event: int | None, entry: int
) -> None:
    """Whatever is changed, removed or put in, the error names the event and the entry."""
    ledger.verify()
    change(tmp_path / "ledger.db", statement)
    with pytest.raises(LedgerError) as caught:
        Ledger(tmp_path / "ledger.db", "records", 50.0, 1e-5).verify()
    assert (caught.value.event, caught.value.entry) == (event, entry)
    assert str(tmp_path / "ledger.db") in str(caught.value)


def test_charges_of_version_1_stay_charges(tmp_path: Path) -> None:
    """An older ledger keeps every charge under its number; what was begun under it has failed."""
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    connection.close()
    ledger = Ledger(path, "records", 50.0, 1e-5)
    released, failed = ledger.entries()
    assert (released.id, released.state, released.ended_at) == (3, "released", 2.5)
    assert (released.sha256, released.nbytes, released.epsilon_after) == ("ff", 10, 0.7)
    assert (failed.id, failed.state, failed.reason) == (4, "failed", UNSEALED)
    assert ledger.epsilon() == pytest.approx(reference_epsilon(ledger.entries(), 1e-5))
    assert Ledger(path, "other", 50.0, 1e-5).epsilon() == float("inf")
    ledger.open_run("old", "d", [])
    assert ledger.verify().events == 3 + 3
    again = ledger.reserve("old", 2, "train", "b", STEP, "secure", "basis")
    assert (again.id, again.state) == (8, "reserved")
    assert ledger.reserve("old", 1, "train", "a", STEP, "secure", "basis") == released
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert not {"entries_1", "runs_1"} & names


def test_failed_entries_count_for_ever(tmp_path: Path) -> None:
    """Attempts that failed fill the budget like any other charge."""
    ledger = Ledger(tmp_path / "ledger.db", "records", 5.0, 1e-5)
    number = 0
    while ledger.spent_if([STEP]) <= 5.0:
        number += 1
        ledger.reserve("r", 1, "train", "a", STEP, "secure", str(number))
    with pytest.raises(BudgetExceeded):
        ledger.reserve("r", 1, "train", "a", STEP, "secure", "one more")
    assert {entry.state for entry in ledger.entries()} == {"failed"}
    assert len(ledger.entries()) == number
    assert ledger.epsilon() == pytest.approx(reference_epsilon(ledger.entries(), 1e-5))


def test_one_seeded_entry_makes_the_sum_a_simulation(tmp_path: Path) -> None:
    """The random numbers named beside an epsilon are those of its worst part, not its last."""
    path, event = tmp_path / "ledger.db", GaussianEvent(noise_multiplier=9.0)
    ledger = Ledger(path, "records", 50.0, 1e-5, allow_simulation_rng=True)
    assert ledger.rng() == "secure"
    ledger.reserve("r", 1, "moments", "a", event, "simulation")
    ledger.reserve("r", 2, "moments", "a", event, "secure")
    assert ledger.rng() == "simulation"
    assert 0 < ledger.epsilon() < 50
    assert Ledger(path, "others", 50.0, 1e-5).rng() == "secure"


def test_seeded_entries_have_no_epsilon_outside_simulations(tmp_path: Path) -> None:
    """Noise that anyone with the seed can take off costs an infinite epsilon."""
    path, event = tmp_path / "ledger.db", GaussianEvent(noise_multiplier=9.0)
    simulated = Ledger(path, "records", 50.0, 1e-5, allow_simulation_rng=True)
    simulated.reserve("r", 1, "moments", "a", event, "simulation")
    ledger = Ledger(path, "records", 50.0, 1e-5)
    assert ledger.epsilon() == float("inf")
    with pytest.raises(BudgetExceeded):
        ledger.reserve("r", 2, "moments", "a", event, "secure")
    with pytest.raises(BudgetExceeded):
        Ledger(path, "fresh", 50.0, 1e-5).reserve("r", 1, "moments", "a", event, "simulation")


def ask(node: Node, round: int, run: RunConfig = RUN) -> None:
    """One training request that must be answered."""
    out = node.handle(request(run, round), weights_of(run, round))
    assert out.header.status == "ok", out.header.text


def put_back(copy: Path, home: Path) -> None:
    """An older copy of the ledger takes the place of the newest."""
    for path in home.glob("ledger.db-*"):
        path.unlink()
    shutil.copy(copy, home / "ledger.db")


def test_an_older_copy_of_the_ledger_is_refused(tmp_path: Path) -> None:
    """A node does not start on a ledger that has forgotten what left, and says what to do."""
    home = tmp_path / "home"
    node = tiny_node(home, RUN)
    ask(node, 1)
    shutil.copy(home / "ledger.db", tmp_path / "older.db")
    ask(node, 2)
    newest = (home / "ledger.db").read_bytes()
    put_back(tmp_path / "older.db", home)
    with pytest.raises(LedgerError, match="older copy") as caught:
        tiny_node(home, RUN)
    assert caught.value.entry == 2
    text = str(caught.value)
    assert "line 2 of" in text
    assert "newest ledger.db" in text
    assert not any(word in text.lower() for word in ("delete", "remove", "new data", "reset"))
    (home / "ledger.db").write_bytes(newest)
    ask(tiny_node(home, RUN), 2)


def test_a_copy_from_before_a_release_is_refused(
    tmp_path: Path,
) -> None:
    """A copy in which what left is still reserved would let it leave twice."""
    home = tmp_path / "home"
    node = tiny_node(home, RUN)
    real = node.ledger.released

    def copying(entry_id: int, sha256: str, nbytes: int) -> None:
        shutil.copy(home / "ledger.db", tmp_path / "older.db")
        real(entry_id, sha256, nbytes)

    node.ledger.released = copying  # type: ignore[method-assign]
    ask(node, 1)
    put_back(tmp_path / "older.db", home)
    with pytest.raises(LedgerError, match="reserved, not released"):
        tiny_node(home, RUN)


def test_a_ledger_of_another_past_is_refused(tmp_path: Path) -> None:
    """Equal numbers are not enough: the run and the bytes that left must be those of the entry."""
    home = tmp_path / "home"
    ask(tiny_node(home, RUN), 1)
    other = tmp_path / "other"
    ask(tiny_node(other, RUN), 1)
    put_back(other / "ledger.db", home)
    with pytest.raises(LedgerError, match="other bytes"):
        tiny_node(home, RUN)
    foreign = tmp_path / "foreign"
    node = tiny_node(foreign, RUN)
    node.handle(request(RUN, 1, run_id="foreign-1"), weights_of(RUN, 1))
    put_back(foreign / "ledger.db", home)
    with pytest.raises(LedgerError, match="one of run 'foreign-1'"):
        tiny_node(home, RUN)


def test_a_missing_ledger_beside_releases_is_refused(tmp_path: Path) -> None:
    """Without its ledger a home that has released something stays shut, and makes none."""
    ask(tiny_node(tmp_path, RUN), 1)
    for path in tmp_path.glob("ledger.db*"):
        path.unlink()
    with pytest.raises(LedgerError, match="got none") as caught:
        tiny_node(tmp_path, RUN)
    assert str(tmp_path / "ledger.db") in str(caught.value)
    assert not (tmp_path / "ledger.db").exists()


def test_an_outbox_alone_gives_an_older_ledger_away(tmp_path: Path) -> None:
    """Where the journal is gone, too, the stored payloads name the entries that must be there."""
    home = tmp_path / "home"
    node = tiny_node(home, RUN)
    shutil.copy(home / "ledger.db", tmp_path / "older.db")
    ask(node, 1)
    (home / "releases.jsonl").unlink()
    put_back(tmp_path / "older.db", home)
    with pytest.raises(LedgerError, match=rf"outbox.{RUN_ID}.*none of that number"):
        tiny_node(home, RUN)


@pytest.mark.parametrize("write", ["released", "_write_lines"])
def test_a_ledger_that_knows_more_is_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """Cut off between payload, mark and journal, the node starts and answers the same request."""
    node = tiny_node(tmp_path, RUN)
    part = node.ledger if write == "released" else node.door

    def cut(*_: object) -> None:
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(part, write, cut)
        with pytest.raises(PowerCut):
            ask(node, 1)
    ask(tiny_node(tmp_path, RUN), 1)
    assert json.loads((tmp_path / "releases.jsonl").read_text().splitlines()[-1])["entry"] == 1


def test_a_ledger_swapped_under_a_running_node_is_refused(tmp_path: Path) -> None:
    """A node that has seen a later ledger pays nothing into an older one."""
    home = tmp_path / "home"
    node = tiny_node(home, RUN)
    ask(node, 1)
    shutil.copy(home / "ledger.db", tmp_path / "older.db")
    ask(node, 2)
    put_back(tmp_path / "older.db", home)
    out = node.handle(request(RUN, 2), weights_of(RUN, 2))
    assert (out.header.status, out.header.code) == ("refused", "internal")
    assert len(Ledger(home / "ledger.db", "records", 5.0, 1e-5).entries()) == 1


def test_the_header_tells_the_worst_random_numbers(tmp_path: Path) -> None:
    """A secure release after a seeded one is written down as a simulation everywhere."""
    seeded, secure = (
        tiny_run(privacy={"epsilon": 1.0}),
        tiny_run(name="secure", privacy={"epsilon": 1.0, "rng": "secure"}),
    )
    node = tiny_node(tmp_path, seeded)
    node.handle(request(seeded, 1), weights_of(seeded))
    out = node.handle(request(secure, 1, run_id="secure-1"), weights_of(secure))
    assert (out.header.status, out.header.rng) == ("ok", "simulation")
    assert node.ledger.entries()[-1].rng == "secure"
    assert "(simulation random numbers)" in (tmp_path / "releases.log").read_text().splitlines()[-1]
    strict = tiny_node(tmp_path, secure, allow_simulation_rng=False)
    assert strict.ledger.epsilon() == float("inf")
    refused = strict.handle(request(secure, 2, run_id="secure-1"), weights_of(secure))
    assert refused.header.code == "budget"


def test_a_node_does_not_start_on_broken_random_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that repeats itself stops the node before it makes a home or a ledger."""
    real = SecureNoise.uniform

    def halved(source: SecureNoise, size: int) -> np.ndarray:
        return np.tile(real(source, (size + 1) // 2), 2)[:size]

    monkeypatch.setattr(SecureNoise, "uniform", halved)
    with pytest.raises(ServiceError, match="random numbers of this machine"):
        tiny_node(tmp_path / "home", RUN)
    assert not (tmp_path / "home").exists()


def test_a_state_that_nothing_pays_for_gives_an_older_ledger_away(tmp_path: Path) -> None:
    """What an attempt left in the store was drawn; with its charge forgotten no round builds on it.

    A later charge would get the same number, and its release would make that state good.
    """
    home = tmp_path / "home"
    node = tiny_node(home, RUN)
    ask(node, 1)
    shutil.copy(home / "ledger.db", tmp_path / "older.db")

    def cut(*_: object) -> None:
        raise PowerCut

    node.door.encoder = cut  # type: ignore[method-assign,assignment]
    with pytest.raises(PowerCut):
        ask(node, 3)
    put_back(tmp_path / "older.db", home)
    with pytest.raises(LedgerError, match=rf"store.{RUN_ID}.*none of that number"):
        tiny_node(home, RUN)
