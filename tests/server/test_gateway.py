"""What a stranger meets: the gateway's paths, framing, admission, TLS, limits on connections."""

import asyncio
import base64
import contextlib
import datetime
import http.client
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto import fleet_pb2
from flwr.proto.message_pb2 import PullObjectRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from fedlatent.client.preflight import preflight
from fedlatent.server.authority import create_authority, issue_client_certificate, probe_context
from fedlatent.server.control import Control
from fedlatent.server.gateway.connections import network_of
from fedlatent.server.gateway.rules import ENDPOINTS
from fedlatent.server.home import ServerHome
from fedlatent.server.settings import GatewayLimits
from fedlatent.shared.errors import ServiceError
from tests.server.fleet import FleetNode, read_all
from tests.server.gates import Gate, running
from tests.server.stub_link import RUN

DEADLINE_S = 1.5
LATE_S = 20.0  # a busy machine; our end of a connection waits for 30 s


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """A gateway with short deadlines."""
    limits = GatewayLimits(
        request_seconds=2.0,
        answer_seconds=2.0,
        head_seconds=DEADLINE_S,
        first_request_seconds=2 * DEADLINE_S,
    )
    with running(Gate(tmp_path_factory.mktemp("gateway"), limits)) as made:
        yield made


@pytest.fixture(scope="module")
def ward(gate: Gate) -> Iterator[FleetNode]:
    """An admitted node."""
    with gate.admit("ward-1", 2**63 + 5) as node:
        yield node


def status_of(answer: bytes) -> int:
    """The status in the first line of an answer."""
    return int(answer.split(b" ", 2)[1])


def post(node: FleetNode, endpoint: str, body: bytes, **fields: str) -> int:
    """One signed request on a connection of its own; returns the status of the answer."""
    with node.connect() as line:
        line.sendall(node.head(endpoint, len(body), connection="close", **fields) + body)
        return status_of(read_all(line))


def ends_within(line: socket.socket, low: float, high: float) -> bytes:
    """What the server sends until it ends the connection, between two times from now."""
    began = time.monotonic()
    answer = read_all(line)
    assert low <= time.monotonic() - began <= high
    return answer


def poll(node: FleetNode) -> bytes:
    """The body of an honest poll."""
    return fleet_pb2.PullMessagesRequest(node=node.node).SerializeToString()


def test_fleet_requests_pass(gate: Gate, ward: FleetNode) -> None:
    """A fleet request and its answer come through whole, without forged forwarding headers."""
    body = poll(ward)
    with ward.connect() as line:
        forged = {"X_Forwarded_For": "1.2.3.4", "Forwarded": "for=1.2.3.4"}
        line.sendall(ward.head("pull-messages", len(body), connection="close", **forged) + body)
        answer = read_all(line)
    assert status_of(answer) == 200
    assert b"x-own: 1" in answer
    name, sent, headers = gate.link.seen[-1]
    assert (name, sent) == ("pull-messages", body)
    assert headers["flwr-signature"]
    assert not {key for key in headers if "forwarded" in key}


