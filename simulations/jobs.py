"""Jobs of a study: independent, on as many processes as asked for; goes on where it stopped.

Results are lines of JSON, each written whole.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from fedlatent.shared.files import append_line, read_lines

RESULTS = "results.jsonl"

JobT = TypeVar("JobT")


def run_jobs(
    out: Path,
    wanted: Sequence[JobT],
    work: Callable[[JobT], object],
    processes: int,
    watch: Callable[[int, int, JobT], None],
) -> None:
    """Run the jobs that ``out`` lacks.

    Args:
        out: receives ``results.jsonl``.
        wanted: jobs in order, dataclasses whose fields JSON can carry.
        work: computes the answers of a job, which JSON can carry; a function of a module.
        processes: how many at once, each with one thread; 1 is this process.
        watch: told number, total and job after each.
    """
    out.mkdir(parents=True, exist_ok=True)
    done = [row["job"] for row in rows(out)]
    todo = [job for job in wanted if asdict(job) not in done]  # type: ignore[call-overload]
    with _mapped(processes, _Work(work=work), todo) as found:
        for number, (job, answers) in enumerate(found, 1):
            line = {"job": asdict(job), "answers": answers}  # type: ignore[call-overload]
            append_line(out / RESULTS, json.dumps(line))
            watch(number, len(todo), job)


def rows(out: Path) -> list[dict[str, Any]]:
    """The results so far: "job" and "answers"; a line that a kill cut short is left out."""
    return read_lines(out / RESULTS, dict[str, Any]).values


@dataclass(frozen=True, kw_only=True)
class _Work(Generic[JobT]):
    """A job's answers beside the job."""

    work: Callable[[JobT], object]

    def __call__(self, job: JobT) -> tuple[JobT, object]:
        return job, self.work(job)


@contextmanager
def _mapped(
    processes: int, work: _Work[JobT], todo: Sequence[JobT]
) -> Iterator[Iterable[tuple[JobT, object]]]:
    """What the jobs come to, as they are done."""
    if processes == 1:
        yield map(work, todo)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool.imap_unordered(work, todo)
