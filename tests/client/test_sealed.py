"""Whatever was drawn is spent: a retry repeats the very same draw, or it pays."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fedlatent.client.compute import make_noise
from fedlatent.client.door import Outgoing
from fedlatent.client.node import Node, NoiseFactory
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ReleaseRefused
from fedlatent.shared.privacy.noise import SEALED_BYTES, NoiseSource, SecureNoise
from fedlatent.shared.privacy.summaries import LatentDensity
from fedlatent.shared.schedule import Kind
from fedlatent.shared.wire import ReplyHeader, unpack
from tests.client.support import RUN_ID, request, tiny_node, tiny_run, weights_of
from tests.client.test_node import PowerCut, threshold_arrays

SECURE = {"epsilon": 4.0, "rng": "secure"}
#: A learning rate under which the noise alone leaves the range of float32.
OVERFLOWING = {
    "training": {"rounds": 3, "steps_per_round": 4, "optimizer": "sgd", "learning_rate": 3e38},
    "privacy": {**SECURE, "clip": 100.0},
}


def secure_run(**sections: object) -> RunConfig:
    """A run with secret noise."""
    return tiny_run(privacy=SECURE, **sections)


def ask(node: Node, run: RunConfig, round: int = 1, seed: int | None = None) -> Outgoing:
    """One training request."""
    return node.handle(request(run, round), weights_of(run, seed))


def cut_after(draws: int) -> NoiseFactory:
    """Noise that ends the process after so many draws of a sample."""

    class Cut(SecureNoise):
        left = draws

        def uniform(self, size: int) -> np.ndarray:
            self.left -= 1
            if self.left < 0:
                raise PowerCut
            return super().uniform(size)

    return lambda run, site, round, kind, sealed: Cut(sealed)


def drawn_from(key: bytes) -> NoiseFactory:
    """Noise of a key that another node had sealed."""

    def make(
        run: RunConfig, site: str, round: int, kind: Kind, sealed: bytes | None
    ) -> NoiseSource:
        assert sealed != key
        return make_noise(run, site, round, kind, key)

    return make


def test_a_learning_rate_that_makes_everything_overflow_is_not_accepted(tmp_path: Path) -> None:
    """A node whose owner said nothing else refuses it before anything is charged."""
    run = tiny_run(**OVERFLOWING)
    node = tiny_node(tmp_path, run)
    assert ask(node, run).header.code == "policy"
    assert node.ledger.entries() == []


def test_400_overflowing_requests_are_one_charge_and_the_same_bytes(tmp_path: Path) -> None:
    """A learning rate that makes every draw overflow buys one draw, however often it is sent."""
    run = tiny_run(**OVERFLOWING)
    node = tiny_node(tmp_path, run, caps={"largest_learning_rate": 1e39})
    payloads = {ask(node, run).payload for _ in range(400)}
    assert len(payloads) == 1
    header, arrays = unpack(ReplyHeader, payloads.pop())
    assert header.status == "ok"
    assert all(np.isfinite(value).all() for value in arrays.values())
    assert max(float(np.abs(value).max()) for value in arrays.values()) > 1e30
    (entry,) = node.ledger.entries()
    assert (entry.state, entry.epsilon_after) == ("released", header.epsilon)


def test_a_diverged_node_goes_on_with_numbers(tmp_path: Path) -> None:
    """What is kept of a diverged round is clamped like what left; later answers are finite."""
    run = tiny_run(**OVERFLOWING)
    node = tiny_node(tmp_path, run, caps={"largest_learning_rate": 1e39})
    for round in (1, 2, 3):
        out = ask(node, run, round)
        assert out.header.status == "ok"
        state = node.store.load(RUN_ID, round + 1, lambda entry: True)
        assert state is not None
        kept = [*state.decoder.values(), *state.optimizer.values()]
        assert all(bool(torch.isfinite(value).all()) for value in kept)
    assert node.handle(request(run, 4, "moments"), weights_of(run)).header.status == "ok"
    assert "clamped" in (tmp_path / "releases.log").read_text()


@pytest.mark.parametrize("draws", [0, 1, 3])
def test_a_retry_repeats_the_draw_of_a_process_that_died(tmp_path: Path, draws: int) -> None:
    """Cut off in training, the same request gives what a calm node with that key had given."""
    run = secure_run()
    with pytest.raises(PowerCut):
        ask(tiny_node(tmp_path / "cut", run, cut_after(draws)), run)
    again = tiny_node(tmp_path / "cut", run)
    (entry,) = again.ledger.entries()
    key = again.ledger.sealed(entry)
    assert key is not None
    calm = tiny_node(tmp_path / "calm", run, drawn_from(key))
    assert ask(again, run).payload == ask(calm, run).payload
    assert [one.state for one in again.ledger.entries()] == ["released"]


@pytest.mark.parametrize("kind", ["moments", "threshold"])
def test_a_summary_cut_off_repeats_its_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    """A summary of a process that died before its release is drawn again to the same bits."""
    run, unit = secure_run(), np.eye(2)
    node, weights = tiny_node(tmp_path, run), weights_of(run)
    density = LatentDensity(count=9.0, mean=np.zeros(2), covariance=unit, within=unit)
    asked = request(run, 4, "moments"), weights
    if kind == "threshold":
        node.handle(*asked)
        asked = request(run, 5, "threshold"), threshold_arrays(weights, density)
    drawn: list[np.ndarray] = []

    def cut(reservation: object, array: np.ndarray, spec: object) -> Outgoing:
        drawn.append(array)
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(node.door, "summary", cut)
        with pytest.raises(PowerCut):
            node.handle(*asked)
    out = tiny_node(tmp_path, run).handle(*asked)
    (released,) = unpack(ReplyHeader, out.payload)[1].values()
    np.testing.assert_array_equal(released, drawn[0])


def test_each_entry_has_one_stream_of_its_own(tmp_path: Path) -> None:
    """No two charges share a key, and a charge is answered with the noise of its key alone."""
    run = secure_run()
    given: list[bytes | None] = []

    def noting(
        run: RunConfig, site: str, round: int, kind: Kind, sealed: bytes | None
    ) -> NoiseSource:
        given.append(sealed)
        return make_noise(run, site, round, kind, sealed)

    node = tiny_node(tmp_path, run, noting)
    for round in (1, 2, 3):
        ask(node, run, round)
    node.handle(request(run, 4, "moments"), weights_of(run))
    assert len(given) == len(set(given)) == 4
    assert all(key is not None and len(key) == SEALED_BYTES for key in given)


def files_with(root: Path, text: bytes) -> list[str]:
    """Names of the files below ``root`` that hold some bytes."""
    found = (path for path in sorted(root.rglob("*")) if path.is_file())
    return [path.name for path in found if text in path.read_bytes()]


def test_the_key_lies_sealed_until_the_release_and_nowhere_afterwards(tmp_path: Path) -> None:
    """Between charge and release the ledger holds the key; then no file of the home does."""
    run = secure_run()
    with pytest.raises(PowerCut):
        ask(tiny_node(tmp_path, run, cut_after(1)), run)
    node = tiny_node(tmp_path, run)
    (entry,) = node.ledger.entries()
    key = node.ledger.sealed(entry)
    assert key is not None
    assert files_with(tmp_path, key) == ["ledger.db"]
    assert (tmp_path / "ledger.db").stat().st_mode & 0o077 == 0
    assert key.hex() not in repr(entry)
    assert ask(node, run).header.status == "ok"
    assert files_with(tmp_path, key) == []
    with pytest.raises(ReleaseRefused, match="reserved"):
        node.ledger.sealed(entry)


@pytest.mark.parametrize("end", ["released", "failed"])
def test_a_reader_of_the_ledger_keeps_no_key_alive(tmp_path: Path, end: str) -> None:
    """Erased is erased while another process has the file open, and so in any copy of it."""
    run = secure_run()
    with pytest.raises(PowerCut):
        ask(tiny_node(tmp_path, run, cut_after(1)), run)
    node = tiny_node(tmp_path, run, max_epsilon=20.0)
    (entry,) = node.ledger.entries()
    key = node.ledger.sealed(entry)
    assert key is not None
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as reader:
        assert reader.execute("SELECT COUNT(*) FROM entries").fetchone() == (1,)
        asked = node if end == "released" else changed(node)
        assert ask(asked, run).header.status == "ok"
        assert node.ledger.entries()[0].state == end
        assert files_with(tmp_path, key) == []


def changed(node: Node) -> Node:
    """The node with one record less, as a corrected file has it."""
    node.records = node.records[1:]
    return node


def test_other_records_at_a_retry_are_another_charge(tmp_path: Path) -> None:
    """An attempt that died counts for ever when its retry would draw for other records."""
    run = secure_run()
    with pytest.raises(PowerCut):
        ask(tiny_node(tmp_path, run, cut_after(1)), run)
    node = changed(tiny_node(tmp_path, run, max_epsilon=20.0))
    (first,) = node.ledger.entries()
    key = node.ledger.sealed(first)
    assert key is not None
    out = ask(node, run)
    failed, released = node.ledger.entries()
    assert (failed.id, failed.state, released.state) == (first.id, "failed", "released")
    assert failed.reason is not None
    assert released.epsilon_after > first.epsilon_after
    assert out.header.epsilon == pytest.approx(released.epsilon_after)
    assert files_with(tmp_path, key) == []
    assert ask(node, run).payload == out.payload
    assert len(node.ledger.entries()) == 2


def test_other_records_at_a_retry_are_refused_past_the_budget(tmp_path: Path) -> None:
    """Where the budget holds no second charge, the failed one stays and nothing leaves."""
    run = secure_run(training={"rounds": 1, "steps_per_round": 4})
    with pytest.raises(PowerCut):
        ask(tiny_node(tmp_path, run, cut_after(1)), run)
    node = changed(tiny_node(tmp_path, run, max_epsilon=4.0))
    spent = node.ledger.epsilon()
    assert ask(node, run).header.code == "budget"
    assert [entry.state for entry in node.ledger.entries()] == ["failed"]
    assert node.ledger.epsilon() == spent
    back = tiny_node(tmp_path, run, max_epsilon=4.0)
    assert ask(back, run).header.code == "budget"
    assert not (tmp_path / "outbox" / RUN_ID).exists()


def test_another_past_at_a_retry_is_another_charge(tmp_path: Path) -> None:
    """A round that would build on another released state than its first attempt did pays again."""
    run = secure_run()
    generous = {"max_epsilon": 50.0}
    ask(tiny_node(tmp_path, run, **generous), run)
    with pytest.raises(PowerCut):
        ask(tiny_node(tmp_path, run, cut_after(1), **generous), run, 2, seed=1)
    node = tiny_node(tmp_path, run, **generous)
    ask(node, run, 1, seed=9)
    ask(node, run, 2, seed=1)
    states = [(entry.round, entry.state) for entry in node.ledger.entries()]
    assert states == [(1, "released"), (2, "failed"), (1, "released"), (2, "released")]


def test_digests_of_records_mean_nothing_outside_their_home(tmp_path: Path) -> None:
    """Two homes with the same records and requests note different digests."""
    run = secure_run()
    nodes = [tiny_node(tmp_path / name, run) for name in ("a", "b")]
    for node in nodes:
        ask(node, run)
    one, other = (node.ledger.entries()[0] for node in nodes)
    assert one.request_digest == other.request_digest
    assert one.basis != other.basis
    salt = tmp_path / "a" / "keys" / "records.salt"
    assert salt.stat().st_mode & 0o077 == 0


def test_seeded_noise_stays_a_function_of_its_place(tmp_path: Path) -> None:
    """Simulations seal nothing, and two homes give the same answer."""
    run = tiny_run()
    nodes = [tiny_node(tmp_path / name, run) for name in ("a", "b")]
    one, other = (ask(node, run) for node in nodes)
    assert one.payload == other.payload
    assert nodes[0].ledger.sealed(nodes[0].ledger.entries()[0]) is None


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Diverging on purpose is no warning of numpy's."""
    with np.errstate(all="ignore"):
        yield
