"""Signatures from end to end: whatever is not exactly what was signed, for whom and when, fails."""

import base64
import datetime
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.server.authority import create_authority, issue_certificate
from fedlatent.server.home import ServerHome
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError, SignatureError
from fedlatent.shared.files import canonical_json, sha256_hex
from fedlatent.shared.keys import SigningKey, generate_node_key, load_node_key, node_public_key
from fedlatent.shared.records import from_records, read_reply, reply_records, to_records
from fedlatent.shared.signing import (
    CLOCK_SLACK_S,
    REQUESTS_PURPOSE,
    ReplySigner,
    RequestSigner,
    check_reply,
    check_request,
    digest_of,
    request_name,
)
from fedlatent.shared.wire import (
    PROTOCOL,
    UNSIGNED,
    Delivery,
    ReplyHeader,
    RequestHeader,
    deliver,
    pack,
    parse_header,
    unpack,
)

NOW = datetime.datetime.now(datetime.UTC).timestamp()
DAY = 86_400.0
RUN = RunConfig.parse({"name": "wire", "data": {"name": "ecg", "shape": [8]}}, "test")
ASKED = RequestHeader(
    protocol=PROTOCOL, run_id="wire-1", round=1, kind="train", config=RUN, deadline_s=30
)
ANSWER = ReplyHeader(
    protocol=PROTOCOL, run_id="wire-1", round=1, kind="train", site="north", status="ok", records=7
)
ARRAYS: Arrays = {
    "encoder.bias": np.arange(3, dtype=np.float32),
    "encoder.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
}
DIGEST = digest_of(ARRAYS)
PACKED = pack(ANSWER, ARRAYS)
REPLY_KEY = ec.generate_private_key(ec.SECP384R1())

#: Floats on which printing and reading could differ.
EDGES = [5e-324, 1e-5, 0.1, 1 / 3, 1e16, 1e22, 2.0**53 + 2, 1.7976931348623157e308]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> ServerHome:
    """A server home with an authority and all that it certifies."""
    made = ServerHome(tmp_path_factory.mktemp("authority") / "server")
    made.create()
    create_authority(made)
    issue_certificate(made, [])
    return made


@pytest.fixture(scope="module")
def authority(home: ServerHome) -> x509.Certificate:
    """What a site has pinned."""
    return x509.load_pem_x509_certificate(home.ca_certificate.read_bytes())


@pytest.fixture(scope="module")
def signer(home: ServerHome) -> RequestSigner:
    """The server's key for requests."""
    return RequestSigner.load(home.requests_key, home.requests_certificate)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> ReplySigner:
    """A node's key."""
    path = tmp_path_factory.mktemp("node") / "node"
    generate_node_key(path)
    return ReplySigner.load(path)


def certify(
    home: ServerHome,
    key: Ed25519PrivateKey,
    *purposes: x509.ObjectIdentifier,
    starts: float = NOW - DAY,
    ends: float = NOW + DAY,
) -> RequestSigner:
    """A signer whose certificate the authority in ``home`` issued for some purposes."""
    issuer_key = serialization.load_pem_private_key(home.ca_key.read_bytes(), password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(home.ca_certificate.read_bytes())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(starts, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(ends, datetime.UTC))
    )
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    certificate = builder.sign(issuer_key, hashes.SHA384())
    return RequestSigner(key=SigningKey(key=key), certificate=certificate)


def reason_of(
    header: RequestHeader, authority: x509.Certificate, digest: bytes = DIGEST, now: float = NOW
) -> str:
    """Why site "north" refuses a request; empty when it takes it."""
    try:
        check_request(header, digest, authority, "north", now)
    except SignatureError as error:
        return str(error.details["reason"])
    return ""


def changed_arrays() -> list[Arrays]:
    """Every way to say something else in nearly the same bytes."""
    made: list[Arrays] = []
    for name, array in ARRAYS.items():
        for place in range(array.nbytes):
            data = bytearray(array.tobytes())
            data[place] ^= 1
            made.append({**ARRAYS, name: np.frombuffer(data, array.dtype).reshape(array.shape)})
    bias, weight = ARRAYS["encoder.bias"], ARRAYS["encoder.weight"]
    made += [
        {},
        {"encoder.bias": bias},
        {**ARRAYS, "encoder.more": bias},
        {**ARRAYS, "encoder.none": bias[:0]},
        {"encoder.bias": bias, "encoder.weights": weight},
        {"encoder.bias": weight, "encoder.weight": bias},
        {"encoder.bias": bias.view(np.int32), "encoder.weight": weight},
        {"encoder.bias": bias, "encoder.weight": weight.reshape(3, 2)},
        {"encoder.bias": bias, "encoder.weight": weight.reshape(6)},
        {"encoder.bias": bias.astype(np.float64), "encoder.weight": weight},
    ]
    return made


