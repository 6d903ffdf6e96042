"""Where a stream's bytes come from: standard input, files, HTTP, MQTT; all in bounded memory.

A source gives bytes as they come, or a `Signal`. What they mean is the decoder's business
(`client.edge.windows`).
"""

import contextlib
import enum
import os
import queue
import select
import ssl
import stat
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path
from typing import Protocol, cast

from shared.errors import ConfigError, DataError, ServiceError

#: Bytes that `Source.read` gives at once, at most, but for one MQTT message.
CHUNK = 65_536
#: Bytes of an MQTT message; longer ones are dropped and counted.
MAX_MESSAGE = 1 << 20

_POLL_S = 0.25  # of a followed file
_HTTP_QUEUE = 16  # chunks
_MQTT_QUEUE = 1024  # messages
_MQTT_QUEUE_BYTES = 1 << 24
_FIRST_WAIT_S, _LAST_WAIT_S = 1.0, 30.0  # between attempts to connect
_RETRIED = frozenset({408, 425, 429})  # of the HTTP statuses below 500


class Signal(enum.Enum):
    """What a source says instead of giving bytes."""

    IDLE = "nothing came in time"
    CUT = "what comes next does not continue an incomplete record"
    GAP = "as CUT, and records may be missing in between"
    END = "nothing more will come"


class Source(ABC):
    """A stream of bytes.

    Attributes:
        name: for people.
        dropped: messages that were thrown away, since they came too fast or were too long.
        reconnects: how often the connection was made again, or the file opened again.
    """

    def __init__(self, name: str) -> None:
        """Name it."""
        self.name = name
        self.dropped = self.reconnects = 0

    @abstractmethod
    def read(self, timeout: float) -> bytes | Signal:
        """The next bytes, at least one, or a signal; waits for ``timeout`` seconds at most.

        Raises:
            ServiceError: the source is lost.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds."""


class DescriptorSource(Source):
    """An open file, pipe, terminal or serial line, to its end."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Take over ``descriptor``."""
        super().__init__(name)
        self._descriptor = descriptor

    def read(self, timeout: float) -> bytes | Signal:
        """See `Source.read`."""
        try:
            if not select.select([self._descriptor], [], [], timeout)[0]:
                return Signal.IDLE
            return os.read(self._descriptor, CHUNK) or Signal.END
        except BlockingIOError:
            return Signal.IDLE
        except OSError as error:
            raise _lost(self.name, error) from None

    def close(self) -> None:
        """See `Source.close`; standard input stays open."""
        if self._descriptor > 2:
            os.close(self._descriptor)


class FollowSource(Source):
    """A file that grows, through rotation and truncation.

    When another file takes its name, the old one is read to its end first. When the file becomes
    shorter, it is read from its start; one that was truncated and has grown past the old place
    between two looks (a quarter of a second) cannot be told from one that grew.
    """

    def __init__(
        self, path: Path, *, from_start: bool = False, record_bytes: int | None = None
    ) -> None:
        """Open the file.

        Args:
            path: of the file.
            from_start: start at its start rather than at its end.
            record_bytes: length of a record in raw formats; None for lines. A start at the end is
                moved to where a record starts.

        Raises:
            DataError: it cannot be opened.
        """
        super().__init__(str(path))
        self._path = path
        self._descriptor = open_file(path)
        self._position = 0 if from_start else os.lseek(self._descriptor, 0, os.SEEK_END)
        self._in_line = False  # in the middle of a line that began before the start
        if record_bytes is not None:
            self._position -= self._position % record_bytes
        elif self._position:
            self._in_line = os.pread(self._descriptor, 1, self._position - 1) != b"\n"

    def first_line(self, limit: int) -> bytes:
        """The first line of the file, without its end, or b"" when it is longer than ``limit``."""
        line, newline, _ = os.pread(self._descriptor, limit, 0).partition(b"\n")
        return line if newline else b""

    def read(self, timeout: float) -> bytes | Signal:
        """See `Source.read`."""
        deadline = time.monotonic() + timeout
        while True:
            found = self._look()
            left = deadline - time.monotonic()
            if found is not Signal.IDLE or left <= 0:
                return found
            time.sleep(min(_POLL_S, left))

    def _look(self) -> bytes | Signal:
        try:
            replaced, size = self._state()
            data = os.pread(self._descriptor, CHUNK, self._position)
            if data:
                self._position += len(data)
                return self._whole(data) or Signal.IDLE
            if replaced:
                return self._open_again()
        except OSError as error:
            raise _lost(self.name, error) from None
        if size < self._position:
            self._position, self._in_line = 0, False
            return Signal.CUT
        return Signal.IDLE

    def _whole(self, data: bytes) -> bytes:
        """``data`` without the rest of a line that began before the start."""
        if self._in_line:
            _, newline, data = data.partition(b"\n")
            self._in_line = not newline
        return data

    def _state(self) -> tuple[bool, int]:
        """Whether another file has the name now, and the size of the open one."""
        own = os.fstat(self._descriptor)
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False, own.st_size  # in mid-rotation
        return (named.st_dev, named.st_ino) != (own.st_dev, own.st_ino), own.st_size

    def _open_again(self) -> Signal:
        try:
            fresh = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return Signal.IDLE
        os.close(self._descriptor)
        self._descriptor, self._position, self._in_line = fresh, 0, False
        self.reconnects += 1
        return Signal.CUT

    def close(self) -> None:
        """See `Source.close`."""
        os.close(self._descriptor)


