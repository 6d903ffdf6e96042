"""Sources: rotation and truncation, a server that breaks off, a broker that is too fast."""

import contextlib
import datetime
import gzip
import http.server
import ipaddress
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedlatent.client.edge import sources
from fedlatent.client.edge.sources import (
    CHUNK,
    DescriptorSource,
    FollowSource,
    HttpSource,
    MqttSource,
    PackedSource,
    Signal,
    Source,
    open_source,
)
from fedlatent.shared.errors import ConfigError, DataError, ServiceError


def _read(source: Source, until: Callable[[list[bytes | Signal]], bool]) -> list[bytes | Signal]:
    """What ``source`` gives until a condition holds, without IDLE; ten seconds at most."""
    got: list[bytes | Signal] = []
    deadline = time.monotonic() + 60
    while not until(got):
        assert time.monotonic() < deadline, got
        item = source.read(0.05)
        if item is not Signal.IDLE:
            got.append(item)
    return got


def _text(got: list[bytes | Signal]) -> bytes:
    return b"".join(item for item in got if isinstance(item, bytes))


def _rest(source: Source) -> bytes | Signal:
    """One look that may find nothing."""
    return source.read(0.0)


def test_pipe_to_its_end() -> None:
    """A pipe gives what is there at once, then nothing, then its end."""
    reader, writer = os.pipe()
    source = DescriptorSource(reader, "pipe")
    assert source.read(0.0) is Signal.IDLE
    os.write(writer, b"1,2\n")
    assert source.read(1.0) == b"1,2\n"
    os.close(writer)
    assert source.read(1.0) is Signal.END
    source.close()


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_packed_bytes_come_unpacked(tmp_path: Path, size: int) -> None:
    """Gzip in several members, padded, comes as it was before, in pieces of bounded size."""
    lines = 300 if size == 1 else 3000  # a piece for each byte, and all are looked at again
    text = b"".join(b"%d,%d\n" % (number, number**3) for number in range(lines))
    data = gzip.compress(text) + gzip.compress(b"") + gzip.compress(b"0" * 300_000) + b"\0" * 40
    for sure, packed in ((True, data), (False, data), (False, text)):
        source = PackedSource(_Pieces(packed, size), sure=sure)
        got = _read(source, lambda got: Signal.END in got)
        assert _text(got) == (text if packed is text else text + b"0" * 300_000)
        assert all(
            len(item) <= CHUNK or packed is text for item in got[:-1] if isinstance(item, bytes)
        )


@pytest.mark.parametrize("cut", [5, 1000, -4])
def test_packed_file_that_breaks_off(tmp_path: Path, cut: int) -> None:
    """What came before the break is given, then it is refused; plain bytes are, too."""
    text = b"".join(b"%d,%d\n" % (number, number**3) for number in range(3000))
    path = tmp_path / "beats.CSV.Gz"
    path.write_bytes(gzip.compress(text)[:cut])
    source = open_source(str(path))
    got: list[bytes | Signal] = []
    with pytest.raises(DataError, match=r"beats\.CSV\.Gz to be packed by gzip, got an end"):
        got.extend(iter(lambda: source.read(0.0), Signal.END))
    assert text.startswith(_text(got))
    assert len(_text(got)) == len(text) or cut > 0
    source.close()
    path.write_bytes(text)
    source = open_source(str(path))
    with pytest.raises(DataError, match="got something else"):
        source.read(0.0)
    source.close()
    with pytest.raises(ConfigError, match="packed"):
        open_source(str(path), follow=True)


