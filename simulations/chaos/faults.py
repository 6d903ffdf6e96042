"""How each kind of fault is done to the stage, and undone."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fedlatent.simulations.chaos.hostile import lie_of
from fedlatent.simulations.chaos.line import State
from fedlatent.simulations.chaos.means import full, set_clock, unwritable
from fedlatent.simulations.chaos.plan import Fault, Kind
from fedlatent.simulations.chaos.stage import Stage

_APPEAR_S = 15.0  # a process that comes with each message is waited for so long
_POLL_S = 0.02
_FAMILY = ("", "-wal", "-shm")  # what belongs to a database


class Missed(Exception):
    """There was nothing to hit."""


@dataclass
class Wound:
    """What whoever looks on finds out while a fault lasts.

    Attributes:
        lives: whether the deployment goes on with it, so that nothing needs to be put back.
    """

    lives: bool = False


@contextlib.contextmanager
def struck(stage: Stage, fault: Fault) -> Iterator[Wound]:
    """Strike on entering, mend on leaving what does not mend itself.

    Raises:
        Missed: There was nothing to hit; nothing was done.
    """
    wound = Wound()
    with _WAYS[fault.kind](stage, fault, wound):
        yield wound


@contextlib.contextmanager
def _signal(stage: Stage, fault: Fault, wound: Wound) -> Iterator[None]:
    side, number = stage.sides[fault.side], signal.Signals[f"SIG{fault.how}"]
    deadline = time.monotonic() + _APPEAR_S
    while not (pids := side.pids(fault.what)):
        if time.monotonic() > deadline:
            raise Missed
        stage.tend()
        time.sleep(_POLL_S)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pids[0], number)
    yield
    if number == signal.SIGSTOP:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGCONT)


@contextlib.contextmanager
def _side(stage: Stage, fault: Fault, wound: Wound) -> Iterator[None]:
    side = stage.sides[fault.side]
    side.signal(signal.Signals[f"SIG{fault.how}"])
    yield
    if fault.how == "STOP":
        side.signal(signal.SIGCONT)


@contextlib.contextmanager
def _disk(stage: Stage, fault: Fault, wound: Wound) -> Iterator[None]:
    with full(stage.sides[fault.side].home):
        yield


@contextlib.contextmanager
def _read_only(stage: Stage, fault: Fault, wound: Wound) -> Iterator[None]:
    folder = stage.sides[fault.side].home / fault.what
    if not folder.exists():
        raise Missed
    with unwritable(folder):
        yield


@contextlib.contextmanager
def _clock(stage: Stage, fault: Fault, wound: Wound) -> Iterator[None]:
    path = stage.sides[fault.side].clock
    set_clock(path, int(fault.how))
    yield
    set_clock(path, 0)


@contextlib.contextmanager
def _line(stage: Stage, fault: Fault, wound: Wound) -> Iterator[None]:
    line = stage.lines[fault.side]
    line.become(cast(State, fault.how))
    yield
    line.become("open")


@contextlib.contextmanager
def _lie(stage: Stage, fault: Fault, wound: Wound) -> Iterator[None]:
    path = lie_of(stage.sides[fault.side].home)
    path.write_text(fault.how)
    yield
    path.unlink()


@contextlib.contextmanager
def _file(stage: Stage, fault: Fault, wound: Wound) -> Iterator[None]:
    """A power cut that damaged a file; an operator puts it back where nothing goes on without."""
    side = stage.sides[fault.side]
    side.kill()
    try:
        path = newest(side.home, fault.what)
        base = path.with_name(path.name.removesuffix("-wal"))
        family = [base.with_name(base.name + suffix) for suffix in _FAMILY]
        before = {one: one.read_bytes() for one in family if one.exists()}
        modes = {one: one.stat().st_mode for one in before}
        damage(path, fault.how, random.Random(fault.seed))
        side.release()
        yield
        if not wound.lives:
            side.end()
            for one in family:
                one.unlink(missing_ok=True)
            for one, data in before.items():
                one.write_bytes(data)
                one.chmod(modes[one])
    finally:
        side.release()


def newest(home: Path, pattern: str) -> Path:
    """The file of a home that was written last among those that fit.

    Raises:
        Missed: There is none, or it is empty.
    """
    found = [path for path in home.glob(pattern) if path.stat().st_size]
    if not found:
        raise Missed
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def damage(path: Path, how: str, draw: random.Random) -> None:
    """Cut a file at a random place, empty it, replace it by junk, or remove it.

    Args:
        path: of the file.
        how: one of ``plan.DAMAGES``.
        draw: of the place or the junk.
    """
    if how == "gone":
        path.unlink()
        return
    data = path.read_bytes()
    left = {"cut": data[: draw.randrange(len(data))], "emptied": b""}
    path.write_bytes(left.get(how, draw.randbytes(len(data))))


_Way = Callable[[Stage, Fault, Wound], contextlib.AbstractContextManager[None]]
_WAYS: Mapping[Kind, _Way] = {
    "signal": _signal,
    "side": _side,
    "file": _file,
    "disk": _disk,
    "read-only": _read_only,
    "clock": _clock,
    "line": _line,
    "lie": _lie,
}