class HttpSource(Source):
    """An endless body over HTTP or HTTPS; asked for again when it breaks off.

    A thread reads ahead, at most 16 chunks; then the server has to wait. Waits between attempts
    double from one second to thirty.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca: Path | None = None,
        idle: float = 120.0,
        give_up: float = 600.0,
    ) -> None:
        """Start to read.

        Args:
            url: of http or https.
            token: sent as a bearer token.
            ca: certificates to trust in place of the system's.
            idle: seconds without a byte after which a connection counts as broken.
            give_up: seconds without a byte after which the source counts as lost.

        Raises:
            ConfigError: ``ca`` cannot be read.
        """
        super().__init__(_without_secrets(url))
        self._request = urllib.request.Request(url, headers={"Accept": "*/*"})
        if token is not None:
            # Not sent on to where a redirection leads.
            self._request.add_unredirected_header("Authorization", f"Bearer {token}")
        self._opener = _opener(ca)
        self._idle, self._give_up = idle, give_up
        self._heard = time.monotonic()
        self._queue: queue.Queue[bytes | Signal | ServiceError] = queue.Queue(_HTTP_QUEUE)
        self._closed = threading.Event()
        threading.Thread(target=self._work, name="http-source", daemon=True).start()

    def read(self, timeout: float) -> bytes | Signal:
        """See `Source.read`."""
        try:
            found = self._queue.get(timeout=timeout)
        except queue.Empty:
            return Signal.IDLE
        if isinstance(found, ServiceError):
            raise found
        return found

    def close(self) -> None:
        """See `Source.close`."""
        self._closed.set()

    def _work(self) -> None:
        """Read, wait and read again, until closed or lost."""
        wait = _FIRST_WAIT_S
        while not self._closed.is_set():
            before = self._heard
            try:
                reason = self._read_once()
            except ServiceError as error:
                self._put(error)
                return
            if self._heard > before:
                wait = _FIRST_WAIT_S
                self._put(Signal.GAP)
            if time.monotonic() - self._heard > self._give_up:
                self._put(
                    ServiceError(
                        f"Expected bytes from {self.name} within {self._give_up:g} s, got none "
                        f"({reason}); check the server and the network."
                    )
                )
                return
            self._closed.wait(wait)
            wait = min(2 * wait, _LAST_WAIT_S)
            self.reconnects += 1

    def _read_once(self) -> str:
        """Read until the connection breaks.

        Returns:
            Why it did.

        Raises:
            ServiceError: the server refuses for good.
        """
        try:
            with self._opener.open(self._request, timeout=self._idle) as response:
                while not self._closed.is_set():
                    data = response.read1(CHUNK)
                    if not data:
                        return "the body ended"
                    self._heard = time.monotonic()
                    self._put(data)
                    self._heard = time.monotonic()  # a full queue is no silence
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in _RETRIED:
                raise ServiceError(
                    f"Expected a stream from {self.name}, got HTTP status {error.code}; check the "
                    "address and the token."
                ) from None
            return f"HTTP status {error.code}"
        except Exception as error:  # whatever a peer sends must not end this thread unheard
            return type(error).__name__
        return "closed"

    def _put(self, item: bytes | Signal | ServiceError) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.5)
                return


class MqttSource(Source):
    """Messages of an MQTT topic; each holds whole records.

    A bounded queue stands between broker and scorer: when it is full, the oldest message is
    dropped and counted.
    """

    def __init__(
        self,
        url: str,
        *,
        record_bytes: int | None = None,
        password: str | None = None,
        ca: Path | None = None,
        give_up: float = 600.0,
    ) -> None:
        """Connect and subscribe, in the background.

        Args:
            url: mqtt://[user@]host[:port]/topic, or mqtts:// for TLS.
            record_bytes: length of a record in raw formats: another message length is dropped;
                None for lines, where each message ends a line.
            password: of the user in ``url``.
            ca: certificates to trust in place of the system's.
            give_up: seconds without a connection after which the source counts as lost.

        Raises:
            ConfigError: paho-mqtt is not installed, or the address lacks host or topic.
        """
        super().__init__(_without_secrets(url))
        parts = urllib.parse.urlsplit(url)
        self._topic = urllib.parse.unquote(parts.path.removeprefix("/"))
        if not parts.hostname or not self._topic:
            raise ConfigError("Expected mqtt://host[:port]/topic, got no host or no topic.")
        self._record_bytes, self._give_up = record_bytes, give_up
        self._items: deque[bytes | Signal] = deque()
        self._bytes = 0  # of all items
        self._changed = threading.Condition()
        self._connected = False
        self._refusal: str | None = None
        self._since = time.monotonic()
        self._client = self._start(parts, password, ca)

    def _start(
        self, parts: urllib.parse.SplitResult, password: str | None, ca: Path | None
    ) -> "_Client":
        try:
            from paho.mqtt import client as mqtt
            from paho.mqtt.enums import CallbackAPIVersion
        except ModuleNotFoundError:
            raise ConfigError(
                "Expected the package paho-mqtt for an MQTT source, got none installed; install "
                "fedlatent-edge[mqtt]."
            ) from None
        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.reconnect_delay_set(int(_FIRST_WAIT_S), int(_LAST_WAIT_S))
        if parts.username is not None:
            client.username_pw_set(urllib.parse.unquote(parts.username), password)
        tls = parts.scheme == "mqtts"
        if tls:
            client.tls_set_context(_tls(ca))
        client.connect_async(cast(str, parts.hostname), parts.port or (8883 if tls else 1883))
        client.loop_start()
        return client

    def read(self, timeout: float) -> bytes | Signal:
        """See `Source.read`."""
        with self._changed:
            if self._changed.wait_for(lambda: self._items, timeout):
                return self._pop()
        self._check_connection()
        return Signal.IDLE

    def close(self) -> None:
        """See `Source.close`."""
        self._client.disconnect()
        self._client.loop_stop()

    def _check_connection(self) -> None:
        if self._refusal is not None:
            raise ServiceError(
                f"Expected {self.name} to let this device in, got {self._refusal}; check user, "
                "password and topic."
            )
        if not self._connected and time.monotonic() - self._since > self._give_up:
            raise ServiceError(
                f"Expected a connection to {self.name} within {self._give_up:g} s, got none; check "
                "the broker and the network."
            )

    def _on_connect(
        self,
        client: "_Client",
        userdata: object,
        flags: object,
        reason: "_Reason",
        properties: object,
    ) -> None:
        if reason.is_failure:
            self._refusal = str(reason)
            return
        self._connected, self._refusal = True, None
        client.subscribe(self._topic, qos=1)

    def _on_disconnect(
        self,
        client: "_Client",
        userdata: object,
        flags: object,
        reason: "_Reason",
        properties: object,
    ) -> None:
        if self._connected:
            self.reconnects += 1
            self._connected, self._since = False, time.monotonic()
            self._push(Signal.GAP)

    def _on_message(self, client: "_Client", userdata: object, message: "_Message") -> None:
        data = self._framed(bytes(message.payload))
        if data:
            self._push(data)
        else:
            self.dropped += 1

    def _push(self, item: bytes | Signal) -> None:
        """Append, and drop the oldest while there is too much."""
        with self._changed:
            self._items.append(item)
            self._bytes += _length(item)
            lost = False
            while len(self._items) > _MQTT_QUEUE or self._bytes > _MQTT_QUEUE_BYTES:
                lost = True
                self.dropped += isinstance(self._pop(), bytes)
            if lost and self._items[0] is not Signal.GAP:
                self._items.appendleft(Signal.GAP)
            self._changed.notify()

    def _pop(self) -> bytes | Signal:
        item = self._items.popleft()
        self._bytes -= _length(item)
        return item

    def _framed(self, payload: bytes) -> bytes:
        """``payload`` as whole lines or records, or b"" when it is not."""
        if not payload or len(payload) > MAX_MESSAGE:
            return b""
        if self._record_bytes is None:
            return payload if payload.endswith(b"\n") else payload + b"\n"
        return b"" if len(payload) % self._record_bytes else payload


class _Reason(Protocol):
    """What paho says of a connection."""

    @property
    def is_failure(self) -> bool:
        """Whether it did not come about."""


class _Message(Protocol):
    """A message of paho."""

    @property
    def payload(self) -> bytes | bytearray:
        """Its content."""


class _Client(Protocol):
    """The calls of paho's client that are used here."""

    def subscribe(self, topic: str, qos: int = 0) -> object:
        """Ask for a topic."""

    def disconnect(self) -> object:
        """End the connection."""

    def loop_stop(self) -> object:
        """End the thread."""


