"""One run with hostile sites, and what its detector is worth; the jobs of the table.

Data: MIT-BIH beats of 22 patients, 15 of whom take part with 300 records each, shared at random;
"groups" are three patients a site instead, so that no two sites have anything in common. And
NSL-KDD connections of all services but two, at random in shares of 500 records. The global detector
is rated on all test records of the honest sites under one threshold, re-centred on those of the
clients that take no part.
"""

import functools
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.errors import FedlatentError
from fedlatent.simulations.evaluation import Detector, global_detector, normals_of, rate
from fedlatent.simulations.federation import datasets, simulate
from fedlatent.simulations.partition import Partition, named_federation, repartition
from fedlatent.simulations.robustness.attacks import ATTACKS, Hostile

#: Data sets by name: clients that take no part.
DATA_SETS = {"mitbih": 7, "nsl_kdd": 2, "groups": 7}

Tables = Mapping[str, Mapping[str, object]]

RULES = ("trimmed-mean", "median", "centred-clipping", "krum", "multi-krum")
#: What a run changes of the defaults, by name of the method.
METHODS: dict[str, Tables] = {
    "default": {},
    "plain": {
        "strategy": {"robust": "none"},
        "federation": {"norm_factor": 1e9},
        "summaries": {"robust": False},
    },
    **{rule: {"strategy": {"robust": rule}} for rule in RULES},
}
#: Instead of an attack: no site hostile, and the honest sites without the hostile ones.
HONEST, ALONE = "none", "honest alone"
ALL_ATTACKS = (ALONE, HONEST, *ATTACKS)
#: Attacks with 20 sites, where each rule is tried.
HARD = (ALONE, HONEST, "flipped", "random", "all at once")
#: By method, of groups.
FEW = {"default": (ALONE, HONEST, "flipped", "false histogram", "all at once"), "plain": (HONEST,)}

_SHARE = 500  # records of a share of connections
_PATIENT = 300  # records of a patient
_NORMALS = 100  # of a new client, to re-centre on
_OFFSET = 5  # keeps the draw of the absent apart from others of the same seed


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        data: name of the data set.
        sites: how many take part.
        hostile: how many of them are hostile.
        method: name of the method.
        attack: name of the attack, or ``HONEST`` or ``ALONE``.
        seed: of split, first weights, noise and attack.
    """

    data: str
    sites: int
    hostile: int
    method: str
    attack: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run gave; the measures are None where it did not finish.

    Attributes:
        problem: why it did not finish; empty where it did.
        auroc: of the global detector on the honest sites' test records.
        recentred: on absent clients, re-centred on 100 normal records of each.
        flagged: share of the honest sites' anomalies at the released threshold.
        false_alarms: share of their normal test records at that threshold.
        threshold: as released.
        seconds: of the run.
    """

    problem: str = ""
    auroc: float | None = None
    recentred: float | None = None
    flagged: float | None = None
    false_alarms: float | None = None
    threshold: float | None = None
    seconds: float = 0.0


def jobs(
    sets: Sequence[str], seeds: Sequence[int], methods: Sequence[str] = tuple(METHODS)
) -> Iterator[Job]:
    """One of five by default and plainly, then 4 of 20 by each rule; seed after seed."""
    for seed in seeds:
        for data in sets:
            for method in (one for one in ("default", "plain") if one in methods):
                for attack in FEW[method] if data == "groups" else ALL_ATTACKS:
                    yield Job(
                        data=data, sites=5, hostile=1, method=method, attack=attack, seed=seed
                    )
        for method in (one for one in methods if one != "default" and "mitbih" in sets):
            for attack in HARD:
                yield Job(
                    data="mitbih", sites=20, hostile=4, method=method, attack=attack, seed=seed
                )


