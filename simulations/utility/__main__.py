"""``python -m fedlatent.simulations.utility``: run the study, or print its tables.

Examples:
    python -m fedlatent.simulations.utility run --out runs/utility --processes 2
    python -m fedlatent.simulations.utility run --out runs/quick --sets heart_disease --seeds 1
    python -m fedlatent.simulations.utility tables runs/utility > tables.md
"""

import argparse
import os
import sys
from pathlib import Path

from fedlatent.simulations.jobs import rows
from fedlatent.simulations.utility.methods import DATA_SETS, QUESTIONS
from fedlatent.simulations.utility.study import EPSILONS, Job, jobs, run_study
from fedlatent.simulations.utility.tables import (
    collect,
    contamination_table,
    lever_table,
    main_table,
    mean_table,
)

TABLES = ("main", "levers", "contamination")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="python -m fedlatent.simulations.utility",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="Run the jobs that a folder lacks.")
    run.add_argument("--out", type=Path, default=Path("runs/utility"))
    run.add_argument("--data", type=Path, help="Folder of the real data; default $FEDLATENT_DATA.")
    run.add_argument("--sets", default=",".join(DATA_SETS), help="Names, with commas.")
    run.add_argument("--tables", default=",".join(TABLES), help="Names, with commas.")
    run.add_argument("--seeds", type=int, default=5)
    run.add_argument("--processes", type=int, default=2)
    show = commands.add_parser("tables", help="Print Markdown tables of a folder.")
    show.add_argument("folder", type=Path)
    show.add_argument("--measure", default="pooled", help="pooled, site_mean, auprc or fpr95.")
    parsed = parser.parse_args(arguments)
    if parsed.command == "tables":
        print(tables(parsed.folder, parsed.measure))
        return
    data = parsed.data or Path(os.environ.get("FEDLATENT_DATA", "../shared/data"))
    wanted = list(jobs(parsed.tables.split(","), parsed.sets.split(","), parsed.seeds))
    run_study(parsed.out, data, wanted, parsed.processes, _tell)


def tables(folder: Path, measure: str) -> str:
    """All tables of a folder."""
    found = collect(rows(folder), measure)
    sets = [name for name in DATA_SETS if any(key[1] == name for key in found)]
    parts = []
    for epsilon in EPSILONS:
        parts.append(f"#### Mean over data sets, epsilon {epsilon or 'none'}\n")
        parts.append(mean_table(found, sets, QUESTIONS, epsilon))
    for data in sets:
        for question in QUESTIONS:
            parts.append(f"#### {data}: {question}\n")
            parts.append(main_table(found, data, question, EPSILONS))
        if any(key[0] == "levers" and key[1] == data for key in found):
            parts += [f"#### {data}: levers at epsilon 4\n", lever_table(found, data, 4.0)]
    for question in ("seen", "absent"):
        if any(key[0] == "contamination" for key in found):
            parts.append(f"#### Contamination, mitbih: {question}\n")
            parts.append(contamination_table(found, "mitbih", question))
    return "\n\n".join(parts)


def _tell(number: int, total: int, job: Job) -> None:
    epsilon = "no privacy" if job.epsilon is None else f"epsilon {job.epsilon:g}"
    line = f"{number} of {total}: {job.table}, {job.data}, {job.method}, {epsilon}, {job.seed}"
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
