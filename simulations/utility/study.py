"""The runner of the study: one job a method, data set, epsilon and seed."""

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedlatent.simulations.jobs import run_jobs
from fedlatent.simulations.utility import methods
from fedlatent.simulations.utility.methods import DATA_SETS, FEDERATED, LEVERS, PUBLIC

EPSILONS: tuple[float | None, ...] = (1.0, 2.0, 4.0, 8.0, None)

_LEVER_SETS, LEVER_EPSILON = ("mitbih", "nsl_kdd"), 4.0
_CONTAMINATION = (0.0, 0.05, 0.10)
_CONTAMINATED = ("fedavg", "full+data", "dp-mahalanobis", "PCA")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One method on one data set.

    Attributes:
        table: "main", "levers" or "contamination".
        data: name of the data set.
        method: name of the method.
        epsilon: of the whole run; None for no privacy.
        seed: of split, first weights and noise.
        contamination: share of anomalies among training records.
    """

    table: str
    data: str
    method: str
    epsilon: float | None
    seed: int
    contamination: float = 0.0


def jobs(tables: Sequence[str], sets: Sequence[str], seeds: int) -> Iterator[Job]:
    """All jobs of the chosen tables; a whole seed comes before the next."""
    for seed in range(seeds):
        if "main" in tables:
            yield from _main_jobs(sets, seed)
        if "levers" in tables:
            for data in (name for name in _LEVER_SETS if name in sets):
                for method in LEVERS:
                    yield Job(
                        table="levers", data=data, method=method, epsilon=LEVER_EPSILON, seed=seed
                    )
        if "contamination" in tables and "mitbih" in sets:
            yield from _contamination_jobs(seed)


def run_study(
    out: Path,
    data_dir: Path,
    wanted: Sequence[Job],
    processes: int,
    watch: Callable[[int, int, Job], None],
) -> None:
    """Run the jobs that ``out`` lacks.

    Args:
        out: receives ``results.jsonl``.
        data_dir: folder of the real data sets.
        wanted: jobs in order.
        processes: how many at once.
        watch: told number, total and job after each.
    """
    run_jobs(out, wanted, functools.partial(_work, data_dir), processes, watch)


def _main_jobs(sets: Sequence[str], seed: int) -> Iterator[Job]:
    for data in sets:
        for method in PUBLIC:
            yield Job(table="main", data=data, method=method, epsilon=None, seed=seed)
        for epsilon in EPSILONS:
            for method in (*FEDERATED, "pooled", "dp-mahalanobis"):
                yield Job(table="main", data=data, method=method, epsilon=epsilon, seed=seed)


def _contamination_jobs(seed: int) -> Iterator[Job]:
    for share in _CONTAMINATION:
        for method in _CONTAMINATED:
            for epsilon in (4.0, None) if method not in PUBLIC else (None,):
                yield Job(
                    table="contamination",
                    data="mitbih",
                    method=method,
                    epsilon=epsilon,
                    seed=seed,
                    contamination=share,
                )


def _work(data_dir: Path, job: Job) -> list[dict[str, object]]:
    """Answers of one job: score, question and measures."""
    present, absent = DATA_SETS[job.data].split(data_dir, job.seed, job.contamination)
    folder = Path(tempfile.mkdtemp(prefix="fedlatent-utility-"))
    federated = {**FEDERATED, **LEVERS}
    try:
        if job.method in PUBLIC:
            found = methods.public(PUBLIC[job.method], present, absent)
        elif job.method == "dp-mahalanobis":
            found = methods.dp_mahalanobis(present, absent, job.epsilon, job.seed)
        elif job.method == "pooled":
            found = methods.pooled(present, absent, job.epsilon, job.seed, folder)
        else:
            chosen = federated[job.method]
            found = methods.federated(chosen, present, absent, job.epsilon, job.seed, folder)
        answers: list[dict[str, object]] = [
            {"score": score, "question": question, **asdict(rating)}
            for score, question, rating in found
        ]
        return answers
    finally:
        shutil.rmtree(folder, ignore_errors=True)
