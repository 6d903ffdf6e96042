"""Work on clients with records: a federated run, and what it is held against.

Each function gets the cell's clients and answers the questions about them. Those that took part are
scored with their own detector, the others with what a run releases.
"""

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import read_json, write_json
from fedlatent.shared.models import build_model, encoder_state, load_state
from fedlatent.simulations.availability import Availability
from fedlatent.simulations.federation import Simulation, datasets, simulate
from fedlatent.simulations.study.evaluation import (
    Detector,
    Rating,
    combined_detector,
    global_detector,
    latent_detector,
    rate,
    rated,
    reconstruction_detector,
    site_detector,
    train_alone,
)
from fedlatent.simulations.study.job import Found, Job, Split

RUN_ID = "simulated"
SIMULATION = "simulation"
PARTS = ("train", "test", "test_label", "test_kind", "extra", "extra_kind")

Pairs = Sequence[tuple[SiteData, Detector]]
Maker = Callable[[NDArray[np.generic] | None], Detector]


def federated(job: Job) -> Found:
    """A private federation on the cell's grid; its curve, and its answers to all questions."""
    run, split = job.run(), job.split
    curve = Curve(job.folder / "curve.json")
    simulation = _simulate(job, run, _observer(job, run, split, curve))
    result = simulation.result
    own = list(_site_detectors(simulation, split.rated_present))
    answers = answered(job, lambda: own, lambda normals: global_detector(result, normals))
    answers |= {f"seen_{kind}": rate(own, kind) for kind in job.study.evaluate.kinds}
    if result.released.scores is not None:

        def combined(normals: NDArray[np.generic] | None) -> Detector:
            detector = combined_detector(result, normals)
            if detector is None:
                raise ValueError("Expected a run with combined scores, got one without.")
            return detector

        pairs = [(site, combined(site.train)) for site in split.rated_present]
        more = answered(job, lambda: pairs, combined)
        answers |= {f"combined_{question}": rating for question, rating in more.items()}
    return Found(answers=answers, run=run, history=simulation.history, curve=curve.points)


def whole_model(job: Job) -> Found:
    """Reconstruction error of the one model that clients share whole, for those that took part."""
    run = job.run()
    simulation = _simulate(job, run, lambda number, arrays: None)
    model = build_model(run)
    weights = {key: torch.from_numpy(value) for key, value in simulation.result.arrays.items()}
    load_state(model, weights)
    detector = reconstruction_detector(model, run.data)
    pairs = [(site, detector) for site in job.split.rated_present]
    return Found(answers={"seen": rate(pairs)}, run=run, history=simulation.history)


def pooled(job: Job) -> Found:
    """The same run on all participants' records in one place: what sharing gives up.

    Delta is no larger than a tenth of a record's share of them.
    """
    together = union(job.split.present)
    (site,) = together.sites
    run = job.run(clients=1)
    delta = min(run.privacy.delta, 1.0 / (10.0 * len(site.train)))
    privacy = run.privacy.model_copy(update={"delta": delta})
    run = run.model_copy(update={"privacy": privacy})
    simulation = _simulate(job, run, lambda number, arrays: None, together)
    detector = site_detector(simulation.material(site.name), site)
    return Found(answers=everywhere(job, detector), run=run, history=simulation.history)


def pooled_model(job: Job) -> Found:
    """A model trained in one place; scores are reconstruction errors."""
    (site,), schema, run = union(job.split.present).sites, job.split.present.schema, job.run()
    model = train_alone(run, schema.preprocess(site.train), key=0)
    return Found(answers=everywhere(job, reconstruction_detector(model, schema)))


def alone(job: Job) -> Found:
    """Each participant trains by itself; scores are reconstruction errors."""
    run, schema = job.run(), job.split.present.schema
    numbers = {site.name: number for number, site in enumerate(job.split.present.sites)}
    pairs = []
    for site in job.split.rated_present:
        model = train_alone(run, schema.preprocess(site.train), numbers[site.name])
        pairs.append((site, reconstruction_detector(model, schema)))
    return Found(answers={"seen": rate(pairs)})


