"""Bad replies become failures with a code; nothing a node sends raises or allocates."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedlatent.server.screening import ReplySpec, ScreeningFailure, open_reply, screen_error
from fedlatent.server.strategies.weighting import weight_of
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.files import sha256_hex
from fedlatent.shared.privacy.summaries import HISTOGRAMS_KEY, MOMENTS_KEY, Form
from fedlatent.shared.records import ARRAYS, HEADER, PACKED, REPLY, reply_records
from fedlatent.shared.schedule import Kind, Phase
from fedlatent.shared.summaries import SUMMARIES, Federated
from fedlatent.shared.wire import PROTOCOL, Delivery, ReplyHeader, deliver, pack, split
from tests.server.federation import LATENT, packed, plan_of, tiny_config

SENT: Arrays = {
    "encoder.weight": np.ones((2, 3), np.float32),
    "encoder.bias": np.zeros(2, np.float32),
}


def spec_of(kind: Kind = "train", form: Form = "full", **federation: float) -> ReplySpec:
    """What a reply of phase 2 must be."""
    sections = {"quorum": 2, "nodes": 3, **federation}
    config = tiny_config(federation=sections)
    number = {"train": 2, "moments": 3, "threshold": 4}[kind]
    plan = plan_of(config.to_json())
    phase = Phase(number=number, kind=kind, trained=min(number - 1, 2))
    asked = SENT if kind == "train" else SUMMARIES[kind].spec(config, LATENT, Federated(form=form))
    return ReplySpec.of("tiny-1", config, plan, phase, asked)


def header_of(spec: ReplySpec, **changes: object) -> ReplyHeader:
    """The header of a good reply, with changes that are not validated."""
    good = ReplyHeader(
        protocol=PROTOCOL,
        run_id=spec.run_id,
        round=spec.phase.number,
        kind=spec.phase.kind,
        site="north",
        status="ok",
        records=100,
        noise_multiplier=spec.noise_multiplier,
        rng="simulation",
    )
    return good.model_copy(update=changes)


def failure_of(content: RecordDict, spec: ReplySpec) -> ScreeningFailure:
    """The failure that screening names."""
    opened = open_reply(content, spec)
    assert isinstance(opened, ScreeningFailure)
    return opened


def framed(text: bytes, body: bytes) -> bytes:
    """A packed message of any two parts."""
    return len(text).to_bytes(4, "little") + len(body).to_bytes(4, "little") + text + body


def safetensors(header: bytes) -> bytes:
    """The beginning of a safetensors file."""
    return len(header).to_bytes(8, "little") + header


def as_reply(data: bytes) -> ArrayRecord:
    """The record of any bytes in the place of a packed reply."""
    return ArrayRecord({REPLY: Array("uint8", (len(data),), PACKED, data)})


TEXT, BODY = split(pack(header_of(spec_of()), SENT))


def test_good_reply_is_opened() -> None:
    """A reply that fits comes back as header and arrays."""
    spec = spec_of()
    opened = open_reply(packed(header_of(spec), SENT), spec)
    assert not isinstance(opened, ScreeningFailure)
    assert opened.header.records == 100
    np.testing.assert_array_equal(opened.arrays["encoder.weight"], SENT["encoder.weight"])
    assert opened.sha256 == sha256_hex(pack(header_of(spec), SENT))


def test_fortran_order_is_accepted() -> None:
    """The memory order of a node's array does not matter."""
    spec = spec_of()
    arrays = SENT | {"encoder.weight": np.asfortranarray(SENT["encoder.weight"])}
    assert not isinstance(open_reply(packed(header_of(spec), arrays), spec), ScreeningFailure)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run_id": "tiny-2"}, "round"),
        ({"round": 1}, "round"),
        ({"kind": "moments"}, "round"),
        ({"records": 0}, "records"),
        ({"records": 10_000_001}, "records"),
        ({"noise_multiplier": 0.1}, "plan"),
        ({"status": "refused", "code": "budget", "text": "Expected x."}, "budget"),
        ({"status": "refused"}, "refused"),
    ],
)
def test_bad_header_is_named(changes: dict[str, object], code: str) -> None:
    """Each header that does not fit the request has its own code."""
    spec = spec_of()
    assert failure_of(packed(header_of(spec, **changes), SENT), spec).code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda a: {}, "keys"),
        (lambda a: {"encoder.bias": a["encoder.bias"]}, "keys"),
        (lambda a: a | {"decoder.weight": np.zeros(2, np.float32)}, "keys"),
        (lambda a: a | {"encoder.bias": np.zeros(3, np.float32)}, "shape"),
        (lambda a: a | {"encoder.bias": np.zeros(2, np.int64)}, "shape"),
        (lambda a: a | {"encoder.bias": np.array([0, np.nan], np.float32)}, "finite"),
        (lambda a: a | {"encoder.bias": np.array([0, np.inf], np.float32)}, "finite"),
        (lambda a: a | {"encoder.bias": np.full(2, 1e3, np.float32)}, "norm"),
        (lambda a: a | {"encoder.bias": np.full(2, 3e38, np.float64)}, "norm"),
    ],
)
def test_bad_update_is_named(change: Callable[[Arrays], Arrays], code: str) -> None:
    """Wrong keys, shapes and values, and an update that is too large, have their own codes."""
    spec = spec_of(max_update_norm=10.0)
    assert failure_of(packed(header_of(spec), change(dict(SENT))), spec).code == code


