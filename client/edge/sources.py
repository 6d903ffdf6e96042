"""Where a stream's bytes come from: standard input, files, HTTP, MQTT; all in bounded memory.

A source gives bytes as they come, or a `Signal`. What they mean is the decoder's business
(`fedlatent.client.edge.windows`).
"""

import contextlib
import enum
import os
import re
import select
import stat
import threading
import time
import urllib.parse
import zlib
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path

from fedlatent.shared.errors import ConfigError, DataError, ServiceError
from fedlatent.shared.files import ending_of

#: Bytes that `Source.read` gives at once, at most, but for one MQTT message.
CHUNK = 65_536
#: Bytes of an MQTT message; longer ones are dropped and counted.
MAX_MESSAGE = 1 << 20
#: Seconds after which a silent source is lost.
GIVE_UP = 600.0

_POLL_S = 0.25  # of a followed file
_TAIL = 64  # bytes by which a followed file is known to be the same as before
_LATER = 64  # files that are opened at once
_PIECE = 1 << 20  # in which their lines are counted
_PACKED = b"\x1f"  # the first byte of gzip
_FOLLOWED = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_QUEUE_BYTES = 1 << 22
_FIRST_WAIT_S, _LAST_WAIT_S = 1.0, 30.0  # between attempts to connect
_RETRIED = frozenset({408, 425, 429})  # of the HTTP statuses below 500

#: How files end that hold no stream.
OTHER_ENDINGS = (
    *(".npz", ".npy", ".parquet", ".arrow", ".feather", ".hea", ".edf", ".bdf", ".sql"),
    *(".duckdb", ".ddb", ".smi", ".smi.gz", ".smiles", ".smiles.gz"),
)


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
        lines: of the file that stand before the first that is given.
    """

    def __init__(self, name: str) -> None:
        """Name it."""
        self.name = name
        self.dropped = self.reconnects = self.lines = 0

    @abstractmethod
    def read(self, timeout: float) -> bytes | Signal:
        """The next bytes, at least one, or a signal; waits for ``timeout`` seconds at most.

        Raises:
            OSError: the device or file cannot be read any more.
            ServiceError: the other side is lost, or refuses.
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
        """The next bytes, or a `Signal`: see `Source.read`."""
        try:
            if not select.select([self._descriptor], [], [], timeout)[0]:
                return Signal.IDLE
            return os.read(self._descriptor, CHUNK) or Signal.END
        except BlockingIOError:
            return Signal.IDLE

    def close(self) -> None:
        """See `Source.close`; standard input stays open."""
        if self._descriptor > 2:
            os.close(self._descriptor)


class PackedSource(Source):
    """What another source gives, unpacked by gzip a piece at a time."""

    def __init__(self, inner: Source, *, sure: bool = True) -> None:
        """Take over a source.

        Args:
            inner: of packed bytes.
            sure: that it is packed; otherwise its first byte tells, which begins no text.
        """
        super().__init__(inner.name)
        self._inner, self._sure, self._plain = inner, sure, False
        self._waiting = b""  # packed bytes
        self._more = False  # whether the unpacker holds bytes that were too many at once
        self._unpacker: zlib._Decompress | None = None

    def read(self, timeout: float) -> bytes | Signal:
        """The next bytes, or a `Signal`: see `Source.read`.

        Raises:
            DataError: it is no gzip, or breaks off.
        """
        while not self._plain:
            if self._waiting or self._more:
                if data := self._unpack():
                    return data
                continue
            got = self._inner.read(timeout)
            if got is Signal.END and self._unpacker is not None:
                raise self._damaged("an end in the middle")
            if isinstance(got, Signal):
                return got
            self._plain = not self._sure and not got.startswith(_PACKED)
            self._sure, self._waiting = True, got
        got, self._waiting = self._waiting, b""
        return got or self._inner.read(timeout)

    def close(self) -> None:
        """See `Source.close`."""
        self._inner.close()

    def _unpack(self) -> bytes:
        """Some bytes, or none when more packed ones are needed or a member has ended."""
        if self._unpacker is None:
            self._waiting = self._waiting.lstrip(b"\0")  # as tapes pad
            if not self._waiting:
                return b""
            self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        unpacker = self._unpacker
        try:
            data = unpacker.decompress(self._waiting, CHUNK)
        except zlib.error:
            raise self._damaged("something else") from None
        self._more = len(data) == CHUNK and not unpacker.eof
        self._waiting = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
        if unpacker.eof:
            self._unpacker = None
        return data

    def _damaged(self, got: str) -> DataError:
        return DataError(
            f"Expected {self.name} to be packed by gzip, got {got}; all rows before it are scored; "
            "pack the file again."
        )


