"""``python -m fedlatent.simulations.robustness``: runs with hostile sites, and their table.

Examples:
    python -m fedlatent.simulations.robustness run --out runs/robustness
    python -m fedlatent.simulations.robustness run --seeds 0,1 --sets mitbih --methods default,plain
    python -m fedlatent.simulations.robustness tables runs/robustness
"""

import argparse
import functools
import os
import sys
from pathlib import Path

from fedlatent.simulations.jobs import rows, run_jobs
from fedlatent.simulations.robustness.study import DATA_SETS, METHODS, Job, jobs, work
from fedlatent.simulations.robustness.tables import tables


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="python -m fedlatent.simulations.robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="Run the jobs that a folder lacks.")
    run.add_argument("--out", type=Path, default=Path("runs/robustness"))
    run.add_argument("--data", type=Path, help="Folder of the real data; default $FEDLATENT_DATA.")
    run.add_argument("--sets", default=",".join(DATA_SETS), help="Names, with commas.")
    run.add_argument("--methods", default=",".join(METHODS), help="Names, with commas.")
    run.add_argument("--seeds", default="0,1,2,3,4", help="Numbers, with commas.")
    run.add_argument("--sites", type=int, help="5 or 20; default both.")
    run.add_argument("--processes", type=int, default=1)
    show = commands.add_parser("tables", help="Print Markdown tables of a folder.")
    show.add_argument("folder", type=Path)
    parsed = parser.parse_args(arguments)
    if parsed.command == "tables":
        print(tables(rows(parsed.folder)))
        return
    data = parsed.data or Path(os.environ.get("FEDLATENT_DATA", "../shared/data"))
    seeds = [int(seed) for seed in parsed.seeds.split(",")]
    wanted = [
        job
        for job in jobs(parsed.sets.split(","), seeds, parsed.methods.split(","))
        if parsed.sites in (None, job.sites)
    ]
    run_jobs(parsed.out, wanted, functools.partial(work, data), parsed.processes, _tell)


def _tell(number: int, total: int, job: Job) -> None:
    line = f"{number} of {total}: {job.data}, {job.sites} sites, {job.method}, {job.attack}"
    print(f"{line}, seed {job.seed}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
