"""The public port: TLS in front of Flower's fleet API, and of nothing else.

Flower 1.41 serves its control, runtime and fleet APIs on one port, and the control API has no
authentication: whoever reaches it can run code on every node. So that port stays on loopback, and
this reverse proxy passes on ``POST /v1/fleet/<name>`` alone. It compares the raw path, so encoded
or doubled slashes and dots never reach the server behind it. Bodies, rates and times are capped,
and a node that is turned away leaves a log line that says why.
"""

import argparse
import asyncio
import base64
import contextlib
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.control import fingerprint_of
from server.home import ServerHome
from server.settings import GatewayLimits, load_settings

LOG = logging.getLogger("fedlatent.gateway")

_ALLOWED = re.compile(rb"/v1/fleet/[A-Za-z0-9_-]+(?:/[A-Za-z0-9_-]+)*\Z")
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_KEY_HEADER = "flwr-public-key"
_MAX_PEERS = 10_000  # rate counters kept at once


@dataclass(kw_only=True)
class _Bucket:
    """Requests one peer may still send now."""

    tokens: float
    updated: float


class _RateLimit:
    """A token bucket for each peer address."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: dict[str, _Bucket] = {}

    def allows(self, peer: str, now: float) -> bool:
        """Take one token from ``peer``'s bucket; ``False`` when it is empty."""
        bucket = self._buckets.pop(peer, None) or _Bucket(tokens=self._burst, updated=now)
        bucket.tokens += (now - bucket.updated) * self._per_second
        bucket.tokens, bucket.updated = min(bucket.tokens, self._burst), now
        self._buckets[peer] = bucket  # last in the order: the oldest goes first
        if len(self._buckets) > _MAX_PEERS:
            del self._buckets[next(iter(self._buckets))]
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True


class _BodyTooLarge(Exception):
    """A request body passed the cap while it was streamed."""


class Gateway:
    """The ASGI endpoint that checks a request and passes it on."""

    def __init__(self, client: httpx.AsyncClient, limits: GatewayLimits) -> None:
        """Pass requests on through ``client``, whose base URL is the SuperLink."""
        self._client = client
        self._limits = limits
        self._rates = _RateLimit(limits.requests_per_second, limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        peer = request.client.host if request.client else "unknown"
        if (refusal := self._refusal(request, peer)) is not None:
            return refusal
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                answer = await self._client.send(self._forwarded(request), stream=True)
        except _BodyTooLarge:
            return self._too_large(peer)
        except (TimeoutError, httpx.TimeoutException):
            LOG.warning("%s: no full request or no answer in time", peer)
            return PlainTextResponse("timed out\n", 504)
        except httpx.TransportError as error:
            LOG.error("the SuperLink does not answer: %s", type(error).__name__)
            return PlainTextResponse("the server is starting or down\n", 503)
        self._note(request, peer, answer.status_code)
        return StreamingResponse(
            _stream_and_close(answer), answer.status_code, _end_to_end(answer.headers)
        )

    def _refusal(self, request: Request, peer: str) -> Response | None:
        """Why a request is not passed on, judged by its head alone."""
        if not self._rates.allows(peer, time.monotonic()):
            LOG.warning(
                "%s: more than %g requests a second", peer, self._limits.requests_per_second
            )
            return PlainTextResponse("too many requests\n", 429, {"retry-after": "1"})
        raw_path: bytes = request.scope["raw_path"]
        allowed = _ALLOWED.match(raw_path) and not request.scope["query_string"]
        if request.method != "POST" or not allowed:
            level = logging.DEBUG if raw_path == b"/" else logging.WARNING  # nodes probe "/"
            LOG.log(level, "%s: refused %s %s", peer, request.method, ascii(raw_path[:100])[2:-1])
            return PlainTextResponse("only the fleet API is served here\n", 403)
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limits.max_body_bytes:
            return self._too_large(peer)
        return None

    def _too_large(self, peer: str) -> Response:
        LOG.warning("%s: a request body of more than %d bytes", peer, self._limits.max_body_bytes)
        return PlainTextResponse("the request body is too large\n", 413, {"connection": "close"})

    def _forwarded(self, request: Request) -> httpx.Request:
        async def body() -> AsyncIterator[bytes]:
            size = 0
            async for chunk in request.stream():
                size += len(chunk)
                if size > self._limits.max_body_bytes:
                    raise _BodyTooLarge
                yield chunk

        return self._client.build_request(
            "POST",
            request.scope["raw_path"].decode("ascii"),
            content=body(),
            headers=_end_to_end(request.headers),
        )

    def _note(self, request: Request, peer: str, status: int) -> None:
        """Say who was turned away by the server behind us, with its key's fingerprint."""
        if status < 400:
            return
        path = request.url.path.rsplit("/", 1)[-1]
        key = key_fingerprint(request.headers.get(_KEY_HEADER, ""))
        if path == "activate-node":
            LOG.warning(
                "%s: the node with key %s may not join (status %d): it is not admitted, or its "
                "last connection still counts as alive for up to a minute",
                peer,
                key,
                status,
            )
        else:
            LOG.warning("%s: %s by the node with key %s got status %d", peer, path, key, status)


def key_fingerprint(header: str) -> str:
    """Short name of the public key in Flower's request header, or ``unknown``."""
    try:
        key = serialization.load_pem_public_key(base64.b64decode(header, validate=True))
    except (ValueError, UnsupportedAlgorithm):
        return "unknown"
    return fingerprint_of(key) if isinstance(key, ec.EllipticCurvePublicKey) else "unknown"


def create_app(upstream: Path, limits: GatewayLimits) -> Starlette:
    """Build the proxy.

    Args:
        upstream: Unix socket of the SuperLink.
        limits: Caps on bodies, rates and times.
    """
    client = httpx.AsyncClient(
        base_url="http://superlink",
        transport=httpx.AsyncHTTPTransport(
            uds=str(upstream), limits=httpx.Limits(max_connections=limits.concurrent_requests)
        ),
        timeout=limits.request_seconds,
        trust_env=False,
        follow_redirects=False,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    app = Starlette(lifespan=lifespan)
    app.router.default = Gateway(client, limits)  # every path: nothing is routed before the check
    return app


class _WatchedTLS(ssl.SSLObject):
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


def serve(home: ServerHome) -> None:
    """Run the gateway in this process until SIGTERM."""
    settings = load_settings(home)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = uvicorn.Config(
        create_app(home.link_socket, settings.limits),
        host=settings.host,
        port=settings.port,
        http="h11",
        ws="none",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level="warning",
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
        ssl_certfile=str(home.certificate),
        ssl_keyfile=str(home.certificate_key),
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        config.ssl.sslobject_class = _WatchedTLS
    LOG.info("gateway on https://%s:%d", settings.host, settings.port)
    uvicorn.Server(config).run()


def main() -> None:
    """Command line: ``python -m server.gateway --home DIR``."""
    parser = argparse.ArgumentParser(description="Serve the fleet API of one federation.")
    parser.add_argument("--home", required=True)
    serve(ServerHome.find(parser.parse_args().home))


async def _stream_and_close(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that a proxy passes on."""
    named = {part.strip().lower() for part in headers.get("connection", "").split(",")}
    return {
        key: value
        for key, value in headers.items()
        if key.lower() not in _HOP_BY_HOP | named and not key.lower().startswith("x-forwarded-")
    }


if __name__ == "__main__":
    main()
