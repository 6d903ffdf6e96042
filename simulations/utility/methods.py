"""What is compared: federated runs that differ in a few settings, and detectors without a network.

Every method answers the three questions with the same clients, split and seed. A federated run has
two detectors: the site's own model for clients that took part, and the released one for others.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.data.tabular import contaminate
from fedlatent.shared.detection import baselines
from fedlatent.shared.privacy.accounting import GaussianEvent, calibrate
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.simulations.evaluation import (
    Detector,
    Rating,
    baseline_detector,
    combined_detector,
    global_detector,
    normals_of,
    rate,
    site_detector,
)
from fedlatent.simulations.federation import datasets, simulate
from fedlatent.simulations.partition import Partition, named_federation

Tables = Mapping[str, Mapping[str, object] | str]
Pairs = Sequence[tuple[SiteData, Detector]]

DELTA = 1e-5
QUESTIONS = ("seen", "absent", "new10", "new30", "new100")

_OFFSET = 5  # keeps the draw of the absent apart from others of the same seed


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Clients of one data set.

    Attributes:
        name: a source of ``fedlatent.simulations.partition``.
        absent: clients that take no part.
        partition: how records are shared.
        reach: clipping radius of records as a share of the half range at each place; 1 clips
            nothing. Public, and chosen for each data set in favour of the private baseline.
    """

    name: str
    absent: int
    reach: float
    partition: Partition = field(default_factory=Partition)

    def split(
        self, folder: Path, seed: int, contamination: float = 0.0
    ) -> tuple[Federation, Federation]:
        """Those who take part, and the absent."""
        whole = named_federation(self.name, folder, self.partition, seed)
        present, away = whole.hold_out(self.absent, seed + _OFFSET)
        return contaminate(present, contamination, seed), away


DATA_SETS = {
    one.name: one
    for one in (
        DataSet(name="mitbih", absent=7, reach=0.25),
        DataSet(name="smd", absent=1, reach=1.0),
        DataSet(name="asd", absent=2, reach=0.25),
        DataSet(name="heart_disease", absent=1, reach=1.0),
        DataSet(name="nsl_kdd", absent=2, reach=1.0),
        DataSet(
            name="mnist_one",
            absent=2,
            partition=Partition(kind="iid", clients=12),
            reach=1.0,
        ),
    )
}

_BASE: dict[str, dict[str, object]] = {
    "model": {"options": {"hidden": [64], "latent_dim": 8}},
    "training": {"rounds": 10, "steps_per_round": 20, "learning_rate": 4e-3},
}

#: Federated methods by name: what they change in the run.
FEDERATED: dict[str, Tables] = {
    "fedavg": {},
    "mr-mtl": {"strategy": {"name": "mr-mtl", "proximal": 20.0}},
    "noise-aware": {"strategy": {"weighting": "noise-aware"}},
    "local": {"strategy": {"name": "mr-mtl", "proximal": 0.0}},
    "full+data": {
        "sharing": "full",
        "scoring": {"combined": True},
        "summaries": {"data": "gaussian"},
        "training": {"warm_start_steps": 300},
        "privacy": {"data_share": 0.3},
    },
}
#: Levers of utility on top of "fedavg".
LEVERS: dict[str, Tables] = {
    "multiplicity 4": {"training": {"multiplicity": 4}},
    "average of weights 0.7": {"training": {"ema": 0.7}},
    "cosine schedule": {"training": {"schedule": "cosine"}},
    "expected batch x 5": {"privacy": {"sample_rate": 0.5}},
    "clip 0.3": {"privacy": {"clip": 0.3}},
    "clip 3": {"privacy": {"clip": 3.0}},
    "warm start": {
        "summaries": {"data": "gaussian"},
        "training": {"warm_start_steps": 300},
        "privacy": {"data_share": 0.3},
    },
    "gaussian prior": {
        "sharing": "encoder+summary",
        "summaries": {"prior": "gaussian"},
    },
    "whole models": {"sharing": "full"},
    "fedprox": {"strategy": {"name": "fedprox", "proximal": 20.0}},
    "server adam": {"strategy": {"server_optimizer": "adam", "server_learning_rate": 0.02}},
    "server momentum": {"strategy": {"server_optimizer": "momentum"}},
    "summaries alone": {"sharing": "summary"},
}
#: Detectors without privacy, on all participants' records together.
PUBLIC: dict[str, Callable[[NDArray[np.float32]], baselines.Scorer]] = {
    "PCA": baselines.pca,
    "Mahalanobis": baselines.mahalanobis,
    "kNN": baselines.knn,
    "isolation forest": baselines.isolation_forest,
    "one-class SVM": baselines.one_class_svm,
}


def run_of(
    method: Tables, present: Federation, epsilon: float | None, seed: int, name: str = "utility"
) -> RunConfig:
    """The run of a federated method at one epsilon; None is without privacy."""
    count = len(present.sites)
    tables = tables_of(method, epsilon)
    tables["summaries"] = {"data_radius": radius_of(present), **tables.get("summaries", {})}
    fixed = {
        "name": name,
        "seed": seed,
        "data": present.schema.to_dict(),
        "federation": {"nodes": count, "quorum": count},
    }
    return RunConfig.parse({**fixed, **tables}, "utility study")


