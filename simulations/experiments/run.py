"""The runner: takes the cells of an experiment to their end, and goes on where it was stopped.

Each cell has a folder of its own. ``cell.json`` is written last, so a cell is done or not; a cell
that was cut short goes on from the last checkpoint of its simulation, to the same result.
"""

import fcntl
import importlib.metadata
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedlatent.server.results import plan_facts
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation
from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.shared.files import read_json, write_atomic, write_json
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.wire import Arrays
from fedlatent.simulations.availability import Availability
from fedlatent.simulations.evaluation import Rating
from fedlatent.simulations.experiments import measure
from fedlatent.simulations.experiments.results import COPY, cell_folder, is_done, write_results
from fedlatent.simulations.experiments.spec import Cell, Experiment, bind, parse
from fedlatent.simulations.federation import Progress, RoundFacts, Simulation, datasets, simulate
from fedlatent.simulations.partition import Partition, named_federation
from fedlatent.simulations.stacked.engine import checked_device

FORMAT = 1
RUN_ID = "simulated"
SIMULATION = "simulation"
LOCK = ".lock"

#: Share of a cell that is done outside its phases.
_SHARES = {"data": 0.0, "evaluation": 0.98, "done": 1.0}


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where an experiment is.

    Attributes:
        number: of this cell, from 1.
        cells: of the whole experiment.
        done: cells that are done.
        cell: the cell.
        doing: "data", "training", "evaluation" or "done".
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
            return _SHARES[self.doing]
        phase = self.phase
        within = phase.answered / phase.asked if phase.asked else 0.0
        return 0.98 * min(1.0, (phase.phase - 1 + within) / phase.phases)


Watch = Callable[[Step], None]


def run_experiment(
    experiment: Experiment,
    out: Path,
    *,
    data_dir: Path,
    device: str = "cpu",
    keep: bool = False,
    watch: Watch = lambda step: None,
) -> dict[str, object]:
    """Run the cells that ``out`` lacks; the content of ``results.json``.

    Args:
        experiment: what to run.
        out: the experiment's folder; absent, empty, or of the same experiment.
        data_dir: folder of the real data sets.
        device: of the stacked engine: "cpu", "cuda" or "mps".
        keep: keep what the clients of finished cells wrote, their states and homes.
        watch: told about progress.

    Raises:
        ConfigError: the file does not fit its data, the folder is another experiment's, or the
            device is absent.
        ServiceError: another process works in the folder.
    """
    checked_device(device)
    with claimed(experiment, out):
        runner = _Runner(experiment, out, data_dir, device, watch)
        runner.check()
        if not (out / COPY).exists():  # not before: a file that fails may be corrected
            write_atomic(out / COPY, experiment.text.encode())
        for number, cell in enumerate(experiment.cells, 1):
            if not is_done(out, cell):
                runner.run(number, cell)
                write_results(experiment, out)
            if not keep:  # gigabytes with many clients, and only a half-done cell needs them
                for name in ("clients", "nodes"):
                    folder = cell_folder(out, cell) / SIMULATION / name
                    shutil.rmtree(folder, ignore_errors=True)
        return write_results(experiment, out)


@contextmanager
def claimed(experiment: Experiment, out: Path) -> Iterator[None]:
    """Hold the folder of an experiment.

    Raises:
        ConfigError: the folder holds something else.
        ServiceError: another process holds it.
    """
    copy = out / COPY
    if copy.exists():
        there = parse(copy.read_text(encoding="utf-8"), str(copy))
        if there.digest() != experiment.digest():
            raise ConfigError(
                f"Expected results of this experiment in {out}, got those of another file "
                f"(compare it with {copy}); choose another folder with --out."
            )
    elif out.exists() and any(path.name != LOCK for path in out.iterdir()):
        raise ConfigError(
            f"Expected an empty folder or one with an {COPY}, got {out} with other files; "
            "choose another folder with --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceError(
                f"Expected {out} to be idle, got a folder that another process works in; wait "
                "for it or stop it."
            ) from None
        yield


class Curve:
    """Ratings by round in one file, written anew at each point."""

    def __init__(self, path: Path) -> None:
        """Read what was measured before."""
        self._path = path
        self.points: dict[int, dict[str, float]] = {}
        if path.exists():
            found = read_json(path)
            if isinstance(found, dict):
                self.points = {int(number): point for number, point in found.items()}

    def add(self, number: int, rating: Rating) -> None:
        """Write the point of a round."""
        self.points[number] = asdict(rating)
        write_json(self._path, {str(key): point for key, point in sorted(self.points.items())})