def test_protocol_version_is_named_on_both_sides() -> None:
    """A reply of another version says which version the node and the server speak."""
    spec = spec_of()
    content = reply_records(deliver(pack(header_of(spec), SENT), Delivery(protocol=0)))
    failure = failure_of(content, spec)
    assert failure.code == "protocol"
    assert failure.sentence.startswith(f"the node speaks protocol 0, this server {PROTOCOL};")


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({HEADER: ConfigRecord({"json": 3})}),
        RecordDict({HEADER: ConfigRecord({"json": "[" * 30_000})}),
        RecordDict({HEADER: ConfigRecord({"json": '"x"'}), ARRAYS: ArrayRecord({})}),
        RecordDict({HEADER: ConfigRecord({"json": json.dumps({"protocol": PROTOCOL})})}),
        RecordDict(
            {
                HEADER: ConfigRecord({"json": json.dumps({"protocol": PROTOCOL})}),
                ARRAYS: ArrayRecord({}),
            }
        ),
    ],
)
def test_malformed_records_do_not_raise(content: RecordDict) -> None:
    """Records of any form are a failure with a sentence, never an exception."""
    assert failure_of(content, spec_of()).code in ("unreadable", "records")


def _texts() -> st.SearchStrategy[str]:
    """Header texts of a hostile node: any text, and a good header with any values."""
    number = st.one_of(
        st.integers(min_value=1, max_value=6_000).map(lambda n: "9" * n),
        st.integers(min_value=1, max_value=6_000).map(lambda n: "-" + "9" * n),
        st.sampled_from(["1e999999", "-1e999999", "NaN", "Infinity", "-Infinity", "1e308", "0.0"]),
        st.sampled_from(['"\\ud800"', '"\x00"', "null", "true", "{}", "[]", "5e-324"]),
        st.integers(min_value=1, max_value=20_000).map(lambda n: "[" * n),
        st.integers(min_value=1, max_value=20_000).map(lambda n: '{"a":' * n),
    )
    good = json.loads(header_of(spec_of()).model_dump_json())

    def header(changes: dict[str, str]) -> str:
        parts = {key: json.dumps(value) for key, value in good.items()} | changes
        return "{" + ",".join(f'"{key}":{value}' for key, value in parts.items()) + "}"

    changed = st.dictionaries(st.sampled_from(sorted(good)), number, max_size=3).map(header)
    return st.one_of(st.text(), number, changed)


