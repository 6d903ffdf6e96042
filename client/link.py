"""Frames over a Unix socket between Flower's short-lived process and the resident node.

A frame is its length (8 bytes, little endian) and that many bytes; one frame asks, one answers.
This module is imported for every message, so it needs the standard library alone.
"""

import contextlib
import math
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from fedlatent.shared.errors import ServiceError

#: Largest frame, a little over the largest packed message.
MAX_FRAME_BYTES = 1024 * 1024 * 1024 + 1024
#: How long the resident waits for a whole request, and for its answer to be taken.
TRANSFER_S = 60.0

_LENGTH = struct.Struct("<Q")
_PART = 1 << 20
_RETRY_PAUSE_S = 0.25


def ask(path: Path, request: bytes, timeout_s: float) -> bytes:
    """Send one request and wait for its answer, at most ``timeout_s`` seconds in all.

    A resident that is absent or dies on the way is asked again until time is up: its supervisor
    restarts it, and a node answers a repeated request without a second charge.

    Raises:
        ServiceError: no whole answer in time.
    """
    end = time.monotonic() + timeout_s
    while True:
        try:
            return _ask_once(path, request, end)
        except (OSError, EOFError) as error:
            if time.monotonic() + _RETRY_PAUSE_S >= end:
                raise ServiceError(
                    f"Expected an answer from the resident node at {path} within {timeout_s:g} s, "
                    f"got {type(error).__name__}; start the node or see its log."
                ) from None
        time.sleep(_RETRY_PAUSE_S)


def serve(listener: socket.socket, handler: Callable[[bytes], bytes], step_s: float = 0.0) -> None:
    """Answer one request at a time, for ever.

    Args:
        listener: a listening Unix socket.
        handler: makes the answer; it must not raise for a bad request.
        step_s: every answer, of whatever kind, leaves a whole number of such steps after its
            request was read, so that its time tells no more than that number; 0 waits for nothing.
    """
    while True:
        connection, _ = listener.accept()
        # A peer that goes away or stalls is its own problem; the next one is served.
        with connection, contextlib.suppress(OSError, EOFError):
            request = read_frame(connection, time.monotonic() + TRANSFER_S)
            arrived = time.monotonic()
            if not _hung_up(connection):
                try:
                    answer = handler(request)
                except Exception:  # no answer, as on a full disk, shows no time either
                    _wait(arrived, step_s)
                    raise
                _wait(arrived, step_s)
                write_frame(connection, answer, time.monotonic() + TRANSFER_S)


def whole_steps(seconds: float, step_s: float) -> float:
    """The least whole number of steps that lasts so many seconds; the seconds where it is 0."""
    return math.ceil(seconds / step_s) * step_s if step_s else seconds


def _wait(arrived: float, step_s: float) -> None:
    passed = time.monotonic() - arrived
    time.sleep(whole_steps(passed, step_s) - passed)


def read_frame(connection: socket.socket, end: float) -> bytes:
    """Read one frame until the monotonic time ``end``.

    Raises:
        EOFError: the peer closed before the end of the frame.
        OSError: the frame is too large, or time is up (``TimeoutError``).
    """
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size, end))
    if length > MAX_FRAME_BYTES:
        raise OSError(f"Expected a frame of at most {MAX_FRAME_BYTES} bytes, got {length}.")
    return _read(connection, length, end)


def write_frame(connection: socket.socket, data: bytes, end: float) -> None:
    """Write one frame until the monotonic time ``end``.

    Raises:
        OSError: the peer is gone, or time is up (``TimeoutError``).
    """
    for block in (_LENGTH.pack(len(data)), data):
        view = memoryview(block)
        while view:
            connection.settimeout(_left(end))
            view = view[connection.send(view[:_PART]) :]


def _ask_once(path: Path, request: bytes, end: float) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_left(end))
        connection.connect(str(path))
        write_frame(connection, request, end)
        return read_frame(connection, end)


def _read(connection: socket.socket, length: int, end: float) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        connection.settimeout(_left(end))
        part = connection.recv(min(_PART, length - len(parts)))
        if not part:
            raise EOFError("Expected a whole frame, got the end of the connection.")
        parts += part
    return bytes(parts)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("Expected a frame in time, got none.")
    return left


def _hung_up(connection: socket.socket) -> bool:
    """Whether the asker is gone already, so that its request need not be worked on."""
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
