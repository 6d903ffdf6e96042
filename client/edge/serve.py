"""A small HTTP server on a device: records in, scores out; health and metrics for operators.

It listens on the loopback interface unless told otherwise: it has no users and no TLS, so others
reach it through a reverse proxy that has. One thread a connection, of which there are at most as
many as asked for; a further one gets 503. Scoring takes one request at a time.
"""

import contextlib
import io
import json
import socket
import socketserver
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any, ClassVar, NoReturn, cast

import numpy as np

from client.edge.drift import DriftMonitor
from client.edge.reader import csv_chunks
from client.edge.runtime import EdgeModel
from client.edge.stream import CONFIRM_AFTER, Notifier, Stop, resident_bytes
from shared.data.schema import MAX_DIMENSIONS, Schema
from shared.errors import BundleError, ConfigError, DataError, ServiceError

MAX_BYTES = 1 << 22
#: Upper bounds of the latency histogram, in seconds.
LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
POST_PATHS = ("/score",)
GET_PATHS = ("/health", "/metrics", "/info")

_IDLE_S = 5.0  # to send the head of a request, from the one before
_BODY_S = 10.0  # to send a body, and to take an answer
_DISCARD_S = 1.0  # that a refused body is still read, so that its sender sees the answer
_END_S = 0.5  # that requests get to end when the server stops
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Type: application/json\r\nContent-Length: 79\r\n\r\n"
    b'{"error":"Expected a free connection, got none; try again in a second or two."}'
)


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve.

    Attributes:
        host: address to listen on.
        port: to listen on; 0 takes a free one.
        max_bytes: of a body.
        threads: connections at a time.
        drift_block: records in a block of the drift monitor; 0 for no monitor.
        confirm: called once, after `CONFIRM_AFTER` records were scored without an error.
    """

    host: str = "127.0.0.1"
    port: int = 8711
    max_bytes: int = MAX_BYTES
    threads: int = 8
    drift_block: int = 128
    confirm: Callable[[], None] | None = None


class Refusal(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        """Answer ``sentence`` under ``status``."""
        super().__init__(sentence)
        self.status = status


class Metrics:
    """Counts since the start; safe for several threads."""

    def __init__(self) -> None:
        """All zero."""
        self._lock = threading.Lock()
        self.records = self.flags = 0
        self._answers: Counter[int] = Counter()
        self._latencies = [0] * (len(LATENCIES) + 1)
        self._seconds = 0.0

    def scored(self, records: int, flags: int, seconds: float) -> None:
        """One request was scored, in so many seconds of parsing and scoring."""
        with self._lock:
            self.records += records
            self.flags += flags
            self._latencies[bisect_left(LATENCIES, seconds)] += 1
            self._seconds += seconds

    def answered(self, status: int) -> None:
        """One request was answered."""
        with self._lock:
            self._answers[status] += 1

    def lines(self) -> list[str]:
        """In the text format of Prometheus, version 0.0.4."""
        with self._lock:
            answers, latencies = dict(self._answers), list(self._latencies)
            records, flags, seconds = self.records, self.flags, self._seconds
        errors = sum(count for status, count in answers.items() if status >= 400)
        lines = _metric("records_total", "counter", "Scored records.", {"": records})
        lines += _metric("flags_total", "counter", "Records above the threshold.", {"": flags})
        lines += _metric("errors_total", "counter", "Requests that were refused.", {"": errors})
        by_status = {f'{{status="{status}"}}': n for status, n in sorted(answers.items())}
        lines += _metric("answers_total", "counter", "Answers by HTTP status.", by_status)
        total, buckets = 0, {}
        for bound, count in zip((*map(str, LATENCIES), "+Inf"), latencies, strict=True):
            total += count
            buckets[f'_bucket{{le="{bound}"}}'] = total
        values: dict[str, float] = {**buckets, "_sum": seconds, "_count": total}
        text = "Seconds to parse and score one request."
        return lines + _metric("score_seconds", "histogram", text, values)


class Scorer:
    """The model with its lock, its drift monitor and its counts."""

    def __init__(self, model: EdgeModel, options: ServeOptions) -> None:
        """Wrap a verified bundle."""
        self.model = model
        self.metrics = Metrics()
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._confirm = options.confirm
        self._started = time.monotonic()
        density = model.density
        self._drift = (
            DriftMonitor(
                density.mean, density.covariance, density.within, block=options.drift_block
            )
            if options.drift_block
            else None
        )

    def score(self, body: bytes, kind: str) -> dict[str, object]:
        """The answer to a body of media type ``kind``.

        Raises:
            Refusal: the body cannot be scored, or the bundle fails.
        """
        schema = self.model.bundle.manifest.schema
        with self._lock:  # also while parsing, which bounds the memory of large bodies
            start = time.perf_counter()
            try:
                records = parse_records(body, kind, schema)
                table = self.model.score(records)
            except DataError as error:
                raise Refusal(HTTPStatus.BAD_REQUEST, str(error)) from None
            except BundleError as error:
                self._failure = str(error)
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
            self._failure = None
            if self._drift is not None:
                self._drift.update(table.mu)
            flags = int(np.count_nonzero(table.flag))
            self.metrics.scored(len(table.score), flags, time.perf_counter() - start)
            if self._confirm is not None and self.metrics.records >= CONFIRM_AFTER:
                confirm, self._confirm = self._confirm, None
                confirm()
        return {
            "scores": table.score.tolist(),
            "flags": table.flag.tolist(),
            "threshold": table.threshold,
        }

    def health(self) -> tuple[HTTPStatus, dict[str, object]]:
        """Status and answer of GET /health."""
        manifest = self.model.bundle.manifest
        reason = self._failure
        try:
            _ = self.model.threshold
        except BundleError as error:
            reason = str(error)
        status = HTTPStatus.OK if reason is None else HTTPStatus.SERVICE_UNAVAILABLE
        return status, {
            "ok": reason is None,
            "reason": reason,
            "name": manifest.name,
            "version": manifest.version,
            "golden_error": self.model.golden_error,
        }

    def metrics_text(self) -> str:
        """Answer of GET /metrics."""
        manifest = self.model.bundle.manifest
        labels = (
            f'{{name="{manifest.name}",version="{manifest.version}",kind="{manifest.kind}",'
            f'sha256="{self.model.bundle.digest}"}}'
        )
        lines = self.metrics.lines()
        lines += _metric("bundle_info", "gauge", "The bundle that scores.", {labels: 1})
        lines += _metric(
            "golden_error",
            "gauge",
            "Largest relative difference on the golden vectors.",
            {"": self.model.golden_error},
        )
        healthy = self.health()[0] is HTTPStatus.OK
        lines += _metric("healthy", "gauge", "Whether /health says 200.", {"": int(healthy)})
        lines += self._drift_lines()
        up = time.monotonic() - self._started
        lines += _metric("up_seconds", "gauge", "Seconds since the start.", {"": round(up, 3)})
        lines += [
            "# HELP process_resident_memory_bytes Memory in RAM.",
            "# TYPE process_resident_memory_bytes gauge",
            f"process_resident_memory_bytes {resident_bytes()}",
        ]
        return "\n".join(lines) + "\n"

    def _drift_lines(self) -> list[str]:
        if self._drift is None:
            return []
        lines: list[str] = []
        if self._drift.distance is not None:
            text = "Distance of the running latent mean from the released one, in deviations."
            lines += _metric("drift_distance", "gauge", text, {"": self._drift.distance})
        text = "Whether the latents have drifted from this device's first ones."
        lines += _metric("drifted", "gauge", text, {"": int(self._drift.drifted)})
        text = "How often drift has begun."
        return lines + _metric("drift_alarms_total", "counter", text, {"": self._drift.alarms})


class EdgeServer(ThreadingHTTPServer):
    """The HTTP server. Use `serve`, or in tests `handle_request` in a thread."""

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
        self.scorer = Scorer(model, options)
        self.max_bytes = options.max_bytes
        self._connections = options.threads
        self._free = threading.BoundedSemaphore(options.threads)
        self.address_family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        try:
            super().__init__((options.host, options.port), Handler)
        except OSError as error:
            raise ServiceError(
                f"Expected to listen on {options.host} port {options.port}, got "
                f"{error.strerror or type(error).__name__}; choose another."
            ) from None

    def server_bind(self) -> None:
        """Bind without the name look-up of `HTTPServer`, which may ask the network."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Answer in a thread, or say 503 when none is free."""
        if self._free.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:
                self._free.release()
                raise
            return
        self.scorer.metrics.answered(HTTPStatus.SERVICE_UNAVAILABLE)
        with contextlib.suppress(OSError):
            request.settimeout(0.1)
            request.sendall(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """One connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Show the traceback of anything but a client that went away."""
        if not isinstance(sys.exception(), TimeoutError | ConnectionError):
            super().handle_error(request, client_address)

    def drain(self, seconds: float) -> None:
        """Wait for requests under way, ``seconds`` at most."""
        deadline = time.monotonic() + seconds
        for _ in range(self._connections):
            if not self._free.acquire(timeout=max(0.0, deadline - time.monotonic())):
                return


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "fedlatent-edge"
    sys_version = ""
    error_content_type = "application/json"
    error_message_format = '{"error":"Expected a request of HTTP, got something else."}'
    server: EdgeServer
    timeout: ClassVar[float] = _BODY_S

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
        except (TimeoutError, ConnectionError):
            self.close_connection = True

    def do_GET(self) -> None:
        """See `GET_PATHS`."""
        self._answer_with(self._get)

    def do_POST(self) -> None:
        """See `POST_PATHS`."""
        self._answer_with(self._post)

    def _other(self) -> None:
        self._answer_with(self._refuse_path)

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_HEAD = _other

    def log_message(self, format: str, *args: object) -> None:
        """Requests are counted, not logged."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses: malformed requests and unknown methods."""
        self._send(code, _json({"error": message or HTTPStatus(code).phrase}), close=True)

    def _answer_with(self, make: Callable[[str], tuple[int, bytes, str]]) -> None:
        try:
            status, data, kind = make(self.path.partition("?")[0])
        except Refusal as refusal:
            # What is left of the body is not read, so the connection cannot go on.
            self._send(refusal.status, _json({"error": str(refusal)}), close=True)
        else:
            self._send(status, data, kind)

    def _get(self, path: str) -> tuple[int, bytes, str]:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            raise Refusal(HTTPStatus.BAD_REQUEST, "Expected no body with GET, got one.")
        scorer = self.server.scorer
        if path == "/health":
            status, answer = scorer.health()
            return status, _json(answer), "application/json"
        if path == "/metrics":
            kind = "text/plain; version=0.0.4; charset=utf-8"
            return HTTPStatus.OK, scorer.metrics_text().encode(), kind
        if path == "/info":
            return HTTPStatus.OK, _json(scorer.model.info()), "application/json"
        self._refuse_path(path)

    def _post(self, path: str) -> tuple[int, bytes, str]:
        if path not in POST_PATHS:
            self._refuse_path(path)
        body = self._body()
        kind = self.headers.get("Content-Type", "application/json").partition(";")[0]
        answer = self.server.scorer.score(body, kind.strip().lower())
        return HTTPStatus.OK, _json(answer), "application/json"

    def _refuse_path(self, path: str) -> NoReturn:
        if path in GET_PATHS or path in POST_PATHS:
            method = "GET" if path in GET_PATHS else "POST"
            raise Refusal(
                HTTPStatus.METHOD_NOT_ALLOWED, f"Expected {method} for {path}, got {self.command}."
            )
        known = ", ".join((*POST_PATHS, *GET_PATHS))
        raise Refusal(HTTPStatus.NOT_FOUND, f"Expected one of {known}, got another path.")

    def _body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or len(lengths) != 1:
            raise Refusal(
                HTTPStatus.LENGTH_REQUIRED, "Expected one Content-Length, got none or several."
            )
        if not (lengths[0].isascii() and lengths[0].isdecimal()):
            raise Refusal(HTTPStatus.BAD_REQUEST, "Expected a number as Content-Length.")
        if len(lengths[0]) > 15 or int(lengths[0]) > self.server.max_bytes:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"Expected a body of at most {self.server.max_bytes} bytes, got more; send fewer "
                "records at once.",
            )
        self._incoming.deadline = time.monotonic() + _BODY_S
        body = self.rfile.read(int(lengths[0]))
        if len(body) != int(lengths[0]):
            raise ConnectionAbortedError
        return body

    def _send(
        self, status: int, data: bytes, kind: str = "application/json", *, close: bool = False
    ) -> None:
        self.server.scorer.metrics.answered(status)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Content-Type-Options", "nosniff")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = "POST" if self.path.partition("?")[0] in POST_PATHS else "GET"
            self.send_header("Allow", allowed)
        if close:
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        if close:
            self._discard()

    def _discard(self) -> None:
        """Read what a refused client still sends; else it may see a reset before the answer."""
        self._incoming.deadline = time.monotonic() + _DISCARD_S
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while self.rfile.read1(65_536):
                pass


