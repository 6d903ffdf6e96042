"""Disks that are full, read-only, held or not this account's, under a node and its ledger."""

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlatent.client import door as door_module
from fedlatent.client import ledger as ledger_module
from fedlatent.client import resident
from fedlatent.client.door import STORAGE_SENTENCE, Outgoing
from fedlatent.client.home import ClientHome
from fedlatent.client.ledger import Entry, Ledger
from fedlatent.client.node import Node
from fedlatent.client.service import init_client
from fedlatent.shared.errors import DataError, LedgerError, ServiceError, StorageError
from fedlatent.shared.privacy.accounting import GaussianEvent
from tests.client.support import request, tiny_node, tiny_run, weights_of
from tests.shared.test_files import most_bytes

RUN = tiny_run(privacy={"epsilon": 4.0, "rng": "secure"})
EVENT = GaussianEvent(noise_multiplier=20.0)
NOBODY = 65_534
#: What no sentence about a ledger may advise.
RESETS = ("delete", "remove", "restore", "new ledger", "fresh", "other folder", "another folder")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every account can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Work as an account whom modes hold, where the tests run as root."""
    if os.getuid() == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


def made(folder: Path) -> Ledger:
    """A ledger with one charge."""
    book = Ledger(folder / "ledger.db", "records", 5.0, 1e-5)
    book.reserve("r", 1, "moments", "a", EVENT, "secure")
    return book


def charge(book: Ledger) -> Entry:
    """A second charge."""
    return book.reserve("r", 2, "moments", "b", EVENT, "secure")


def said(error: BaseException) -> str:
    """The sentence of an error, which advises nothing that resets a budget."""
    text = str(error)
    assert text.startswith("Expected ")
    assert not any(word in text.lower() for word in RESETS)
    return text


def test_a_ledger_without_permission_is_named_as_that(place: Path) -> None:
    """Opening and charging say so; with the permission back, all is there."""
    book = made(place)
    (place / "ledger.db").chmod(0o444)
    place.chmod(0o555)
    with without_rights():
        for use in (lambda: Ledger(place / "ledger.db", "records", 5.0, 1e-5), book.entries):
            with pytest.raises(StorageError, match="no permission") as caught:
                use()
            assert "ledger" in said(caught.value)
        with pytest.raises(StorageError, match="no permission"):
            Ledger(place / "absent" / "ledger.db", "records", 5.0, 1e-5)
    place.chmod(0o755)
    (place / "ledger.db").chmod(0o600)
    assert charge(book).id == 2


def test_a_full_disk_charges_nothing_and_is_named_as_that(tmp_path: Path) -> None:
    """What does not fit is not charged; with room again, the same ledger goes on."""
    book = made(tmp_path)
    with most_bytes(4096):
        with pytest.raises(StorageError, match="no room") as caught:
            charge(book)
        said(caught.value)
        with pytest.raises(StorageError, match="no room"):
            Ledger(tmp_path / "second" / "ledger.db", "records", 5.0, 1e-5)
    assert len(book.entries()) == 1
    assert charge(book).id == 2
    assert book.verify().events == 2
    assert made(tmp_path / "second").verify().events == 1


def test_a_ledger_that_is_held_is_named_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that writes for long is no damage."""
    book = made(tmp_path)
    monkeypatch.setattr(ledger_module, "_BUSY_S", 0.05)
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ServiceError, match="another process") as caught:
            charge(book)
        said(caught.value)
    assert charge(book).id == 2


@pytest.mark.parametrize("harm", ["gone", "empty", "junk", "page"])
def test_a_ledger_lost_or_damaged_under_a_node_is_named_as_that(tmp_path: Path, harm: str) -> None:
    """Nothing takes its place: neither an empty file nor a new ledger."""
    book, path = made(tmp_path), tmp_path / "ledger.db"
    data = path.read_bytes()
    for rest in tmp_path.glob("ledger.db*"):
        rest.unlink()
    harmed = {"empty": b"", "junk": b"junk" * 5000, "page": data[:4096] + bytes(len(data) - 4096)}
    if harm != "gone":
        path.write_bytes(harmed[harm])
    for use in (book.entries, lambda: charge(book), book.verify, book.epsilon):
        with pytest.raises(LedgerError, match="--rebuild") as caught:
            use()
        said(caught.value)
    assert path.exists() == (harm != "gone")


