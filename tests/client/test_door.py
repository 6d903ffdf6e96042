"""The release door."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlatent.client.door import INTERNAL_SENTENCE, KEEP_ROUNDS, Outgoing, ReleaseDoor
from fedlatent.client.ledger import Entry, Ledger
from fedlatent.shared.errors import DataError, PolicyRefusal, ProtocolError, ReleaseRefused
from fedlatent.shared.privacy.accounting import GaussianEvent
from fedlatent.shared.privacy.summaries import MOMENTS_KEY, moments_spec, threshold_spec
from fedlatent.shared.schedule import Kind
from fedlatent.shared.wire import PROTOCOL, ReplyHeader, unpack
from tests.client.support import RUN_ID, request, tiny_run

EXPECTED = {"encoder.weight": (3, 2), "encoder.bias": (3,)}
EVENT = GaussianEvent(noise_multiplier=20.0)


class Desk:
    """A door with its ledger and files."""

    def __init__(self, root: Path, allow_full: bool = False) -> None:
        """Make the files below ``root``."""
        self.root = root
        self.ledger = Ledger(root / "ledger.db", "records", 5.0, 1e-5)
        self.door = ReleaseDoor(
            ledger=self.ledger,
            outbox=root / "outbox",
            log=root / "releases.log",
            journal=root / "releases.jsonl",
            site="north",
            records=200,
            allow_full=allow_full,
        )

    def reserve(self, kind: Kind = "train", round: int = 1) -> Entry:
        """Pay for a release."""
        return self.ledger.reserve(RUN_ID, round, kind, "a", EVENT, "secure")

    def journal(self) -> list[dict[str, Any]]:
        """What the machine-readable log holds."""
        path = self.root / "releases.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A door that keeps decoders."""
    return Desk(tmp_path)


def weights() -> dict[str, np.ndarray]:
    """Arrays that fit ``EXPECTED``."""
    return {key: np.full(shape, 0.5, np.float32) for key, shape in EXPECTED.items()}


def test_release_carries_public_numbers(desk: Desk) -> None:
    """The reply holds the arrays, the number of records and the paid mechanism, nothing else."""
    out = desk.door.encoder(desk.reserve(), weights(), EXPECTED)
    header, arrays = unpack(ReplyHeader, out.payload)
    assert header == out.header
    assert header.model_dump() == {
        "protocol": PROTOCOL,
        "run_id": RUN_ID,
        "round": 1,
        "kind": "train",
        "site": "north",
        "status": "ok",
        "code": "",
        "text": "",
        "records": 200,
        "epsilon": desk.ledger.epsilon(),
        "delta": 1e-5,
        "noise_multiplier": 20.0,
        "sample_rate": 1.0,
        "steps": 1,
        "rng": "secure",
    }
    assert arrays.keys() == EXPECTED.keys()


def test_release_is_stored_paid_and_logged(desk: Desk) -> None:
    """What leaves is kept byte for byte, marked in the ledger, and written to both logs."""
    out = desk.door.encoder(desk.reserve(), weights(), EXPECTED)
    entry = desk.ledger.entries()[0]
    assert (entry.state, entry.nbytes) == ("released", len(out.payload))
    assert desk.door.stored(entry) == out.payload
    (line,) = desk.journal()
    assert line["sha256"] == entry.sha256
    assert line["bytes"] == len(out.payload)
    assert line["epsilon"] == pytest.approx(desk.ledger.epsilon())
    text = (desk.root / "releases.log").read_text()
    assert text.count("\n") == 1
    assert f"{RUN_ID} round 1 train: released 2 arrays, {len(out.payload)} bytes" in text


