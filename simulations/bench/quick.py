"""A first answer within a minute: everything in this process, no start-up, no memory, no pfl."""

import statistics
import tempfile
import time
from pathlib import Path

from fedlatent.simulations.bench.measure import Gemm, Local, Measured, Watch, ratios, take_turns
from fedlatent.simulations.bench.plain import MLP, Task
from fedlatent.simulations.bench.simulated import simulated_laps
from fedlatent.simulations.bench.turns import Lap
from fedlatent.simulations.bench.worker import trainer, work_of

#: Compared in quick mode, in the order of their turns.
SYSTEMS = ("plain_loop", "stacked", "stacked_dp", "opacus_ghost", "opacus_hooks")
#: One client of the growth measurement; ten thousand of the full size would take minutes.
SMALL = Task(shape=(64,), hidden=(32,), latent=4, records=16, batch=8)
FEW, MANY = 100, 10_000
#: Seconds after which no turn of either part begins.
TRAINERS_S, GROWTH_S = 14.0, 8.0

NOTE = (
    "quick: all systems in one process, {clients} clients of the full work; flat_10000_over_100 is "
    "of the whole simulated DP-SGD round with a small model ({parameters} parameters, {records} "
    "records, {steps} steps a client)"
)


class SimulatedRounds:
    """The whole simulated round as a system within this process: a turn is a fresh run."""

    start = None

    def __init__(self, task: Task, *, rounds: int) -> None:
        """``rounds`` of each run; the first is not counted when there are more."""
        self.name = f"simulated_dp_{task.clients}"
        self.work = work_of(task)
        self._task = task
        self._rounds = rounds

    def turn(self) -> Lap:
        """The median round of one run."""
        with tempfile.TemporaryDirectory(prefix="fedlatent-bench-") as folder:
            laps = simulated_laps(self._task, Path(folder), private=True, rounds=self._rounds)
        counted = laps[1:] or laps
        return Lap(
            cpu_s=statistics.median(lap.cpu_s for lap in counted),
            wall_s=statistics.median(lap.wall_s for lap in counted),
            peak_mb=0.0,
        )


def measure_quick(clients: int, turns: int, watch: Watch) -> dict[str, object]:
    """The report of quick mode: CPU times, ratios and a note on how they came to be.

    Args:
        clients: of the trainers' round.
        turns: of each system, at most.
        watch: told before each turn.
    """
    gemm, task = Gemm(), MLP.sized(clients)
    trainers = [Local(name, work_of(task), trainer(name)(task)) for name in SYSTEMS]
    found: dict[str, Measured] = take_turns(
        trainers, turns, watch=watch, between=gemm, until=time.monotonic() + TRAINERS_S
    )
    few = SimulatedRounds(SMALL.sized(FEW), rounds=6)
    many = SimulatedRounds(SMALL.sized(MANY), rounds=1)
    few.turn()  # imports and first calls
    found |= take_turns([few, many], turns, watch=watch, until=time.monotonic() + GROWTH_S)
    cpu_ms = {name: measured.cpu_ms for name, measured in found.items()}
    small, limit = work_of(SMALL), gemm.limit_ms(work_of(task))
    return {
        "cpu_ms": cpu_ms,
        "ratio": ratios(cpu_ms)
        | {
            "flat_10000_over_100": cpu_ms[many.name] / cpu_ms[few.name],
            "stacked_dp_over_gemm_limit": cpu_ms["stacked_dp"] / limit,
            "stacked_over_gemm_limit": cpu_ms["stacked"] / limit,
        },
        "gemm": {"gflops": gemm.rate / 1e9, "limit_cpu_ms": limit},
        "turns": {name: len(measured.laps) for name, measured in found.items()},
        "note": NOTE.format(
            clients=clients,
            parameters=small.parameters,
            records=small.records,
            steps=small.steps,
        ),
    }