def open_source(
    place: str,
    *,
    follow: bool = False,
    from_start: bool = False,
    record_bytes: int | None = None,
    token: str | None = None,
    ca: Path | None = None,
    idle: float = 120.0,
    give_up: float = 600.0,
) -> Source:
    """The source that a command line names.

    Args:
        place: "-" for standard input, a path, or an address of http, https, mqtt or mqtts.
        follow: wait at the end of a file for more.
        from_start: start a followed file at its start rather than at its end.
        record_bytes: length of a record in raw formats; None for lines.
        token: bearer token of HTTP, or password of MQTT.
        ca: certificates to trust in place of the system's.
        idle: see `HttpSource`.
        give_up: see `HttpSource` and `MqttSource`.

    Raises:
        ConfigError: the address cannot be used, or an option does not fit it.
        DataError: the file cannot be opened.
    """
    scheme = place.partition("://")[0] if "://" in place else ""
    if scheme and follow:
        raise ConfigError("Expected --follow with a file, got an address; leave it out.")
    if scheme in ("http", "https"):
        return HttpSource(place, token=token, ca=ca, idle=idle, give_up=give_up)
    if scheme in ("mqtt", "mqtts"):
        return MqttSource(place, record_bytes=record_bytes, password=token, ca=ca, give_up=give_up)
    if scheme:
        raise ConfigError(
            f"Expected an address of http, https, mqtt or mqtts, got {scheme!r}; use one of them."
        )
    if place == "-":
        return DescriptorSource(0, "standard input")
    path = Path(place)
    if follow and path.is_file():
        return FollowSource(path, from_start=from_start, record_bytes=record_bytes)
    return DescriptorSource(open_file(path), place)


def open_file(path: Path) -> int:
    """Open a file, pipe or device to read, and return its descriptor; the caller closes it.

    A named pipe is opened so that it outlives its writers and waits for none.

    Raises:
        DataError: it cannot be opened, or is a folder.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        access = os.O_RDWR if stat.S_ISFIFO(mode) else os.O_RDONLY
        return os.open(path, access | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise DataError(
            f"Expected a readable file at {path}, got {type(error).__name__}; check the path and "
            "its permissions."
        ) from None


def _opener(ca: Path | None) -> urllib.request.OpenerDirector:
    """HTTP, HTTPS and redirections between them; no other scheme."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=_tls(ca)),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _tls(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError):
        raise ConfigError(f"Expected certificates in PEM in {ca}, got none; check it.") from None


def _without_secrets(url: str) -> str:
    """An address without user, password and query, which may hold secrets."""
    parts = urllib.parse.urlsplit(url)
    try:
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        raise ConfigError("Expected a port number in the address, got another.") from None
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _length(item: bytes | Signal) -> int:
    return len(item) if isinstance(item, bytes) else 0


def _lost(name: str, error: OSError) -> ServiceError:
    return ServiceError(
        f"Expected to read on from {name}, got {type(error).__name__}; check the device."
    )