def _replace(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda arrays: arrays.update({key: value})


@pytest.mark.parametrize(
    "plant",
    [
        _replace("decoder.weight", np.zeros((3, 2), np.float32)),
        _replace("encoder.running_mean", np.zeros(3, np.float32)),
        _replace("loss", np.zeros(1, np.float32)),
        lambda arrays: arrays.pop("encoder.bias"),
        _replace("encoder.bias", np.zeros(4, np.float32)),
        _replace("encoder.bias", np.zeros(3, np.float64)),
        _replace("encoder.bias", np.array(["a", "b", "c"], dtype=object)),
        _replace("encoder.bias", [0.0, 0.0, 0.0]),
        _replace("encoder.bias", np.ma.masked_array(np.zeros(3, np.float32))),
    ],
)
def test_planted_leak_stays(desk: Desk, plant: Callable[[dict[str, Any]], object]) -> None:
    """Surplus, missing, misshapen or mistyped arrays are refused and unwritten."""
    arrays = weights()
    plant(arrays)
    entry = desk.reserve()
    with pytest.raises(ReleaseRefused):
        desk.door.encoder(entry, arrays, EXPECTED)
    assert desk.ledger.entries()[0].state == "reserved"
    assert not (desk.root / "outbox").exists()
    assert desk.journal() == []


def test_release_is_total(desk: Desk) -> None:
    """Numbers that are not finite leave clamped, in whatever array, and both logs say how many."""
    arrays = weights()
    arrays["encoder.bias"] = np.array([np.nan, np.inf, -np.inf], np.float32)
    out = desk.door.encoder(desk.reserve(), arrays, EXPECTED)
    most = np.finfo(np.float32).max
    leaving = unpack(ReplyHeader, out.payload)[1]["encoder.bias"]
    np.testing.assert_array_equal(leaving, np.array([0.0, most, -most], np.float32))
    assert leaving.dtype == np.float32
    histograms = np.full((2, 128), np.inf)
    summary = desk.door.summary(desk.reserve("threshold"), histograms, threshold_spec())
    (leaving,) = unpack(ReplyHeader, summary.payload)[1].values()
    assert (leaving == np.finfo(np.float64).max).all()
    told = [line["what"] for line in desk.journal()]
    assert told == [
        "released 2 arrays, 3 numbers clamped",
        "released 1 arrays, 256 numbers clamped",
    ]


def test_decoder_stays_even_when_expected(desk: Desk) -> None:
    """A caller that declares decoder keys as expected is refused all the same."""
    expected = {**EXPECTED, "decoder.weight": (3,)}
    arrays = {**weights(), "decoder.weight": np.zeros(3, np.float32)}
    with pytest.raises(ReleaseRefused, match=r"decoder\.weight"):
        desk.door.encoder(desk.reserve(), arrays, expected)


def test_whole_model_needs_the_policy(tmp_path: Path, desk: Desk) -> None:
    """A whole model leaves only a node whose policy allows it."""
    expected = {**EXPECTED, "decoder.weight": (3,)}
    arrays = {**weights(), "decoder.weight": np.zeros(3, np.float32)}
    with pytest.raises(ReleaseRefused, match="policy"):
        desk.door.whole_model(desk.reserve(), arrays, expected)
    generous = Desk(tmp_path / "generous", allow_full=True)
    assert generous.door.whole_model(generous.reserve(), arrays, expected).header.status == "ok"


def test_release_must_be_paid(desk: Desk) -> None:
    """No release without a reserved entry of the same kind, and only one for each."""
    with pytest.raises(ReleaseRefused, match="reserved ledger entry"):
        desk.door.summary(desk.reserve("train"), np.eye(3), moments_spec(2))
    entry = desk.reserve("train")
    desk.door.encoder(entry, weights(), EXPECTED)
    with pytest.raises(ReleaseRefused, match="reserved ledger entry"):
        desk.door.encoder(entry, weights(), EXPECTED)
    other = Desk(desk.root / "other").reserve("moments")
    with pytest.raises(ReleaseRefused, match="reserved ledger entry"):
        desk.door.summary(other, np.eye(3), moments_spec(2))


def test_summaries_have_fixed_shapes(desk: Desk) -> None:
    """Moments and histograms leave in float64 of exactly their shape."""
    out = desk.door.summary(desk.reserve("moments"), np.eye(3), moments_spec(2))
    assert unpack(ReplyHeader, out.payload)[1][MOMENTS_KEY].shape == (3, 3)
    with pytest.raises(ReleaseRefused):
        desk.door.summary(desk.reserve("moments", 2), np.eye(4), moments_spec(2))
    with pytest.raises(ReleaseRefused):
        desk.door.summary(
            desk.reserve("threshold"), np.ones((2, 128), np.float32), threshold_spec()
        )
    whole = desk.door.summary(desk.reserve("threshold"), np.ones((2, 128)), threshold_spec())
    assert whole.header.steps == 1
    with pytest.raises(ReleaseRefused, match=r"pays for summary\.histograms"):
        desk.door.summary(desk.reserve("moments", 3), np.ones((2, 128)), threshold_spec())


def test_only_the_door_makes_outgoing(desk: Desk) -> None:
    """Nothing but the door can construct what is sent."""
    header = desk.door.refusal(None, ProtocolError("no")).header
    with pytest.raises(ReleaseRefused):
        Outgoing(b"leak", header, key=object())


def test_repeated_request_gets_the_same_bytes(desk: Desk) -> None:
    """A replay sends the stored bytes again, with its own log line and no new charge."""
    out = desk.door.encoder(desk.reserve(), weights(), EXPECTED)
    assert desk.door.replay(desk.reserve()).payload == out.payload
    assert len(desk.ledger.entries()) == 1
    assert [line["what"] for line in desk.journal()] == ["released 2 arrays", "sent again"]


def test_replay_detects_other_bytes(desk: Desk) -> None:
    """A stored payload that changed is not sent; one that is gone is refused in words."""
    desk.door.encoder(desk.reserve(), weights(), EXPECTED)
    (path,) = (desk.root / "outbox").rglob("*.bin")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ReleaseRefused):
        desk.door.replay(desk.reserve())
    path.unlink()
    with pytest.raises(ProtocolError, match="still kept"):
        desk.door.replay(desk.reserve())


