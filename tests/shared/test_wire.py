"""The message contract: exact round trips, and refusal of everything else."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.files import canonical_json, sha256_hex
from fedlatent.shared.records import (
    LocalRecords,
    from_records,
    read_reply,
    reply_of,
    reply_records,
    to_records,
)
from fedlatent.shared.wire import (
    PROTOCOL,
    STORED_PROTOCOLS,
    Delivery,
    ReplyHeader,
    RequestHeader,
    deliver,
    pack,
    parse_header,
    unpack,
)

RUN = RunConfig.parse({"name": "wire", "data": {"name": "ecg", "shape": [8]}}, "test")
REQUEST = RequestHeader(
    protocol=PROTOCOL, run_id="wire-1", round=1, kind="train", config=RUN, deadline_s=30
)
REPLY = ReplyHeader(
    protocol=PROTOCOL, run_id="wire-1", round=1, kind="train", site="a", status="ok", records=7
)
ARRAYS = {"encoder.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
FROZEN = Path(__file__).parent / "frozen_wire.txt"
FROZEN_SCHEMA = Path(__file__).parent / "frozen_run_schema.json"
#: Set to 1, the frozen files are written anew, but never at the version they already hold.
WRITE = "FEDLATENT_WRITE_GOLDEN"


def test_packed_and_recorded_messages_round_trip() -> None:
    """Header and arrays come back equal through every encoding."""
    packed = pack(REPLY, ARRAYS)
    for header, (decoded, arrays) in (
        (REQUEST, unpack(RequestHeader, pack(REQUEST, ARRAYS))),
        (REQUEST, from_records(to_records(REQUEST, ARRAYS))),
        (REPLY, unpack(ReplyHeader, packed)),
        (REPLY, reply_of(reply_records(deliver(packed)))),
        (REPLY, reply_of(LocalRecords(REPLY, ARRAYS))),
    ):
        assert decoded == header
        assert set(arrays) == set(ARRAYS)
        assert np.array_equal(arrays["encoder.0.weight"], ARRAYS["encoder.0.weight"])


def test_the_bytes_of_a_reply_arrive_as_they_left() -> None:
    """Whatever they are: the records that carry them neither read nor write them anew."""
    signed = Delivery(request="a" * 64, signature="AA==")
    for payload in (pack(REPLY, ARRAYS), b"", b"\x80\x04no message"):
        assert read_reply(reply_records(deliver(payload, signed))) == (signed, payload)


def test_another_version_is_refused_by_number_on_both_sides() -> None:
    """An older or newer peer is told both versions and what to do, whatever else differs."""
    for kind in (RequestHeader, ReplyHeader):
        with pytest.raises(ProtocolError, match=f"version {PROTOCOL}, got 0; update"):
            parse_header(kind, '{"protocol": 0, "shape_of_the_past": true}')


def test_version_3_is_refused_from_outside_and_read_from_a_nodes_own_store() -> None:
    """A peer that cannot sign is named by its version; what a node kept itself is still read."""
    for header in (REQUEST, REPLY):
        old = pack(header.model_copy(update={"protocol": 3}), ARRAYS)
        with pytest.raises(
            ProtocolError, match=f"version {PROTOCOL}, got 3; update the older side"
        ):
            unpack(type(header), old)
        read, arrays = unpack(type(header), old, STORED_PROTOCOLS)
        assert (read.protocol, arrays.keys()) == (3, ARRAYS.keys())
    with pytest.raises(ProtocolError, match="got 2"):
        unpack(ReplyHeader, pack(REPLY.model_copy(update={"protocol": 2}), {}), STORED_PROTOCOLS)


def test_a_reply_kept_by_protocol_4_is_read() -> None:
    """Its header had the two fields that are the delivery's now, empty in what a node kept."""
    kept = json.loads(REPLY.model_copy(update={"protocol": 4}).model_dump_json())
    old = json.dumps(kept | {"request": "", "signature": ""})
    assert parse_header(ReplyHeader, old, STORED_PROTOCOLS) == ReplyHeader(**kept)
    signed = json.dumps(kept | {"request": "a" * 64, "signature": ""})
    newer = json.dumps(kept | {"protocol": PROTOCOL, "request": "", "signature": ""})
    for text in (signed, newer):
        with pytest.raises(ProtocolError, match="request"):
            parse_header(ReplyHeader, text, STORED_PROTOCOLS)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"protocol": "x"}', '{"protocol": 1}'])
def test_text_that_is_no_header_is_refused(text: str) -> None:
    """Anything but a whole valid header is a protocol error."""
    with pytest.raises(ProtocolError):
        parse_header(ReplyHeader, text)


