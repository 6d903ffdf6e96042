"""The ASGI endpoint: judges the head of a request, then its body, and passes it on."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from fedlatent.server.gateway.connections import Visitor
from fedlatent.server.gateway.issued import Book
from fedlatent.server.gateway.rates import Rates
from fedlatent.server.gateway.refusal import Refused
from fedlatent.server.gateway.rules import ENDPOINTS, Note, Rules
from fedlatent.server.gateway.sites import Member, Members
from fedlatent.server.home import ServerHome
from fedlatent.server.settings import GatewayLimits

LOG = logging.getLogger("fedlatent.gateway")

_PREFIX = b"/v1/fleet/"
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "content-length",
        "date",  # our own server writes one
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
_AGAIN = frozenset(
    {"send-node-heartbeat", "pull-messages", "pull-object", "push-object"}
)  # after a failure of the SuperLink's own a SuperNode asks for these again if told 503, not 500
_REUSE_S = 2.0  # an idle connection to the SuperLink; it closes its end after 5


class Gateway:
    """Checks a request and passes it on."""

    def __init__(
        self, client: httpx.AsyncClient, home: ServerHome, book: Book, limits: GatewayLimits
    ) -> None:
        """Pass requests on through ``client``, whose base URL is the SuperLink."""
        self._client = client
        self._limits = limits
        self._members = Members(home)
        self._rules = Rules(home, book)
        self._rates = Rates(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        visitor: Visitor = scope["state"]["visitor"]
        who: Member | str = visitor.address
        try:
            name = self._endpoint(request)
            who = self._members.sender(request.headers, name)
            visitor.admitted(who.fingerprint)
            size = self._length(request, name)
            use = self._rates.count(who.fingerprint, name)
            async with use.bodies:
                answer = await self._passed_on(request, who, name, size)
                await self._say(answer, visitor, scope, receive, send)
        except Refused as refused:
            what = f"refused {name}: " if isinstance(who, Member) else ""
            level = logging.DEBUG if scope["raw_path"] == b"/" else logging.WARNING  # probes
            LOG.log(level, f"%s: {what}{refused.kind}", who, *refused.values)
            await self._say(refused.response(), visitor, scope, receive, send)
        except ClientDisconnect:
            return

    def _endpoint(self, request: Request) -> str:
        """The fleet endpoint that a request is for, and what is wrong with its framing."""
        raw_path: bytes = request.scope["raw_path"]
        name = raw_path.removeprefix(_PREFIX).decode("ascii", "replace")
        known = raw_path.startswith(_PREFIX) and ENDPOINTS.get(name) is not None
        if request.method != "POST" or not known or request.scope["query_string"]:
            shown = ascii(raw_path[:100])[2:-1]
            kind = "refused %s %s: only the fleet API is served here"
            raise Refused(403, kind, request.method, shown, close=True)
        lengths = request.headers.getlist("content-length")
        if "transfer-encoding" in request.headers:
            status = 400 if lengths else 411
            raise Refused(status, "refused a body without a stated length", close=True)
        if len(lengths) > 1 or not all(one.isascii() and one.isdecimal() for one in lengths):
            raise Refused(400, "refused a body of unclear length", close=True)
        if not lengths:
            raise Refused(411, "refused a body without a stated length", close=True)
        return name

    def _length(self, request: Request, name: str) -> int:
        endpoint = ENDPOINTS[name]
        text = request.headers["content-length"]
        limit = 0 if endpoint is None else min(endpoint.max_bytes, self._limits.max_body_bytes)
        if len(text) > 12 or int(text) > limit:
            raise Refused(413, "a request body of more than %d bytes", limit, close=True)
        return int(text)

    async def _passed_on(self, request: Request, member: Member, name: str, size: int) -> Response:
        """Read and judge the body, and bring the SuperLink's answer."""
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                with self._rules.room(member, name, size):
                    body = await request.body()
                    note = self._rules.check(member, name, body)
                return await self._forward(request, member, name, body, note)
        except (TimeoutError, httpx.TimeoutException):
            raise Refused(504, "no full request or no answer in time", close=True) from None
        except httpx.TransportError as error:
            LOG.error("the SuperLink does not answer: %s", type(error).__name__)
            raise Refused(503, "the server is starting or down") from None

    async def _forward(
        self, request: Request, member: Member, name: str, body: bytes, note: Note | None
    ) -> Response:
        done = False
        try:
            passed = self._client.build_request(
                "POST", f"/v1/fleet/{name}", content=body, headers=_end_to_end(request.headers)
            )
            answer = await self._client.send(passed, stream=True)
            headers = _end_to_end(answer.headers)
            if answer.status_code >= 400:
                content = await answer.aread()
                return Response(content, self._turned_away(member, name, answer), headers)
            if note is None:
                done = True
                return StreamingResponse(_stream_and_close(answer), answer.status_code, headers)
            content = await answer.aread()
            note.answered(content)
            done = True
            return Response(content, answer.status_code, headers)
        finally:
            if note is not None and not done:
                note.failed()

    def _turned_away(self, member: Member, name: str, answer: httpx.Response) -> int:
        """Say whom the server behind us turned away, and with what status to pass that on."""
        status = answer.status_code
        if name == "activate-node":
            LOG.warning(
                "%s may not join (status %d): its last connection still counts as alive, for up "
                "to half a minute",
                member,
                status,
            )
        else:
            LOG.warning("%s: %s got status %d", member, name, status)
        return 503 if status == 500 and name in _AGAIN else status

    async def _say(
        self, answer: Response, visitor: Visitor, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                await answer(scope, receive, send)
        except TimeoutError:
            visitor.cut("it did not read its answer in %g s", self._limits.answer_seconds)


def create_app(home: ServerHome, book: Book, limits: GatewayLimits) -> Starlette:
    """Build the proxy before the SuperLink of ``home``.

    Args:
        home: Whose sites are let in.
        book: What was issued to them.
        limits: Caps on bodies, rates and times.
    """
    client = httpx.AsyncClient(
        base_url="http://superlink",
        transport=httpx.AsyncHTTPTransport(
            uds=str(home.link_socket),
            limits=httpx.Limits(
                max_connections=limits.concurrent_requests, keepalive_expiry=_REUSE_S
            ),
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
    app.router.default = Gateway(client, home, book, limits)  # nothing is routed before the check
    return app


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