def test_a_request_counts_at_its_receiver_until_it_expires(
    signer: RequestSigner, authority: x509.Certificate
) -> None:
    """The named site takes it, through both encodings, to the end of the clocks' slack."""
    signed = signer.sign(ASKED, DIGEST, "north", NOW + 60)
    for came, arrays in (
        unpack(RequestHeader, pack(signed, ARRAYS)),
        from_records(to_records(signed, ARRAYS)),
    ):
        assert reason_of(came, authority, digest_of(arrays)) == ""
        assert request_name(came, digest_of(arrays)) == request_name(signed, DIGEST)
    assert reason_of(signed, authority, now=NOW + 60 + CLOCK_SLACK_S) == ""
    assert reason_of(signed, authority, now=NOW + 61 + CLOCK_SLACK_S) == "expired"
    assert reason_of(signer.sign(ASKED, DIGEST, "east", NOW + 60), authority) == "receiver"
    assert reason_of(ASKED, authority) == "unsigned"
    assert reason_of(signed.model_copy(update={"signature": ""}), authority) == "unsigned"
    assert reason_of(signed.model_copy(update={"certificate": ""}), authority) == "unsigned"


def test_every_field_of_a_request_is_signed(
    signer: RequestSigner, authority: x509.Certificate
) -> None:
    """A change of any field is refused; a field that comes later must be added here."""
    signed = signer.sign(ASKED, DIGEST, "north", NOW + 60)
    other = signer.sign(ASKED, DIGEST, "north", NOW + 61)
    changes = {
        "protocol": (3, "altered"),
        "run_id": ("wire-2", "altered"),
        "round": (2, "altered"),
        "kind": ("moments", "altered"),
        "config": (RUN.model_copy(update={"seed": 1}), "altered"),
        "form": ("diagonal", "altered"),
        "deadline_s": (30.000000000000004, "altered"),
        "receiver": ("north ", "receiver"),
        "expires": (NOW + 3600, "altered"),
        "certificate": ("AAAA", "certificate"),
        "signature": (other.signature, "altered"),
    }
    assert changes.keys() == RequestHeader.model_fields.keys()
    for name, (value, reason) in changes.items():
        assert reason_of(signed.model_copy(update={name: value}), authority) == reason, name
    deep = RUN.model_copy(update={"privacy": RUN.privacy.model_copy(update={"epsilon": 4.5})})
    assert reason_of(signed.model_copy(update={"config": deep}), authority) == "altered"


def test_every_byte_of_the_arrays_is_signed(
    signer: RequestSigner, node: ReplySigner, authority: x509.Certificate
) -> None:
    """One other bit, name, type or shape, one array more or fewer, and the message is refused."""
    signed = signer.sign(ASKED, DIGEST, "north", NOW + 60)
    name = request_name(signed, DIGEST)
    reply = node.sign(PACKED, name)
    key = node.key.public_key()
    changed = changed_arrays()
    assert len({digest_of(arrays) for arrays in changed} | {DIGEST}) == len(changed) + 1
    for arrays in changed:
        assert reason_of(signed, authority, digest_of(arrays)) == "altered"
        assert "changed on its way" in (
            check_reply(reply, sha256_hex(pack(ANSWER, arrays)), key, name) or ""
        )
    assert digest_of(dict(reversed(ARRAYS.items()))) == DIGEST


ONE = st.tuples(
    st.sampled_from(["<f4", "<f8", "|u1"]),
    st.sampled_from([(0,), (1,), (2,), (2, 1), (1, 2), (4,), (8,)]),
    st.integers(0, 1),
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "aa", 'a"', "ä"]), ONE, max_size=3),
    st.dictionaries(st.sampled_from(["a", "b", "aa", 'a"', "ä"]), ONE, max_size=3),
)
def test_two_sets_of_arrays_have_one_digest_only_when_they_are_equal(
    one: Mapping[str, tuple[str, tuple[int, ...], int]],
    other: Mapping[str, tuple[str, tuple[int, ...], int]],
) -> None:
    """Nothing can be shifted between names, types, shapes and bytes."""
    first, second = (
        {
            name: np.full(shape, value, dtype)
            for name, (dtype, shape, value) in sorted(described.items())
        }
        for described in (one, other)
    )
    equal = first.keys() == second.keys() and all(
        (first[name].dtype, first[name].shape, first[name].tobytes())
        == (second[name].dtype, second[name].shape, second[name].tobytes())
        for name in first
    )
    assert (digest_of(first) == digest_of(second)) is equal


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_other_signature_or_certificate_text_passes(
    signer: RequestSigner, authority: x509.Certificate, data: st.DataObject
) -> None:
    """Any other character anywhere in either text, or one fewer, is refused."""
    signed = signer.sign(ASKED, DIGEST, "north", NOW + 60)
    name = data.draw(st.sampled_from(["signature", "certificate"]))
    text = getattr(signed, name)
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from(["", "A", "b", "0", "+", "/", "="]))
    if text[place] == other:
        return
    changed = {name: text[:place] + other + text[place + 1 :]}
    assert reason_of(signed.model_copy(update=changed), authority) in ("altered", "certificate")


