"""``fedlatent simulate check chaos``: strike a real deployment, and say what came of it.

Examples:
    fedlatent simulate check chaos --set faults=200 --set out=chaos.json
    fedlatent simulate check chaos --set seed=3 --set faults=40 --set minutes=5
"""

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


def chaos(
    *,
    seed: int = 0,
    faults: int = 200,
    minutes: float = 120.0,
    out: Path | None = None,
    keep: Path | None = None,
) -> int:
    """Strike, and say what came of it; 1 when an invariant was violated.

    Args:
        seed: of the faults, the records and the runs.
        faults: how many.
        minutes: most that it may take.
        out: JSON file of the report.
        keep: folder of the homes; else a temporary one.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    folder = keep or Path(tempfile.mkdtemp(prefix="fl-"))
    report = weather(folder, seed=seed, faults=faults, limit_s=minutes * _MINUTE)
    if out is not None:
        write_json(out, json.loads(json.dumps(report)))
    print(table(report))
    if report["violations"]:
        print(f"The homes are kept in {folder}.", file=sys.stderr)
    elif keep is None:
        shutil.rmtree(folder)
    return 1 if report["violations"] else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Stop what was started, and give the disks back."""
    raise KeyboardInterrupt