def refused(node: Node, round: int = 1) -> None:
    """A request that is refused for want of storage, in words without a path."""
    out = node.handle(request(RUN, round), weights_of(RUN, round))
    assert (out.header.status, out.header.code) == ("refused", "storage")
    assert out.header.text == STORAGE_SENTENCE


def answered(node: Node, round: int = 1) -> Outgoing:
    """A request that is answered."""
    out = node.handle(request(RUN, round), weights_of(RUN, round))
    assert out.header.status == "ok", out.header.text
    return out


def test_without_room_for_its_answer_nothing_is_charged(tmp_path: Path) -> None:
    """The refusal leaves although not even its line can be written."""
    node = tiny_node(tmp_path, RUN)
    with most_bytes(50_000):
        refused(node)
    assert node.ledger.entries() == []
    with most_bytes(0):
        refused(node)
    assert len((tmp_path / "releases.jsonl").read_text().splitlines()) == 1
    assert answered(node).header.epsilon == node.ledger.epsilon()
    assert len(node.ledger.entries()) == 1


def test_without_permission_nothing_is_charged(place: Path) -> None:
    """A home that became another account's refuses, and goes on once it is its own again."""
    node = tiny_node(place / "home", RUN)
    answered(node)
    place.joinpath("home").chmod(0o755)
    with without_rights():
        refused(node, 2)
    assert len(node.ledger.entries()) == 1
    answered(node, 2)


@pytest.mark.parametrize(("part", "state"), [("write_atomic", "reserved"), ("append", "released")])
def test_a_disk_that_fills_up_after_the_charge_costs_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, state: str
) -> None:
    """The same request finds its charge: drawn over with the same noise, or sent as it was kept."""
    node = tiny_node(tmp_path, RUN)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    name = "append_line" if part == "append" else part
    with monkeypatch.context() as patch:
        patch.setattr(door_module, name, full)
        refused(node)
    (entry,) = node.ledger.entries()
    assert entry.state == state
    out = answered(tiny_node(tmp_path, RUN))
    (after,) = node.ledger.entries()
    assert (after.id, after.state, after.nbytes) == (entry.id, "released", len(out.payload))


def test_a_resident_says_in_one_sentence_that_its_home_cannot_be_used(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the exit code of storage, and without a traceback."""
    (place / "home").mkdir()
    with without_rights():
        assert resident.main(["--home", str(place / "home" / "node")]) == StorageError.exit_code
    assert "no permission" in said(StorageError(capsys.readouterr().err))


def test_a_ledger_lost_under_a_node_is_one_sentence_in_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server learns that the node could not; the operator what is gone, and what to do."""
    node = tiny_node(tmp_path, RUN)
    answered(node)
    for path in tmp_path.glob("ledger.db*"):
        path.unlink()
    out = node.handle(request(RUN, 2), weights_of(RUN, 2))
    assert (out.header.status, out.header.code) == ("refused", "internal")
    assert not (tmp_path / "ledger.db").exists()
    (record,) = (one for one in caplog.records if one.name == "fedlatent.client.door")
    assert (record.exc_info, "--rebuild" in said(Exception(record.getMessage()))) == (None, True)


def test_a_home_in_use_sends_nobody_to_a_second_ledger(tmp_path: Path) -> None:
    """Who has a node is sent back to it; another folder is for other records."""
    (tmp_path / "node.toml").write_text("")
    with pytest.raises(ServiceError, match="start that one") as caught:
        init_client(
            ClientHome(tmp_path),
            site="north",
            server="fl.example:8443",
            ca_certificate=b"",
            data={},
            policy={},
        )
    assert "other records" in str(caught.value)


@pytest.mark.parametrize("key", [b"", b"\xff" * 64, b"ab", b"00" * 33])
def test_a_damaged_key_of_digests_is_a_sentence_and_no_weaker_key(
    tmp_path: Path, key: bytes
) -> None:
    """A node with a cut, emptied or replaced key does not start, and keeps its ledger."""
    node = tiny_node(tmp_path, RUN)
    answered(node)
    ClientHome(tmp_path).salt.write_bytes(key)
    with pytest.raises(DataError, match="32 bytes"):
        tiny_node(tmp_path, RUN)
    ClientHome(tmp_path).salt.unlink()
    assert len(tiny_node(tmp_path, RUN).ledger.entries()) == 1
