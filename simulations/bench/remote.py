"""A system in a process of its own, seen from the process that measures."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from fedlatent.shared.errors import ServiceError
from fedlatent.simulations.bench.turns import STARTED, Lap, Work

#: Every library on one thread.
ONE_THREAD: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_ROUND_S = 3600.0
_GRACE_S = 60.0  # for a process to end after its last turn
_SHARED = ("__init__.py", "bench/__init__.py", "bench/plain.py", "bench/turns.py")


def export(folder: Path, *modules: str) -> None:
    """Copy what a peer runs into ``folder``, as the package ``simulations`` and no more.

    A peer's environment must see these few files and nothing else of ours: an installation keeps
    all packages in one folder, whose other versions would hide the peer's own.
    """
    source = Path(__file__).parent.parent
    for name in (*_SHARED, *(f"bench/{module}.py" for module in modules)):
        target = folder / "simulations" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)


@dataclass(frozen=True, kw_only=True)
class Command:
    """How to start a system.

    Attributes:
        argv: command line.
        modules: of this package that the process needs copied into its folder; none for a
            process that runs in our own environment.
        env: variables in addition.
    """

    argv: tuple[str, ...]
    modules: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


class Remote:
    """One running system; use it as a context.

    Attributes:
        work: what it says it does in a round.
        start: cost from nothing to the beginning of the first round.
    """

    work: Work
    start: Lap

    def __init__(self, name: str, command: Command) -> None:
        """Start the process; ``ready`` waits for it."""
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="fedlatent-bench-")
        folder = Path(self._folder.name)
        env = {**os.environ, **ONE_THREAD, **command.env, STARTED: repr(time.time())}
        if command.modules:
            export(folder, *command.modules)
            env["PYTHONPATH"] = str(folder)
        self._log: IO[bytes] = (folder / "log").open("w+b")
        self._process = subprocess.Popen(
            command.argv,
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("Expected pipes to the process, got none.")
        self._in, self._out = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()

    def ready(self) -> None:
        """Wait for the end of the first round.

        Raises:
            ServiceError: the process ended instead.
        """
        said = self._read()
        self.work = Work(**said["work"])
        self.start = Lap(**said["start"])

    def turn(self) -> Lap:
        """One more round.

        Raises:
            ServiceError: the process ended instead.
        """
        with contextlib.suppress(BrokenPipeError):  # the reading below says why
            self._in.write("go\n")
            self._in.flush()
        return Lap(**self._read())

    def close(self) -> None:
        """End the process and remove its folder."""
        with contextlib.suppress(BrokenPipeError):
            self._in.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()
        self._log.close()
        self._folder.cleanup()

    def _read(self) -> dict[str, Any]:
        ready, _, _ = select.select([self._out], [], [], _ROUND_S)
        line = self._out.readline() if ready else ""
        if not line:
            raise ServiceError(
                f"Expected {self.name} to finish a round, got {self._last_words()!r}; run it alone "
                "to see more."
            )
        value: dict[str, Any] = json.loads(line)
        return value

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][:500] if said else "nothing"
