"""Power cuts: kill a process before its n-th step on files, and lose what it had not synced.

`cut` runs a function in a forked child that counts every step which changes files (an audit hook
for opening, renaming, removing and the like; `os.fsync` and `os.write` by patching) and kills
itself before step n. It notes which files were written and not synced, and which names were made or
replaced in a folder that was not synced. `lose` then takes that away again, as a power cut may.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_EVENTS = {
    "os.rename": 2,
    "os.remove": 1,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.symlink": 2,
    "os.link": 2,
    "os.truncate": 1,
    "os.utime": 1,
    "os.chmod": 1,
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Cut:
    """What was under way when the child died.

    Attributes:
        killed: False when it ended by itself before the step.
        steps: how many steps it began.
        dirty: files, relative to the state folder, with content that was not synced.
        pending: names made or replaced in folders that were not synced, oldest first, each with a
            copy of what was there before, or None.
    """

    killed: bool
    steps: int
    dirty: tuple[str, ...]
    pending: tuple[tuple[str, str | None], ...]


class _Steps:
    """Counts in the child; dies before step ``last``."""

    def __init__(self, state: Path, last: int, notes: Path) -> None:
        self.state, self.last, self.notes = str(state) + os.sep, last, notes
        self.count = self.copies = 0
        self.dirty: list[str] = []
        self.pending: list[tuple[str, str | None]] = []
        self.busy = False
        self.fsync, self.write = os.fsync, os.write

    def start(self) -> None:
        os.fsync, os.write = self._fsync, self._write
        sys.addaudithook(self._hook)

    def save(self) -> None:
        self.busy = True
        value = [self.count, self.dirty, self.pending]
        (self.notes / "cut.json").write_text(json.dumps(value))

    def _step(self) -> None:
        self.count += 1
        if self.count == self.last:
            self.save()
            os.kill(os.getpid(), signal.SIGKILL)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.busy or (event != "open" and event not in _EVENTS):
            return
        self.busy = True
        try:
            if event == "open":
                self._open(arguments)
            else:
                self._change(event, [os.fsdecode(one) for one in arguments[: _EVENTS[event]]])
        finally:
            self.busy = False

    def _open(self, arguments: tuple[object, ...]) -> None:
        path, _, flags = arguments
        if not isinstance(path, str | bytes | os.PathLike) or not int(str(flags)) & _WRITES:
            return
        name = self._inside(os.fsdecode(path))
        if name is not None:
            self._step()
            if not os.path.exists(self.state + name):
                self.pending.append((name, None))
            self._touch(name)

    def _change(self, event: str, paths: list[str]) -> None:
        names = [self._inside(path) for path in paths]
        if names[-1] is None and os.path.isabs(paths[-1]):
            return
        self._step()
        source, target = names[0], names[-1]
        if event == "os.rename" and source and target:
            before = None
            if os.path.exists(self.state + target):
                self.copies += 1
                before = f"before-{self.copies}"
                shutil.copy2(self.state + target, self.notes / before)
            self.pending.append((target, before))
            if source in self.dirty:
                self.dirty.remove(source)
                self._touch(target)

    def _fsync(self, descriptor: int) -> None:
        name = self._inside(os.readlink(f"/proc/self/fd/{descriptor}"))
        if name is not None:
            self._step()
        self.fsync(descriptor)
        if name is None:
            return
        if os.path.isdir(self.state + name):
            folder = name.rstrip(".").rstrip(os.sep)
            self.pending = [one for one in self.pending if os.path.dirname(one[0]) != folder]
        elif name in self.dirty:
            self.dirty.remove(name)

    def _write(self, descriptor: int, data: bytes) -> int:
        if self._inside(os.readlink(f"/proc/self/fd/{descriptor}")) is not None:
            self._step()
        return self.write(descriptor, data)

    def _touch(self, name: str) -> None:
        if name not in self.dirty:
            self.dirty.append(name)

    def _inside(self, path: str) -> str | None:
        """``path`` relative to the state folder, or None when it is elsewhere."""
        if path + os.sep == self.state:
            return "."
        return path.removeprefix(self.state) if path.startswith(self.state) else None


def cut(state: Path, last: int, notes: Path, work: Callable[[], object]) -> Cut:
    """Run ``work`` in a child that dies before its step ``last`` on files below ``state``."""
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    child = os.fork()
    if child == 0:
        code = 3
        try:
            steps = _Steps(state, last, notes)
            steps.start()
            work()
            steps.save()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    if not killed and os.WEXITSTATUS(status) != 0:
        raise RuntimeError("the child failed; see standard error")
    count, dirty, pending = json.loads((notes / "cut.json").read_text())
    return Cut(killed, count, tuple(dirty), tuple((name, before) for name, before in pending))


def lose(state: Path, notes: Path, made: Cut, how: str, seed: int = 0) -> None:
    """Take away what was not synced.

    Args:
        state: the folder, changed in place.
        notes: of the `cut`.
        made: its result.
        how: "nothing"; "empty" or "half" of each dirty file; "names": all unsynced names are
            undone; "slots": only those in the folder of that name, since folders need not be
            written in order; "mixed": some of these, by chance.
        seed: of the chance.
    """
    chance = random.Random(seed)
    undone = list(made.pending) if how == "names" else []
    if how == "slots":
        undone = [one for one in made.pending if one[0].startswith("slots")]
    if how == "mixed":
        undone = list(made.pending[chance.randint(0, len(made.pending)) :])
    for name in made.dirty:
        path = state / name
        kept = chance.choice(["nothing", "empty", "half"]) if how == "mixed" else how
        if path.is_file() and kept in ("empty", "half"):
            os.truncate(path, path.stat().st_size // 2 if kept == "half" else 0)
    for name, before in reversed(undone):
        path = state / name
        if before is not None and path.parent.is_dir():
            shutil.copy2(notes / before, path)
        elif path.is_file() or path.is_symlink():
            path.unlink()


def fingerprint(state: Path) -> frozenset[tuple[str, bytes]]:
    """What a state folder holds, without the random parts of names, times and the scratch folder.

    The scratch folder counts by its name alone, since an update removes it unread.
    """
    found = set()
    for path in state.rglob("*"):
        name = path.relative_to(state)
        if name.parts[0] == "work":
            found.add(("work", b""))
        elif path.is_file():
            data = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"", path.read_bytes())
            hidden = path.name.startswith(".")
            found.add((path.name[:-8] if hidden else str(name), data))
    return frozenset(found)
