"""A small HTTP server on a device: records in, scores out; health and metrics for operators.

It has no users and no TLS: others than this machine reach it through a reverse proxy that has.
One request is scored at a time.
"""

import contextlib
import json
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from fedlatent.client.edge.decoders import Decoder, Layout
from fedlatent.client.edge.drift import DriftMonitor
from fedlatent.client.edge.formats import CsvDecoder, JsonLinesDecoder, RawDecoder
from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.edge.stream import CONFIRM_AFTER, Notifier, resident_bytes
from fedlatent.client.edge.web import Answer, Refusal, WebServer
from fedlatent.client.edge.windows import Windows, row_of
from fedlatent.shared.data.dialect import COMMAS, Dialect
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window
from fedlatent.shared.errors import BundleError, ConfigError, DataError

#: Upper bounds of the latency histogram, in seconds.
LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
PATHS = {"/score": "POST", "/health": "GET", "/metrics": "GET", "/info": "GET"}

_JSON, _RAW = "application/json", "application/octet-stream"
_DECODERS: dict[str, type[Decoder]] = {
    _JSON: JsonLinesDecoder,
    "text/csv": CsvDecoder,
    _RAW: RawDecoder,
}
_END_S = 0.5  # that requests get to end when the server stops


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How to serve.

    Attributes:
        host: address to listen on.
        port: to listen on; 0 takes a free one.
        max_bytes: of a body.
        connections: at a time.
        names: that requests may call this server by, beside addresses and localhost.
        mapped: what columns are called in the bundle, by the names that requests have for them.
        dialect: how CSV in requests is written.
        drift: None for no monitor.
        confirm: called once, after `CONFIRM_AFTER` records without an error.
    """

    host: str = "127.0.0.1"
    port: int = 8711
    max_bytes: int = 1 << 22
    connections: int = 64
    names: Sequence[str] = ()
    mapped: Mapping[str, str] = field(default_factory=dict)
    dialect: Dialect = COMMAS
    drift: DriftMonitor | None = None
    confirm: Callable[[], None] | None = None


class EdgeServer:
    """The HTTP server; run it with `serve`, in a ``with`` statement.

    Attributes:
        routes: the method of each path.
        records: scored ones.
        flags: of them, those above the threshold.
        clipped: values of them beyond the public bounds.
        outside: of them, those with such values.
        errors: refused requests.
    """

    routes: Mapping[str, str] = PATHS

    def __init__(self, model: EdgeModel, options: ServeOptions) -> None:
        """Bind and listen.

        Raises:
            ConfigError: a limit is not positive.
            ServiceError: the address cannot be used.
        """
        if options.max_bytes < 1 or options.connections < 1 or not 0 <= options.port < 65536:
            raise ConfigError("Expected positive limits and a port below 65536, got others.")
        self.model, self.options = model, options
        self.records = self.flags = self.errors = self.clipped = self.outside = 0
        self._latencies = [0] * (len(LATENCIES) + 1)
        self._seconds = 0.0
        self._failure: str | None = None
        self._confirm = options.confirm
        self._counting = threading.Lock()
        self._web = WebServer(
            self,
            options.host,
            options.port,
            connections=options.connections,
            max_bytes=options.max_bytes,
            names=options.names,
        )

    def __enter__(self) -> Self:
        """It listens already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections."""
        self._web.close()

    @property
    def server_port(self) -> int:
        """The port that it listens on."""
        return self._web.port

    def get(self, path: str) -> Answer:
        """The answer to GET /health, /info or /metrics; 503 where health is not ok."""
        if path == "/health":
            health = self.health()
            return Answer(body=health, status=200 if health["ok"] else 503)
        return Answer(body=self.model.info() if path == "/info" else self.metrics())

    def post(self, path: str, kind: str, body: bytes) -> Answer:
        """Scores of the records in a body, JSON or CSV by its media type ``kind``."""
        return Answer(body=self.score(body, kind))

    def run(self, stop: threading.Event, alive: Callable[[], None]) -> None:
        """Answer until ``stop``; ``alive`` is called several times a second."""
        self._web.run(stop, alive, _END_S)

    def refused(self) -> None:
        """Count a refused request."""
        with self._counting:
            self.errors += 1

    def score(self, body: bytes, kind: str) -> dict[str, object]:
        """The answer to a body of media type ``kind``; a refusal when it cannot be scored."""
        start = time.perf_counter()
        try:
            layout = Layout(names=self.options.mapped, dialect=self.options.dialect)
            records, extra = _parse(body, kind, self.model.bundle.manifest.schema, layout)
            table = self.model.score(records)
            self._failure = None
        except DataError as error:
            raise Refusal(400, str(error)) from None
        except BundleError as error:
            self._failure = str(error)
            raise Refusal(503, str(error)) from None
        if self.options.drift is not None:
            self.options.drift.update(table.mu)
        seconds = time.perf_counter() - start
        with self._counting:
            self.records += len(table.score)
            self.flags += int(np.count_nonzero(table.flag))
            self.clipped += int(table.clipped.sum())
            self.outside += int(np.count_nonzero(table.outside))
            self._latencies[bisect_left(LATENCIES, seconds)] += 1
            self._seconds += seconds
        if self._confirm is not None and self.records >= CONFIRM_AFTER:
            self._confirm()
            self._confirm = None
        return {
            "scores": table.score.tolist(),
            "flags": table.flag.tolist(),
            "threshold": table.threshold,
            "clipped": table.clipped.tolist(),
            **({"extra": list(extra)} if extra else {}),
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
                "clipped_values_total": self.clipped,
                "outside_records_total": self.outside,
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


def serve(server: EdgeServer, stop: threading.Event) -> None:
    """Answer until ``stop``, then give requests under way half a second."""
    notifier = Notifier()
    notifier.send("READY=1")
    try:
        server.run(stop, notifier.alive)
    finally:
        notifier.send("STOPPING=1")


def _parse(
    body: bytes, kind: str, schema: Schema, layout: Layout
) -> tuple[np.ndarray, Sequence[str]]:
    """Raw records [n, raw_size], n >= 1, of a body of media type ``kind``, and extra columns.

    JSON is {"records": [[...], ...]}, or of objects by name where the schema has columns; raw bytes
    are little-endian float32. The schema's window cuts rows of CSV, of objects and of raw bytes.
    """
    if kind not in _DECODERS:
        raise Refusal(415, f"Expected one of {', '.join(_DECODERS)}, got another type.")
    if kind == _JSON:
        records = _json_records(body)
        if not schema.columns:
            return _numbers(records), ()
        body = b"\n".join(json.dumps(one).encode() for one in records)
    window = schema.window or Window(length=1)
    if kind != _RAW:
        layout = replace(layout, time=window.time, group=window.group)
    decoder, windows = _DECODERS[kind](row_of(schema), layout), Windows(window)
    parts = [windows.push(each).values for each in (*decoder.feed(body), *decoder.finish())]
    if not sum(map(len, parts)):
        rows = f" of {window.length} rows" if window.length > 1 else ""
        raise DataError(f"Expected at least one record{rows}, got none.")
    return np.concatenate(parts), decoder.extra


def _json_records(body: bytes) -> list[Any]:
    """The list at "records", the one key of a JSON body."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        value = json.loads(body)
        if set(value) == {"records"} and isinstance(value["records"], list):
            return value["records"]
    raise DataError('Expected JSON {"records": [...]}, got something else.')


def _numbers(rows: list[Any]) -> np.ndarray:
    """Rows of equally many numbers as an array [n, size]."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        if all(type(item) in (int, float) for row in rows for item in row):
            return np.array(rows, dtype=np.float64)
    raise DataError(
        'Expected JSON {"records": [[...], ...]} with equally many numbers in each row, got '
        "something else."
    )
