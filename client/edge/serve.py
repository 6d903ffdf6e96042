"""A small HTTP server on a device: records in, scores out; health and metrics for operators.

It has no users and no TLS: others than this machine reach it through a reverse proxy that has.
Each connection has a thread, of which there are so many; a further one gets 503. One request is
scored at a time.
"""

import contextlib
import io
import json
import socket
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

import numpy as np

from client.edge.drift import DriftMonitor
from client.edge.runtime import EdgeModel
from client.edge.stream import CONFIRM_AFTER, Notifier, resident_bytes
from client.edge.windows import CsvDecoder, Decoder, RawDecoder
from shared.data.schema import Schema
from shared.errors import BundleError, ConfigError, DataError, ServiceError

#: Upper bounds of the latency histogram, in seconds.
LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
PATHS = {"/score": "POST", "/health": "GET", "/metrics": "GET", "/info": "GET"}

_DECODERS: dict[str, type[Decoder]] = {
    "text/csv": CsvDecoder,
    "application/octet-stream": RawDecoder,
}
_IDLE_S = 5.0  # to send the head of a request, from the one before
_BODY_S = 10.0  # to send a body, and to take an answer
_DISCARD_S = 1.0  # that a refused body is still read, so that its sender sees the answer
_END_S = 0.5  # that requests get to end when the server stops
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Length: 0\r\n\r\n"
)


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve.

    Attributes:
        host: address to listen on.
        port: to listen on; 0 takes a free one.
        max_bytes: of a body.
        threads: connections at a time.
        drift: None for no monitor.
        confirm: called once, after `CONFIRM_AFTER` records without an error.
    """

    host: str = "127.0.0.1"
    port: int = 8711
    max_bytes: int = 1 << 22
    threads: int = 8
    drift: DriftMonitor | None = None
    confirm: Callable[[], None] | None = None


class _Refusal(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class EdgeServer(ThreadingTCPServer):
    """The HTTP server; run it with `serve`.

    Attributes:
        records: scored ones.
        flags: of them, those above the threshold.
        errors: refused requests.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64
    timeout = 0.2  # of handle_request, in seconds

    def __init__(self, model: EdgeModel, options: ServeOptions) -> None:
        """Bind and listen.

        Raises:
            ConfigError: a limit is not positive.
            ServiceError: the address cannot be used.
        """
        if options.max_bytes < 1 or options.threads < 1 or not 0 <= options.port < 65536:
            raise ConfigError("Expected positive limits and a port below 65536, got others.")
        self.model, self.options = model, options
        self.records = self.flags = self.errors = 0
        self._latencies = [0] * (len(LATENCIES) + 1)
        self._seconds = 0.0
        self._failure: str | None = None
        self._confirm = options.confirm
        self._scoring, self._counting = threading.Lock(), threading.Lock()
        self._free = threading.BoundedSemaphore(options.threads)
        self.address_family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        try:
            super().__init__((options.host, options.port), Handler)
        except OSError as error:
            raise ServiceError(
                f"Expected to listen on {options.host} port {options.port}, got "
                f"{error.strerror or type(error).__name__}; choose another."
            ) from None

    @property
    def server_port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Answer in a thread, or say 503 when none is free."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        self.refused()
        with contextlib.suppress(OSError):
            request.settimeout(0.1)
            request.sendall(_BUSY)
        super().shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        """End a connection that was answered."""
        super().shutdown_request(request)
        self._free.release()

    def drain(self, seconds: float) -> None:
        """Wait for requests under way, ``seconds`` at most."""
        deadline = time.monotonic() + seconds
        for _ in range(self.options.threads):
            self._free.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def refused(self) -> None:
        """Count a refused request."""
        with self._counting:
            self.errors += 1

    def score(self, body: bytes, kind: str) -> dict[str, object]:
        """The answer to a body of media type ``kind``; a refusal when it cannot be scored."""
        with self._scoring:  # also while parsing, which bounds the memory of large bodies
            start = time.perf_counter()
            try:
                table = self.model.score(_parse(body, kind, self.model.bundle.manifest.schema))
                self._failure = None
            except DataError as error:
                raise _Refusal(400, str(error)) from None
            except BundleError as error:
                self._failure = str(error)
                raise _Refusal(503, str(error)) from None
            if self.options.drift is not None:
                self.options.drift.update(table.mu)
            seconds = time.perf_counter() - start
            with self._counting:
                self.records += len(table.score)
                self.flags += int(np.count_nonzero(table.flag))
                self._latencies[bisect_left(LATENCIES, seconds)] += 1
                self._seconds += seconds
            if self._confirm is not None and self.records >= CONFIRM_AFTER:
                self._confirm()
                self._confirm = None
        return {
            "scores": table.score.tolist(),
            "flags": table.flag.tolist(),
            "threshold": table.threshold,
        }

    def health(self) -> dict[str, object]:
        """Answer of GET /health."""
        reason = self._failure
        try:
            _ = self.model.threshold
        except BundleError as error:
            reason = str(error)
        manifest = self.model.bundle.manifest
        return {
            "ok": reason is None,
            "reason": reason,
            "name": manifest.name,
            "version": manifest.version,
            "golden_error": self.model.golden_error,
        }

    def metrics(self) -> str:
        """Answer of GET /metrics, in the text format of Prometheus, version 0.0.4."""
        manifest, drift = self.model.bundle.manifest, self.options.drift
        info = f'name="{manifest.name}",version="{manifest.version}"'
        with self._counting:
            latencies, seconds = list(self._latencies), self._seconds
            values: dict[str, float | None] = {
                "records_total": self.records,
                "flags_total": self.flags,
                "errors_total": self.errors,
            }
        values["healthy"] = self.health()["ok"] is True
        values["resident_bytes"] = resident_bytes()
        values[f'info{{{info},sha256="{self.model.bundle.digest}"}}'] = 1
        if drift is not None:
            values["drifted"], values["drift_alarms_total"] = drift.drifted, drift.alarms
            values["drift_shift"], values["drift_distance"] = drift.shift, drift.distance
        lines = []
        for name, value in values.items():
            if value is not None:
                kind = "counter" if name.endswith("_total") else "gauge"
                lines.append(f"# TYPE fedlatent_{name.partition('{')[0]} {kind}")
                lines.append(f"fedlatent_{name} {value + 0}")
        name, total = "fedlatent_score_seconds", 0
        lines.append(f"# TYPE {name} histogram")
        for bound, count in zip((*LATENCIES, "+Inf"), latencies, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return "\n".join([*lines, f"{name}_sum {seconds}", f"{name}_count {total}"]) + "\n"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "fedlatent-edge"
    sys_version = ""
    disable_nagle_algorithm = True  # else an answer takes 40 ms
    server: EdgeServer
    timeout = _BODY_S

    def setup(self) -> None:
        """Read through a deadline, so that a slow client cannot hold its thread."""
        super().setup()
        self._incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        """One request; its deadline starts anew."""
        self._incoming.deadline = time.monotonic() + _IDLE_S
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        """See `PATHS`."""
        try:
            self._answer(self.path.partition("?")[0])
        except _Refusal as refusal:
            # What is left of the body is not read, so the connection cannot go on.
            self.send_error(refusal.status, str(refusal))

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Requests are counted, not logged."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request, and end the connection."""
        self.server.refused()
        self.close_connection = True
        self._send(code, {"error": message or "Expected HTTP/1.1, got something else."})
        # Read what the client still sends; else it may see a reset before the answer.
        self._incoming.deadline = time.monotonic() + _DISCARD_S
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while self.rfile.read1(65_536):
                pass

    def _answer(self, path: str) -> None:
        if self.command != PATHS.get(path):
            known = ", ".join(f"{method} {name}" for name, method in PATHS.items())
            status = 405 if path in PATHS else 404
            raise _Refusal(status, f"Expected one of {known}, got another call.")
        if path == "/score":
            body = self._body()
            self._send(200, self.server.score(body, self.headers.get_content_type()))
            return
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            raise _Refusal(400, "Expected no body with GET, got one.")
        if path == "/health":
            health = self.server.health()
            self._send(200 if health["ok"] else 503, health)
        elif path == "/info":
            self._send(200, self.server.model.info())
        else:
            self._send(200, self.server.metrics())

    def _body(self) -> bytes:
        length = ",".join(self.headers.get_all("Content-Length", []))
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdecimal()):
            raise _Refusal(411, "Expected one Content-Length, got none or another.")
        most = self.server.options.max_bytes
        if len(length) > 15 or int(length) > most:
            raise _Refusal(
                413,
                f"Expected a body of at most {most} bytes, got more; send fewer records at once.",
            )
        self._incoming.deadline = time.monotonic() + _BODY_S
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise ConnectionAbortedError
        return body

    def _send(self, status: int, answer: dict[str, object] | str) -> None:
        """Answer with JSON, or with text."""
        kind, text = "text/plain; version=0.0.4; charset=utf-8", answer
        if not isinstance(text, str):
            kind, text = "application/json", json.dumps(text, allow_nan=False)
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if status == 405:
            self.send_header("Allow", PATHS[self.path.partition("?")[0]])
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)


