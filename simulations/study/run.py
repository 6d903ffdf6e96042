"""The runner: takes the cells of a study to their end, and goes on where it was stopped.

Each cell has a folder of its own. ``cell.json`` is written last, so a cell is done or not; a cell
that was cut short goes on from the last checkpoint of its simulation, to the same result.
"""

import importlib.metadata
import math
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from fedlatent.server.results import plan_facts
from fedlatent.shared.data.catalog import require
from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.shared.files import canonical_json, file_lock, read_json, write_atomic, write_json
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.simulations.bench.measure import circumstances
from fedlatent.simulations.federation import Progress, RoundFacts
from fedlatent.simulations.stacked.engine import checked_device
from fedlatent.simulations.study.baselines import baseline_answers
from fedlatent.simulations.study.job import Job, Split
from fedlatent.simulations.study.methods import SIMULATION
from fedlatent.simulations.study.results import (
    CELL,
    COPY,
    PICTURE,
    cell_folder,
    is_done,
    plain,
    write_results,
)
from fedlatent.simulations.study.spec import Cell, Study, parse, text_of
from fedlatent.simulations.study.works import WORKS

FORMAT = 1
_NAMED = 100  # absent clients
LOCK = ".lock"

#: Share of a cell that is done outside its phases.
_SHARES = {"data": 0.0, "done": 1.0}


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where a study is.

    Attributes:
        number: of this cell, from 1.
        cells: of the whole study.
        done: cells that are done.
        cell: the cell.
        doing: "data", "done", "training", or what the cell's work says of itself.
        phase: how far its run is; None before and after it.
    """

    number: int
    cells: int
    done: int
    cell: Cell
    doing: str
    phase: Progress | None = None

    @property
    def share(self) -> float:
        """Share of the cell that is done, 0 to 1."""
        if self.phase is None:
            return _SHARES.get(self.doing, 0.0)
        return 0.98 * min(1.0, self.phase.share)


Watch = Callable[[Step], None]


def run_study(
    study: Study,
    out: Path,
    *,
    data_dir: Path,
    only: Mapping[str, Sequence[str]] | None = None,
    processes: int = 1,
    device: str = "cpu",
    keep: bool = False,
    watch: Watch = lambda step: None,
) -> dict[str, object]:
    """Run the cells that ``out`` lacks; the content of ``results.json``.

    Args:
        study: what to run.
        out: the study's folder; absent, empty, or of the same study.
        data_dir: folder of the real data sets.
        only: cells with one of these values, in words, of each named axis; by default all.
        processes: how many cells at once, each on one thread; 1 is this process.
        device: of the stacked engine: "cpu", "cuda" or "mps".
        keep: keep what the clients of finished cells wrote, their states and homes.
        watch: told about progress.

    Raises:
        ConfigError: the file does not fit its data, the folder is another study's, or the
            device is absent.
        DataError: a data set is not in ``data_dir``; names the command that brings it.
        ServiceError: another process works in the folder.
    """
    checked_device(device)
    chosen = [cell for cell in study.cells if _is_chosen(study, cell, only or {})]
    with claimed(study, out):
        todo = [cell for cell in chosen if not is_done(out, cell)]
        require(data_dir, [name for cell in todo for name in cell.needs], f"study {study.name}")
        _check(study, todo, data_dir)
        if not (out / COPY).exists():  # not before: a file that fails may be corrected
            write_atomic(out / COPY, study.text.encode())
        numbers = {cell.id: number for number, cell in enumerate(study.cells, 1)}
        step = partial(Step, cells=len(study.cells))
        work = partial(_work, study, out, data_dir, device)
        if processes == 1:
            for cell in todo:
                done = sum(is_done(out, one) for one in study.cells)
                work(
                    cell,
                    watch=watch,
                    step=step(number=numbers[cell.id], done=done, cell=cell, doing="data"),
                )
                write_results(study, out)
        else:
            for cell in _parallel(work, todo, processes):
                done = sum(is_done(out, one) for one in study.cells)
                watch(step(number=numbers[cell.id], done=done - 1, cell=cell, doing="done"))
                write_results(study, out)
        if not keep:  # gigabytes with many clients, and only a half-done cell needs them
            for cell in study.cells:
                _clean(out, cell)
        return write_results(study, out)


@contextmanager
def claimed(study: Study, out: Path) -> Iterator[None]:
    """Hold the folder of a study.

    Raises:
        ConfigError: the folder holds something else.
        ServiceError: another process holds it.
    """
    copy = out / COPY
    if copy.exists():
        there = parse(copy.read_text(encoding="utf-8"), str(copy))
        if there.digest() != study.digest():
            raise ConfigError(
                f"Expected results of this study in {out}, got those of another file "
                f"(compare it with {copy}); choose another folder with --out."
            )
    elif out.exists() and any(path.name != LOCK for path in out.iterdir()):
        raise ConfigError(
            f"Expected an empty folder or one with an {COPY}, got {out} with other files; "
            "choose another folder with --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    busy = ServiceError(
        f"Expected {out} to be idle, got a folder that another process works in; wait for it or "
        "stop it."
    )
    with file_lock(out / LOCK, busy):
        yield


def _is_chosen(study: Study, cell: Cell, only: Mapping[str, Sequence[str]]) -> bool:
    for axis, values in only.items():
        if axis not in (*study.sweeps, "seed"):
            known = ", ".join((*study.sweeps, "seed"))
            raise ConfigError(f"Expected an axis of {study.name} ({known}), got {axis!r}.")
        value = cell.seed if axis == "seed" else cell.setting.get(axis)
        if text_of(value) not in values:
            return False
    return True


def _check(study: Study, todo: Sequence[Cell], data_dir: Path) -> None:
    """Check all that would run, once for cells that differ in their seed alone."""
    kinds: dict[bytes, Cell] = {}
    for cell in todo:
        facts = {key: value for key, value in cell.facts().items() if key not in ("id", "seed")}
        kinds.setdefault(canonical_json(facts), cell)
    order = [cell.data for cell in kinds.values()]
    for cell in sorted(kinds.values(), key=lambda cell: order.index(cell.data)):
        Job(study=study, cell=cell, data_dir=data_dir, folder=Path()).check()


def _work(
    study: Study,
    out: Path,
    data_dir: Path,
    device: str,
    cell: Cell,
    *,
    step: Step | None = None,
    watch: Watch = lambda step: None,
) -> Cell:
    """Take one cell to its end; returns it."""

    def tell(news: Progress | str) -> None:
        if step is not None and isinstance(news, str):
            watch(replace(step, doing=news))
        elif step is not None and isinstance(news, Progress):
            watch(replace(step, doing="training", phase=news))

    started = time.monotonic()
    tell("data")
    folder = cell_folder(out, cell)
    job = Job(study=study, cell=cell, data_dir=data_dir, folder=folder, device=device, tell=tell)
    found = job.work()
    content: dict[str, object] = {
        "format": FORMAT,
        **cell.facts(),
        "cell": cell.id,
        "answers": {question: asdict(rating) for question, rating in found.answers.items()},
        "figures": plain(found.figures),
        "rounds": [_round(facts, found.curve) for facts in found.history],
        "device": device,
        "version": importlib.metadata.version("fedlatent"),
        "circumstances": circumstances(),
    }
    if found.run is not None:
        content |= {
            "run_digest": found.run.digest(),
            "config": found.run.model_dump(mode="json"),
            "plan": plan_facts(PrivacyPlan.from_config(found.run)),
        }
    if WORKS[cell.work].shared:
        content |= {"data_facts": _data_facts(job.split), "baselines": _baselines(job, out)}
    if found.picture is not None:
        write_atomic(folder / PICTURE, found.picture)
    content["wall_seconds"] = round(time.monotonic() - started, 3)
    write_json(folder / CELL, content)
    tell("done")
    return cell


def _parallel(work: Callable[[Cell], Cell], todo: Sequence[Cell], processes: int) -> Iterator[Cell]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.imap_unordered(work, todo)


def _clean(out: Path, cell: Cell) -> None:
    """Remove what the clients of a finished cell left."""
    if is_done(out, cell):
        for name in ("clients", "nodes"):
            shutil.rmtree(cell_folder(out, cell) / SIMULATION / name, ignore_errors=True)


def _baselines(job: Job, out: Path) -> dict[str, object]:
    """Ratings of the baselines; equal data give equal ones, so they are kept in a file."""
    names = job.study.evaluate.baselines
    if not names:
        return {}
    path = out / "baselines" / f"{job.cell.data_key()}.json"
    if not path.exists():
        made = {
            name: {question: asdict(rating) for question, rating in ratings.items()}
            for name, ratings in baseline_answers(job, names).items()
        }
        write_json(path, made)
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _data_facts(split: Split) -> dict[str, object]:
    present = split.present
    records = [len(site.train) for site in present.sites]
    return {
        "name": present.name,
        "note": present.note,
        "synthetic": present.synthetic,
        "schema": present.schema.to_dict(),
        "participants": len(present.sites),
        "absent": len(split.absent.sites) if split.absent else 0,
        "absent_names": [site.name for site in split.absent.sites[:_NAMED]] if split.absent else [],
        "rated": {"seen": len(split.rated_present), "absent": len(split.rated_absent)},
        "records": sum(records),
        "records_spread": [min(records), sorted(records)[len(records) // 2], max(records)],
    }


def _round(facts: RoundFacts, curve: Mapping[int, Mapping[str, float]]) -> dict[str, object]:
    """One phase as JSON; a loss that is not finite is left out."""
    row = asdict(facts)
    if facts.loss is not None and not math.isfinite(facts.loss):
        row["loss"] = None
    point = curve.get(facts.round) if facts.kind == "train" else None
    row["auroc"] = point["pooled"] if point else None
    row["auroc_sites"] = point["site_mean"] if point else None
    return row
