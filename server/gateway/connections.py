"""Who is connected: strangers by address, admitted sites by key, and nobody without a deadline.

Each accepted connection is a :class:`Visitor` before a byte of TLS is read. It stays a stranger
until it has sent a request that an admitted key signed; strangers give way to newer strangers of
their address and never to the cost of a site. ``Http`` is uvicorn's protocol with deadlines.
"""

import asyncio
import asyncio.sslproto
import contextlib
import ipaddress
import logging
import ssl
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from fedlatent.server.settings import GatewayLimits

LOG = logging.getLogger("fedlatent.gateway")

asyncio.sslproto.SSLProtocol.max_size = 64 * 1024  # bytes it holds for each connection; was 256 kB

_GOODBYE_S = 2.0  # for the peer's half of TLS's end
_PREFIX = 64  # bits of an IPv6 address that one customer has for himself


@dataclass
class Connections:
    """All open connections.

    Attributes:
        limits: How many there may be, and for how long.
        tls: What strangers are met with.
    """

    limits: GatewayLimits
    tls: ssl.SSLContext
    _strangers: dict[str, dict["Visitor", None]] = field(default_factory=lambda: defaultdict(dict))
    _queue: dict["Visitor", None] = field(default_factory=dict)  # all strangers, oldest first
    _sites: dict[str, dict["Visitor", None]] = field(default_factory=lambda: defaultdict(dict))
    _total: int = 0

    def enter(self, visitor: "Visitor") -> bool:
        """Take a new connection in, as a stranger; others may have to leave for it."""
        neighbours = self._strangers.get(visitor.address, {})
        if len(neighbours) >= self.limits.strangers_per_address:
            next(iter(neighbours)).cut(
                "more than %d connections that have not shown an admitted key",
                self.limits.strangers_per_address,
            )
        if self._total >= self.limits.connections:
            if not self._queue:
                LOG.warning("%s: turned away; all connections are taken", visitor.address)
                return False
            next(iter(self._queue)).cut("all connections are taken")
        self._strangers[visitor.address][visitor] = None
        self._queue[visitor] = None
        self._total += 1
        return True

    def admit(self, visitor: "Visitor", key: str) -> None:
        """Count a connection as that of the site whose key signed a request on it."""
        if visitor.key == key:
            return
        self.leave(visitor)
        site = self._sites[key]
        if len(site) >= self.limits.connections_per_site:
            idle = [one for one in site if one.idle]
            oldest = idle[0] if idle else next(iter(site))
            oldest.cut("more than %d connections of one site", self.limits.connections_per_site)
        site[visitor] = None
        visitor.key = key
        self._total += 1

    def leave(self, visitor: "Visitor") -> None:
        """Forget a connection; once is enough."""
        group = self._strangers if visitor.key is None else self._sites
        place = visitor.address if visitor.key is None else visitor.key
        members = group.get(place, {})
        if visitor in members:
            del members[visitor]
            self._queue.pop(visitor, None)
            self._total -= 1
        if not members:
            group.pop(place, None)