class FollowSource(Source):
    """A file that grows, through rotation and truncation.

    When another file takes its name, the old one is read to its end first; then those that had the
    name in between and were moved on to a name with a number or date (log.1, log-20260131), oldest
    first. That is a CUT. It is a GAP when records may be missing: the old file is not found beside
    the new one, so that files after it may be gone as well, or it was emptied and written anew.
    """

    def __init__(self, path: Path, record_bytes: int = 0) -> None:
        """Open the file at its end, or where the next whole record starts.

        Args:
            path: of the file.
            record_bytes: of a record in raw formats; 0 for lines.

        Raises:
            DataError: it cannot be opened.
        """
        super().__init__(str(path))
        self._path = path
        self._moved = re.compile(rf"{re.escape(path.name)}[.-]\d[\d.:_T-]*")
        self._descriptor = open_file(path)
        #: Files that took the name later, in order, and whether others are missing before them.
        self._later: list[tuple[int, bool]] = []
        self._known = {one: found.st_mtime_ns for one, (_, found) in self._beside().items()}
        place = os.fstat(self._descriptor).st_size
        self._begin(place - place % record_bytes if record_bytes else place)
        # In the middle of a line that began before the start?
        self._in_line = place > 0 and not record_bytes and not self._tail.endswith(b"\n")
        if not record_bytes:
            pieces = (os.pread(self._descriptor, _PIECE, at) for at in range(0, place, _PIECE))
            self.lines = sum(piece.count(b"\n") for piece in pieces) + self._in_line

    def first_line(self) -> bytes:
        """The first line of the file, without its end, or b"" when that is not within 1 MiB."""
        line, newline, _ = os.pread(self._descriptor, 1 << 20, 0).partition(b"\n")
        return line if newline else b""

    def read(self, timeout: float) -> bytes | Signal:
        """The next bytes, or a `Signal`: see `Source.read`."""
        deadline = time.monotonic() + timeout
        while True:
            found = self._look()
            left = deadline - time.monotonic()
            if found is not Signal.IDLE or left <= 0:
                return found
            time.sleep(min(_POLL_S, left))

    def close(self) -> None:
        """Let go of file, process or connection: see `Source.close`."""
        for descriptor in (self._descriptor, *(one for one, _ in self._later)):
            os.close(descriptor)

    def _begin(self, place: int) -> None:
        """Read on from ``place``, and remember what stands before it."""
        self._place, self._in_line = place, False
        start = max(0, place - _TAIL)
        self._tail: bytes = os.pread(self._descriptor, place - start, start)

    def _look(self) -> bytes | Signal:
        # Looked up first: a writer that has begun a later file writes no more to this one.
        following = self._following()
        start = self._place - len(self._tail)
        data = os.pread(self._descriptor, len(self._tail) + CHUNK, start)
        if not data.startswith(self._tail):
            self._begin(0)
            return Signal.GAP
        self._place = start + len(data)
        data, self._tail = data[len(self._tail) :], data[-_TAIL:]
        if data:
            if self._in_line:
                _, newline, data = data.partition(b"\n")
                self._in_line = not newline
            return data or Signal.IDLE
        if following is None:
            return Signal.IDLE
        passed, self._later = self._later[: following + 1], self._later[following + 1 :]
        for descriptor in (self._descriptor, *(one for one, _ in passed[:-1])):
            os.close(descriptor)
        self._descriptor = passed[-1][0]
        self._begin(0)
        self.reconnects += 1
        return Signal.GAP if any(missing for _, missing in passed) else Signal.CUT

    def _following(self) -> int | None:
        """Where among the later files the first is that holds anything, if there is one."""
        try:
            now = self._path.stat()
        except FileNotFoundError:  # in mid-rotation
            return None
        if not stat.S_ISREG(now.st_mode):
            raise ServiceError(
                f"Expected a file at {self._path}, got a pipe, folder or device in its place; put "
                "a file there, or start again to read from that."
            )
        if _identity(now) != _identity(os.fstat(self._descriptor)):
            self._find_later()
        sizes = (os.fstat(descriptor).st_size for descriptor, _ in self._later)
        return next((index for index, size in enumerate(sizes) if size), None)

    def _find_later(self) -> None:
        """Open what took the name since the last time, unless files are being moved right now."""
        beside = self._beside()
        if {one: path for one, (path, _) in beside.items()} != {
            one: path for one, (path, _) in self._beside().items()
        }:
            return
        held = [_identity(os.fstat(one)) for one in (self._descriptor, *dict(self._later))]
        missing = held[-1] not in beside
        fresh: list[tuple[_Identity, bool]] = []  # and whether others are missing before it
        for one in sorted(beside, key=lambda one: self._age(*beside[one])):
            path, found = beside[one]
            if one in held or (path != self._path and self._known.get(one) == found.st_mtime_ns):
                continue
            # One that was known is another file with its number, or was written to again.
            missing = missing or one in self._known
            if path == self._path or one not in self._known:
                fresh.append((one, missing))
                missing = False
        opened: list[tuple[int, bool]] = []
        for one, gap in fresh[:_LATER]:
            with contextlib.suppress(FileNotFoundError):
                opened.append((os.open(beside[one][0], _FOLLOWED), gap))
                if _identity(os.fstat(opened[-1][0])) == one:
                    continue
            for descriptor, _ in opened:  # moved in this very moment
                os.close(descriptor)
            return
        self._later += opened
        left = {one for one, _ in fresh[_LATER:]}
        self._known = {one: it.st_mtime_ns for one, (_, it) in beside.items() if one not in left}

    def _age(self, path: Path, found: os.stat_result) -> tuple[bool, int, int]:
        """What orders files beside each other, oldest first; log.2 was there before log.1."""
        digits = re.sub(r"\D", "", path.name.removeprefix(self._path.name))
        return path.name == self._path.name, found.st_mtime_ns, -int(digits or 0)

    def _beside(self) -> "dict[_Identity, tuple[Path, os.stat_result]]":
        """The file of this name, and those that had it, where they are now."""
        found = {}
        for path in (*self._path.parent.iterdir(), self._path):
            if path == self._path or self._moved.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):
                    facts = path.stat() if path == self._path else path.lstat()
                    if stat.S_ISREG(facts.st_mode):
                        found[_identity(facts)] = path, facts
        return found