def split(job: Job, folder: Path) -> tuple[Federation, Federation]:
    """Those who take part in a job, the hostile ones last, and the absent."""
    whole = _source(job.data, folder, job.seed)
    present, absent = whole.hold_out(DATA_SETS[job.data], job.seed + _OFFSET)
    if job.data == "groups":
        return grouped(cut(present, _PATIENT), job.sites), absent
    shares = Partition(kind="iid", clients=job.sites)
    if job.data == "mitbih":
        return repartition(cut(present, _PATIENT), shares, job.seed, images=False), absent
    return cut(repartition(present, shares, job.seed, images=False), _SHARE), absent


@functools.lru_cache(maxsize=2)
def _source(name: str, folder: Path, seed: int) -> Federation:
    """The clients of a data set; jobs that follow each other have the same."""
    source = "mitbih" if name == "groups" else name
    return named_federation(source, folder, Partition(), seed)


def cut(federation: Federation, most: int) -> Federation:
    """At most so many training records of each site; all of its test."""
    sites = tuple(replace(site, train=site.train[:most]) for site in federation.sites)
    return replace(federation, sites=sites)


def grouped(federation: Federation, count: int) -> Federation:
    """The sites put together in so many groups, in their order."""
    groups = np.array_split(np.arange(len(federation.sites)), count)
    made = []
    for number, members in enumerate(groups):
        each = [federation.sites[place] for place in members]
        keys = ("train", "test", "test_label", "test_kind", "extra", "extra_kind")
        joined = {key: np.concatenate([getattr(one, key) for one in each]) for key in keys}
        made.append(SiteData(name=f"group-{number}", **joined))
    return replace(federation, sites=tuple(made))


def run_of(job: Job, present: Federation) -> RunConfig:
    """The defaults of a run, with seeded noise and a learning rate for small models."""
    honest = len(present.sites) - (job.hostile if job.attack not in (HONEST, ALONE) else 0)
    tables: dict[str, object] = {
        "name": "robustness",
        "seed": job.seed,
        "data": present.schema.to_dict(),
        "model": {"options": {"hidden": [64], "latent_dim": 8}},
        "privacy": {"rng": "simulation"},
        "training": {"learning_rate": 4e-3, "rounds": 5},
        **METHODS[job.method],
    }
    federation = {"nodes": len(present.sites), "quorum": honest}
    tables["federation"] = {**federation, **METHODS[job.method].get("federation", {})}
    return RunConfig.parse(tables, "robustness study")


def work(data_dir: Path, job: Job) -> dict[str, object]:
    """The outcome of a job, ready for JSON."""
    present, absent = split(job, data_dir)
    hostile = [site.name for site in present.sites[-job.hostile :]]
    honest = replace(present, sites=present.sites[: -job.hostile])
    if job.attack == ALONE:
        present = honest
    run = run_of(job, present)
    attack = ATTACKS.get(job.attack)
    tamper = Hostile(attack=attack, sites=hostile, run=run) if attack else None
    folder, started = Path(tempfile.mkdtemp(prefix="fedlatent-robustness-")), time.monotonic()
    try:
        result = simulate(run, datasets(present), folder, engine="stacked", tamper=tamper).result
    except FedlatentError as error:
        return asdict(Outcome(problem=f"{type(error).__name__}: {error}"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds, threshold = time.monotonic() - started, result.released.thresholds["absolute"]
    detector = global_detector(result)
    own = [
        (site, global_detector(result, normals_of(site, _NORMALS, job.seed)))
        for site in absent.sites
    ]
    flagged, false_alarms = shares(honest, detector, threshold)
    return asdict(
        Outcome(
            auroc=rate([(site, detector) for site in honest.sites]).pooled,
            recentred=rate(own).pooled,
            flagged=flagged,
            false_alarms=false_alarms,
            threshold=threshold,
            seconds=round(seconds, 2),
        )
    )


def shares(federation: Federation, detector: Detector, threshold: float) -> tuple[float, float]:
    """Shares of anomalies and of normal records above a threshold."""
    label = np.concatenate([site.test_label for site in federation.sites])
    above = np.concatenate([detector(site.test) for site in federation.sites]) > threshold
    return float(above[label == 1].mean()), float(above[label == 0].mean())