def test_old_payloads_are_dropped(desk: Desk) -> None:
    """The outbox keeps the payloads of the last training rounds and of every summary."""
    desk.door.summary(desk.reserve("moments", 1), np.eye(3), moments_spec(2))
    for number in range(1, KEEP_ROUNDS + 4):
        desk.door.encoder(desk.reserve(round=number), weights(), EXPECTED)
    names = sorted(path.name for path in (desk.root / "outbox").rglob("*.bin"))
    assert len([name for name in names if name.startswith("train")]) == KEEP_ROUNDS
    assert len([name for name in names if name.startswith("moments")]) == 1
    assert names[-1].startswith(f"train-{KEEP_ROUNDS + 3:06d}")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PolicyRefusal("Expected less."), "policy", "Expected less."),
        (DataError("patient 17 has value 3.2"), "internal", INTERNAL_SENTENCE),
        (RuntimeError("record [0.1, 0.2]"), "internal", INTERNAL_SENTENCE),
    ],
)
def test_refusal_sends_authored_text_only(
    desk: Desk, error: Exception, code: str, text: str
) -> None:
    """Only the text of errors made to travel leaves; all others leave a code."""
    out = desk.door.refusal(request(tiny_run(), 2, "moments"), error)
    assert (out.header.status, out.header.code, out.header.text) == ("refused", code, text)
    assert (out.header.run_id, out.header.round, out.header.kind) == (RUN_ID, 2, "moments")
    assert out.header.records == 0
    assert len(desk.journal()) == 1


def test_refusal_of_an_unreadable_request(desk: Desk) -> None:
    """A request without a readable header is refused too, with its text cut to what fits."""
    out = desk.door.refusal(None, ProtocolError("x" * 2000))
    assert out.header.run_id == "unknown"
    assert len(out.header.text) == 500


def test_torn_log_line_is_ended(desk: Desk) -> None:
    """A line cut short by a crash does not swallow the next one."""
    (desk.root / "releases.jsonl").write_bytes(b'{"torn": ')
    desk.door.encoder(desk.reserve(), weights(), EXPECTED)
    last = (desk.root / "releases.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["status"] == "ok"
