"""What this machine lets us do to itself, and why not where it does not.

A disk that is full is a small file system in memory that is filled; a folder that cannot be
written is one that is mounted over itself, read-only; a clock is wrong by a small library that is
loaded before all others.
"""

import contextlib
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")
_OFFSET = struct.Struct("=q")
_DISK = "size=96m,mode=700"
_BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Means:
    """What can be done here.

    Attributes:
        mounts: whether file systems can be mounted.
        clocks: the library that changes a process's clock, or None.
    """

    mounts: bool
    clocks: Path | None

    @classmethod
    def here(cls, folder: Path) -> "Means":
        """Find out, by trying; what has to be built is built in ``folder``."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        library = folder / "clock.so"
        try:
            _run("cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl")
        except (subprocess.CalledProcessError, FileNotFoundError):
            return cls(mounts=_can_mount(), clocks=None)
        return cls(mounts=_can_mount(), clocks=library)

    def lacking(self) -> dict[str, str]:
        """Kinds of faults that are left out here, and why."""
        reasons: dict[str, str] = {}
        if not self.mounts:
            reasons |= dict.fromkeys(("disk", "read-only"), "this account cannot mount")
        if self.clocks is None:
            reasons["clock"] = "there is no C compiler"
        return reasons

    @contextlib.contextmanager
    def small_disk(self, folder: Path) -> Iterator[None]:
        """Put a folder on a small file system of its own, where that can be done."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.mounts:
            yield
            return
        _run("mount", "-t", "tmpfs", "-o", _DISK, "fedlatent-chaos", str(folder))
        try:
            yield
        finally:
            keep = folder.with_name(folder.name + ".kept")
            _run("cp", "-a", str(folder), str(keep))
            _run("umount", "--lazy", str(folder))
            folder.rmdir()
            keep.rename(folder)

    def clock(self, path: Path) -> dict[str, str]:
        """The environment of processes whose clock is as far off as the file says; none without."""
        if self.clocks is None:
            return {}
        path.write_bytes(_OFFSET.pack(0))
        return {"LD_PRELOAD": str(self.clocks), "CHAOS_CLOCK": str(path)}


def set_clock(path: Path, seconds: int) -> None:
    """Set the clock of the processes that go by a file so far ahead, or back if below zero."""
    with path.open("r+b") as stream:
        stream.write(_OFFSET.pack(seconds))


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Leave no free byte on the disk of a folder."""
    ballast = folder / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for size in (_BLOCK, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(descriptor, b"\0" * size)
        yield
    finally:
        os.close(descriptor)
        ballast.unlink()


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Let nobody, not even the administrator, open anything in a folder for writing."""
    _run("mount", "--bind", str(folder), str(folder))
    try:
        _run("mount", "-o", "remount,ro,bind", str(folder))
        yield
    finally:
        _run("umount", "--lazy", str(folder))


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run("mount", "-t", "tmpfs", "-o", _DISK, "fedlatent-chaos", folder)
        except (subprocess.CalledProcessError, FileNotFoundError):
            return False
        _run("umount", folder)
    return True


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