class _Incoming(io.RawIOBase):
    """Bytes of a socket until a deadline."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline = time.monotonic() + _IDLE_S

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


def serve(server: EdgeServer, stop: Stop) -> None:
    """Answer until ``stop``, then give requests under way half a second."""
    notifier = Notifier()
    notifier.ready()
    try:
        while not stop:
            server.handle_request()
            notifier.alive()
    finally:
        notifier.stopping()
        server.socket.close()
        server.drain(_END_S)


def parse_records(body: bytes, kind: str, schema: Schema) -> np.ndarray:
    """Raw records [n, size] or [n, *shape], n >= 1, of a request's body.

    Args:
        body: JSON {"records": [[...], ...]}, CSV, or little-endian float32.
        kind: its media type: application/json, text/csv or application/octet-stream.
        schema: of a record.

    Raises:
        DataError: it is something else.
        Refusal: another media type.
    """
    if kind == "application/json":
        records = _json_records(body)
    elif kind == "text/csv":
        records = _csv_records(body, schema)
    elif kind == "application/octet-stream":
        if len(body) % (4 * schema.size):
            raise DataError(
                f"Expected records of {4 * schema.size} bytes, got {len(body)} bytes in all."
            )
        records = np.frombuffer(body, "<f4").reshape(-1, schema.size)
    else:
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "Expected application/json, text/csv or application/octet-stream, got another type.",
        )
    if not len(records):
        raise DataError("Expected at least one record, got none.")
    return records


def _json_records(body: bytes) -> np.ndarray:
    try:
        value = json.loads(body.decode(), parse_constant=_no_constant)
        if not isinstance(value, dict) or set(value) != {"records"}:
            raise ValueError
        if not _only_numbers(value["records"]):
            raise ValueError
        return np.asarray(value["records"], dtype=np.float64)
    except (ValueError, RecursionError, OverflowError):  # rows of unequal length too
        raise DataError(
            'Expected JSON {"records": [[...], ...]} with rows of equal length and finite numbers, '
            "got something else."
        ) from None


def _only_numbers(value: object) -> bool:
    """Whether ``value`` is lists of numbers, no deeper than records can be.

    Checked before numpy sees them: it would take up to the longest text in every place.
    """
    level: list[object] = [value]
    for _ in range(MAX_DIMENSIONS + 2):
        if not all(type(item) is list for item in level):
            return False
        level = list(chain.from_iterable(cast(list[list[object]], level)))
        if all(type(item) in (int, float) for item in level):
            return True
    return False


def _csv_records(body: bytes, schema: Schema) -> np.ndarray:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise DataError("Expected CSV in UTF-8, got other bytes; convert it.") from None
    chunks = list(csv_chunks(io.StringIO(text), schema, where="the body"))
    return np.concatenate([np.zeros((0, schema.size)), *chunks])


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _metric(name: str, kind: str, text: str, values: Mapping[str, float]) -> list[str]:
    """A metric with help and type; keys of ``values`` follow its name."""
    lines = [f"# HELP fedlatent_{name} {text}", f"# TYPE fedlatent_{name} {kind}"]
    return lines + [f"fedlatent_{name}{suffix} {value}" for suffix, value in values.items()]