def test_only_a_certificate_for_requests_of_this_authority_signs(
    home: ServerHome, authority: x509.Certificate, tmp_path: Path
) -> None:
    """Those of TLS, of nothing or of more, of another authority or another time are refused."""
    client, server = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
    key = Ed25519PrivateKey.generate()
    other = ServerHome(tmp_path / "other")
    other.create()
    create_authority(other)
    refused = [
        certify(home, key, client),
        certify(home, key, server),
        certify(home, key, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE),
        certify(home, key, REQUESTS_PURPOSE, client),
        certify(home, key),
        certify(home, key, REQUESTS_PURPOSE, ends=NOW - CLOCK_SLACK_S - 1),
        certify(home, key, REQUESTS_PURPOSE, starts=NOW + CLOCK_SLACK_S + 2),
        certify(other, key, REQUESTS_PURPOSE),
        RequestSigner.load(other.requests_key, other.requests_certificate),
    ]
    gateway = x509.load_pem_x509_certificate(home.certificate.read_bytes())
    refused += [
        RequestSigner(key=SigningKey(key=key), certificate=gateway),
        RequestSigner(key=SigningKey(key=key), certificate=authority),
    ]
    for number, signer in enumerate(refused):
        signed = signer.sign(ASKED, DIGEST, "north", NOW + 60)
        assert reason_of(signed, authority) == "certificate", number
    good = certify(home, key, REQUESTS_PURPOSE)
    assert reason_of(good.sign(ASKED, DIGEST, "north", NOW + 60), authority) == ""
    thief = RequestSigner(
        key=SigningKey(key=Ed25519PrivateKey.generate()), certificate=good.certificate
    )
    assert reason_of(thief.sign(ASKED, DIGEST, "north", NOW + 60), authority) == "altered"


@settings(max_examples=100, deadline=None)
@given(der=st.binary(min_size=1, max_size=400))
def test_a_certificate_that_is_none_is_refused_in_words(
    signer: RequestSigner, authority: x509.Certificate, der: bytes
) -> None:
    """Bytes that no parser takes end as a refusal, and as nothing else."""
    signed = signer.sign(ASKED, DIGEST, "north", NOW + 60)
    text = base64.b64encode(der).decode()
    changed = signed.model_copy(update={"certificate": text})
    assert reason_of(changed, authority) == "certificate"


NUMBERS = st.sampled_from(EDGES) | st.floats(
    min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False
)


@settings(max_examples=200, deadline=None)
@given(NUMBERS, NUMBERS, NUMBERS, st.floats(0, 1, exclude_min=True, exclude_max=True), st.text())
def test_what_is_signed_survives_being_written_and_read(
    deadline: float, expires: float, option: float, share: float, unit: str
) -> None:
    """A header that was read from its text has the very bytes that were signed, edges included."""
    unit = "".join(one for one in unit if one.isprintable())[:64]  # as a schema takes it
    run = RunConfig.parse(
        {
            "name": "wire",
            "data": {
                "name": "ecg",
                "shape": [8],
                "unit": unit,
                "lower": -min(option, 9e29),  # of a size that a schema takes
                "upper": -0.0,
            },
            "model": {"options": {"a": option, "b": 1, "c": True, "d": [1, 2], "e": unit}},
            "privacy": {"delta": share},
        },
        "test",
    )
    header = RequestHeader(
        protocol=PROTOCOL,
        run_id="wire-1",
        round=2**53,
        kind="train",
        config=run,
        deadline_s=deadline,
        expires=expires,
    )
    again = parse_header(RequestHeader, header.model_dump_json())
    assert request_name(again, DIGEST) == request_name(header, DIGEST)
    reply = ANSWER.model_copy(update={"epsilon": deadline, "delta": share, "text": unit[:100]})
    payload = pack(reply, {})
    signed = ReplySigner(key=REPLY_KEY).sign(payload, "0" * 64)
    read = parse_header(Delivery, signed.model_dump_json())
    assert check_reply(read, sha256_hex(payload), REPLY_KEY.public_key(), "0" * 64) is None
    assert unpack(ReplyHeader, payload)[0] == reply