_Identity = tuple[int, int]


def _identity(found: os.stat_result) -> _Identity:
    """What a file keeps under any name, for as long as it is open."""
    return found.st_dev, found.st_ino


class _Buffered(Source):
    """What a thread of its own hears."""

    def __init__(self, url: str, give_up: float) -> None:
        parts = urllib.parse.urlsplit(url)
        try:
            port = "" if parts.port is None else f":{parts.port}"
        except ValueError:
            raise ConfigError("Expected a port number in the address, got another.") from None
        # Without user, password and query, which may be secret.
        super().__init__(f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}")
        self._give_up = give_up
        self._heard = time.monotonic()
        self._why = "no answer"
        self._items: deque[bytes | Signal | ServiceError] = deque()
        self._held = 0  # bytes that they take
        self._changed = threading.Condition()

    def read(self, timeout: float) -> bytes | Signal:
        """The next bytes, or a `Signal`: see `Source.read`."""
        with self._changed:
            if self._changed.wait_for(lambda: self._items, timeout):
                item = self._pop()
                self._changed.notify()
                if isinstance(item, ServiceError):
                    raise item
                return item
        if time.monotonic() - self._heard > self._give_up:
            raise ServiceError(
                f"Expected to hear from {self.name} within {self._give_up:g} s, got {self._why}; "
                "check the other side and the network."
            )
        return Signal.IDLE

    def _push(self, item: bytes | Signal | ServiceError) -> None:
        self._items.append(item)
        self._held += _cost(item)
        self._changed.notify()

    def _pop(self) -> bytes | Signal | ServiceError:
        item = self._items.popleft()
        self._held -= _cost(item)
        return item


