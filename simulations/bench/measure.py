"""Systems taking turns, medians of what they cost, and the ratios that come of it."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch

from fedlatent.simulations.bench.peers import command_of
from fedlatent.simulations.bench.plain import Task
from fedlatent.simulations.bench.remote import Remote
from fedlatent.simulations.bench.turns import Lap, Work

#: Told what is being measured, and which share of it is done.
Watch = Callable[[str, float], None]

#: Clients of the growth series; each size runs in a process of its own.
SIZES = (100, 1000, 10_000)
#: Systems of the growth series. Flower is left out: its message table is scanned quadratically.
GROWING = ("simulated", "simulated_dp", "pfl")

#: ``a over b``: quotients of median CPU times, by name.
RATIOS: Mapping[str, tuple[str, str]] = {
    "opacus_hooks_over_stacked_dp": ("opacus_hooks", "stacked_dp"),
    "opacus_ghost_over_stacked_dp": ("opacus_ghost", "stacked_dp"),
    "opacus_hooks_over_simulated_dp": ("opacus_hooks", "simulated_dp"),
    "opacus_ghost_over_simulated_dp": ("opacus_ghost", "simulated_dp"),
    "plain_loop_over_stacked": ("plain_loop", "stacked"),
    "plain_loop_over_simulated": ("plain_loop", "simulated"),
    "stacked_over_pfl": ("stacked", "pfl"),
    "stacked_dp_over_pfl": ("stacked_dp", "pfl"),
    "simulated_over_pfl": ("simulated", "pfl"),
    "simulated_dp_over_pfl": ("simulated_dp", "pfl"),
    "stacked_over_flower": ("stacked", "flower"),
    "simulated_over_flower": ("simulated", "flower"),
}

_GEMM = (2048, 1024, 1024)  # rows, inner and columns of the product that finds the peak rate


class System(Protocol):
    """What takes turns."""

    @property
    def name(self) -> str:
        """Of the system."""
        ...

    @property
    def work(self) -> Work:
        """What it does in a round."""
        ...

    @property
    def start(self) -> Lap | None:
        """From nothing to the first round; None within another process."""
        ...

    def turn(self) -> Lap:
        """One round."""
        ...


class Local:
    """A trainer within this process; its start-up and memory are not its own."""

    start = None

    def __init__(self, name: str, work: Work, one_round: Callable[[], None]) -> None:
        """Warm up with one round."""
        self.name = name
        self.work = work
        self._round = one_round
        one_round()

    def turn(self) -> Lap:
        """One round."""
        cpu, wall = time.process_time(), time.perf_counter()
        self._round()
        return Lap(cpu_s=time.process_time() - cpu, wall_s=time.perf_counter() - wall, peak_mb=0.0)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one system cost.

    Attributes:
        work: what it did in a round.
        start: from nothing to the first round; None within another process.
        laps: its turns.
    """

    work: Work
    start: Lap | None
    laps: tuple[Lap, ...]

    @property
    def cpu_ms(self) -> float:
        """Median CPU milliseconds of a client's round."""
        return 1e3 * statistics.median(lap.cpu_s for lap in self.laps) / self.work.clients

    @property
    def wall_ms(self) -> float:
        """Median milliseconds of a client's round on the clock."""
        return 1e3 * statistics.median(lap.wall_s for lap in self.laps) / self.work.clients

    def to_json(self) -> dict[str, object]:
        """For the report."""
        found: dict[str, object] = {
            "cpu_ms": self.cpu_ms,
            "wall_ms": self.wall_ms,
            "clients_per_s": 1e3 / self.wall_ms,
            "turns_cpu_ms": [1e3 * lap.cpu_s / self.work.clients for lap in self.laps],
            "work": asdict(self.work),
        }
        if self.start is None:
            return found
        return found | {
            "start_cpu_s": self.start.cpu_s,
            "start_wall_s": self.start.wall_s,
            "peak_mb": max(lap.peak_mb for lap in (self.start, *self.laps)),
        }