def tables_of(method: Tables, epsilon: float | None) -> dict[str, Any]:
    """The tables of a method's run file, without those that tell of seed, records and clients."""
    privacy: dict[str, object] = {"rng": "simulation", "delta": DELTA}
    privacy |= {"mechanism": "none"} if epsilon is None else {"epsilon": epsilon}
    tables: dict[str, Any] = {"privacy": privacy, **_BASE}
    for key, value in method.items():
        tables[key] = value if isinstance(value, str) else {**tables.get(key, {}), **value}
    return tables


def radius_of(present: Federation) -> float:
    """The public clipping radius of a data set's records about the middle of their bounds."""
    schema = present.schema
    half = (schema.upper - schema.lower) / 2
    return DATA_SETS[present.name].reach * half * math.sqrt(math.prod(schema.shape))


def federated(
    method: Tables,
    present: Federation,
    absent: Federation,
    epsilon: float | None,
    seed: int,
    folder: Path,
) -> Iterator[tuple[str, str, Rating]]:
    """Score, question and rating of a federated run; "combined" scores where it has them."""
    run = run_of(method, present, epsilon, seed)
    simulation = simulate(run, datasets(present), folder, engine="stacked")
    result = simulation.result
    seen = [(site, site_detector(simulation.material(site.name), site)) for site in present.sites]
    yield "score", "seen", rate(seen)
    yield from _others("score", absent, seed, lambda normals: global_detector(result, normals))
    if result.released.scores is None:
        return

    def combined(normals: NDArray[np.generic] | None) -> Detector:
        detector = combined_detector(result, normals)
        if detector is None:
            raise ValueError("Expected a run with combined scores, got one without.")
        return detector

    own = [(site, combined(site.train)) for site in present.sites]
    yield "combined", "seen", rate(own)
    yield from _others("combined", absent, seed, combined)


def pooled(
    present: Federation, absent: Federation, epsilon: float | None, seed: int, folder: Path
) -> Iterator[tuple[str, str, Rating]]:
    """The same model on all participants' records in one place: what sharing gives up."""
    name = "pool"
    union = SiteData(
        name=name,
        **{
            key: np.concatenate([getattr(site, key) for site in present.sites])
            for key in ("train", "test", "test_label", "test_kind", "extra", "extra_kind")
        },
    )
    together = Federation(
        name=present.name,
        schema=present.schema,
        sites=(union,),
        synthetic=present.synthetic,
        note=present.note,
    )
    delta = min(DELTA, 1.0 / (10.0 * len(union.train)))  # no larger for so many records
    run = run_of({"privacy": {"delta": delta}}, together, epsilon, seed)
    simulation = simulate(run, datasets(together), folder, engine="stacked")
    detector = site_detector(simulation.material(name), union)
    yield "score", "seen", rate([(site, detector) for site in present.sites])
    yield from _others("score", absent, seed, lambda normals: detector, counts=())


def dp_mahalanobis(
    present: Federation, absent: Federation, epsilon: float | None, seed: int
) -> Iterator[tuple[str, str, Rating]]:
    """The private detector without a network; the whole budget goes into its one release."""
    schema, sigma = present.schema, 0.0
    if epsilon is not None:
        sigma = calibrate(epsilon, DELTA, lambda s: [GaussianEvent(noise_multiplier=s)])
    middle = (schema.lower + schema.upper) / 2

    def centred(rows: NDArray[np.generic]) -> NDArray[np.float32]:
        return schema.preprocess(rows) - np.float32(middle)

    fitted = baselines.dp_mahalanobis(
        [centred(site.train) for site in present.sites],
        features=min(32, math.prod(schema.shape)),
        radius=radius_of(present),
        noise_multiplier=sigma,
        noise=SimulationNoise(seed),
    )

    def detector(normals: NDArray[np.generic] | None) -> Detector:
        scorer = fitted if normals is None else fitted.recentre(centred(normals))
        return lambda rows: scorer(centred(rows))

    yield "score", "seen", rate([(site, detector(site.train)) for site in present.sites])
    yield from _others("score", absent, seed, detector)


def public(
    fit: Callable[[NDArray[np.float32]], baselines.Scorer], present: Federation, absent: Federation
) -> Iterator[tuple[str, str, Rating]]:
    """A detector without privacy, on the participants' pooled records."""
    detector = baseline_detector(fit, present.schema, [site.train for site in present.sites])
    yield "score", "seen", rate([(site, detector) for site in present.sites])
    yield "score", "absent", rate([(site, detector) for site in absent.sites])


def _others(
    score: str,
    absent: Federation,
    seed: int,
    detector: Callable[[NDArray[np.generic] | None], Detector],
    counts: Sequence[int] = (10, 30, 100),
) -> Iterator[tuple[str, str, Rating]]:
    """The questions about clients that took no part."""
    yield score, "absent", rate([(site, detector(None)) for site in absent.sites])
    for count in counts:
        pairs = [(site, detector(normals_of(site, count, seed))) for site in absent.sites]
        yield score, f"new{count}", rate(pairs)