def test_the_endpoints_are_those_of_flower() -> None:
    """Each request of Flower's fleet API is known to the gateway with its own protobuf."""
    fleet = {
        path.removeprefix("/v1/fleet/"): kind
        for (_, path), kind in PROTOBUF_REQUEST_TYPES.items()
        if path.startswith("/v1/fleet/")
    }
    assert set(ENDPOINTS) == set(fleet)
    assert len(ENDPOINTS) == 12
    for name, endpoint in ENDPOINTS.items():
        assert endpoint is None or endpoint.request is fleet[name]
    refused = {name for name, endpoint in ENDPOINTS.items() if endpoint is None}
    assert refused == {"register-node", "unregister-node"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/docs",
        "/health",
        "/",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/anything-else",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet//pull-messages",
        "//v1/fleet/pull-messages",
        "/v1/./fleet/pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages%00",
        "/V1/FLEET/pull-messages",
        "https://127.0.0.1/v1/control/start-run",
        "*",
    ],
)
def test_everything_else_is_refused(gate: Gate, ward: FleetNode, path: str) -> None:
    """No other path reaches the server behind, whatever way it is written, nor for a site."""
    before = len(gate.link.seen)
    head = ward.head("pull-messages", 1, connection="close")
    raw = head.replace(b"/v1/fleet/pull-messages", path.encode(), 1) + b"x"
    assert gate.send(raw)[0] in (400, 403)
    assert len(gate.link.seen) == before


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "CONNECT"])
def test_other_methods_are_refused(gate: Gate, ward: FleetNode, method: str) -> None:
    """Only POST is passed on."""
    head = ward.head("pull-messages", 0, connection="close")
    assert gate.send(head.replace(b"POST", method.encode(), 1))[0] in (400, 403)


@pytest.mark.parametrize(
    ("fields", "statuses"),
    [
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", {400}),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", {400}),
        ("Transfer-Encoding: chunked\r\n", {400, 411}),
        ("Transfer-Encoding: gzip\r\n", {400, 411, 501}),
        ("Content-Length: 4\r\nContent-Length: 5\r\n", {400}),
        ("Content-Length: 4, 5\r\n", {400}),
        ("Content-Length: +5\r\n", {400}),
        ("Content-Length: 0x5\r\n", {400}),
        ("Content-Length: -1\r\n", {400}),
        ("Content-Length: ٣\r\n", {400}),
        ("", {411}),
    ],
)
def test_unclear_lengths_are_refused(
    gate: Gate, ward: FleetNode, fields: str, statuses: set[int]
) -> None:
    """A request with two framings, or with none, gets no further; and nothing breaks over it."""
    before = len(gate.link.seen)
    head = ward.head("pull-messages", None, connection="close")
    raw = head.replace(b"\r\n\r\n", b"\r\n" + fields.encode() + b"\r\n")
    assert gate.send(raw + b"3\r\nabc\r\nzz\r\n")[0] in statuses
    assert len(gate.link.seen) == before
    assert "Traceback" not in gate.log()


def test_bodies_without_a_stated_length_are_refused(gate: Gate, ward: FleetNode) -> None:
    """A well-formed chunked body has no length that a quota could be held to."""
    with ward.connect() as line:
        head = ward.head("pull-messages", None, transfer_encoding="chunked")
        line.sendall(head + b"3\r\nabc\r\n0\r\n\r\n")
        assert status_of(read_all(line)) == 411


def test_a_key_that_is_not_admitted_gets_flowers_own_answer(gate: Gate) -> None:
    """The SuperNode of an unknown site prints code 2004, and the log names the key."""
    with FleetNode(gate.address, gate.home.ca_certificate, gate.key("stranger")) as stranger:
        with pytest.raises(httpx.HTTPStatusError) as refused:
            stranger.activate()
        answer = refused.value.response
        error = FlowerError.from_json(answer.text)
        spec = API_ERROR_MAP[ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED]
        assert error is not None
        assert (error.code, error.message) == (2004, spec.public_message)
        assert answer.status_code == spec.http_status_code
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            stranger.poll()
    gate.wait_for_log("may not join (status 412): it is not admitted")


def test_admission_counts_at_once_and_ends_at_once(gate: Gate) -> None:
    """The list of sites is read again when it changes, while the gateway runs."""
    with gate.admit("late", 31) as node:
        assert node.activate() == 31
        gate.remove("late")
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            node.heartbeat()


def headers_signed_at(node: FleetNode, seconds: float) -> dict[str, str]:
    """The fields of a signature made ``seconds`` from now by the clock."""
    text = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)).isoformat()
    signature = node.private.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
    return {"flwr_timestamp": text, "flwr_signature": base64.b64encode(signature).decode()}