@given(_texts(), st.booleans())
def test_no_header_text_raises(text: str, outer: bool) -> None:
    """Whatever a node writes as its headers is a failure with one short line, or a good reply."""
    spec = spec_of()
    content = packed(header_of(spec), SENT)
    if outer:
        content[HEADER] = ConfigRecord({"json": text})
    else:
        content[ARRAYS] = as_reply(framed(text.encode("utf-8", "surrogatepass"), BODY))
    opened = open_reply(content, spec)
    if isinstance(opened, ScreeningFailure):
        assert len(opened.sentence) <= 500
        assert opened.sentence.isprintable()
        opened.sentence.encode()
    else:
        assert weight_of("noise-aware", opened.header) <= opened.header.records


@pytest.mark.parametrize(
    ("shape", "end"),
    [([10_000_000_000], 24), ([2, 3], 23), ([2, 3], 10**12), ([0, 2**62], 24), ([2**63, 2**63], 0)],
)
def test_claimed_size_is_not_believed(shape: list[int], end: int) -> None:
    """Bytes that announce a huge array, or other bytes than come, are dropped unallocated."""
    spec = spec_of()
    facts = {
        "encoder.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]},
        "encoder.bias": {"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]},
    }
    content = packed(header_of(spec), SENT)
    content[ARRAYS] = as_reply(framed(TEXT, safetensors(json.dumps(facts).encode()) + b"\0" * 32))
    assert failure_of(content, spec).code in ("unreadable", "shape")


def test_a_reply_that_weighs_more_than_planned_is_neither_hashed_nor_unpacked() -> None:
    """Its size is looked at first; the signature of such a reply is not even checked."""
    spec = spec_of()
    large = SENT | {"encoder.weight": np.zeros(40_000, np.float32)}

    def check(delivery: Delivery, sha256: str) -> str | None:
        raise AssertionError("hashed")

    failure = open_reply(packed(header_of(spec), large), spec, check)
    assert isinstance(failure, ScreeningFailure)
    assert (failure.code, failure.sha256) == ("size", "")


@given(data=st.binary(max_size=300), prefix=st.sampled_from(["nothing", "header", "length"]))
def test_random_bytes_do_not_raise(data: bytes, prefix: str) -> None:
    """Whatever bytes stand for a reply, screening answers with a failure."""
    spec = spec_of()
    content = packed(header_of(spec), SENT)
    whole = {
        "nothing": data,
        "header": framed(TEXT, data),
        "length": framed(TEXT, safetensors(data)),
    }
    content[ARRAYS] = as_reply(whole[prefix])
    assert failure_of(content, spec).code in ("unreadable", "keys")


@pytest.mark.parametrize("stype", ["numpy.ndarray", "pickle", ""])
def test_an_array_is_no_packed_reply(stype: str) -> None:
    """The record holds one packed reply under its name and type, and nothing beside it."""
    spec = spec_of()
    data = pack(header_of(spec), SENT)
    for arrays in (
        {REPLY: Array("uint8", (len(data),), stype, data)},
        {"other": Array("uint8", (len(data),), PACKED, data)},
        {name: Array("uint8", (len(data),), PACKED, data) for name in (REPLY, "other")},
    ):
        content = packed(header_of(spec), SENT)
        content[ARRAYS] = ArrayRecord(arrays)
        assert failure_of(content, spec).code == "unreadable"


def test_summary_outside_its_range_is_named() -> None:
    """No entry of a summary may exceed the number of records and the reach of its noise."""
    for kind, key, shape, within in (
        ("moments", MOMENTS_KEY, (LATENT + 1, LATENT + 1), 90.0),
        ("threshold", HISTOGRAMS_KEY, (2, 128), 100 / 128),
    ):
        spec = spec_of(kind)  # type: ignore[arg-type]
        good, bad = {key: np.full(shape, within)}, {key: np.full(shape, 1000.0)}
        for one in (good, bad):
            if spec.summary is not None and spec.summary.count is not None:
                one[key][spec.summary.count] = 100.0
        assert not isinstance(open_reply(packed(header_of(spec), good), spec), ScreeningFailure)
        assert failure_of(packed(header_of(spec), bad), spec).code == "range"


def test_moments_must_be_symmetric() -> None:
    """A moments matrix that is not symmetric is dropped."""
    spec = spec_of("moments")
    matrix = np.zeros((LATENT + 1, LATENT + 1))
    matrix[0, 1], matrix[-1, -1] = 1.0, 100.0
    content = packed(header_of(spec), {MOMENTS_KEY: matrix})
    assert failure_of(content, spec).code == "range"


@pytest.mark.parametrize("form", ["full", "diagonal"])
@pytest.mark.parametrize("count", [99.0, 101.0, 100.5, -100.0, 1e12])
def test_a_count_other_than_the_declared_records_is_named(form: Form, count: float) -> None:
    """The count in moments is public and exact: a node cannot claim one weight and sum another."""
    spec = spec_of("moments", form=form)
    assert spec.summary is not None
    assert spec.summary.count is not None
    sums = np.zeros(spec.summary.shape)
    sums[spec.summary.count] = count
    failure = failure_of(packed(header_of(spec), {spec.summary.key: sums}), spec)
    assert failure.code == "count"
    sums[spec.summary.count] = 100.0
    opened = open_reply(packed(header_of(spec), {spec.summary.key: sums}), spec)
    assert not isinstance(opened, ScreeningFailure)


def test_refusal_keeps_the_authored_sentence_on_one_line() -> None:
    """A refusal carries the node's own words, without line breaks that could forge a log line."""
    spec = spec_of()
    header = header_of(spec, status="refused", code="policy", text="Expected a.\nERROR b")
    failure = failure_of(packed(header, {}), spec)
    assert (failure.status, failure.code) == ("refused", "policy")
    assert failure.sentence == "Expected a. ERROR b"


def test_flower_error_text_is_not_kept() -> None:
    """The free text of a failed client app, which may hold data, is replaced by our own."""
    failure = screen_error(Error(2, "ValueError: patient 17 has value 3.2"))
    assert failure.code == "flower-2"
    assert "17" not in failure.sentence


@pytest.mark.parametrize("size", [0.0, 0.4, 1.6, -1.0])
def test_histograms_that_no_records_can_have_are_dropped(size: float) -> None:
    """Too few counts, too many or negative ones are named; true ones with some nulls pass."""
    config = tiny_config(privacy={"mechanism": "none", "rng": "simulation"})
    phase = Phase(number=4, kind="threshold", trained=2)
    asked = SUMMARIES["threshold"].spec(config, LATENT, Federated())
    spec = ReplySpec.of("tiny-1", config, plan_of(config.to_json()), phase, asked)
    counts = np.zeros(asked.shape)
    counts[:, 40], counts[:, 41] = 60, 35
    assert not isinstance(
        open_reply(packed(header_of(spec), {HISTOGRAMS_KEY: counts}), spec), ScreeningFailure
    )
    counts[1, 40] = 60 * size
    counts[1, 41] = 95 - 60 * size if size < 0 else 35 * size
    failure = failure_of(packed(header_of(spec), {HISTOGRAMS_KEY: counts}), spec)
    assert failure.status == "failed"
    assert "counts" in failure.code or failure.code == "range"


def test_a_claim_of_more_noise_does_not_widen_what_a_summary_may_hold() -> None:
    """The bound of entries stands on the plan's noise, not on what the reply says of its own."""
    spec = spec_of("threshold")
    header = header_of(spec, noise_multiplier=1e9)
    counts = np.full(spec.shapes[HISTOGRAMS_KEY], 1e6)
    assert failure_of(packed(header, {HISTOGRAMS_KEY: counts}), spec).code == "range"
