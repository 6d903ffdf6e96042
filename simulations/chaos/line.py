"""The line between a node and the server: a relay that can be slow, lossy, stalled or cut.

What a lossy network does to a program is what the relay does: bytes come late, or a connection
ends. So no right of the administrator is needed, nor a kernel that can emulate networks.
"""

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable
from typing import Literal, Self

State = Literal["open", "slow", "lossy", "stalled", "cut"]

_PART = 16 * 1024
_SLOW_S = 0.15  # for each part
_LOSS = 0.03  # share of parts that end their connection
_LATE = 0.1  # share of parts that come late
_LATE_S = 1.0
_LOOK_S = 0.05


class Line:
    """A relay on a port of its own, in a thread of its own."""

    def __init__(self, port: int, seed: int) -> None:
        """Relay to ``port`` of this machine once it is entered.

        Args:
            port: of the gateway.
            seed: of what gets lost.
        """
        self._target = port
        self._draw = random.Random(seed)
        self._state: State = "open"
        self._open: set[asyncio.StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="line", daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        self._up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        """Cut the line and end."""
        self._do(self._over.set)
        self._thread.join()

    def become(self, state: State) -> None:
        """Change what the line does; a cut one ends its connections and takes no new ones."""
        self._state = state
        if state == "cut":
            self._do(self._abort)

    def _do(self, what: Callable[[], None]) -> None:
        """Let the line's own thread do something."""
        assert self._loop is not None, "the line is not entered"
        self._loop.call_soon_threadsafe(what)

    def _run(self) -> None:
        asyncio.run(self._listen())

    async def _listen(self) -> None:
        """Serve until it is over; what is under way then is cancelled."""
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        self._up.set()
        await self._over.wait()
        server.close()

    def _abort(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._state == "cut":
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # the server is away
            writer.transport.abort()
            self._open.discard(writer)
            return
        self._open.add(far_writer)
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            for one in (writer, far_writer):
                one.transport.abort()
                self._open.discard(one)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while part := await reader.read(_PART):
                if not await self._passes():
                    break
                writer.write(part)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()

    async def _passes(self) -> bool:
        """Let one part wait as the line's state wants; whether it arrives at all."""
        while self._state == "stalled":
            await asyncio.sleep(_LOOK_S)
        if self._state == "slow":
            await asyncio.sleep(_SLOW_S)
        if self._state == "lossy":
            if self._draw.random() < _LOSS:
                return False
            if self._draw.random() < _LATE:
                await asyncio.sleep(_LATE_S)
        return self._state != "cut"
