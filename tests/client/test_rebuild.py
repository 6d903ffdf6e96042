"""A ledger made again from what left, and never lower than the files say."""

import contextlib
import json
import math
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlatent.client.home import ClientHome
from fedlatent.client.journal import read_journal
from fedlatent.client.ledger import Entry, Ledger
from fedlatent.client.ledger_file import COUNTED
from fedlatent.client.local import open_ledger
from fedlatent.client.rebuild import rebuild
from fedlatent.shared.errors import LedgerError, ServiceError
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
    if harm in (_older, _cheaper, _foreign):
        with sqlite3.connect(made.kept or "") as connection:
            assert connection.execute("SELECT COUNT(*) FROM seals").fetchone() == (0,)
        connection.close()


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


def _text_no_more(home: ClientHome) -> None:
    change(home.ledger, "UPDATE entries SET basis = CAST(x'80ff' AS TEXT) WHERE id = 1")


def _names_no_text(home: ClientHome) -> None:
    change(home.ledger, "PRAGMA wal_checkpoint(TRUNCATE)")
    data = home.ledger.read_bytes()
    assert b"TABLE seals" in data
    home.ledger.write_bytes(data.replace(b"TABLE seals", b"TABLE s\x80als"))


def _other_columns(home: ClientHome) -> None:
    change(home.ledger, "ALTER TABLE entries RENAME COLUMN basis TO base")


def _other_types(home: ClientHome) -> None:
    change(home.ledger, "UPDATE events SET line = x'00' WHERE seq = 1")


def _other_number(home: ClientHome) -> None:
    _first_line(home, entry=9)
    _older(home)


def _other_bytes_sent_again(home: ClientHome) -> None:
    ask(tiny_node(home.root, RUN), 1)
    _first_line(home, sha256="ab" * 32)


def _first_line(home: ClientHome, **changes: object) -> None:
    first, *rest = home.release_journal.read_text().splitlines(keepends=True)
    changed = json.dumps(json.loads(first) | changes) + "\n"
    home.release_journal.write_text("".join([changed, *rest]))


@pytest.mark.parametrize(
    "harm",
    [
        *(_text_no_more, _names_no_text, _other_columns, _other_types),
        *(_other_number, _other_bytes_sent_again),
    ],
)
def test_any_damage_is_told_and_can_be_mended(
    home: ClientHome, harm: Callable[[ClientHome], None]
) -> None:
    """What SQLite reads and cannot be a ledger, and a journal that was changed, are damage."""
    spent = entries_of(home)[-1].epsilon_after
    harm(home)
    with pytest.raises(LedgerError, match="--rebuild"):
        entries_of(home)
    assert rebuild(home, CONFIG, RECORDS).epsilon >= spent - 1e-9
    assert entries_of(home)


def _older_and_log(home: ClientHome) -> None:
    _strip(home, "releases.log")
    put_back(home.root.parent / "older.db", home.root)


def _new_and_log(home: ClientHome) -> None:
    _strip(home, "releases.log")
    lose(home)
    Ledger(home.ledger, "records", 5.0, 1e-5)


def _new_and_site(home: ClientHome) -> None:
    _strip(home, "store")
    lose(home)
    Ledger(home.ledger, "records", 5.0, 1e-5)


def _site_alone(home: ClientHome) -> None:
    _strip(home, "store")
    lose(home)


def _junk_alone(home: ClientHome) -> None:
    _strip(home, "")
    _junk(home)


def _torn_lines_alone(home: ClientHome) -> None:
    _strip(home, "")
    lose(home)
    home.release_journal.write_text('{"half a line\n')


def _kept_alone(home: ClientHome) -> None:
    _strip(home, "")
    home.ledger.rename(home.root / "ledger.db.kept-20260101T000000Z")


def _strip(home: ClientHome, left: str) -> None:
    """Leave the ledger, and beside it the log, or a finished run in the store, or nothing."""
    (home.store / RUN_ID / "site.safetensors").write_bytes(b"a finished run")
    home.release_journal.unlink()
    shutil.rmtree(home.outbox)
    for path in home.store.glob("*/round-*"):
        path.unlink()
    if left != "releases.log":
        home.release_log.unlink()
    if left != "store":
        shutil.rmtree(home.store)


@pytest.mark.parametrize(
    "harm",
    [
        *(_older_and_log, _new_and_log, _new_and_site, _site_alone),
        *(_junk_alone, _torn_lines_alone, _kept_alone),
    ],
)
def test_no_budget_begins_again_by_what_is_left(
    home: ClientHome, harm: Callable[[ClientHome], None]
) -> None:
    """Neither a start nor a ledger made again forgets a release that one trace tells of."""
    spent = entries_of(home)[-1].epsilon_after
    harm(home)
    with pytest.raises(LedgerError):
        entries_of(home)
    with contextlib.suppress(LedgerError):
        assert rebuild(home, CONFIG, RECORDS).epsilon >= spent - 1e-4
    with contextlib.suppress(LedgerError):
        assert entries_of(home)[-1].epsilon_after >= spent - 1e-4


def test_each_former_ledger_is_kept(home: ClientHome) -> None:
    """Also of two within a second, or with a clock that was set back."""
    kept = []
    for _ in range(3):
        home.ledger.write_bytes(b"junk in place of a ledger" * 1000)
        kept.append(rebuild(home, CONFIG, RECORDS).kept)
    assert len(set(kept)) == 3
    assert entries_of(home)


def test_many_cheap_charges_become_one(home: ClientHome) -> None:
    """What was said to be spent is reached in one entry, whatever the known charge costs."""
    home.release_journal.write_text(home.release_journal.read_text().splitlines()[-1] + "\n")
    _first_line(home, entry=1, noise_multiplier=60.0, epsilon=4.9)
    shutil.rmtree(home.outbox)
    shutil.rmtree(home.store)
    home.release_log.unlink()
    lose(home)
    made = rebuild(home, CONFIG, RECORDS)
    assert (made.released, made.dearest) == (1, 1)
    assert made.epsilon == pytest.approx(4.9, abs=0.01)


@pytest.mark.parametrize("left", ["releases.log", "store"])
def test_no_ledger_begins_where_one_trace_of_a_release_is_left(home: ClientHome, left: str) -> None:
    """The log for people, or a finished run in the store, is enough."""
    _strip(home, left)
    lose(home)
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