@pytest.mark.parametrize(("seconds", "status"), [(-290, 200), (-310, 401), (3, 200), (8, 401)])
def test_signatures_hold_for_a_while(ward: FleetNode, seconds: float, status: int) -> None:
    """A signature counts within the window that Flower's SuperLink allows."""
    assert post(ward, "pull-messages", poll(ward), **headers_signed_at(ward, seconds)) == status


@pytest.mark.parametrize(
    "fields",
    [
        {"flwr_signature": "AAAA"},
        {"flwr_signature": "no base64"},
        {"flwr_timestamp": "yesterday"},
        {"flwr_timestamp": "2026-01-01T00:00:00"},
        {"flwr_timestamp": "9" * 5000},
        {"flwr_public_key": "x" * 5000},
    ],
)
def test_bad_signatures_are_refused(gate: Gate, ward: FleetNode, fields: dict[str, str]) -> None:
    """Without the key's signature nothing reaches the server behind."""
    before = len(gate.link.seen)
    assert post(ward, "pull-messages", poll(ward), **fields) == 401
    assert len(gate.link.seen) == before


@pytest.mark.parametrize("name", ["flwr-public-key", "flwr-timestamp", "flwr-signature"])
def test_fields_of_a_signature_stand_there_once(ward: FleetNode, name: str) -> None:
    """Two keys in one head could count as one here and as the other at the SuperLink."""
    body = poll(ward)
    with ward.connect() as line:
        head = ward.head("pull-messages", len(body))
        line.sendall(head.replace(b"\r\n\r\n", f"\r\n{name}: x\r\n\r\n".encode()) + body)
        assert status_of(read_all(line)) == 401


def test_strangers_are_refused_before_their_body(gate: Gate) -> None:
    """Who shows no admitted key is answered by the head alone."""
    raw = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 500000000\r\n\r\n"
    began = time.monotonic()
    assert gate.send(raw)[0] == 401
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, endpoint.max_bytes) for name, endpoint in ENDPOINTS.items() if endpoint],
)
def test_each_endpoint_has_its_longest_body(ward: FleetNode, name: str, size: int) -> None:
    """A body over the endpoint's cap is refused by its stated length, of whatever digits."""
    for length in (size + 1, 10**30, int("9" * 4000)):
        with ward.connect() as line:
            text = str(length) if length < 10**100 else "9" * 4000
            line.sendall(ward.head(name, None, content_length=text))
            assert status_of(read_all(line)) in (400, 413)


@pytest.mark.parametrize("name", [name for name, one in ENDPOINTS.items() if one])
def test_bodies_that_are_no_protobuf_are_refused(gate: Gate, ward: FleetNode, name: str) -> None:
    """Bytes that are not the request they should be end at the gateway."""
    before = len(gate.link.seen)
    assert post(ward, name, b"\xff" * 50) in (400, 403)  # no reply is under way for an object
    assert len(gate.link.seen) == before


def test_slow_bodies_are_cut_off(ward: FleetNode) -> None:
    """A body that never ends frees its place after the time limit."""
    with ward.connect() as line:
        line.sendall(ward.head("pull-messages", 9) + b"abc")
        assert status_of(ends_within(line, 1.5, LATE_S)) == 504


@pytest.mark.parametrize("first", [b"", b"P", b"POST /v1/fleet/pull-messages HTTP/1.1\r\nx: "])
def test_slow_heads_are_cut_off(gate: Gate, first: bytes) -> None:
    """A head must be whole in time, and not begin late, however it drips."""
    with gate.tls() as line:
        line.settimeout(0.2)
        began, ended = time.monotonic(), False
        line.sendall(first)
        while not ended and time.monotonic() - began < LATE_S:
            try:
                ended = line.recv(100) == b""
                line.sendall(b"a")
            except TimeoutError:
                with contextlib.suppress(OSError):
                    line.sendall(b"a" if first else b"")
            except OSError:
                ended = True
    assert ended
    assert time.monotonic() - began >= DEADLINE_S * 0.8