class _Runner:
    """One pass over an experiment; keeps the data of the last cell."""

    def __init__(
        self, experiment: Experiment, out: Path, data_dir: Path, device: str, watch: Watch
    ) -> None:
        self.experiment, self.out, self.watch = experiment, out, watch
        self.data_dir, self.device = data_dir, device
        self._data: tuple[object, Federation, measure.Split] | None = None

    def check(self) -> None:
        """Read each kind of data once and check all runs on it, before anything runs."""
        todo = [cell for cell in self.experiment.cells if not is_done(self.out, cell)]
        kinds = {cell.data.model_dump_json(): cell for cell in reversed(todo)}
        for first in kinds.values():
            split = self.split(first)
            for cell in todo:
                if cell.data == first.data:
                    bind(self.experiment, cell, split.present.schema, len(split.present.sites))

    def split(self, cell: Cell) -> measure.Split:
        """The clients of a cell."""
        key = (cell.data, cell.seed)
        if self._data is None or self._data[0] != key:
            federation = self._federation(cell)
            try:
                cap = self.experiment.evaluate.clients
                made = measure.split(
                    federation, cell.data.absent, cap, cell.seed, cell.data.contamination
                )
            except ConfigError as error:
                raise self.experiment.error(("data", "absent"), str(error)) from None
            self._data = (key, federation, made)
        return self._data[2]

    def _federation(self, cell: Cell) -> Federation:
        data = cell.data
        try:
            partition = Partition(
                kind=data.partition,
                clients=data.clients,
                alpha=data.alpha,
                shards=data.shards,
                strength=data.strength,
            )
            return named_federation(data.source, self.data_dir, partition, cell.seed)
        except ConfigError as error:
            key = {"kind": "partition"}.get(error.field or "", error.field)
            path = ("data", key) if key else ("data",)
            sentence = str(error)
            sentence = sentence[:1].lower() + sentence[1:]
            raise self.experiment.error(path, sentence) from None

    def run(self, number: int, cell: Cell) -> None:
        """Take one cell to its end."""
        step = Step(
            number=number,
            cells=len(self.experiment.cells),
            done=sum(is_done(self.out, one) for one in self.experiment.cells),
            cell=cell,
            doing="data",
        )

        def tell(doing: str, phase: Progress | None = None) -> None:
            self.watch(replace(step, doing=doing, phase=phase))

        started = time.monotonic()
        tell("data")
        split = self.split(cell)
        run = bind(self.experiment, cell, split.present.schema, len(split.present.sites))
        folder = cell_folder(self.out, cell)
        curve = Curve(folder / "curve.json")
        observe = self._observer(run, split, curve)
        simulation = self._simulate(
            cell, run, split, folder / SIMULATION, observe, lambda phase: tell("training", phase)
        )
        tell("evaluation")
        questions = self.experiment.evaluate.questions
        ratings = measure.answers(simulation, split, questions, cell.seed)
        write_json(
            folder / "cell.json",
            {
                "format": FORMAT,
                **cell.facts(),
                "cell": cell.id,
                "run_digest": run.digest(),
                "config": run.model_dump(mode="json"),
                "data_facts": _data_facts(split),
                "plan": plan_facts(PrivacyPlan.from_config(run)),
                "answers": {question: asdict(rating) for question, rating in ratings.items()},
                "baselines": self._baselines(cell, split),
                "rounds": [_round(facts, curve) for facts in simulation.history],
                "device": self.device,
                "version": importlib.metadata.version("fedlatent"),
                "wall_seconds": round(time.monotonic() - started, 3),
            },
        )
        tell("done")

    def _observer(
        self, run: RunConfig, split: measure.Split, curve: Curve
    ) -> Callable[[int, Arrays], None]:
        every, last = self.experiment.evaluate.every, run.training.rounds

        def observe(number: int, arrays: Arrays) -> None:
            due = every and (number % every == 0 or number == last)
            if due and number not in curve.points:
                curve.add(number, measure.point(run, arrays, split))

        return observe

    def _simulate(
        self,
        cell: Cell,
        run: RunConfig,
        split: measure.Split,
        folder: Path,
        observe: Callable[[int, Arrays], None],
        watch: Callable[[Progress], None],
    ) -> Simulation:
        if cell.grid in ("stacked", "nodes"):
            return simulate(
                run,
                datasets(split.present),
                folder,
                run_id=RUN_ID,
                resume=True,
                engine="stacked" if cell.grid == "stacked" else "nodes",
                availability=Availability(**cell.availability.model_dump()),
                device=self.device,
                watch=watch,
                after_round=observe,
            )
        shutil.rmtree(folder, ignore_errors=True)  # these two start again
        if cell.grid == "flower":
            from fedlatent.simulations.flower import run_on_flower

            return run_on_flower(run, split.present, folder, run_id=RUN_ID, watch=watch)
        from fedlatent.simulations.deployed import run_deployed

        return run_deployed(run, split.present, folder, run_id=RUN_ID, watch=watch)

    def _baselines(self, cell: Cell, split: measure.Split) -> dict[str, object]:
        """Ratings of the baselines; equal data give equal ones, so they are kept in a file."""
        if not self.experiment.evaluate.baselines:
            return {}
        path = self.out / "baselines" / f"{cell.data_key()}.json"
        if not path.exists():
            made = measure.baseline_answers(split)
            plain = {
                name: {question: asdict(rating) for question, rating in ratings.items()}
                for name, ratings in made.items()
            }
            write_json(path, plain)
        found = read_json(path)
        return found if isinstance(found, dict) else {}


def _data_facts(split: measure.Split) -> dict[str, object]:
    present = split.present
    records = [len(site.train) for site in present.sites]
    return {
        "name": present.name,
        "note": present.note,
        "synthetic": present.synthetic,
        "schema": present.schema.to_dict(),
        "participants": len(present.sites),
        "absent": len(split.absent.sites) if split.absent else 0,
        "rated": {"seen": len(split.rated_present), "absent": len(split.rated_absent)},
        "records": sum(records),
        "records_spread": [min(records), sorted(records)[len(records) // 2], max(records)],
    }


def _round(facts: RoundFacts, curve: Curve) -> dict[str, object]:
    """One phase as JSON; a loss that is not finite is left out."""
    row = asdict(facts)
    if facts.loss is not None and not math.isfinite(facts.loss):
        row["loss"] = None
    point = curve.points.get(facts.round) if facts.kind == "train" else None
    row["auroc"] = point["pooled"] if point else None
    row["auroc_sites"] = point["site_mean"] if point else None
    return row