class HttpSource(_Buffered):
    """An endless body over HTTP or HTTPS; asked for again when it breaks off.

    It is read ahead by some megabytes; then the server has to wait. Waits between attempts double
    from one second to thirty.
    """

    def __init__(self, url: str, token: str | None = None, give_up: float = GIVE_UP) -> None:
        """Start to read.

        Args:
            url: of http or https.
            token: sent as a bearer token.
            give_up: seconds without a byte after which the source is lost; after a fifth of them
                the connection is made again.
        """
        from urllib.request import Request  # it brings TLS, which files do not need

        super().__init__(url, give_up)
        self._request = Request(url)
        if token is not None:
            # Not sent on to where a redirection leads.
            self._request.add_unredirected_header("Authorization", f"Bearer {token}")
        self._closed = threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    def close(self) -> None:
        """Let go of file, process or connection: see `Source.close`."""
        self._closed.set()
        with self._changed:
            self._changed.notify()

    def _work(self) -> None:
        """Read, wait and read again, until closed or refused."""
        wait = _FIRST_WAIT_S
        while not self._closed.is_set():
            before = self._heard
            try:
                self._why = self._read_once()
            except ServiceError as error:
                self._put(error)
                return
            if self._heard > before:
                wait = _FIRST_WAIT_S
                self._put(Signal.GAP)
            self._closed.wait(wait)
            wait = min(2 * wait, _LAST_WAIT_S)
            self.reconnects += 1

    def _read_once(self) -> str:
        """Read until the connection breaks, and say why; a ServiceError when it is refused."""
        from urllib.error import HTTPError
        from urllib.request import urlopen

        try:
            with urlopen(self._request, timeout=self._give_up / 5) as response:
                while data := response.read1(CHUNK):
                    self._put(data)
                    self._heard = time.monotonic()
                return "the end of the body"
        except HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in _RETRIED:
                raise ServiceError(
                    f"Expected a stream from {self.name}, got HTTP status {error.code}; check the "
                    "address and the token."
                ) from None
            return f"HTTP status {error.code}"
        except Exception as error:  # whatever a peer sends must not end this thread unheard
            return type(error).__name__

    def _put(self, item: bytes | Signal | ServiceError) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._held < _QUEUE_BYTES or self._closed.is_set())
            self._push(item)