def test_second_heads_have_a_deadline_too(ward: FleetNode) -> None:
    """On a connection that a site has used, a head that stops half-way ends it."""
    body = poll(ward)
    with ward.connect() as line:
        line.sendall(ward.head("pull-messages", len(body)) + body)
        assert status_of(line.recv(65536)) == 200
        time.sleep(2 * DEADLINE_S + 0.5)  # idle is allowed
        line.sendall(b"POST /v1/fl")
        assert ends_within(line, DEADLINE_S * 0.8, LATE_S) == b""


def test_connections_without_tls_are_cut_off(gate: Gate) -> None:
    """Who says nothing at all is gone after the time for a first request."""
    with socket.create_connection(("127.0.0.1", gate.settings.port), timeout=10) as plain:
        ends_within(plain, DEADLINE_S, LATE_S)


def test_readers_that_stop_are_cut_off(gate: Gate, ward: FleetNode) -> None:
    """Who asks and does not read the answer is cut off, and its memory is free again."""
    gate.link.object_size = 12_000_000
    message = gate.link.give(ward.node_id)
    try:
        ward.poll()
        body = PullObjectRequest(node=ward.node, run_id=RUN, object_id=message).SerializeToString()
        with ward.connect() as line:
            line.sendall(ward.head("pull-object", len(body)) + body)
            gate.wait_for_log("did not read its answer")
            answer = read_all(line)
            assert len(answer) < gate.link.object_size
    finally:
        gate.link.object_size = 0


def test_a_node_that_distrusts_us_is_logged(gate: Gate, tmp_path: Path) -> None:
    """A node with another authority breaks off, and the log says that it did."""
    other = ServerHome(tmp_path / "other")
    other.create()
    create_authority(other)
    context = ssl.create_default_context(cafile=str(other.ca_certificate))
    with (
        socket.create_connection(("127.0.0.1", gate.settings.port), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")
    gate.wait_for_log("refused this server's certificate")


def test_equal_lines_are_counted(gate: Gate) -> None:
    """A stranger cannot fill the disk with one and the same refusal."""
    for _ in range(40):
        gate.send(b"GET /same HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert gate.log().count("refused GET /same") <= 5


def test_addresses_of_one_customer_count_as_one() -> None:
    """IPv6 gives each customer 2^64 addresses; they share one place."""
    assert network_of("192.0.2.7") == network_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2%eth0")
    assert network_of("2001:db8::1") != network_of("2001:db8:0:1::1")


def test_idle_strangers_do_not_touch_a_site(tmp_path: Path) -> None:
    """2,060 idle connections of one address: a site's poll is answered, memory stays bounded."""
    count = 2060
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 500)), hard))
    gate = Gate(tmp_path, GatewayLimits())
    with running(gate), gate.admit("ward-1", 5) as old, gate.admit("ward-2", 6) as new:
        old.activate()
        before = gate.memory()
        lines = asyncio.run(idle_connections(gate, count))
        try:
            for node in (old, new):  # a connection from before, and a new one
                began = time.monotonic()
                node.poll()
                assert time.monotonic() - began < 20
            assert gate.memory() - before < 30_000_000
            assert used_connections(old) == 1
        finally:
            for line in lines:
                line.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    gate.wait_for_log("more than 32 connections that have not shown an admitted key")


async def idle_connections(gate: Gate, count: int) -> list[socket.socket]:
    """Open many connections; half begin TLS, half say nothing."""
    loop = asyncio.get_running_loop()
    hello = tls_hello()
    made = []
    for number in range(count):
        line = socket.socket()
        line.setblocking(False)
        await loop.sock_connect(line, ("127.0.0.1", gate.settings.port))
        if number % 2:
            await loop.sock_sendall(line, hello)
        made.append(line)
    return made


