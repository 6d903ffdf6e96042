"""Power cuts: what a folder holds before each step of a program on files, and what a cut may lose.

A forked child runs a function and counts every step which changes files (an audit hook for opening,
renaming, removing and the like; `os.fsync` and `os.write` by patching). It notes which files were
written and not synced, and which names were made or replaced in a folder that was not synced.
`cuts` notes the folder before every step; that is what a kill there would leave. `cut` kills the
child for real before one step. `lose` takes away what was not synced, as a power cut may.
"""

import os
import pickle
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
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

#: Content by name relative to the folder; None for a folder.
Files = Mapping[str, bytes | None]


@dataclass(frozen=True)
class Cut:
    """What was under way at a step.

    Attributes:
        files: what the folder held before the step.
        dirty: files with content that was not synced.
        pending: names made or replaced in folders that were not synced, oldest first, each with
            what was there before, or None.
    """

    files: Files
    dirty: tuple[str, ...]
    pending: tuple[tuple[str, bytes | None], ...]


class _Steps:
    """Counts in the child; ``before`` is called before each step, and may kill it."""

    def __init__(self, state: Path, before: Callable[["_Steps"], None]) -> None:
        self.state, self.before = str(state) + os.sep, before
        self.count = 0
        self.dirty: list[str] = []
        self.pending: list[tuple[str, bytes | None]] = []
        self.busy = False
        self.fsync, self.write = os.fsync, os.write

    def start(self) -> None:
        os.fsync, os.write = self._fsync, self._write
        sys.addaudithook(self._hook)

    def made(self, files: Files) -> Cut:
        return Cut(files, tuple(self.dirty), tuple(self.pending))

    def _step(self) -> None:
        self.count += 1
        busy, self.busy = self.busy, True
        self.before(self)
        self.busy = busy

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
            path = Path(self.state + target)
            self.pending.append((target, path.read_bytes() if path.exists() else None))
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


def cuts(state: Path, notes: Path, work: Callable[[], object]) -> list[Cut]:
    """Run ``work`` in a child to its end; what a cut before each step would leave."""
    found: list[Cut] = []
    _run(state, notes, work, lambda steps: found.append(steps.made(load(state))), found)
    made: list[Cut] = pickle.loads((notes / "cuts").read_bytes())
    return made


def cut(state: Path, last: int, notes: Path, work: Callable[[], object]) -> Cut | None:
    """Run ``work`` in a child that is killed before its step ``last``; None when it ended first."""

    def before(steps: _Steps) -> None:
        if steps.count == last:
            (notes / "cuts").write_bytes(pickle.dumps(steps.made({})))
            os.kill(os.getpid(), signal.SIGKILL)

    if not _run(state, notes, work, before, None):
        return None
    made: Cut = pickle.loads((notes / "cuts").read_bytes())
    return Cut(load(state), made.dirty, made.pending)


def _run(
    state: Path,
    notes: Path,
    work: Callable[[], object],
    before: Callable[[_Steps], None],
    found: object,
) -> bool:
    """Whether the child was killed; what it ``found`` is in the notes otherwise."""
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    child = os.fork()
    if child == 0:
        code = 3
        try:
            tempfile.tempdir = str(notes)  # what a kill leaves in there goes with the notes
            steps = _Steps(state, before)
            steps.start()
            work()
            steps.busy = True
            (notes / "cuts").write_bytes(pickle.dumps(found))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError("the child failed; see standard error")
    return os.WIFSIGNALED(status)


def load(folder: Path) -> Files:
    """What a folder holds."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def store(files: Files, folder: Path) -> Path:
    """Make a folder hold ``files`` and nothing else, for their owner alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        if data is None:
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            (folder / name).chmod(0o600)
    return folder


def lose(made: Cut, how: str, seed: int = 0) -> Files:
    """What is left of a folder when what was not synced is lost.

    Args:
        made: the cut.
        how: "nothing"; "empty" or "half" of each dirty file; "names": all unsynced names are
            undone; "slots": only those in the folder of that name, since folders need not be
            written in order; "mixed": some of these, by chance.
        seed: of the chance.
    """
    files, chance = dict(made.files), random.Random(seed)
    undone = list(made.pending) if how == "names" else []
    if how == "slots":
        undone = [one for one in made.pending if one[0].startswith("slots")]
    if how == "mixed":
        undone = list(made.pending[chance.randint(0, len(made.pending)) :])
    for name in made.dirty:
        kept = chance.choice(["nothing", "empty", "half"]) if how == "mixed" else how
        data = files.get(name)
        if data is not None and kept in ("empty", "half"):
            files[name] = data[: len(data) // 2] if kept == "half" else b""
    for name, before in reversed(undone):
        if before is not None:
            files[name] = before
        elif files.get(name) is not None:
            del files[name]
    return files


def fingerprint(files: Files) -> frozenset[tuple[str, bytes | None]]:
    """``files`` without the random parts of names and times."""
    found = set()
    for name, data in files.items():
        hidden = Path(name).name.startswith(".")
        fixed = data and re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"", data)
        found.add((name[:-8] if hidden else name, fixed))
    return frozenset(found)