@pytest.mark.parametrize("field", ["protocol", "round", "records", "steps", "epsilon"])
@pytest.mark.parametrize(
    "value",
    [
        "9" * 5_000,
        "9" * 4_000,
        "-" + "9" * 5_000,
        "1e999999",
        "NaN",
        "-Infinity",
        "[" * 30_000,
        '{"a":' * 10_000,
        '"\\ud800"',
    ],
)
def test_values_that_break_a_parser_are_refused(field: str, value: str) -> None:
    """Thousands of digits, no numbers, endless nesting and half characters are protocol errors."""
    good = json.loads(REPLY.model_dump_json())
    parts = {key: json.dumps(one) for key, one in good.items()} | {field: value}
    text = "{" + ",".join(f'"{key}":{one}' for key, one in parts.items()) + "}"
    for form in (text, text.encode()):
        with pytest.raises(ProtocolError):
            parse_header(ReplyHeader, form)


def test_a_private_number_has_no_field_to_travel_in() -> None:
    """A reply header with a loss is refused: unknown keys do not pass."""
    text = REPLY.model_dump_json()[:-1] + ', "loss": 0.25}'
    with pytest.raises(ProtocolError, match="loss"):
        parse_header(ReplyHeader, text)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.integers(0, 10_000).map(lambda i: pack(REPLY, ARRAYS)[:i]))
def test_no_bytes_but_a_whole_message_decode(data: bytes) -> None:
    """Random and truncated bytes raise a protocol error, or are the whole message."""
    if data == pack(REPLY, ARRAYS):
        return
    with pytest.raises(ProtocolError):
        unpack(ReplyHeader, data)


def test_surplus_records_are_refused() -> None:
    """Extra records, metrics, arrays and keys beside what is expected do not pass."""
    extra, metrics, arrays, keys = (reply_records(deliver(pack(REPLY, ARRAYS))) for _ in range(4))
    extra["more"] = ArrayRecord()
    metrics["metrics"] = MetricRecord({"num-examples": 7, "loss": 0.1})
    arrays["arrays"] = ArrayRecord({**arrays["arrays"], "more": Array(np.zeros(1))})
    keys["header"] = ConfigRecord({**keys["header"], "loss": 0.1})
    swapped = RecordDict({"header": ArrayRecord(), "arrays": ConfigRecord()})
    for content in (extra, metrics, arrays, keys, swapped):
        with pytest.raises(ProtocolError):
            read_reply(content)
    for content in (extra, metrics, swapped, reply_records(deliver(pack(REPLY, ARRAYS)))):
        with pytest.raises(ProtocolError):
            from_records(content)


def run_schema(kind: type[RunConfig] = RunConfig) -> dict[str, object]:
    """What a run file may hold, as JSON Schema without texts and without names of classes."""
    whole = kind.model_json_schema()
    defined = whole.pop("$defs", {})

    def bare(node: object) -> object:
        if isinstance(node, list):
            return [bare(one) for one in node]
        if not isinstance(node, dict):
            return node
        kept = {
            key: bare(value)
            for key, value in node.items()
            if key != "$ref" and not (key in ("title", "description") and isinstance(value, str))
        }
        if "required" in kept:
            kept["required"] = sorted(kept["required"])
        if "$ref" in node:
            kept = {**bare(defined[node["$ref"].removeprefix("#/$defs/")]), **kept}
        return kept

    return bare(whole)


def frozen_wire() -> tuple[str, str]:
    """What the two frozen files have to hold today: the headers, and the schema of run files."""
    schema = run_schema()
    lines = [
        f"{kind.__name__}.{name}: {field.annotation}"
        for kind in (RequestHeader, ReplyHeader, Delivery)
        for name, field in sorted(kind.model_fields.items())
    ]
    named = f"RunConfig schema: {sha256_hex(canonical_json(schema))}"
    told = {"protocol": PROTOCOL, "schema": schema}
    return (
        "\n".join([f"protocol {PROTOCOL}", named, *lines]) + "\n",
        json.dumps(told, indent=2, sort_keys=True) + "\n",
    )


def test_the_wire_format_is_frozen() -> None:
    """A change of a header or of the run file's schema demands a raised PROTOCOL."""
    headers, schema = frozen_wire()
    if (FROZEN.read_text(), FROZEN_SCHEMA.read_text()) == (headers, schema):
        return
    raised = json.loads(FROZEN_SCHEMA.read_text())["protocol"] < PROTOCOL
    if raised and os.environ.get(WRITE) == "1":
        FROZEN.write_text(headers)
        FROZEN_SCHEMA.write_text(schema)
    assert FROZEN_SCHEMA.read_text() == schema, (
        "The run file's schema has changed, and nodes of the frozen version refuse what they do "
        f"not know: raise PROTOCOL in the wire module, then write anew with {WRITE}=1."
    )
    assert FROZEN.read_text() == headers


def test_the_frozen_schema_sees_keys_and_bounds_but_no_words() -> None:
    """A new key and another bound change it; another class name or docstring does not."""

    class Wider(RunConfig):
        extra: int = 0

    class Bounded(RunConfig):
        seed: int = Field(0, ge=0, lt=7)

    class Renamed(RunConfig):
        """Told otherwise."""

    assert run_schema(Wider) != run_schema() != run_schema(Bounded)
    assert run_schema(Renamed) == run_schema()