class _Pieces(Source):
    """Bytes in pieces of one size."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__("pieces")
        self._left = [data[at : at + size] for at in range(0, len(data), size)][::-1]

    def read(self, timeout: float) -> bytes | Signal:
        """The next one."""
        return self._left.pop() if self._left else Signal.END

    def close(self) -> None:
        """Nothing."""


def test_followed_file_survives_rotation(tmp_path: Path) -> None:
    """Lines written before, during and after a rename all come, with one CUT in between."""
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    source = open_source(str(path), follow=True)
    assert _rest(source) is Signal.IDLE  # it starts at the end
    with path.open("ab") as writer:
        writer.write(b"one\n")
        writer.flush()
        assert source.read(1.0) == b"one\n"
        path.rename(tmp_path / "log.1")
        assert _rest(source) is Signal.IDLE
        writer.write(b"two\n")  # the writer has not noticed yet
    path.write_bytes(b"three\n")
    got = _read(source, lambda got: b"three\n" in got)
    assert got == [b"two\n", Signal.CUT, b"three\n"]
    assert source.reconnects == 1
    source.close()


@pytest.mark.parametrize("text", [b"new\n", b"new lines that reach past the old place\n"])
def test_followed_file_survives_truncation(tmp_path: Path, text: bytes) -> None:
    """A file that was emptied in place is read from its start; what was lost is a GAP.

    It is noticed even when the file has grown past the old place meanwhile.
    """
    path = tmp_path / "log"
    path.write_bytes(b"a long line before\n")
    source = open_source(str(path), follow=True)
    path.write_bytes(text)
    assert _read(source, lambda got: text in got) == [Signal.GAP, text]
    source.close()


def _rotate(path: Path, keep: int, way: str) -> None:
    """Move a log away: log to log.1 to log.2 and so on, or to a name of its own."""
    if way == "shift":
        path.with_name(f"log.{keep}").unlink(missing_ok=True)
        for number in range(keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(f"log.{number}").rename(path.with_name(f"log.{number + 1}"))
        path.rename(path.with_name("log.1"))
    else:
        path.rename(path.with_name(f"log-{time.time_ns()}"))
        dated = sorted(path.parent.glob("log-*"))
        for old in dated[: len(dated) - keep]:
            old.unlink()
    path.touch()


@pytest.mark.parametrize("way", ["shift", "date"])
@pytest.mark.parametrize(("keep", "pause"), [(100, 0.025), (2, 0.01), (1, 0.03)])
def test_no_rotation_loses_records_unsaid(
    tmp_path: Path, way: str, keep: int, pause: float
) -> None:
    """Thirty rotations in a row lose nothing that is kept, and each loss is one GAP where it was.

    A writer that keeps its file open writes into the moved one first, as loggers do.
    """
    path = tmp_path / "log"
    path.touch()
    source = open_source(str(path), follow=True)
    got: list[bytes | Signal] = []
    ended = threading.Event()

    def write() -> None:
        writer = path.open("ab", buffering=0)
        for number in range(60):
            writer.write(b"%d\n" % (2 * number))
            if number % 2:
                _rotate(path, keep, way)
                writer.write(b"%d\n" % (2 * number + 1))
                writer.close()
                writer = path.open("ab", buffering=0)
            time.sleep(pause)
        writer.write(b"end\n")
        writer.close()
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    got = _read(source, lambda got: _text(got).endswith(b"end\n"))
    thread.join()
    source.close()
    sent = [str(number) for number in range(120) if number % 4 != 1] + ["end"]
    runs: list[list[str]] = [[]]
    for item in got:
        if item is Signal.GAP:
            runs.append([])
        elif isinstance(item, bytes):
            runs[-1] += item.decode().split()
    for run in runs:  # nothing is missing, doubled or in another order within a run
        begin = sent.index(run[0]) if run else 0
        assert run == sent[begin : begin + len(run)]
    firsts = [sent.index(run[0]) for run in runs if run]
    assert firsts == sorted(firsts)
    if keep == 100:
        assert runs == [sent]


def test_file_beside_that_is_another_is_not_read(tmp_path: Path) -> None:
    """Files that were there before, and other names, are no part of a followed file."""
    path = tmp_path / "log"
    for name in ("log.1", "log.2", "log"):
        (tmp_path / name).write_bytes(f"{name} of old\n".encode())
    source = open_source(str(path), follow=True)
    (tmp_path / "log.2").unlink()
    (tmp_path / "log.1").rename(tmp_path / "log.2")
    path.rename(tmp_path / "log.1")
    for name in ("log.txt", "log.1.gz", "logs", "log-new", "other.1"):
        (tmp_path / name).write_bytes(b"foreign\n")
    path.write_bytes(b"one\n")
    assert _read(source, lambda got: b"one\n" in got) == [Signal.CUT, b"one\n"]
    (tmp_path / "log.1").unlink()  # it was left already
    path.unlink()  # and this one goes without a trace
    path.write_bytes(b"two\n")
    assert _read(source, lambda got: b"two\n" in got) == [Signal.GAP, b"two\n"]
    source.close()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_followed_file_that_becomes_something_else(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """A pipe or folder in place of a followed file is said at once; nothing waits for a writer."""
    path = tmp_path / "log"
    path.touch()
    source = open_source(str(path), follow=True)
    path.rename(tmp_path / "log.1")
    make(path)
    started = time.monotonic()
    with pytest.raises(ServiceError, match="pipe, folder or device"):
        source.read(60.0)
    assert time.monotonic() - started < 30
    source.close()


def test_follow_starts_at_a_whole_line_or_record(tmp_path: Path) -> None:
    """A start in mid-line skips to the next line; raw formats start where a record starts."""
    path = tmp_path / "log"
    path.write_bytes(b"head\nhalf")
    source = open_source(str(path), follow=True)
    assert isinstance(source, FollowSource)
    assert source.first_line() == b"head"
    assert source.lines == 2
    with path.open("ab") as writer:
        writer.write(b" a line")
        writer.flush()
        assert _rest(source) is Signal.IDLE
        writer.write(b"\nwhole\n")
    assert _text(_read(source, bool)) == b"whole\n"
    source.close()
    path.write_bytes(b"\0" * 30)
    raw = open_source(str(path), follow=True, record_bytes=24)
    assert raw.read(1.0) == b"\0" * 6
    raw.close()


def test_named_pipe_outlives_its_writers(tmp_path: Path) -> None:
    """A named pipe is opened without a writer, and goes on when one leaves and another comes."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    source = open_source(str(path), follow=True)
    assert _rest(source) is Signal.IDLE
    for text in (b"one\n", b"two\n"):
        with path.open("wb") as writer:
            writer.write(text)
        assert source.read(1.0) == text
    assert _rest(source) is Signal.IDLE
    source.close()