def test_a_reply_is_that_of_one_site_to_one_request(node: ReplySigner) -> None:
    """Without a signature, from another key or to another request it is refused, each in words."""
    key, name, old = node.key.public_key(), "a" * 64, "b" * 64
    signed = node.sign(PACKED, name)
    came, payload = read_reply(reply_records(deliver(PACKED, signed)))
    assert check_reply(came, sha256_hex(payload), key, name) is None
    sha256 = sha256_hex(PACKED)
    assert "without a signature" in (check_reply(UNSIGNED, sha256, key, name) or "")
    assert "names another" in (check_reply(node.sign(PACKED, old), sha256, key, name) or "")
    renamed = node.sign(PACKED, old).model_copy(update={"request": name})
    foreign = ReplySigner(key=REPLY_KEY).sign(PACKED, name)
    for delivery in (renamed, foreign, signed.model_copy(update={"signature": "AA=="})):
        assert "this key did not sign" in (check_reply(delivery, sha256, key, name) or "")


def test_a_signature_of_protocol_4_is_none(node: ReplySigner) -> None:
    """What signed a header and arrays apart cannot stand for packed bytes."""
    name = "a" * 64
    told = canonical_json({"protocol": PROTOCOL, "request": name})
    part = b"fedlatent reply 4\0" + bytes.fromhex(sha256_hex(PACKED)) + told
    signature = base64.b64encode(node.key.sign(part, ec.ECDSA(hashes.SHA384()))).decode()
    forged = Delivery(request=name, signature=signature)
    reason = check_reply(forged, sha256_hex(PACKED), node.key.public_key(), name)
    assert "this key did not sign" in (reason or "")


def test_every_field_of_a_delivery_is_signed(node: ReplySigner) -> None:
    """A change of any field is refused; a field that comes later must be added here."""
    name = "a" * 64
    signed = node.sign(PACKED, name)
    changes = {
        "protocol": 4,
        "request": "b" * 64,
        "signature": node.sign(pack(ANSWER, {}), name).signature,
    }
    assert changes.keys() == Delivery.model_fields.keys()
    for field, value in changes.items():
        changed = signed.model_copy(update={field: value})
        assert check_reply(changed, sha256_hex(PACKED), node.key.public_key(), name), field


def test_every_field_and_byte_of_a_reply_is_signed(node: ReplySigner) -> None:
    """A change of any field is refused; a field that comes later must be added here."""
    name, key = "a" * 64, node.key.public_key()
    signed = node.sign(PACKED, name)
    changes = {
        "protocol": 3,
        "run_id": "wire-2",
        "round": 2,
        "kind": "moments",
        "site": "east",
        "status": "refused",
        "code": "x",
        "text": "x",
        "records": 8,
        "epsilon": 0.0,
        "delta": 0.1,
        "noise_multiplier": 5e-324,
        "sample_rate": 0.9999999999999999,
        "steps": 1,
        "rng": "simulation",
    }
    assert changes.keys() == ReplyHeader.model_fields.keys()
    for field, value in changes.items():
        changed = pack(ANSWER.model_copy(update={field: value}), ARRAYS)
        assert check_reply(signed, sha256_hex(changed), key, name), field
    for place in range(len(PACKED)):
        altered = PACKED[:place] + bytes([PACKED[place] ^ 1]) + PACKED[place + 1 :]
        assert check_reply(signed, sha256_hex(altered), key, name), place


def test_a_name_is_of_one_request_alone(signer: RequestSigner, home: ServerHome) -> None:
    """Each receiver, expiry and signature makes another name."""
    names = {
        request_name(signer.sign(ASKED, DIGEST, site, NOW + later), DIGEST)
        for site in ("north", "east")
        for later in (60, 61)
    }
    fresh = certify(home, Ed25519PrivateKey.generate(), REQUESTS_PURPOSE)
    names.add(request_name(fresh.sign(ASKED, DIGEST, "north", NOW + 60), DIGEST))
    assert len(names) == 5


def test_keys_that_are_none_are_said(tmp_path: Path, home: ServerHome) -> None:
    """A key of another kind, an open one and half of another pair are errors in words."""
    SigningKey.generate(tmp_path / "ed25519")
    with pytest.raises(ConfigError, match="EC private key in OpenSSH form"):
        load_node_key(tmp_path / "ed25519")
    generate_node_key(tmp_path / "node")
    (tmp_path / "node").chmod(0o640)
    with pytest.raises(ConfigError, match="0640"):
        load_node_key(tmp_path / "node")
    with pytest.raises(ConfigError, match="EC public key in OpenSSH form in x"):
        node_public_key("ssh-ed25519 AAAA", "x")
    with pytest.raises(ConfigError, match="that of another key"):
        RequestSigner.load(tmp_path / "ed25519", home.requests_certificate)
    with pytest.raises(ConfigError, match="Expected a certificate in PEM"):
        RequestSigner.load(home.requests_key, tmp_path / "none.pem")
