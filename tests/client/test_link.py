"""Frames over the Unix socket."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedlatent.client import link
from fedlatent.client.link import ask, read_frame, serve
from fedlatent.shared.errors import ServiceError


@contextlib.contextmanager
def server(path: Path, handler: Callable[[bytes], bytes], step_s: float = 0.0) -> Iterator[None]:
    """Serve ``handler`` on ``path`` in a thread until the block ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def loop() -> None:
        with contextlib.suppress(OSError):
            serve(listener, handler, step_s)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_large_frames_go_both_ways(tmp_path: Path) -> None:
    """Answers come back whole, larger than any socket buffer, one after another."""
    with server(tmp_path / "s", lambda data: data[::-1]):
        for size in (0, 1, 5_000_000):
            data = bytes(range(256)) * (size // 256 + 1)
            assert ask(tmp_path / "s", data[:size], 10) == data[:size][::-1]


def test_absent_server_is_named_in_time(tmp_path: Path) -> None:
    """Without a resident the caller gets an error within its time, not an endless wait."""
    started = time.monotonic()
    with pytest.raises(ServiceError, match="resident node"):
        ask(tmp_path / "none", b"x", 0.6)
    assert time.monotonic() - started < 20


def test_slow_answer_is_given_up(tmp_path: Path) -> None:
    """An answer that takes longer than the caller has is given up."""

    def late(data: bytes) -> bytes:
        time.sleep(1.0)
        return data

    with server(tmp_path / "s", late), pytest.raises(ServiceError, match="TimeoutError"):
        ask(tmp_path / "s", b"x", 0.3)


def test_restarted_server_is_asked_again(tmp_path: Path) -> None:
    """A server that dies with the request and comes back gets it again."""
    path = tmp_path / "s"
    answers: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(path))
        dying.listen()
        asker = threading.Thread(target=lambda: answers.append(ask(path, b"again", 10)))
        asker.start()
        connection, _ = dying.accept()
        assert read_frame(connection, time.monotonic() + 5) == b"again"
        connection.close()
    path.unlink()
    with server(path, lambda data: data + b" and again"):
        asker.join(10)
    assert answers == [b"again and again"]


def test_bad_peers_do_not_stop_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent, a cut and an oversized frame are dropped, and the next caller is served."""
    monkeypatch.setattr(link, "TRANSFER_S", 0.3)
    seen: list[bytes] = []

    def handler(data: bytes) -> bytes:
        seen.append(data)
        return data

    with server(tmp_path / "s", handler):
        for sent in (b"", struct.pack("<Q", 10) + b"cut", struct.pack("<Q", 1 << 62)):
            with socket.socket(socket.AF_UNIX) as bad:
                bad.connect(str(tmp_path / "s"))
                bad.sendall(sent)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(tmp_path / "s"))
            assert ask(tmp_path / "s", b"good", 5) == b"good"
    assert seen == [b"good"]


def test_request_of_a_caller_that_left_is_skipped(tmp_path: Path) -> None:
    """Nobody works on a request whose caller is gone before its turn."""
    seen: list[bytes] = []
    busy = threading.Event()

    def handler(data: bytes) -> bytes:
        seen.append(data)
        busy.wait(5)
        return data

    with server(tmp_path / "s", handler):
        first = threading.Thread(target=ask, args=(tmp_path / "s", b"first", 10))
        first.start()
        while not seen:
            time.sleep(0.01)
        with socket.socket(socket.AF_UNIX) as gone:
            gone.connect(str(tmp_path / "s"))
            gone.sendall(struct.pack("<Q", 4) + b"gone")
        busy.set()
        assert ask(tmp_path / "s", b"last", 5) == b"last"
        first.join(5)
    assert seen == [b"first", b"last"]


@pytest.mark.parametrize(("work_s", "steps"), [(0.0, 1), (0.3, 1), (0.7, 2)])
def test_answers_wait_for_a_whole_step(tmp_path: Path, work_s: float, steps: int) -> None:
    """Whatever the work, the answer comes at the next whole step after the request."""

    def work(data: bytes) -> bytes:
        time.sleep(work_s)
        return data

    passed: list[float] = []
    with server(tmp_path / "s", work, 0.5):
        # On a busy machine answers come late, but not each time.
        while not passed or (min(passed) >= (steps + 0.8) * 0.5 and len(passed) < 10):
            started = time.monotonic()
            ask(tmp_path / "s", b"x", 10)
            passed.append(time.monotonic() - started)
    assert steps * 0.5 <= min(passed) < (steps + 0.8) * 0.5


def test_a_request_without_an_answer_ends_at_a_whole_step(tmp_path: Path) -> None:
    """Where not even a refusal can be written, the connection ends no earlier than an answer."""

    def full(data: bytes) -> bytes:
        time.sleep(0.1)
        raise OSError("no space left")

    with server(tmp_path / "s", full, 0.5), socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(tmp_path / "s"))
        started = time.monotonic()
        link.write_frame(asking, b"x", started + 5)
        with pytest.raises(EOFError):
            read_frame(asking, started + 5)
        assert 0.5 <= time.monotonic() - started < 4.5  # one step, or more on a busy machine