class Visitor(asyncio.Protocol):
    """One accepted connection, from before its TLS handshake to its end."""

    def __init__(
        self,
        connections: Connections,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        """Prepare; ``connection_made`` follows."""
        self.key: str | None = None
        self.address = "unknown"
        self._connections = connections
        self._http = Http(config, server_state, app_state | {"visitor": self}, connections.limits)
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._handshake: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self._http.idle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin TLS, unless there is no place."""
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.address = network_of(peer[0]) if peer else "unknown"
        if not self._connections.enter(self):
            transport.abort()
            return
        limits, loop = self._connections.limits, asyncio.get_running_loop()
        self._deadline = loop.call_later(limits.first_request_seconds, self._late)
        self._handshake = loop.create_task(self._begin_tls(transport))

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer left before TLS began."""
        self.gone()

    def admitted(self, key: str) -> None:
        """An admitted key signed a request that came here."""
        self._deadline = _stop(self._deadline)
        self._connections.admit(self, key)

    def cut(self, reason: str, *values: object) -> None:
        """End the connection at once and say why in the log."""
        LOG.warning("%s: a connection is cut: " + reason, self.address, *values)
        self.gone()
        self._http.silence()
        if self._transport is not None:
            self._transport.abort()

    def gone(self) -> None:
        """Give the place of this connection free."""
        self._deadline = _stop(self._deadline)
        self._connections.leave(self)

    async def _begin_tls(self, transport: asyncio.Transport) -> None:
        if transport.is_closing():  # it gave way before it began
            return
        limits = self._connections.limits
        try:
            tls = await asyncio.get_running_loop().start_tls(
                transport,
                self._http,
                self._connections.tls,
                server_side=True,
                ssl_handshake_timeout=limits.first_request_seconds,
                ssl_shutdown_timeout=_GOODBYE_S,
            )
        except (OSError, ssl.SSLError):
            tls = None
        if tls is None:  # the peer left in the handshake
            self.gone()
            transport.abort()
        else:
            self._http.begin(tls)

    def _late(self) -> None:
        seconds = self._connections.limits.first_request_seconds
        self.cut("no request of an admitted site within %g s", seconds)


class Http(H11Protocol):
    """HTTP on one connection, with deadlines for heads and for readers of answers."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        limits: GatewayLimits,
    ) -> None:
        """Prepare; ``begin`` follows when TLS stands."""
        super().__init__(config, server_state, app_state)
        self._visitor: Visitor = app_state["visitor"]
        self._limits = limits
        self._early = b""
        self._head: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def begin(self, transport: asyncio.Transport) -> None:
        """TLS stands: take what came already, and more."""
        self.connection_made(transport)
        self._watch_head()
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def data_received(self, data: bytes) -> None:
        """Take what came, unless the connection is about to end."""
        if self.transport is None:  # sent together with the end of the handshake
            self._early += data
        elif not self.transport.is_closing():
            super().data_received(data)
            self._watch_head()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, once, and end."""
        self.silence()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """The peer does not read its answer; it has a while to begin."""
        super().pause_writing()
        if self._reader is None:
            self._reader = self.loop.call_later(self._limits.answer_seconds, self._unread)

    def resume_writing(self) -> None:
        """Go on writing, since the peer reads again; asyncio calls this."""
        super().resume_writing()
        self._reader = _stop(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of all that belongs to the connection; asyncio calls this."""
        self._head, self._reader = _stop(self._head), _stop(self._reader)
        self._visitor.gone()
        if self.transport is not None:
            super().connection_lost(exc)
            self._unset_keepalive_if_required()

    def silence(self) -> None:
        """Nothing more is said on this connection by a request under way."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _watch_head(self) -> None:
        """A head that has begun, or the first, must be whole within its time."""
        begun = self.cycle is None or bool(self.conn.trailing_data[0])
        if self.conn.their_state is not h11.IDLE or not begun:
            self._head = _stop(self._head)
        elif self._head is None:
            self._head = self.loop.call_later(self._limits.head_seconds, self._slow)

    def _slow(self) -> None:
        self._visitor.cut("no whole head of a request within %g s", self._limits.head_seconds)

    def _unread(self) -> None:
        self._visitor.cut("it did not read its answer in %g s", self._limits.answer_seconds)


class WatchedTLS(ssl.SSLObject):
    """Says in the log why a TLS handshake failed; asyncio itself stays silent about it."""

    def do_handshake(self) -> None:
        """Run or go on with the handshake."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            reason = error.reason or "unknown reason"
            if "UNKNOWN_CA" in reason or "BAD_CERTIFICATE" in reason:
                LOG.warning(
                    "a node refused this server's certificate (%s); give it this server's ca.crt "
                    "and an address that the certificate names",
                    reason,
                )
            else:
                LOG.warning("a TLS handshake failed (%s)", reason)
            raise


def network_of(address: str) -> str:
    """What counts as one address: an IPv4 address, or the first 64 bits of an IPv6 one."""
    with contextlib.suppress(ValueError):
        parsed = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(parsed, ipaddress.IPv6Address):
            if parsed.ipv4_mapped is not None:
                return str(parsed.ipv4_mapped)
            return str(ipaddress.ip_network((int(parsed), _PREFIX), strict=False))
    return address


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel a timer; gives None, what stands for no timer."""
    if timer is not None:
        timer.cancel()
    return None
