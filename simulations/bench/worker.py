"""One system of our own environment in a process of its own.

``python -m fedlatent.simulations.bench.worker NAME --task JSON [--rounds N]``. A system imports
what it needs and no more, since start-up and memory are measured too.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fedlatent.simulations.bench.plain import PlainVAE, Task, count_parameters, plain_loop
from fedlatent.simulations.bench.turns import Enough, Turns, Work

#: What ``worker`` can run.
NAMES = (
    "plain_loop",
    "opacus_hooks",
    "opacus_ghost",
    "nodes_dp",
    "stacked",
    "stacked_dp",
    "simulated",
    "simulated_dp",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the named system and take turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m fedlatent.simulations.bench.worker"
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--task", type=Task.from_json, required=True)
    parser.add_argument("--rounds", type=int, default=100, help="Rounds of a simulated run.")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    turns = Turns()
    turns.work = work_of(options.task)
    if options.name.startswith("simulated"):
        _simulate(options.name, options.task, options.rounds, turns)
    else:
        turns.serve(trainer(options.name)(options.task))


def trainer(name: str) -> Callable[[Task], Callable[[], None]]:
    """What makes the named trainer for a task."""
    if name == "plain_loop":
        return plain_loop
    from fedlatent.simulations.bench.systems import TRAINERS

    return TRAINERS[name]


def work_of(task: Task) -> Work:
    """What every system here does in a round."""
    return Work(
        parameters=count_parameters(PlainVAE(task)),
        clients=task.clients,
        records=task.records,
        steps=task.steps,
    )


def _simulate(name: str, task: Task, rounds: int, turns: Turns) -> None:
    from fedlatent.simulations.bench.simulated import simulated

    private = name == "simulated_dp"
    with (
        tempfile.TemporaryDirectory(prefix="fedlatent-bench-") as folder,
        contextlib.suppress(Enough),
    ):
        simulated(
            task,
            Path(folder),
            private=private,
            rounds=rounds,
            begin=turns.begin,
            after_round=turns.round_done,
        )


if __name__ == "__main__":
    main()