class _Incoming(io.RawIOBase):
    """Bytes of a socket until a deadline."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline = 0.0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        """Like `io.RawIOBase.readinto`; a TimeoutError after the deadline."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        count = self._connection.recv_into(buffer)
        self._connection.settimeout(_BODY_S)  # for the answer
        return count


def serve(server: EdgeServer, stop: threading.Event) -> None:
    """Answer until ``stop``, then give requests under way half a second."""
    notifier = Notifier()
    notifier.send("READY=1")
    try:
        while not stop.is_set():
            server.handle_request()
            notifier.alive()
    finally:
        notifier.send("STOPPING=1")
        server.socket.close()
        server.drain(_END_S)


def _parse(body: bytes, kind: str, schema: Schema) -> np.ndarray:
    """Raw records [n, size], n >= 1, of a body of media type ``kind``.

    JSON is {"records": [[...], ...]}, raw bytes are little-endian float32.
    """
    if kind == "application/json":
        try:
            value = json.loads(body)
            rows = value["records"] if set(value) == {"records"} else [[None]]
            if all(type(item) in (int, float) for row in rows for item in row):
                return np.array(rows, dtype=np.float64)
        except (ValueError, TypeError, RecursionError, OverflowError):
            pass
        raise DataError(
            'Expected JSON {"records": [[...], ...]} with equally many numbers in each row, got '
            "something else."
        )
    if kind not in _DECODERS:
        known = ", ".join(("application/json", *_DECODERS))
        raise _Refusal(415, f"Expected one of {known}, got another type.")
    decoder = _DECODERS[kind](schema)
    parts = [*decoder.feed(body), *decoder.finish()]
    if not parts:
        raise DataError("Expected at least one record, got none.")
    return np.concatenate(parts)