def tls_hello() -> bytes:
    """The first bytes of a TLS client."""
    out = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def test_strangers_with_tls_do_not_touch_a_site(tmp_path: Path) -> None:
    """Past the handshake it is the same: the oldest stranger goes, the site's connection stays."""
    gate = Gate(tmp_path, GatewayLimits(strangers_per_address=4, connections=12))
    with running(gate), gate.admit("ward-1", 5) as node:
        node.activate()
        lines = [gate.tls() for _ in range(8)]
        lines[0].settimeout(2)
        assert read_all(lines[0]) == b""
        lines[-1].sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert status_of(read_all(lines[-1])) == 403
        node.poll()
        assert gate.log().count("127.0.0.1: a connection is cut") >= 4
        far = [from_address(gate, f"127.0.0.{2 + number // 4}") for number in range(20)]
        gate.wait_for_log("a connection is cut: all connections are taken")
        node.poll()
        assert used_connections(node) == 1
        for line in lines + far:
            line.close()


def used_connections(node: FleetNode) -> int:
    """How many connections Flower's client has needed so far and still has."""
    return len(node.client._client._transport._pool.connections)  # type: ignore[attr-defined]


def from_address(gate: Gate, address: str) -> socket.socket:
    """An idle connection from another address of this machine."""
    there = ("127.0.0.1", gate.settings.port)
    return socket.create_connection(there, timeout=10, source_address=(address, 0))


def test_strangers_fail_in_the_handshake_where_nodes_have_certificates(tmp_path: Path) -> None:
    """With client certificates on, only a certificate of the authority for its holder connects."""
    gate = Gate(tmp_path, GatewayLimits(), client_certificates=True)
    with running(gate), gate.admit("ward-1", 5) as bare:
        with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
            bare.activate()
        assert gate.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == (0, b"")
        (site,) = Control(gate.home).sites()
        file = gate.home.root / "ward-1.crt"
        file.write_bytes(issue_client_certificate(gate.home, "ward-1", site.public_key))
        key = gate.home.root / "nodes" / "ward-1"
        with FleetNode(gate.address, gate.home.ca_certificate, key, file) as node:
            assert node.activate() == 5
        server_own = bare.tls
        server_own.load_cert_chain(gate.home.certificate, gate.home.certificate_key)
        with contextlib.suppress(OSError), bare.connect() as line:
            line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_all(line) == b""
        with pytest.raises(ServiceError, match=r"certificate of this site's key"):
            preflight(gate.address, gate.home.ca_certificate)
        probe = http.client.HTTPSConnection(gate.address, context=probe_context(gate.home))
        probe.request("GET", "/")
        assert probe.getresponse().status == 403
        probe.close()
    assert gate.home.probe_key.stat().st_mode & 0o777 == 0o600
    gate.wait_for_log("a TLS handshake failed (PEER_DID_NOT_RETURN_A_CERTIFICATE)")


@pytest.mark.parametrize(
    ("endpoint", "failing", "status"),
    [("pull-messages", 500, 503), ("pull-messages", 403, 403), ("deactivate-node", 500, 500)],
)
def test_failures_of_the_server_are_passed_on(
    gate: Gate, ward: FleetNode, endpoint: str, failing: int, status: int
) -> None:
    """A SuperNode that asks for messages asks again where the SuperLink itself has failed."""
    gate.link.failing = failing
    try:
        body = poll(ward)
        if endpoint == "deactivate-node":
            body = fleet_pb2.DeactivateNodeRequest(node_id=ward.node_id).SerializeToString()
        assert post(ward, endpoint, body) == status
    finally:
        gate.link.failing = 200
    gate.wait_for_log(f"): {endpoint} got status {failing}")


def test_a_server_that_is_down_is_said(gate: Gate, ward: FleetNode) -> None:
    """While the SuperLink is away nodes get 503, which they retry."""
    gate.link.stop()
    try:
        assert post(ward, "pull-messages", poll(ward)) == 503
    finally:
        gate.link.start()
    assert post(ward, "pull-messages", poll(ward)) == 200
