"""``python -m fedlatent.simulations.chaos``: strike a real deployment, and say what came of it.

Examples:
    python -m fedlatent.simulations.chaos --seed 0 --faults 200 --out chaos.json
    python -m fedlatent.simulations.chaos --seed 3 --faults 40 --minutes 5
"""

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from fedlatent.shared.files import write_json
from fedlatent.simulations.chaos.means import Means
from fedlatent.simulations.chaos.report import Report, make, table
from fedlatent.simulations.chaos.stage import Stage
from fedlatent.simulations.chaos.storm import Storm

_MINUTE = 60.0


def weather(folder: Path, *, seed: int, faults: int, limit_s: float) -> Report:
    """One storm on a new stage in ``folder``, and its report.

    Args:
        folder: short, since sockets lie below it.
        seed: of the faults, the records and the runs.
        faults: how many.
        limit_s: how long it may take; then fewer faults are struck.
    """
    began = time.monotonic()
    with Stage(folder, seed, Means.here(folder)) as stage:
        storm = Storm(stage=stage, seed=seed, count=faults, limit_s=limit_s)
        with contextlib.suppress(KeyboardInterrupt):  # what was struck until then is told
            storm.rage()
        return make(
            seed=seed,
            seconds=time.monotonic() - began,
            deadline_s=stage.deadline_s,
            struck=storm.struck,
            runs=storm.runs,
            refusals=storm.refusals,
            violations=storm.violations,
            lacking=stage.means.lacking(),
            litter=storm.litter,
            tracebacks=storm.tracebacks(),
        )


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do what it says; 1 when an invariant was violated."""
    parser = argparse.ArgumentParser(
        prog="python -m fedlatent.simulations.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=120.0, help="Most that it may take.")
    parser.add_argument("--out", type=Path, help="JSON file of the report.")
    parser.add_argument("--keep", type=Path, help="Folder of the homes; else a temporary one.")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="fl-"))
    report = weather(
        folder,
        seed=options.seed,
        faults=options.faults,
        limit_s=options.minutes * _MINUTE,
    )
    if options.out is not None:
        write_json(options.out, json.loads(json.dumps(report)))
    print(table(report))
    if report["violations"]:
        print(f"The homes are kept in {folder}.", file=sys.stderr)
    elif options.keep is None:
        shutil.rmtree(folder)
    return 1 if report["violations"] else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Stop what was started, and give the disks back."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
