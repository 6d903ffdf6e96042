"""HTTP/1.1 for a small server on a device: h11 reads the bytes, this keeps time and memory bounded.

One thread moves bytes for all connections, and one computes, so no slow client holds either. Each
step of a request has a deadline. When all places are taken, or the bodies under way need too much
memory, the connection that has waited longest for its client makes room: a request that comes at
once is always answered.
"""

import collections
import contextlib
import functools
import json
import queue
import re
import selectors
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Protocol

import h11

from fedlatent.shared.errors import ServiceError

#: Bodies of so many times the longest one are held at once, at most.
HELD_BODIES = 4

_HEAD_BYTES = 16_384
_READ_BYTES = 65_536
_POLL_S = 0.2
_IDLE_S = 5.0  # to send the head of a request, from the one before
_BODY_S = 10.0  # to send a body, and to take an answer
_DISCARD_S = 1.0  # that a refused request is still read, so that its sender sees the answer
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Length: 0\r\n\r\n"
)
_HOST = re.compile(r"(\[(?P<six>[0-9a-f:.]{2,45})\]|(?P<name>[^\[\]:]*))(:[0-9]{0,5})?")


class Refusal(Exception):
    """A request that is not answered: an HTTP status and one sentence."""

    def __init__(
        self, status: int, sentence: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Say ``sentence``, with further ``headers``."""
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is sent: JSON of a dict, or plain text.

    Attributes:
        body: the content.
        status: of HTTP.
        headers: further ones.
    """

    body: Mapping[str, object] | str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Message:
    """An answer as bytes; made where the answer is, since that takes time as well."""

    data: bytes
    kind: str
    status: int
    headers: Mapping[str, str]

    @classmethod
    def of(cls, answer: Answer) -> "_Message":
        kind, text = "text/plain; version=0.0.4; charset=utf-8", answer.body
        if not isinstance(text, str):
            kind, text = "application/json", json.dumps(text, allow_nan=False)
        return cls(data=text.encode(), kind=kind, status=answer.status, headers=answer.headers)


class Application(Protocol):
    """What a server answers. Only `post` may take time."""

    #: The method of each path: "GET", which HEAD goes with, or "POST".
    routes: Mapping[str, str]

    def get(self, path: str) -> Answer:
        """The answer to a GET of a route; called in the thread that moves bytes."""

    def post(self, path: str, kind: str, body: bytes) -> Answer:
        """The answer to a body of media type ``kind``, or a `Refusal`; called in the other one."""

    def refused(self) -> None:
        """Count a request that was not answered."""


class _State(Enum):
    READING = "a request"
    WORKING = "it is being answered"
    WRITING = "an answer"
    LEAVING = "it is over; what still comes is thrown away"


class _Connection:
    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.watched = 0
        self.parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
        self.begin()

    def begin(self) -> None:
        """Wait for a request."""
        self.state, self.out, self.body = _State.READING, b"", bytearray()
        self.request: h11.Request | None = None
        self.heard = bool(self.parser.trailing_data[0])  # a byte of the next request
        self.since = time.monotonic()  # it waits for its client
        self.deadline = self.since + _IDLE_S

    @property
    def begun(self) -> bool:
        """Whether a request, or a part of it, waits for its answer."""
        return self.heard and self.state is not _State.LEAVING

    def header(self, name: bytes) -> str | None:
        """A header of the request; several are joined."""
        headers = self.request.headers if self.request is not None else ()
        found = [value.decode("latin-1") for key, value in headers if key == name]
        return ", ".join(found) if found else None

    @property
    def path(self) -> str:
        """The request's path, without its query."""
        target = b"" if self.request is None else self.request.target
        return target.decode("latin-1").partition("?")[0]


class WebServer:
    """Answers for an `Application`; run it with `run`, and close it.

    Attributes:
        port: it listens on.
    """

    def __init__(
        self,
        application: Application,
        host: str,
        port: int,
        *,
        connections: int,
        max_bytes: int,
        names: Sequence[str] = (),
    ) -> None:
        """Bind and listen.

        Args:
            application: gives the answers.
            host: address to listen on.
            port: 0 takes a free one.
            connections: at a time.
            max_bytes: of a body, as sent and unpacked.
            names: that a request may call this server by, beside addresses and localhost. Others
                are refused: a page of another site may have made its name lead here.

        Raises:
            ServiceError: the address cannot be used.
        """
        self._application, self._most = application, connections
        self._max_bytes, self._held = max_bytes, 0
        self._names = {"localhost", host.lower(), *(name.lower().rstrip(".") for name in names)}
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=128)
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
            raise ServiceError(
                f"Expected to listen on {host} port {port}, got "
                f"{getattr(error, 'strerror', None) or type(error).__name__}; choose another."
            ) from None
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._all: set[_Connection] = set()
        self._again: set[_Connection] = set()  # of them, with bytes of a request already
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._jobs: queue.SimpleQueue[_Connection | None] = queue.SimpleQueue()
        self._done: collections.deque[tuple[_Connection, _Message | Refusal]] = collections.deque()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def run(self, stop: threading.Event, alive: Callable[[], None], end: float) -> None:
        """Answer until ``stop``, then give requests under way ``end`` seconds.

        ``alive`` is called again and again, several times a second.
        """
        while not stop.is_set():
            self._turn()
            alive()
        self._selector.unregister(self._listener)
        self._listener.close()
        deadline = time.monotonic() + end
        while time.monotonic() < deadline and any(one.begun for one in self._all):
            self._turn()

    def close(self) -> None:
        """End all connections at once, answered or not, and the worker."""
        for one in list(self._all):
            self._drop(one)
        self._jobs.put(None)
        self._worker.join(_POLL_S)  # a long computation is left behind
        self._listener.close()
        self._selector.close()
        self._woken.close()

    def _turn(self) -> None:
        # The listener comes last, so that what has arrived is read before anything makes room.
        again, self._again = self._again, set()
        ready = [key for key, _ in self._selector.select(0 if again else _POLL_S)]
        for key in sorted(ready, key=lambda key: key.fileobj is self._listener):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._woken:
                self._collect()
            elif key.data in self._all - again:  # else it made room, or is not read further yet
                self._pump(key.data, ready=True)
        for one in again & self._all:
            self._pump(one)
        now = time.monotonic()
        for one in [one for one in self._all if one.deadline <= now]:
            self._late(one)

    def _accept(self) -> None:
        """Take new connections while there is room, or one for which another has to go."""
        full = False
        while not full:
            try:
                channel, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # no descriptor is left
                if not self._make_room():
                    time.sleep(_POLL_S)
                return
            channel.setblocking(False)
            channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms an answer
            full = sum(one.state is not _State.LEAVING for one in self._all) >= self._most
            one = _Connection(channel)
            if full and not self._make_room():
                self._say_busy(one)
            self._all.add(one)
            self._watch(one)

    def _make_room(self, *, bodies: bool = False) -> bool:
        """End the connection that has waited longest for its client, if one waits at all."""
        states = (_State.READING, _State.WRITING)
        waiting = [one for one in self._all if one.state in states and (one.body or not bodies)]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda one: one.since)
        if oldest.state is _State.READING and oldest.begun:
            self._say_busy(oldest)
        else:
            self._drop(oldest)
        return True

    def _say_busy(self, one: _Connection) -> None:
        self._application.refused()
        with contextlib.suppress(OSError):
            one.channel.send(_BUSY)
        self._leave(one)

    def _leave(self, one: _Connection) -> None:
        """Read what the client still sends for a while; else it may see a reset, not the answer."""
        with contextlib.suppress(OSError):
            one.channel.shutdown(socket.SHUT_WR)
        self._forget_body(one)
        leaving = [other for other in self._all if other.state is _State.LEAVING]
        if len(leaving) >= self._most:
            self._drop(min(leaving, key=lambda other: other.deadline))
        one.state, one.deadline = _State.LEAVING, time.monotonic() + _DISCARD_S
        if one in self._all:
            self._watch(one)

    def _late(self, one: _Connection) -> None:
        """End a connection whose client took too long."""
        if one.state is _State.READING and one.begun:
            sentence = f"Expected a whole request within {_IDLE_S:g} s for its head and "
            sentence += f"{_BODY_S:g} s for its body, got a part of one."
            self._refuse(one, Refusal(408, sentence))
            self._pump(one)
        else:
            self._drop(one)

    def _pump(self, one: _Connection, *, ready: bool = False) -> None:
        """Go on with a connection as far as it goes; ``ready``: its socket is."""
        try:
            if ready and one.state in (_State.READING, _State.LEAVING):
                data = one.channel.recv(_READ_BYTES)
                if one.state is _State.READING:
                    one.parser.receive_data(data)
                    one.heard = one.heard or bool(data)
                elif not data:
                    self._drop(one)
                    return
            while one.state is _State.READING and self._step(one):
                pass
            if one.state is _State.WRITING:
                self._write(one)
        except BlockingIOError:
            pass
        except OSError:  # the client is gone
            self._drop(one)
        if one in self._all:
            self._watch(one)

    def _step(self, one: _Connection) -> bool:
        """Take one part of a request; whether there may be more to do."""
        try:
            event = one.parser.next_event()
            if isinstance(event, h11.Request):
                one.request = event
                one.deadline = time.monotonic() + _BODY_S
                self._check(one)
                if one.parser.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    one.channel.send(one.parser.send(go_on) or b"")
            elif isinstance(event, h11.Data):
                self._take(one, event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._whole(one)
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionAbortedError
            return event is not h11.NEED_DATA
        except h11.RemoteProtocolError as error:
            if not one.begun:
                raise ConnectionAbortedError from None
            sentence = "Expected a request of HTTP/1.1, got something else."
            self._refuse(one, Refusal(error.error_status_hint, sentence))
        except Refusal as refusal:
            self._refuse(one, refusal)
        return True

    def _check(self, one: _Connection) -> None:
        """Refuse what can be refused before its body comes."""
        request = one.request
        if request is None:  # pragma: no cover - it was just set
            return
        self._check_host(one.header(b"host"))
        routes, method = self._application.routes, request.method.decode("latin-1")
        allowed = routes.get(one.path)
        if allowed is None or method not in (allowed, *["HEAD"] * (allowed == "GET")):
            known = ", ".join(f"{name} {path}" for path, name in routes.items())
            more = {} if allowed is None else {"Allow": f"{allowed}{', HEAD' * (allowed == 'GET')}"}
            status = 404 if allowed is None else 405
            raise Refusal(status, f"Expected one of {known}, got another call.", more)
        length, chunked = one.header(b"content-length"), one.header(b"transfer-encoding")
        if chunked and (length is not None or request.http_version < b"1.1"):
            raise Refusal(400, "Expected a length or chunks of HTTP/1.1, got both or an older one.")
        if allowed == "GET" and (chunked or int(length or 0)):
            raise Refusal(400, "Expected no body with GET, got one.")
        if allowed == "POST":
            if not chunked and length is None:
                raise Refusal(411, "Expected a Content-Length or chunks, got neither.")
            if int(length or 0) > self._max_bytes:
                raise self._too_long()
            coding = (one.header(b"content-encoding") or "identity").lower()
            if coding not in ("identity", "gzip", "x-gzip"):
                sentence = "Expected a plain body or one with gzip, got another encoding."
                raise Refusal(415, sentence, {"Accept-Encoding": "gzip"})

    def _check_host(self, host: str | None) -> None:
        if host is None:  # of HTTP/1.0, which no browser speaks
            return
        found = _HOST.fullmatch(host.lower())
        name = None if found is None else found["name"]
        if found is not None and found["six"]:
            return
        if name is not None and (name.rstrip(".") in self._names or _is_address(name)):
            return
        raise Refusal(
            421,
            f"Expected this server by its address, as localhost or by a name of --allow-host, got "
            f"{host[:80]!r}; start it with that name when it is its own.",
        )

    def _take(self, one: _Connection, data: bytes | bytearray) -> None:
        one.body += data
        self._held += len(data)
        if len(one.body) > self._max_bytes:
            raise self._too_long()
        while self._held > HELD_BODIES * self._max_bytes:
            self._make_room(bodies=True)
            if one.state is not _State.READING:
                return

    def _too_long(self) -> Refusal:
        return Refusal(
            413,
            f"Expected a body of at most {self._max_bytes} bytes, got more; send fewer records at "
            "once.",
        )

    def _whole(self, one: _Connection) -> None:
        if self._application.routes[one.path] == "POST":
            one.state, one.deadline = _State.WORKING, float("inf")
            self._jobs.put(one)
        else:
            self._finish(one, _outcome(lambda: self._application.get(one.path)))

    def _work(self) -> None:
        """Compute answers, in a thread of its own."""
        with self._waker, contextlib.suppress(OSError):  # closed while this computed
            while (one := self._jobs.get()) is not None:
                self._done.append((one, _outcome(functools.partial(self._compute, one))))
                self._waker.send(b"1")

    def _compute(self, one: _Connection) -> Answer:
        body = bytes(one.body)
        if "gzip" in (one.header(b"content-encoding") or "").lower():
            body = self._unpack(body)
        kind = (one.header(b"content-type") or "text/plain").partition(";")[0].strip().lower()
        return self._application.post(one.path, kind, body)

    def _unpack(self, body: bytes) -> bytes:
        machine = zlib.decompressobj(wbits=31)
        try:
            plain = machine.decompress(body, self._max_bytes + 1)
        except zlib.error:
            plain = b""
        if len(plain) > self._max_bytes:
            raise self._too_long()
        if not machine.eof or machine.unused_data:
            raise Refusal(400, "Expected one whole body with gzip, got something else.")
        return plain

    def _collect(self) -> None:
        """Send what was computed."""
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(_READ_BYTES)
        while self._done:
            one, outcome = self._done.popleft()
            if one in self._all:
                self._finish(one, outcome)
                self._pump(one)

    def _finish(self, one: _Connection, outcome: _Message | Refusal) -> None:
        if isinstance(outcome, Refusal):
            self._refuse(one, outcome)
        else:
            self._reply(one, outcome)

    def _refuse(self, one: _Connection, refusal: Refusal) -> None:
        """Answer with a refusal and end the connection, since the rest of it is not read."""
        self._application.refused()
        more = {**refusal.headers, "Connection": "close"}
        body = {"error": str(refusal)}
        self._reply(one, _Message.of(Answer(body=body, status=refusal.status, headers=more)))

    def _reply(self, one: _Connection, message: _Message) -> None:
        length = {"Content-Type": message.kind, "Content-Length": str(len(message.data))}
        headers = {**length, **message.headers}
        head = h11.Response(
            status_code=message.status,
            reason=HTTPStatus(message.status).phrase.encode(),
            headers=[(name.encode(), value.encode()) for name, value in headers.items()],
        )
        sent = [one.parser.send(head)]
        if one.request is None or one.request.method != b"HEAD":
            sent.append(one.parser.send(h11.Data(data=message.data)))
        sent.append(one.parser.send(h11.EndOfMessage()))
        one.out = b"".join(part or b"" for part in sent)
        self._forget_body(one)
        one.state, one.since = _State.WRITING, time.monotonic()
        one.deadline = one.since + _BODY_S

    def _write(self, one: _Connection) -> None:
        """Send what is left of an answer. A further request that is there waits for its turn."""
        while one.out:
            one.out = one.out[one.channel.send(one.out) :]
        parser = one.parser
        if parser.our_state is h11.DONE and parser.their_state is h11.DONE:
            parser.start_next_cycle()
            one.begin()
            if one.heard:
                self._again.add(one)
        else:
            self._leave(one)

    def _forget_body(self, one: _Connection) -> None:
        self._held -= len(one.body)
        one.body = bytearray()

    def _watch(self, one: _Connection) -> None:
        """Wait for what the state of a connection needs of its socket."""
        wanted = {_State.WORKING: 0, _State.WRITING: selectors.EVENT_WRITE}
        events = wanted.get(one.state, selectors.EVENT_READ)
        if events == one.watched:
            return
        if one.watched and events:
            self._selector.modify(one.channel, events, one)
        elif events:
            self._selector.register(one.channel, events, one)
        else:
            self._selector.unregister(one.channel)
        one.watched = events

    def _drop(self, one: _Connection) -> None:
        if one in self._all:
            self._all.remove(one)
            self._forget_body(one)
            if one.watched:
                self._selector.unregister(one.channel)
            one.channel.close()


def _outcome(compute: Callable[[], Answer]) -> _Message | Refusal:
    """The answer, or why there is none: no request may end a thread that answers others."""
    try:
        return _Message.of(compute())
    except Refusal as refusal:
        return refusal
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        name = type(error).__name__
        return Refusal(500, f"Expected to answer, got {name}; the log of this server says more.")


def _is_address(name: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, name)
    except (OSError, ValueError):
        return False
    return True
