"""The faults that a machine does to itself, each on a process or folder of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedlatent.simulations.chaos.line import Line
from fedlatent.simulations.chaos.means import Means, full, set_clock, unwritable

MEANS_REASON = "mounting needs the rights of root"


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory) -> Means:
    """What this machine can do."""
    return Means.here(tmp_path_factory.mktemp("means"))


def test_a_clock_is_wrong_and_the_monotonic_one_is_not(means: Means, tmp_path: Path) -> None:
    """A process sees an hour pass when the file says so, and sleeps no longer for it."""
    if means.clocks is None:
        pytest.skip("there is no C compiler")
    path = tmp_path / "clock"
    code = (
        "import time, sys\n"
        "before = time.time(), time.monotonic()\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "time.sleep(0.01)\n"
        "print(time.time() - before[0], time.monotonic() - before[1])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | means.clock(path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        set_clock(path, -3600)
        passed, real = map(float, process.communicate("\n", 30)[0].split())
    assert -3600 < passed - real + 1e-3 < -3590
    assert 0 < real < 60


def test_a_full_disk_takes_nothing_and_is_given_back(means: Means, tmp_path: Path) -> None:
    """Not a byte can be written while it lasts; afterwards what was there is there."""
    if not means.mounts:
        pytest.skip(MEANS_REASON)
    path = tmp_path / "disk" / "file"
    with means.small_disk(path.parent):
        path.write_text("before")
        with full(path.parent), pytest.raises(OSError, match="No space left"):
            (path.parent / "other").write_bytes(b"x" * 5000)
        path.with_name("after").write_text("after")
    assert (path.read_text(), path.with_name("after").read_text()) == ("before", "after")


def test_a_folder_cannot_be_written_for_a_while(means: Means, tmp_path: Path) -> None:
    """Not even by root, who ignores modes."""
    if not means.mounts:
        pytest.skip(MEANS_REASON)
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    with unwritable(path.parent), pytest.raises(OSError, match="Read-only"):
        path.write_text("no")
    path.write_text("yes")


def test_a_machine_without_means_says_what_it_leaves_out() -> None:
    """Each kind of fault that cannot be done has a reason."""
    lacking = Means(mounts=False, clocks=None).lacking()
    assert lacking.keys() == {"disk", "read-only", "clock"}
    assert all(lacking.values())


def test_a_line_passes_everything_until_it_is_cut() -> None:
    """Bytes come through an open line as they were sent; a cut one ends and takes no new calls."""
    with socket.create_server(("127.0.0.1", 0)) as far:
        port = far.getsockname()[1]
        threading.Thread(target=_echo, args=(far,), daemon=True).start()
        with Line(port, seed=1) as line:
            with socket.create_connection(("127.0.0.1", line.port), timeout=10) as near:
                assert _said(near, b"hello") == b"hello"
                line.become("stalled")
                near.sendall(b"later")
                near.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    near.recv(5)
                near.settimeout(10)
                line.become("open")
                assert near.recv(5) == b"later"
                line.become("cut")
                assert _is_over(near)
            line.become("open")
            with socket.create_connection(("127.0.0.1", line.port), timeout=10) as again:
                assert _said(again, b"again") == b"again"


def _echo(far: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is over
        while True:
            call, _ = far.accept()
            threading.Thread(target=_repeat, args=(call,), daemon=True).start()


def _repeat(call: socket.socket) -> None:
    with call, contextlib.suppress(OSError):
        while data := call.recv(1024):
            call.sendall(data)


def _said(near: socket.socket, data: bytes) -> bytes:
    near.sendall(data)
    return near.recv(len(data))


def _is_over(near: socket.socket) -> bool:
    try:
        return near.recv(1) == b""
    except ConnectionError:
        return True