@pytest.mark.parametrize(
    ("place", "options", "error"),
    [
        ("absent.csv", {}, DataError),
        ("absent.csv", {"follow": True}, DataError),
        (".", {}, DataError),
        ("ftp://host/x", {}, ConfigError),
        ("file:///etc/passwd", {}, ConfigError),
        ("http://host/x", {"follow": True}, ConfigError),
        ("http://host:port/x", {}, ConfigError),
        ("mqtt://host", {}, ConfigError),
        ("mqtt:///topic", {}, ConfigError),
    ],
)
def test_places_that_cannot_be_read(
    place: str, options: dict[str, object], error: type[Exception]
) -> None:
    """Absent files, folders, other schemes and addresses without a topic are clear errors."""
    with pytest.raises(error, match="Expected"):
        open_source(place, **options)  # type: ignore[arg-type]


@contextmanager
def _http(
    bodies: list[bytes | int], context: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[str | None]]]:
    """A server that answers one body or status a request, then ends the connection."""
    left, tokens = list(bodies), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers.get("Authorization"))
            answer = left.pop(0) if left else 500
            if isinstance(answer, int):
                self.send_error(answer)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        scheme = "http" if context is None else "https"
        yield f"{scheme}://127.0.0.1:{server.server_port}/beats?secret=1", tokens
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between attempts."""
    monkeypatch.setattr(sources, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(sources, "_LAST_WAIT_S", 0.05)


@pytest.mark.usefixtures("_fast")
def test_http_goes_on_after_breaks() -> None:
    """A body that ends and a server in trouble are asked again; a GAP stands in between."""
    with _http([b"one\n", 503, b"two\n"]) as (url, tokens):
        source = HttpSource(url, token="hush")
        got = _read(source, lambda got: _text(got) == b"one\ntwo\n")
        source.close()
    assert got == [b"one\n", Signal.GAP, b"two\n"]
    assert source.reconnects >= 2
    assert tokens[0] == "Bearer hush"
    assert "secret" not in source.name


@pytest.mark.usefixtures("_fast")
@pytest.mark.parametrize(
    ("bodies", "give_up", "match"), [([404], 600.0, "HTTP status 404"), ([], 0.2, r"within 0\.2 s")]
)
def test_http_that_is_lost(bodies: list[bytes | int], give_up: float, match: str) -> None:
    """A refusal ends at once, and a server that never answers after the time given."""
    with _http(bodies) as (url, _):
        source = HttpSource(url, give_up=give_up)
        with pytest.raises(ServiceError, match=match):
            _read(source, lambda got: False)
        source.close()


@pytest.mark.usefixtures("_fast")
def test_http_server_waits_for_a_slow_reader() -> None:
    """What is read ahead is bounded: a long body stays with the server, and none is lost."""
    body = b"0123456789\n" * 1_000_000
    with _http([body]) as (url, _):
        source = HttpSource(url)
        time.sleep(0.3)
        held = sum(len(item) for item in list(source._items) if isinstance(item, bytes))
        assert 0 < held <= sources._QUEUE_BYTES + sources.CHUNK
        got = _read(source, lambda got: sum(map(len, filter(None, map(_bytes, got)))) >= len(body))
        source.close()
    assert _text(got) == body


def _bytes(item: bytes | Signal) -> bytes:
    return item if isinstance(item, bytes) else b""


class _Broker(threading.Thread):
    """Enough of MQTT 3.1.1 to let clients in and send them messages (OASIS 2014, section 3)."""

    def __init__(self, refuse: int = 0) -> None:
        super().__init__(daemon=True)
        self._refuse = refuse
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://me@127.0.0.1:{self.socket.getsockname()[1]}/ward/7"
        self.client: socket.socket | None = None
        self.subscribed = threading.Event()
        self.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            with client:
                self._answer(client)

    def _answer(self, client: socket.socket) -> None:
        while packet := self._packet(client):
            kind, body = packet
            if kind == 1:  # CONNECT
                client.sendall(bytes([0x20, 2, 0, self._refuse]))
            elif kind == 8:  # SUBSCRIBE
                client.sendall(bytes([0x90, 3]) + body[:2] + b"\1")
                self.client = client
                self.subscribed.set()

    def _packet(self, client: socket.socket) -> tuple[int, bytes] | None:
        try:
            head = client.recv(2)
            if len(head) < 2:
                return None
            return head[0] >> 4, client.recv(head[1], socket.MSG_WAITALL) if head[1] else b""
        except OSError:
            return None

    def publish(self, payload: bytes) -> None:
        """A message at quality 0."""
        topic = b"ward/7"
        body = struct.pack(">H", len(topic)) + topic + payload
        length, coded = len(body), b""
        while True:
            length, digit = divmod(length, 128)
            coded += bytes([digit | (0x80 if length else 0)])
            if not length:
                break
        assert self.client is not None
        self.client.sendall(bytes([0x30]) + coded + body)

    def cut(self) -> None:
        """End the client's connection."""
        assert self.client is not None
        self.subscribed.clear()
        self.client.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """End the broker."""
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.join(5)