class MqttSource(_Buffered):
    """Messages of an MQTT topic; each holds whole records.

    When too many wait for the scorer, the oldest is dropped and counted.
    """

    def __init__(
        self,
        url: str,
        record_bytes: int = 0,
        password: str | None = None,
        give_up: float = GIVE_UP,
    ) -> None:
        """Connect and subscribe, in the background.

        Args:
            url: mqtt://[user@]host[:port]/topic, or mqtts:// for TLS.
            record_bytes: of a record in raw formats: another message length is dropped; 0 for
                lines, where each message ends a line.
            password: of the user in ``url``.
            give_up: seconds without a connection after which the source is lost.

        Raises:
            ConfigError: the address lacks host or topic.
        """
        from paho.mqtt import client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        super().__init__(url, give_up)
        parts = urllib.parse.urlsplit(url)
        topic = urllib.parse.unquote(parts.path.removeprefix("/"))
        if not parts.hostname or not topic:
            raise ConfigError("Expected mqtt://host[:port]/topic, got no host or no topic.")
        self._record_bytes = record_bytes
        self._client = client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.on_connect = lambda _client, _user, _flags, reason, _more: (
            self._refused(str(reason)) if reason.is_failure else self._connected(topic)
        )
        client.on_disconnect = lambda *_: self._disconnected()
        client.on_message = lambda _client, _user, message: self._take(bytes(message.payload))
        client.reconnect_delay_set(int(_FIRST_WAIT_S), int(_LAST_WAIT_S))
        if parts.username is not None:
            client.username_pw_set(urllib.parse.unquote(parts.username), password)
        tls = parts.scheme == "mqtts"
        if tls:
            client.tls_set()
        client.connect_async(parts.hostname, parts.port or (8883 if tls else 1883))
        client.loop_start()

    def close(self) -> None:
        """Let go of file, process or connection: see `Source.close`."""
        self._client.disconnect()
        self._client.loop_stop()

    def _refused(self, reason: str) -> None:
        with self._changed:
            self._push(
                ServiceError(
                    f"Expected {self.name} to let this device in, got {reason}; check user, "
                    "password and topic."
                )
            )

    def _connected(self, topic: str) -> None:
        self._heard = float("inf")  # a connection may be silent
        self._client.subscribe(topic, qos=1)

    def _disconnected(self) -> None:
        if self._heard == float("inf"):
            self.reconnects += 1
            self._heard = time.monotonic()
            with self._changed:
                self._push(Signal.GAP)

    def _take(self, payload: bytes) -> None:
        """Queue a message as whole lines or records; drop the oldest while there is too much."""
        if not self._record_bytes and not payload.endswith(b"\n"):
            payload += b"\n"
        wrong = len(payload) % self._record_bytes if self._record_bytes else payload == b"\n"
        if wrong or not payload or len(payload) > MAX_MESSAGE:
            self.dropped += 1
            if payload.strip():  # an empty one held no record
                with self._changed:
                    self._push(Signal.GAP)
            return
        with self._changed:
            self._push(payload)
            if self._held > _QUEUE_BYTES:
                while self._held > _QUEUE_BYTES:
                    self.dropped += isinstance(self._pop(), bytes)
                self._items.appendleft(Signal.GAP)


def open_source(
    place: str,
    *,
    follow: bool = False,
    record_bytes: int = 0,
    token: str | None = None,
    give_up: float = GIVE_UP,
) -> Source:
    """The source that a command line names.

    Args:
        place: "-" for standard input, a path, or an address of http(s) or mqtt(s). A file that
            ends in .gz, and text on standard input that begins as gzip does, is unpacked.
        follow: wait at the end of a file for what is added.
        record_bytes: of a record in raw formats; 0 for lines.
        token: bearer token of HTTP, or password of MQTT.
        give_up: see `HttpSource` and `MqttSource`.

    Raises:
        ConfigError: the address cannot be used, or an option does not fit it.
        DataError: the file cannot be opened, or is of a kind that holds no stream.
    """
    scheme, separator, _ = place.partition("://")
    if separator and follow:
        raise ConfigError("Expected --follow with a file, got an address; leave it out.")
    if separator and scheme in ("http", "https"):
        return HttpSource(place, token, give_up)
    if separator and scheme in ("mqtt", "mqtts"):
        return MqttSource(place, record_bytes, token, give_up)
    if separator:
        raise ConfigError(f"Expected an address of http, https, mqtt or mqtts, got {scheme!r}.")
    if place == "-":
        plain = DescriptorSource(0, "standard input")
        return plain if record_bytes else PackedSource(plain, sure=False)
    path = Path(place)
    if path.is_dir() or ending_of(path, OTHER_ENDINGS):
        raise DataError(
            f"Expected a stream of CSV, JSON lines or raw floats, got {path.name}; 'edge score' "
            "takes an npz, and 'fedlatent data convert' makes one of other files."
        )
    packed = ending_of(path, [".gz"]) is not None
    if follow and path.is_file():
        if packed:
            raise ConfigError(
                f"Expected --follow with a file that grows, got {path.name}, which is packed; "
                "leave it out."
            )
        return FollowSource(path, record_bytes)
    file = DescriptorSource(open_file(path), place)
    return PackedSource(file) if packed else file


def open_file(path: Path) -> int:
    """Open a file, pipe or device to read, and return its descriptor; the caller closes it.

    A named pipe outlives its writers and waits for none.

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


def _cost(item: bytes | Signal | ServiceError) -> int:
    """Bytes that an item of a queue takes."""
    return len(item) + 64 if isinstance(item, bytes) else 0
