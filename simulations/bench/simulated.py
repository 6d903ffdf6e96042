"""Our whole simulated round: server loop, screening, aggregation and the stacked trainer."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from fedlatent.shared.data.dataset import Dataset
from fedlatent.simulations.bench.plain import Pool, Task
from fedlatent.simulations.bench.systems import run_config
from fedlatent.simulations.bench.turns import Enough, Lap
from fedlatent.simulations.federation import simulate


class LazySites(Mapping[str, Dataset]):
    """Data sets of a task's clients, made when asked for: the pool alone lies in memory."""

    def __init__(self, task: Task, begin: Callable[[], None]) -> None:
        """Draw the pool; ``begin`` is called whenever records are asked for."""
        self._begin = begin
        self._task = task
        self._pool = Pool(task)
        self._schema = run_config(task, private=False).data
        self._names = {f"c{client:06d}": client for client in range(task.clients)}

    def __getitem__(self, site: str) -> Dataset:
        """The records of one client."""
        self._begin()
        records = self._pool.of(self._names[site]).numpy()
        return Dataset(records=np.ascontiguousarray(records), schema=self._schema)

    def __iter__(self) -> Iterator[str]:
        """Names of all clients."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many clients there are."""
        return self._task.clients


def simulated(
    task: Task,
    folder: Path,
    *,
    private: bool,
    rounds: int,
    begin: Callable[[], None],
    after_round: Callable[[], None],
) -> None:
    """Simulate ``rounds`` rounds in ``folder``.

    Args:
        task: what each client does.
        folder: of the simulation; empty.
        private: whether DP-SGD is on.
        rounds: training rounds.
        begin: called before the first round, and often after that.
        after_round: called after each round; it may raise ``Enough`` to end the run, whose
            summaries are no part of the measurement.
    """
    simulate(
        run_config(task, private=private, rounds=rounds),
        LazySites(task, begin),
        folder,
        engine="stacked",
        device=task.device,
        after_round=lambda number, arrays: after_round(),
    )


def simulated_laps(task: Task, folder: Path, *, private: bool, rounds: int) -> list[Lap]:
    """The cost of each of ``rounds`` rounds within this process, without the start-up."""
    laps: list[Lap] = []
    mark = 0.0, 0.0
    begun = False

    def begin() -> None:
        nonlocal mark, begun
        if not begun:
            begun, mark = True, (time.process_time(), time.perf_counter())

    def round_done() -> None:
        nonlocal mark
        now = time.process_time(), time.perf_counter()
        laps.append(Lap(cpu_s=now[0] - mark[0], wall_s=now[1] - mark[1], peak_mb=0.0))
        mark = time.process_time(), time.perf_counter()
        if len(laps) == rounds:
            raise Enough

    with contextlib.suppress(Enough):
        simulated(task, folder, private=private, rounds=rounds, begin=begin, after_round=round_done)
    return laps