def take_turns(
    systems: Sequence[System],
    turns: int,
    *,
    watch: Watch = lambda sentence, share: None,
    between: Callable[[], None] = lambda: None,
    until: float = float("inf"),
) -> dict[str, Measured]:
    """Let every system do a round, again and again.

    Args:
        systems: in the order in which they take turns.
        turns: of each.
        watch: told before each turn.
        between: called before each system's turn.
        until: ``time.monotonic`` after which no further turns begin; each system has at least one.
    """
    laps: dict[str, list[Lap]] = {system.name: [] for system in systems}
    for turn in range(turns):
        if turn and time.monotonic() > until:
            break
        for i, system in enumerate(systems):
            done = (turn * len(systems) + i) / (turns * len(systems))
            watch(f"turns: {system.name}, turn {turn + 1} of {turns}", done)
            between()
            laps[system.name].append(system.turn())
    return {
        system.name: Measured(work=system.work, start=system.start, laps=tuple(laps[system.name]))
        for system in systems
    }


class Gemm:
    """The greatest rate of matrix multiplication that this machine showed, on one thread."""

    def __init__(self) -> None:
        """Make two matrices."""
        rows, inner, columns = _GEMM
        self._left, self._right = torch.rand(rows, inner), torch.rand(inner, columns)
        self.rate = 0.0  # floating-point operations a second

    def __call__(self) -> None:
        """Try once more."""
        start = time.process_time()
        _ = self._left @ self._right
        taken = time.process_time() - start
        rows, inner, columns = _GEMM
        self.rate = max(self.rate, 2.0 * rows * inner * columns / taken)

    def limit_ms(self, work: Work) -> float:
        """CPU milliseconds in which a dense model's client could be done at this rate.

        Forward and backward pass take six operations for each record and parameter.
        """
        return 1e3 * 6.0 * work.records * work.parameters / self.rate


def ratios(cpu_ms: Mapping[str, float]) -> dict[str, float]:
    """Those of ``RATIOS`` whose systems were measured."""
    return {
        name: cpu_ms[above] / cpu_ms[below]
        for name, (above, below) in RATIOS.items()
        if above in cpu_ms and below in cpu_ms
    }


def compare(
    names: Sequence[str], task: Task, turns: int, *, watch: Watch, gemm: Gemm
) -> dict[str, Measured]:
    """Run the named systems on one task, each in a process of its own.

    Raises:
        ServiceError: one of them failed.
    """
    with ExitStack() as stack:
        systems = []
        for i, name in enumerate(names):
            watch(f"start: {name}, {task.clients} clients", i / len(names))
            system = stack.enter_context(Remote(name, command_of(name, task, turns + 1)))
            system.ready()
            systems.append(system)
        return take_turns(systems, turns, watch=watch, between=gemm)


def growth(
    names: Sequence[str], task: Task, turns: int, *, sizes: Sequence[int], watch: Watch
) -> dict[str, dict[int, Measured]]:
    """The cost at several numbers of clients; the sizes of one system take turns.

    Raises:
        ServiceError: a system failed.
    """
    found: dict[str, dict[int, Measured]] = {}
    for name in names:
        with ExitStack() as stack:
            systems = []
            for clients in sizes:
                watch(f"growth: {name} starts with {clients} clients", 0.0)
                command = command_of(name, task.sized(clients), turns + 1)
                system = stack.enter_context(Remote(f"{name} {clients}", command))
                system.ready()
                systems.append(system)
            laps = take_turns(systems, turns, watch=watch)
        found[name] = dict(zip(sizes, laps.values(), strict=True))
    return found


def circumstances() -> dict[str, object]:
    """Hardware, software, commit, command and load of a measurement."""
    return {
        "command": " ".join(sys.argv),
        "commit": _commit(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "opacus", "flwr")},
    }


def _commit() -> str:
    """The commit of the checkout, with a plus when files differ from it."""
    folder = Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "--short", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a checkout"


def _git(folder: Path, *arguments: str) -> str:
    found = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
