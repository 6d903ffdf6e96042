"""Processes that belong together: found by a mark, ended together, and never left behind.

A supervisor gives each process that it starts, and whatever that starts in turn, the name of its
folder in the environment. A :class:`Warden` is one small process beside it that waits for its end,
however that comes (also by SIGKILL), and then ends all that it had started. Linux only: processes
are found through ``/proc``. Needs nothing but the standard library, so that a warden stays small.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

MARK = "FEDLATENT_SUPERVISOR"
"""Environment variable that names the supervisor's folder in each process it started."""

TURN = "FEDLATENT_SUPERVISOR_TURN"
"""Environment variable that tells one supervisor on a folder from the next: its id, and chance."""

GRACE_S = 8.0
"""Between SIGTERM and SIGKILL."""

_POLL_S = 0.05


class Warden:
    """Ends what a supervisor has started when the supervisor itself is gone.

    It reads from a pipe whose other end the supervisor's process alone holds: the kernel closes
    that end with the process, and the read returns.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare; nothing starts yet.

        Args:
            folder: of the supervisor.
        """
        self.turn = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._folder = folder
        self._line: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def marks(self) -> dict[str, str]:
        """Variables of each process that is to end with the supervisor."""
        return {MARK: str(self._folder), TURN: self.turn}

    def watch(self, environment: Mapping[str, str]) -> None:
        """Start the warden's process, also in the place of one that was killed.

        Args:
            environment: with which it starts; marks are taken out.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.dismiss()
        read, self._line = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(self._folder), self.turn],
                cwd="/",
                env={key: value for key, value in environment.items() if key not in (MARK, TURN)},
                stdin=read,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's end does not reach it
            )
        finally:
            os.close(read)

    def dismiss(self) -> None:
        """End the warden's process, which leaves all others alone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._line is not None:
            os.close(self._line)
            self._line = None


def marked_processes(folder: Path, turn: str | None = None) -> dict[int, str]:
    """Living processes that a supervisor on ``folder`` started, at any depth: id to command.

    Those of this account alone, since anybody may put the mark into a process of their own.

    Args:
        folder: of the supervisor.
        turn: of one supervisor; by default those of all that ever ran there.
    """
    wanted = {f"{MARK}={folder}"} | ({f"{TURN}={turn}"} if turn else set())
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if entry.stat().st_uid == os.getuid() and wanted <= set(_words(entry / "environ")):
                found[int(entry.name)] = " ".join(_words(entry / "cmdline"))
    return found


def supervisor_of(folder: Path) -> int | None:
    """The living supervisor on ``folder``, by what it has started: each child names its parent."""
    for pid in marked_processes(folder):
        with contextlib.suppress(OSError, IndexError):
            words = _words(Path(f"/proc/{pid}/environ"))
            turns = [word.partition("=")[2] for word in words if word.startswith(f"{TURN}=")]
            parent = _stat(pid)[1]
            if turns and turns[0].partition("-")[0] == parent:
                return int(parent)
    return None


def end_processes(folder: Path, turn: str | None = None) -> int:
    """End every process that a supervisor on ``folder`` left behind; returns how many.

    What these start meanwhile is ended too.
    """
    ended: set[int] = set()
    for number in (signal.SIGTERM, signal.SIGKILL):
        told: set[int] = set()
        deadline = time.monotonic() + GRACE_S
        while (left := marked_processes(folder, turn)) and time.monotonic() < deadline:
            for pid in left.keys() - told:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)  # else one that SIGSTOP holds would not hear it
                    os.kill(pid, number)
            told |= left.keys()
            time.sleep(_POLL_S)
        ended |= told
    return len(ended)


def is_stopped(pid: int) -> bool:
    """Whether a signal such as SIGSTOP keeps a process from running."""
    try:
        return _stat(pid)[0] == "T"
    except OSError:  # it has ended
        return False


def hang_up_is_terminate() -> None:
    """Let SIGHUP, as of a terminal that closes, do what SIGTERM does in this process.

    Where SIGHUP is ignored, as under ``nohup``, it stays so.
    """
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _terminate)


def _words(path: Path) -> list[str]:
    """What the kernel shows with zeros in between."""
    return path.read_bytes().rstrip(b"\0").decode(errors="surrogateescape").split("\0")


def _stat(pid: int) -> list[str]:
    """The state of a process, its parent's id, and more."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _terminate(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)


def main() -> None:
    """The warden's process: wait until standard input ends, then end the processes of a turn."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    folder, turn = sys.argv[1:]
    sys.stdin.buffer.read()
    end_processes(Path(folder), turn)


if __name__ == "__main__":
    main()