@pytest.fixture
def broker() -> Iterator[_Broker]:
    """A running broker."""
    made = _Broker()
    yield made
    made.stop()


def test_mqtt_messages_end_lines(broker: _Broker) -> None:
    """Each message ends a line; after a lost connection the topic is subscribed again."""
    source = open_source(broker.url, token="hush")
    assert broker.subscribed.wait(60)
    for payload in (b"1,2", b"3,4\n", b""):
        broker.publish(payload)
    got = _read(source, lambda got: len(got) == 2)
    assert got == [b"1,2\n", b"3,4\n"]
    broker.cut()
    assert _read(source, bool) == [Signal.GAP]
    assert broker.subscribed.wait(60)
    broker.publish(b"5,6")
    assert _read(source, bool) == [b"5,6\n"]
    assert (source.dropped, source.reconnects) == (1, 1)
    assert "me@" not in source.name
    source.close()


def test_mqtt_queue_is_bounded(broker: _Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is too slow loses the oldest messages, which are counted, with a GAP."""
    monkeypatch.setattr(sources, "_QUEUE_BYTES", 10 * (64 + 4))
    source = MqttSource(broker.url, record_bytes=4)
    assert broker.subscribed.wait(60)
    for number in range(100):
        broker.publish(struct.pack("<I", number))
    broker.publish(b"odd")
    deadline = time.monotonic() + 60
    while source.dropped < 91 and time.monotonic() < deadline:
        time.sleep(0.01)
    got = _read(source, lambda got: len(got) == 11)
    assert got == [Signal.GAP, *(struct.pack("<I", number) for number in range(90, 100))]
    assert source.dropped == 91
    source.close()


def test_mqtt_that_is_refused_or_lost() -> None:
    """A broker that does not let this device in, and none at all, are ServiceErrors."""
    broker = _Broker(refuse=5)
    source = MqttSource(broker.url)
    with pytest.raises(ServiceError, match="let this device in"):
        _read(source, lambda got: False)
    source.close()
    broker.stop()
    gone = MqttSource(broker.url, give_up=0.2)
    with pytest.raises(ServiceError, match=r"within 0\.2 s"):
        _read(gone, lambda got: False)
    gone.close()


def test_mqtt_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without paho-mqtt the error names the module, from which the command line says what to do."""
    for name in [name for name in sys.modules if name.startswith("paho")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "paho", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        MqttSource("mqtt://127.0.0.1/topic")
    assert (caught.value.name or "").split(".")[0] == "paho"


def _certificate(folder: Path) -> Path:
    """A self-signed certificate of 127.0.0.1 with its key, in one PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(host, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "own.pem"
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, form, plain))
    return path


@pytest.mark.usefixtures("_fast")
def test_https_trusts_the_certificates_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with a certificate of one's own is refused, unless SSL_CERT_FILE names it."""
    path = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with _http([b"one\n"], context) as (url, _):
        source = HttpSource(url, give_up=0.5)
        with pytest.raises(ServiceError, match="got URLError"):
            _read(source, lambda got: False)
        source.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        monkeypatch.setattr("urllib.request._opener", None)  # from 3.12 on it keeps what it read
        source = HttpSource(url)
        assert _read(source, bool) == [b"one\n"]
        source.close()