def untrained(job: Job) -> Found:
    """An exact density on the first weights: what training has to beat."""
    run = job.run()
    model = build_model(run)
    weights = {key: value.numpy() for key, value in encoder_state(model).items()}
    rows = [site.train for site in job.split.present.sites]

    def density(normals: NDArray[np.generic] | None) -> Detector:
        return latent_detector(run, weights, rows, normals)

    return Found(answers=answered(job, list, density, without="seen"))


def answered(
    job: Job, seen: Callable[[], Pairs], detector: Maker, without: str = ""
) -> dict[str, Rating]:
    """Answers to the study's questions, but for one that makes no sense here."""
    return rated(
        [question for question in job.study.evaluate.questions if question != without],
        seen=seen,
        absent=job.split.rated_absent,
        detector=detector,
        seed=job.data_seed,
    )


def everywhere(job: Job, detector: Detector) -> dict[str, Rating]:
    """Answers of one detector for all clients, which nobody re-centres."""
    asked = [one for one in job.study.evaluate.questions if one in ("seen", "absent")]
    split = job.split
    return rated(
        asked,
        seen=lambda: [(site, detector) for site in split.rated_present],
        absent=split.rated_absent,
        detector=lambda _: detector,
        seed=job.data_seed,
    )


def union(federation: Federation) -> Federation:
    """All records at one site."""
    records = {
        key: np.concatenate([getattr(site, key) for site in federation.sites]) for key in PARTS
    }
    return replace(federation, sites=(SiteData(name="pool", **records),))


class Curve:
    """Ratings by round in one file, written anew at each point."""

    def __init__(self, path: Path) -> None:
        """Read what was measured before."""
        self._path = path
        self.points: dict[int, Mapping[str, float]] = {}
        if path.exists():
            found = read_json(path)
            if isinstance(found, dict):
                self.points = {int(number): point for number, point in found.items()}

    def add(self, number: int, rating: Rating) -> None:
        """Write the point of a round."""
        self.points[number] = asdict(rating)
        write_json(self._path, {str(key): point for key, point in sorted(self.points.items())})


def _observer(
    job: Job, run: RunConfig, split: Split, curve: Curve
) -> Callable[[int, Arrays], None]:
    """Adds points to the curve: each round's encoder with an exact density of all records.

    That is the simulator's own observation, which no deployed server sees and no plan pays for.
    """
    every, last = job.study.evaluate.every, run.training.rounds

    def observe(number: int, arrays: Arrays) -> None:
        due = every and (number % every == 0 or number == last)
        if due and number not in curve.points:
            rows = [site.train for site in split.present.sites]
            detector = latent_detector(run, arrays, rows)
            curve.add(number, rate([(site, detector) for site in split.curve_sites]))

    return observe


def _simulate(
    job: Job,
    run: RunConfig,
    observe: Callable[[int, Arrays], None],
    federation: Federation | None = None,
) -> Simulation:
    """The run on the cell's grid, gone on with where it was stopped."""
    cell, folder = job.cell, job.folder / SIMULATION
    present = federation or job.split.present
    if cell.grid in ("stacked", "nodes"):
        return simulate(
            run,
            datasets(present),
            folder,
            run_id=RUN_ID,
            resume=True,
            engine="stacked" if cell.grid == "stacked" else "nodes",
            availability=Availability(**cell.availability.model_dump()),
            device=job.device,
            watch=job.tell,
            after_round=observe,
        )
    shutil.rmtree(folder, ignore_errors=True)  # these two start again
    if cell.grid == "flower":
        from fedlatent.simulations.flower import run_on_flower

        return run_on_flower(run, present, folder, run_id=RUN_ID, watch=job.tell)
    from fedlatent.simulations.deployed import run_deployed

    return run_deployed(run, present, folder, run_id=RUN_ID, watch=job.tell)


def _site_detectors(
    simulation: Simulation, sites: Sequence[SiteData]
) -> list[tuple[SiteData, Detector]]:
    """Of the sites that answered to the end; one that was away then has no bundle."""
    found: list[tuple[SiteData, Detector]] = []
    for site in sites:
        with contextlib.suppress(DataError):
            found.append((site, site_detector(simulation.material(site.name), site)))
    return found
