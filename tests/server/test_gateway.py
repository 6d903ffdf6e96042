"""The real gateway process before a real TLS server, spoken to over raw sockets."""

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.authority import create_authority, issue_certificate
from server.home import ServerHome
from server.service import free_port
from server.settings import GatewayLimits, ServerSettings, save_settings
from shared.supervisor import child_environment

MAX_BODY = 2000
BURST = 40


@dataclass
class Running:
    """A gateway under test, and what its upstream has seen."""

    home: ServerHome
    port: int
    seen: list[tuple[str, bytes, dict[str, str]]]
    upstream: uvicorn.Server
    log: Path

    def send(self, raw: bytes, *, close: bool = True) -> tuple[int, bytes]:
        """Send raw bytes over TLS; returns the status and everything that came back."""
        context = ssl.create_default_context(cafile=str(self.home.ca_certificate))
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            tls.sendall(raw)
            answer = b""
            with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
                while part := tls.recv(65536):
                    answer += part
        return int(answer.split(b" ", 2)[1]), answer

    def post(self, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """A well-formed POST."""
        head = {"Host": "x", "Content-Length": str(len(body)), "Connection": "close", **headers}
        lines = [f"POST {path} HTTP/1.1", *(f"{key}: {value}" for key, value in head.items())]
        return self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def start_upstream(
    home: ServerHome, port: int, seen: list[tuple[str, bytes, dict[str, str]]]
) -> uvicorn.Server:
    """A TLS server that stands where the SuperLink does and repeats what it gets."""

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        seen.append((scope["raw_path"].decode(), body, dict(request.headers)))
        status = 412 if scope["raw_path"].endswith(b"activate-node") else 200
        await Response(b"echo:" + body, status, {"x-own": "1"})(scope, receive, send)

    config = uvicorn.Config(
        echo,
        port=port,
        http="h11",
        ws="none",
        lifespan="off",
        log_level="error",
        ssl_certfile=str(home.certificate),
        ssl_keyfile=str(home.certificate_key),
    )
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The gateway process and its upstream."""
    home = ServerHome(tmp_path_factory.mktemp("gateway") / "server")
    home.create()
    create_authority(home)
    issue_certificate(home, [])
    limits = GatewayLimits(
        max_body_bytes=MAX_BODY, requests_per_second=20.0, burst=BURST, request_seconds=2.0
    )
    settings = ServerSettings(port=free_port(), link_port=free_port(), limits=limits)
    save_settings(home, settings)
    seen: list[tuple[str, bytes, dict[str, str]]] = []
    upstream = start_upstream(home, settings.link_port, seen)
    log = home.root / "gateway.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "server.gateway", "--home", str(home.root)],
            env=child_environment(),
            stderr=stream,
        )
    try:
        wait_for(settings.port)
        wait_for(settings.link_port)
        yield Running(home, settings.port, seen, upstream, log)
    finally:
        process.terminate()
        process.wait(10)
        upstream.should_exit = True


@pytest.fixture(autouse=True)
def _refill() -> None:
    """Let the rate limit recover between tests."""
    time.sleep(0.5)


def wait_for(port: int) -> None:
    """Wait until something listens."""
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def wait_for_log(running: Running, text: str) -> str:
    """Wait until the gateway's log holds ``text``; returns the log."""
    deadline = time.monotonic() + 5
    while text not in (log := running.log.read_text()):
        assert time.monotonic() < deadline, log
        time.sleep(0.05)
    return log


def test_fleet_requests_pass(running: Running) -> None:
    """A fleet request and its answer come through whole, without forged forwarding headers."""
    headers = {"flwr-signature": "s", "X-Forwarded-For": "1.2.3.4", "Forwarded": "for=1.2.3.4"}
    status, answer = running.post("/v1/fleet/pull-messages", b"\x00\xffbody", **headers)
    assert status == 200
    assert answer.endswith(b"echo:\x00\xffbody")
    assert b"x-own: 1" in answer
    path, body, seen = running.seen[-1]
    assert (path, body, seen["flwr-signature"]) == (
        "/v1/fleet/pull-messages",
        b"\x00\xffbody",
        "s",
    )
    assert not {key for key in seen if "forwarded" in key}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet/x%2f..%2f..%2fcontrol",
        "/v1/fleet//control",
        "//v1/fleet/pull-messages",
        "/v1/./fleet/pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull;x",
        "/v1/fleet/\\..\\control",
        "/V1/FLEET/pull-messages",
        "https://127.0.0.1/v1/control/start-run",
        "*",
    ],
)
def test_everything_else_is_refused(running: Running, path: str) -> None:
    """No other path reaches the server behind, whatever way it is written."""
    before = len(running.seen)
    status, _ = running.post(path, b"x")
    assert status in (400, 403)
    assert len(running.seen) == before


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "CONNECT"])
def test_other_methods_are_refused(running: Running, method: str) -> None:
    """Only POST is passed on."""
    raw = f"{method} /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert running.send(raw.encode())[0] in (400, 403)


def test_large_bodies_are_refused(running: Running) -> None:
    """A body over the cap is refused, by its stated length or while it is streamed."""
    before = len(running.seen)
    assert running.post("/v1/fleet/push-object", b"a" * (MAX_BODY + 1))[0] == 413
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    chunk = b"3e8\r\n" + b"a" * 1000 + b"\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3 + b"0\r\n\r\n"
    assert running.send(chunked)[0] == 413
    assert len(running.seen) == before
    assert running.post("/v1/fleet/push-object", b"a" * MAX_BODY)[0] == 200


def test_ambiguous_lengths_are_refused(running: Running) -> None:
    """A request with two framings, the seed of request smuggling, gets no further."""
    before = len(running.seen)
    raw = (
        b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        b"Content-Length: 5\r\nConnection: close\r\n\r\nabcde"
    )
    assert running.send(raw)[0] == 400
    assert len(running.seen) == before


def test_slow_bodies_are_cut_off(running: Running) -> None:
    """A body that never ends frees its place after the time limit."""
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
    began = time.monotonic()
    assert running.send(head + b"Connection: close\r\n\r\nabc")[0] == 504
    assert time.monotonic() - began < 6


def test_a_node_that_is_turned_away_is_logged(running: Running) -> None:
    """The log says which address was not let in, and what that means."""
    assert running.post("/v1/fleet/activate-node")[0] == 412
    assert "may not join (status 412): it is not admitted" in wait_for_log(running, "may not join")


def test_a_node_that_distrusts_us_is_logged(running: Running, tmp_path: Path) -> None:
    """A node with another authority breaks off, and the log says that it did."""
    other = ServerHome(tmp_path / "other")
    other.create()
    create_authority(other)
    context = ssl.create_default_context(cafile=str(other.ca_certificate))
    with (
        socket.create_connection(("127.0.0.1", running.port), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")
    assert "refused this server's certificate" in wait_for_log(running, "refused this server's")


def test_a_flood_is_slowed_down(running: Running) -> None:
    """One peer that sends too much gets 429, and is served again later."""
    statuses = [running.post("/v1/fleet/pull-messages")[0] for _ in range(BURST * 2)]
    assert 429 in statuses
    assert statuses[0] == 200
    time.sleep(0.5)
    assert running.post("/v1/fleet/pull-messages")[0] == 200


def test_a_server_that_is_down_is_said(running: Running) -> None:
    """While the SuperLink is away nodes get 503, which they retry."""
    time.sleep(1.0)
    running.upstream.should_exit = True
    deadline = time.monotonic() + 10
    while running.post("/v1/fleet/pull-messages")[0] != 503:
        assert time.monotonic() < deadline
        time.sleep(0.2)
