"""The HTTP server over real sockets: answers, refusals, limits, metrics and its end."""

import contextlib
import gzip
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlatent.client.edge import web
from fedlatent.client.edge.drift import DriftMonitor
from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.edge.serve import EdgeServer, ServeOptions, serve
from fedlatent.client.edge.stream import CONFIRM_AFTER, Stop
from fedlatent.shared.bundle.manifest import Thresholds
from fedlatent.shared.data.dialect import Dialect
from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.shared.keys import SigningKey
from tests.client.edge.conftest import Load
from tests.shared.bundle import tiny

RAW = tiny.raw_records(40, seed=5)
JSON, CSV, RAW_BYTES = "application/json", "text/csv", "application/octet-stream"
ROOT = Path(__file__).parents[3]


@contextlib.contextmanager
def _serving(
    load: Load, *, model: EdgeModel | None = None, **options: object
) -> Iterator[EdgeServer]:
    """A server in a thread, on a free port."""
    stop = Stop()
    chosen = ServeOptions(**{"port": 0, **options})  # type: ignore[arg-type]
    with EdgeServer(model or load(), chosen) as server:
        thread = threading.Thread(target=serve, args=(server, stop))
        thread.start()
        try:
            yield server
        finally:
            stop.set()
            thread.join(5)
            assert not thread.is_alive()


def _ask(
    server: EdgeServer,
    method: str,
    path: str,
    body: bytes | None = None,
    kind: str = JSON,
    **headers: str,
) -> tuple[int, Any]:
    """Status and JSON of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Content-Type": kind, **more})
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data or "0") if answer.headers[
            "Content-Type"
        ] == JSON else data
    finally:
        connection.close()


def _json(records: object) -> bytes:
    return json.dumps({"records": records}).encode()


def test_all_formats_give_the_scores_of_the_model(load: Load) -> None:
    """JSON, CSV and raw float32 give equal scores, flags and the threshold."""
    table = load().score(RAW)
    text = "a,b,c,d,e,f\n" + "".join(",".join(map(str, row)) + "\n" for row in RAW.tolist())
    bodies = {
        JSON: _json(RAW.tolist()),
        f"{CSV}; charset=utf-8": text.encode(),
        RAW_BYTES: RAW.astype("<f4").tobytes(),
    }
    with _serving(load) as server:
        for kind, body in bodies.items():
            status, answer = _ask(server, "POST", "/score", body, kind)
            assert status == 200
            np.testing.assert_allclose(answer["scores"], table.score, rtol=1e-5)
            assert answer["flags"] == table.flag.tolist()
            assert answer["threshold"] == 1.0
            assert answer["clipped"] == table.clipped.tolist()
            assert set(answer) == {"scores", "flags", "threshold", "clipped"}


def test_requests_are_of_the_dialect_that_is_said(load: Load) -> None:
    """A CSV of tabs and decimal commas is read where the server was told so."""
    text = "".join("\t".join(f"{value},0" for value in row) + "\n" for row in RAW.tolist())
    with _serving(load, dialect=Dialect(delimiter="tab", decimal=",")) as server:
        status, answer = _ask(server, "POST", "/score", text.encode(), CSV)
    assert status == 200
    np.testing.assert_allclose(answer["scores"], load().score(RAW).score, rtol=1e-5)


BAD_BODIES = [
    (JSON, b""),
    (JSON, b"secret"),
    (JSON, b"[" * 100_000),
    (JSON, b'{"records":[]}'),
    (JSON, b'{"records":"secret"}'),
    (JSON, b'{"records":[[1,2,3,4,5,6]],"more":1}'),
    (JSON, _json([[1, 2, 3]])),
    (JSON, _json([1, 2, 3, 4, 5, 6])),
    (JSON, _json([[1, 2, 3, 4, 5, 6], [1]])),
    (JSON, _json([[1, 2, 3, 4, 5, "secret"]])),
    (JSON, _json([[1, 2, 3, 4, 5, None]])),
    (JSON, _json([[1, 2, 3, 4, 5, True]])),
    (JSON, _json([["x" * 1_000_000, *[""] * 100_000]])),
    (JSON, b'{"records":[[1,2,3,4,5,NaN]]}'),
    (JSON, b'{"records":[[1,2,3,4,5,1e999]]}'),
    (JSON, _json([[1, 2, 3, 4, 5, 10**400]])),
    (JSON, b'{"records":[[1,2,3,4,5,' + b"9" * 5000 + b"]]}"),
    (JSON, b"\xff\xfe"),
    (CSV, b""),
    (CSV, b"1,2,3\n"),
    (CSV, b"1,2,3,4,5,secret\n1,2,3,4,5,secret\n"),
    (CSV, b"1,2,3,4,5,nan\n"),
    (CSV, b"\xff\n"),
    (RAW_BYTES, b""),
    (RAW_BYTES, b"\0" * 25),
    (RAW_BYTES, np.full(6, np.inf, "<f4").tobytes()),
]


def test_bad_bodies_are_refused_with_one_sentence(load: Load) -> None:
    """What is no record is a 400 with one sentence and no value; the server goes on."""
    with _serving(load) as server:
        for kind, body in BAD_BODIES:
            status, answer = _ask(server, "POST", "/score", body, kind)
            assert (status, list(answer)) == (400, ["error"]), body[:50]
            assert answer["error"].startswith("Expected ")
            assert "secret" not in answer["error"]
        assert _ask(server, "POST", "/score", b"<x/>", "text/xml")[0] == 415
        assert _ask(server, "POST", "/score", _json(RAW.tolist()))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 404),
        ("POST", "/nothing", b"{}", 404),
        ("GET", "/score", None, 405),
        ("POST", "/health", b"{}", 405),
        ("PUT", "/score", b"{}", 405),
        ("HEAD", "/score", None, 405),
        ("GET", "/info", b"body", 400),
        ("BREW", "/score", None, 405),
    ],
)
def test_other_paths_and_methods(
    load: Load, method: str, path: str, body: bytes | None, status: int
) -> None:
    """Unknown paths are 404, wrong methods 405, each with one sentence."""
    with _serving(load) as server:
        got, answer = _ask(server, method, path, body)
    assert got == status
    assert method == "HEAD" or answer["error"].startswith("Expected ")


def _raw(server: EdgeServer, request: bytes) -> bytes:
    """What the server answers to these very bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as channel:
        channel.sendall(request)
        parts = []
        while part := channel.recv(65_536):
            parts.append(part)
    return b"".join(parts)


