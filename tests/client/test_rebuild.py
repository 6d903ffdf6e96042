"""A ledger made again from what left, and never lower than the files say."""

import json
import math
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from client.home import ClientHome
from client.journal import read_journal
from client.ledger import Entry
from client.local import open_ledger
from client.rebuild import COUNTED, rebuild
from shared.errors import LedgerError, ServiceError
from tests.client.support import (
    RECORDS,
    RUN_ID,
    request,
    tiny_config,
    tiny_node,
    tiny_run,
    weights_of,
)
from tests.client.test_chain import ask, change, put_back
from tests.client.test_node import PowerCut

RUN = tiny_run(privacy={"epsilon": 4.0, "rng": "secure"})
CONFIG = tiny_config(RUN)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of three releases and, before the last, a charge that a power cut left reserved.

    Beside it lies the ledger as it was after the first release.
    """
    root = tmp_path_factory.mktemp("lived")
    node = tiny_node(root / "home", RUN)
    ask(node, 1)
    shutil.copy(root / "home" / "ledger.db", root / "older.db")
    ask(node, 2)
    real = node.door.encoder

    def cut(*_: object) -> None:
        raise PowerCut

    node.door.encoder = cut  # type: ignore[method-assign,assignment]
    with pytest.raises(PowerCut):
        ask(node, 3)
    node.door.encoder = real  # type: ignore[method-assign]
    assert node.handle(request(RUN, 4, "moments"), weights_of(RUN)).header.status == "ok"
    return root


@pytest.fixture
def home(lived: Path, tmp_path: Path) -> ClientHome:
    """A copy of that home."""
    shutil.copytree(lived, tmp_path / "lived")
    return ClientHome(tmp_path / "lived" / "home")


def entries_of(home: ClientHome) -> list[Entry]:
    """What the ledger of a home holds, once a node would take it."""
    return open_ledger(home, CONFIG, RECORDS)[0].entries()


def lose(home: ClientHome) -> None:
    """Take the ledger away."""
    for path in home.root.glob("ledger.db*"):
        path.unlink()


def order_of(home: ClientHome) -> list[tuple[object, ...]]:
    """The orders that guard, and the runs with their configurations."""
    with sqlite3.connect(home.ledger) as connection:
        orders = connection.execute("SELECT * FROM orders").fetchall()
        runs = connection.execute("SELECT run_id, config_digest FROM runs").fetchall()
    connection.close()
    return [*orders, *runs]


def test_a_lost_ledger_is_made_again_as_it_was(home: ClientHome) -> None:
    """Every entry has its number, cost, request and bytes; what never left counts as failed."""
    before, guards = entries_of(home), order_of(home)
    lose(home)
    with pytest.raises(LedgerError, match="--rebuild"):
        tiny_node(home.root, RUN)
    made = rebuild(home, CONFIG, RECORDS)
    after = entries_of(home)
    assert (made.released, made.failed, made.dearest, made.kept) == (3, 1, 1, None)
    assert [one.state for one in after] == ["released", "released", "failed", "released"]
    assert after[2].reason == COUNTED
    assert (after[2].run_id, after[2].round) == (RUN_ID, 3)
    for old, new in zip(before, after, strict=True):
        costs = [(e.id, e.kind, e.noise_multiplier, e.sample_rate, e.steps) for e in (old, new)]
        if new.state == "released":
            assert costs[0] == costs[1]
            assert (new.request_digest, new.basis) == (old.request_digest, old.basis)
            assert (new.sha256, new.nbytes, new.rng) == (old.sha256, old.nbytes, old.rng)
            assert new.epsilon_after == pytest.approx(old.epsilon_after)
    assert order_of(home) == guards
    assert made.epsilon >= before[-1].epsilon_after - 1e-9
    assert made.said == pytest.approx(before[-1].epsilon_after)


def test_a_node_goes_on_with_the_ledger_made_again(home: ClientHome) -> None:
    """A repeated request gets its bytes for nothing, and the run goes on."""
    node = tiny_node(home.root, RUN)
    sent = node.handle(request(RUN, 2), weights_of(RUN, 2)).payload
    lose(home)
    rebuild(home, CONFIG, RECORDS)
    node = tiny_node(home.root, RUN, max_epsilon=50.0)
    assert node.handle(request(RUN, 2), weights_of(RUN, 2)).payload == sent
    assert len(node.ledger.entries()) == 4
    ask(node, 3)
    assert [one.state for one in node.ledger.entries()][2:] == ["failed", "released", "released"]


def _no_receipts(home: ClientHome) -> None:
    lines = [json.loads(line) for line in home.release_journal.read_text().splitlines()]
    for line in lines:
        line.pop("receipt")
    home.release_journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lose(home)


def _torn_journal(home: ClientHome) -> None:
    data = home.release_journal.read_bytes()
    home.release_journal.write_bytes(data[:-200])
    lose(home)


def _no_journal(home: ClientHome) -> None:
    home.release_journal.unlink()
    lose(home)


def _journal_alone(home: ClientHome) -> None:
    shutil.rmtree(home.outbox)
    shutil.rmtree(home.store)
    lose(home)


def _log_knows_more(home: ClientHome) -> None:
    lines = home.release_journal.read_text().splitlines(keepends=True)
    home.release_journal.write_text("".join(lines[:-1]))
    shutil.rmtree(home.outbox)
    shutil.rmtree(home.store)
    lose(home)


def _older(home: ClientHome) -> None:
    put_back(home.root.parent / "older.db", home.root)


def _junk(home: ClientHome) -> None:
    lose(home)
    home.ledger.write_bytes(b"junk in place of a ledger" * 1000)


def _cut(home: ClientHome) -> None:
    data = home.ledger.read_bytes()
    lose(home)
    home.ledger.write_bytes(data[: len(data) // 2])


def _empty(home: ClientHome) -> None:
    lose(home)
    home.ledger.touch()


def _cheaper(home: ClientHome) -> None:
    change(home.ledger, "UPDATE entries SET steps = 1, noise_multiplier = 90.0")


def _foreign(home: ClientHome) -> None:
    other = home.root.parent / "other"
    node = tiny_node(other, RUN)
    node.handle(request(RUN, 1, run_id="foreign-1"), weights_of(RUN, 1))
    put_back(other / "ledger.db", home.root)


@pytest.mark.parametrize(
    "harm",
    [
        *(_no_receipts, _torn_journal, _no_journal, _journal_alone, _log_knows_more),
        *(_older, _junk, _cut, _empty, _cheaper, _foreign),
    ],
)
def test_a_ledger_made_again_is_never_lower(
    home: ClientHome, harm: Callable[[ClientHome], None]
) -> None:
    """Whatever is lost beside the ledger, at least all that was charged counts, and a node runs."""
    before = entries_of(home)
    spent = before[-1].epsilon_after
    harm(home)
    had = home.ledger.exists()
    with pytest.raises(LedgerError):
        entries_of(home)
    made = rebuild(home, CONFIG, RECORDS)
    after = entries_of(home)
    assert made.epsilon >= spent - 1e-9
    assert after[-1].epsilon_after == made.epsilon
    assert len(after) >= len(before)
    assert (made.kept is not None) == had
    assert [path.name for path in home.root.glob("ledger.db.new*")] == []
    tiny_node(home.root, RUN)


def test_what_a_file_says_was_spent_is_spent(home: ClientHome) -> None:
    """Where a line tells of more than its entries cost, charges are added until it holds."""
    lines = [json.loads(line) for line in home.release_journal.read_text().splitlines()]
    lines[-1]["epsilon"] = 4.9
    home.release_journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lose(home)
    made = rebuild(home, CONFIG, RECORDS)
    assert (made.said, made.epsilon >= 4.9 - 1e-6, made.dearest > 1) == (4.9, True, True)
    lines[-1]["epsilon"] = None
    home.release_journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lose(home)
    assert math.isinf(rebuild(home, CONFIG, RECORDS).epsilon)


@pytest.mark.parametrize("left", ["releases.log", "store"])
def test_no_ledger_begins_where_one_trace_of_a_release_is_left(home: ClientHome, left: str) -> None:
    """The log for people, or a finished run in the store, is enough."""
    (home.store / RUN_ID / "site.safetensors").write_bytes(b"a finished run")
    lose(home)
    home.release_journal.unlink()
    shutil.rmtree(home.outbox)
    for path in home.store.glob("*/round-*"):
        path.unlink()
    if left == "store":
        home.release_log.unlink()
    else:
        shutil.rmtree(home.store)
    with pytest.raises(LedgerError, match=left) as caught:
        tiny_node(home.root, RUN)
    assert not home.ledger.exists()
    assert not any(word in str(caught.value) for word in ("delete", "remove", "new home"))
    if left == "releases.log":
        with pytest.raises(LedgerError, match="whose cost is known"):
            rebuild(home, CONFIG, RECORDS)
        assert not home.ledger.exists()


def test_a_whole_ledger_is_left_alone(home: ClientHome) -> None:
    """Nothing is made again of a ledger that a node would start with, or while one runs."""
    before = home.ledger.read_bytes()
    with pytest.raises(ServiceError, match="use it as it is"):
        rebuild(home, CONFIG, RECORDS)
    assert home.ledger.read_bytes() == before
    lose(home)
    with home.alone(), pytest.raises(ServiceError, match="one that runs"):
        rebuild(home, CONFIG, RECORDS)
    assert not home.ledger.exists()


def test_the_journal_has_a_receipt_of_each_release(home: ClientHome) -> None:
    """With it, the entry that paid can be written again."""
    entries = {one.id: one for one in entries_of(home)}
    lines = read_journal(home.release_journal).values
    assert [line.entry for line in lines] == [1, 2, 4]
    for line in lines:
        assert line.receipt is not None
        assert line.receipt.request == entries[line.entry or 0].request_digest
        assert line.receipt.config == RUN.digest()