HEAD = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/csv\r\n"
RECORD = b"1,2,3,4,5,6\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD + b"\r\n{}", 411),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n123", 400),
        (HEAD + b"Content-Length: 2, 3\r\n\r\n123", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: +2\r\n\r\n12", 400),
        (HEAD + b"Content-Length : 2\r\n\r\n12", 400),
        (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", 413),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD.replace(b"/1.1", b"/1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n12", 415),
        (HEAD + b"X: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
            b"Content-Length: 5\r\n\r\nGET /",
            400,
        ),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"\0\1\2\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
)
def test_requests_that_can_be_read_in_two_ways_are_refused(
    load: Load, request_: bytes, status: int
) -> None:
    """Lengths that differ, odd framings and what is no HTTP get a refusal, and the connection ends.

    Whatever follows in the same bytes is no second request.
    """
    with _serving(load) as server:
        answer = _raw(server, request_ + b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert int(answer.split()[1]) == status
        assert b"Connection: close" in answer
        assert b'{"error": "Expected ' in answer
        assert server.errors == 1
        assert _ask(server, "GET", "/health")[0] == 200


def test_body_limits(load: Load) -> None:
    """A body above the limit is a 413 that its sender gets to see, in chunks and unpacked too."""
    with _serving(load, max_bytes=100_000) as server:
        assert _ask(server, "POST", "/score", b"1" * 100_001)[0] == 413
        assert _ask(server, "POST", "/score", b"1" * 3_000_000, CSV)[0] == 413
        bomb = gzip.compress(b"1" * 50_000_000)
        assert len(bomb) < 100_000
        assert _ask(server, "POST", "/score", bomb, CSV, Content_Encoding="gzip")[0] == 413
        chunk = b"2710\r\n" + b"1" * 10_000 + b"\r\n"
        answer = _raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + 11 * chunk)
        assert int(answer.split()[1]) == 413
        assert _ask(server, "GET", "/health")[0] == 200


def test_bodies_in_chunks_and_packed(load: Load) -> None:
    """Chunks and gzip give the scores of the plain body; what is no whole gzip is refused."""
    body = b"".join(RECORD for _ in range(2000))
    parts = [body[start : start + 1000] for start in range(0, len(body), 1000)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    with _serving(load) as server:
        _, plain = _ask(server, "POST", "/score", body, CSV)
        assert len(plain["scores"]) == 2000
        chunked = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
        assert json.loads(_raw(server, chunked).partition(b"\r\n\r\n")[2]) == plain
        packed = gzip.compress(body)
        assert _ask(server, "POST", "/score", packed, CSV, Content_Encoding="gzip") == (200, plain)
        for bad in (packed[:-9], packed + b"more", body, b""):
            assert _ask(server, "POST", "/score", bad, CSV, Content_Encoding="gzip")[0] == 400


def test_head_answers_like_get_without_a_body(load: Load) -> None:
    """HEAD gives the status and the length of GET, and nothing else."""
    with _serving(load) as server:
        for path in ("/health", "/info"):
            request = b"%b " + path.encode() + b" HTTP/1.0\r\n\r\n"
            head, _, none = _raw(server, request % b"HEAD").partition(b"\r\n\r\n")
            assert (head.split()[1], none) == (b"200", b"")
            assert head == _raw(server, request % b"GET").partition(b"\r\n\r\n")[0]
        assert server.errors == 0


def test_sender_that_waits_to_go_on(load: Load) -> None:
    """A client that asks first is told to send its body, or why not."""
    with _serving(load, max_bytes=100) as server:
        for length, first in ((len(RECORD), b"HTTP/1.1 100"), (101, b"HTTP/1.1 413")):
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as channel:
                wait = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length
                channel.sendall(HEAD + wait)
                assert channel.recv(65_536).startswith(first)
                if length == len(RECORD):
                    channel.sendall(RECORD)
                    assert channel.recv(65_536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:8711", 200),
        ("127.0.0.1:1", 200),
        ("192.0.2.7:8711", 200),
        ("[::1]:8711", 200),
        ("[::ffff:127.0.0.1]", 200),
        ("edge.example:80", 200),
        ("edge.example.", 200),
        ("attacker.example", 421),
        ("attacker.example:8711", 421),
        ("127.0.0.1.attacker.example", 421),
        ("localhost.attacker.example", 421),
        ("localhost:80@attacker.example", 421),
        ("127.0.0.1:x", 421),
        ("", 421),
    ],
)
def test_names_that_lead_here_are_not_enough(load: Load, host: str, status: int) -> None:
    """A page that makes its own name lead to this server can neither read nor post."""
    with _serving(load, names=["Edge.Example"]) as server:
        assert _ask(server, "GET", "/health", Host=host)[0] == status
        assert _ask(server, "POST", "/score", RECORD, CSV, Host=host)[0] == status
        assert server.records == (status == 200)


def test_connection_goes_on_after_good_requests_only(load: Load) -> None:
    """A connection serves one request after the other, and closes after a refusal."""
    with _serving(load) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        for _ in range(3):
            connection.request("POST", "/score", _json(RAW.tolist()), {"Content-Type": JSON})
            answer = connection.getresponse()
            answer.read()
            assert answer.headers["Connection"] is None
        connection.request("POST", "/score", b"{}", {"Content-Type": JSON})
        answer = connection.getresponse()
        answer.read()
        assert (answer.status, answer.headers["Connection"]) == (400, "close")
        connection.close()


def test_answers_on_one_connection_come_at_once(load: Load) -> None:
    """No answer waits for the acknowledgement of its head, which takes 40 ms each."""
    with _serving(load) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        passed = []
        while not passed or (min(passed) > 0.8 and len(passed) < 10):  # others use the machine too
            start = time.monotonic()
            for _ in range(40):
                connection.request("GET", "/health")
                connection.getresponse().read()
            passed.append(time.monotonic() - start)
        assert min(passed) < 0.8
        connection.close()


def test_many_clients_at_once(load: Load) -> None:
    """Concurrent clients each get the scores of their own records."""
    expected = load().score(RAW).score
    wrong: list[int] = []
    with _serving(load, connections=16) as server:

        def client(number: int) -> None:
            for _ in range(10):
                _, answer = _ask(server, "POST", "/score", _json(RAW[number : number + 3].tolist()))
                if not np.allclose(answer["scores"], expected[number : number + 3], rtol=1e-5):
                    wrong.append(number)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert wrong == []
        assert server.records == 12 * 10 * 3


def test_slow_connections_keep_nobody_out(load: Load) -> None:
    """However many clients dawdle, in head, body or answer, a whole request is served."""
    starts = [b"", b"GET /hea", HEAD + b"Content-Length: 100000\r\n\r\n" + b"1" * 50_000]
    asking = b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000  # and no answer is read
    with _serving(load, connections=8, max_bytes=100_000) as server:
        held = []
        for number in range(40):
            channel = socket.create_connection(("127.0.0.1", server.server_port), timeout=10)
            channel.setblocking(False)
            with contextlib.suppress(OSError):
                channel.send([*starts, asking][number % 4])
            held.append(channel)
        start = time.monotonic()
        for _ in range(10):
            assert _ask(server, "POST", "/score", RECORD, CSV)[0] == 200
        assert time.monotonic() - start < 5
        for channel in held:
            channel.close()


class _Slow:
    """An application whose answers wait until they may go on."""

    routes: Mapping[str, str] = {"/slow": "POST", "/health": "GET", "/nan": "GET"}

    def __init__(self) -> None:
        self.go = threading.Event()
        self.errors = 0

    def get(self, path: str) -> web.Answer:
        """At once, though one is not JSON."""
        return web.Answer(body={"ok": True if path == "/health" else float("nan")})

    def post(self, path: str, kind: str, body: bytes) -> web.Answer:
        """When it may; a body that is no number is a fault of the program."""
        self.go.wait(10)
        return web.Answer(body={"number": int(body)})

    def refused(self) -> None:
        """Count it."""
        self.errors += 1


def test_busy_server_says_so_and_stays_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    """While one answer is computed health is told; when all wait for one, a further one gets 503.

    An answer that fails is a 500, and the server goes on.
    """
    slow, stop = _Slow(), threading.Event()
    server = web.WebServer(slow, "127.0.0.1", 0, connections=3, max_bytes=100)
    thread = threading.Thread(target=server.run, args=(stop, lambda: None, 5.0))
    thread.start()
    answers: dict[bytes, tuple[int, object]] = {}

    def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, object]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request(method, path, body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, json.loads(data) if data else None

    def post(body: bytes) -> None:
        answers[body] = ask("POST", "/slow", body)

    clients = [threading.Thread(target=post, args=(body,)) for body in (b"1", b"2", b"x")]

    def working() -> int:
        return sum(one.state is web._State.WORKING for one in list(server._all))

    try:
        assert ask("GET", "/nan")[0] == 500
        slow.errors = 0
        for number, client in enumerate(clients, 1):
            client.start()
            _until(lambda number=number: working() == number)
            assert ask("GET", "/health")[0] == (200 if number < 3 else 503)
        assert slow.errors == 1
    finally:
        stop.set()  # requests under way still get their answers
        slow.go.set()
        for client in [*clients, thread]:
            client.join(20)
        server.close()
    assert answers[b"1"] == (200, {"number": 1})
    assert answers[b"2"] == (200, {"number": 2})
    status, refusal = answers[b"x"]
    assert status == 500
    assert "ValueError" in str(refusal)
    assert "invalid literal" in capsys.readouterr().err


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _seconds_until_cut(channel: socket.socket) -> float:
    """How long the server takes bytes that come one by one."""
    begun = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - begun < 4:
            time.sleep(0.05)
            channel.sendall(b"1")
    return time.monotonic() - begun


def test_slow_clients_are_let_go(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte now and then loses its connection when its time is over."""
    monkeypatch.setattr(web, "_IDLE_S", 0.4)
    monkeypatch.setattr(web, "_BODY_S", 0.4)
    monkeypatch.setattr(web, "_DISCARD_S", 0.2)
    with _serving(load) as server:
        for start in (b"GET /hea", HEAD + b"Content-Length: 100\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as channel:
                channel.sendall(start)
                assert _seconds_until_cut(channel) < 2
                assert channel.recv(65_536).startswith(b"HTTP/1.1 408")


def test_health_names_the_reason(load: Load) -> None:
    """Health is 200 with the golden error, and 503 with the reason when nothing can be scored."""
    with _serving(load) as server:
        status, answer = _ask(server, "GET", "/health")
        assert (status, answer["ok"], answer["version"]) == (200, True, 3)
        assert answer["golden_error"] <= 1e-6
        assert _ask(server, "GET", "/info")[1]["name"] == "tiny-hearts"
    only = load(tiny.manifest(thresholds=Thresholds(quantile=0.9, absolute=None, recentred=1.0)))
    with _serving(load, model=only) as server:
        status, answer = _ask(server, "GET", "/health")
        assert (status, answer["ok"]) == (503, False)
        assert "re-centre" in answer["reason"]
        assert _ask(server, "POST", "/score", _json(RAW.tolist()))[0] == 503


def test_metrics_are_in_the_text_format(load: Load) -> None:
    """Metrics parse line by line; counts, latencies, drift and memory are right."""
    latents, model = tiny.raw_records(128 * 18, seed=1), load()
    with _serving(load, model=model, drift=DriftMonitor(model.density)) as server:
        _ask(server, "POST", "/score", latents.astype("<f4").tobytes(), RAW_BYTES)
        _ask(server, "POST", "/score", b"{}")
        status, text = _ask(server, "GET", "/metrics")
    assert status == 200
    assert text.endswith(b"\n")
    values, types = {}, {}
    for line in text.decode().splitlines():
        if line.startswith("# TYPE"):
            types[line.split()[2]] = line.split()[3]
        elif not line.startswith("#"):
            name, value = re.fullmatch(r"([a-z_:]+(?:\{[^}]*\})?) (\S+)", line).groups()  # type: ignore[union-attr]
            values[name] = float(value)
    flags = int(load().score(latents.astype("<f4")).flag.sum())
    assert values["fedlatent_records_total"] == 128 * 18
    assert values["fedlatent_flags_total"] == flags > 0
    clipped = tiny.SCHEMA.outside(latents)
    assert values["fedlatent_clipped_values_total"] == clipped.sum() > 0
    assert values["fedlatent_outside_records_total"] == (clipped > 0).sum()
    assert values["fedlatent_errors_total"] == 1
    assert values['fedlatent_score_seconds_bucket{le="+Inf"}'] == 1
    assert values["fedlatent_score_seconds_count"] == 1
    assert 0 < values["fedlatent_score_seconds_sum"] < 5
    assert values["fedlatent_drift_distance"] > 0
    assert values["fedlatent_drift_shift"] > 0
    assert values["fedlatent_healthy"] == 1
    assert values["fedlatent_resident_bytes"] > 1e6
    assert any(name.startswith('fedlatent_info{name="tiny-hearts"') for name in values)
    bases = {re.sub(r"(_bucket|_sum|_count)?(\{.*)?$", "", name) for name in values}
    assert bases == set(types)
    assert types["fedlatent_score_seconds"] == "histogram"


def test_confirmation_comes_once(load: Load) -> None:
    """The installed bundle is confirmed after enough records, once."""
    calls: list[int] = []
    with _serving(load, confirm=lambda: calls.append(1)) as server:
        _ask(server, "POST", "/score", _json(RAW[: CONFIRM_AFTER - 1].tolist()))
        assert calls == []
        for _ in range(3):
            _ask(server, "POST", "/score", _json(RAW[:1].tolist()))
    assert calls == [1]


def test_addresses_that_cannot_be_used(load: Load) -> None:
    """A port that is taken is a ServiceError, an impossible one a ConfigError."""
    with (
        _serving(load) as server,
        pytest.raises(ServiceError, match="choose another"),
    ):
        EdgeServer(load(), ServeOptions(port=server.server_port))
    with pytest.raises(ServiceError, match="choose another"):
        EdgeServer(load(), ServeOptions(host="no name" * 20, port=0))
    for options in ({"port": 70_000}, {"connections": 0}, {"max_bytes": 0}):
        with pytest.raises(ConfigError, match="Expected"):
            EdgeServer(load(), ServeOptions(**options))  # type: ignore[arg-type]


def test_command_serves_and_ends_on_sigterm(tmp_path: Path, signing_key: SigningKey) -> None:
    """The command says its address, answers, and ends within a second of SIGTERM with code 0."""
    bundle = tiny.write(tmp_path / "tiny.fedlatent", signing_key)
    public = tmp_path / "publisher.pub"
    public.write_bytes(signing_key.public.to_pem())
    command = [
        sys.executable,
        "-m",
        "fedlatent.client.edge.main",
        "serve",
        str(bundle),
        "--key",
        str(public),
    ]
    process = subprocess.Popen(
        [*command, "--port", "0", "--json"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["serving"]
        host, port = address.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("GET", "/health")
        answer = connection.getresponse()
        assert (host, answer.status) == ("127.0.0.1", 200)
        answer.read()
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)  # while a connection is open
        _, err = process.communicate(timeout=240)
        assert time.monotonic() - start < 4.5  # within 1 s when idle; a connection may rest for 5 s
        assert (process.returncode, err) == (0, b"")
        connection.close()
    finally:
        process.kill()
        process.communicate()
