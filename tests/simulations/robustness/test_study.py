"""Hostile sites in a whole run, by default and against plain averaging; the study's tables."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from fedlatent.server.results import RunResult
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.models import build_model
from fedlatent.shared.privacy.summaries import SCORE_EDGES
from fedlatent.shared.wire import Arrays
from fedlatent.simulations.federation import Engine, datasets, simulate
from fedlatent.simulations.jobs import run_jobs
from fedlatent.simulations.robustness import __main__ as command
from fedlatent.simulations.robustness.attacks import ATTACKS, Hostile
from fedlatent.simulations.robustness.study import ALONE, HONEST, METHODS, RULES, Job, jobs, split
from fedlatent.simulations.robustness.tables import tables
from tests.simulations.support import tiny_federation, tiny_run

SITES = 5


@pytest.fixture(scope="module")
def records() -> Mapping[str, Dataset]:
    """Five sites; the last is the hostile one."""
    return datasets(tiny_federation(SITES))


def outcome(
    records: Mapping[str, Dataset],
    folder: Path,
    method: str,
    attack: str,
    engine: Engine = "stacked",
) -> RunResult:
    """A run by a method of the study; all sites, or the honest ones alone."""
    federation = tiny_federation(SITES)
    if attack == ALONE:
        records = {name: records[name] for name in list(records)[:-1]}
    tables: Mapping[str, Mapping[str, object]] = {
        "training": {"rounds": 2, "steps_per_round": 3},
        "privacy": {"rng": "simulation", "mechanism": "none"},
        **METHODS[method],
    }
    count = {"nodes": len(records), "quorum": SITES - 1}
    run = tiny_run(
        federation, **{**tables, "federation": {**count, **tables.get("federation", {})}}
    )
    found = ATTACKS.get(attack)
    tamper = Hostile(attack=found, sites=list(records)[-1:], run=run) if found else None
    return simulate(run, records, folder, engine=engine, tamper=tamper).result


def start() -> Arrays:
    """The weights that a run begins with."""
    run = tiny_run(tiny_federation(SITES))
    model = build_model(run)
    return {key: value.numpy() for key, value in model.state_dict().items()}


def apart(first: Arrays, second: Arrays) -> float:
    """L2 distance of two sets of weights."""
    return float(np.sqrt(sum(np.square(first[key] - second[key]).sum() for key in first)))


@pytest.fixture(scope="module")
def alone(records: Mapping[str, Dataset], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """What the honest sites come to by themselves."""
    return outcome(records, tmp_path_factory.mktemp("alone"), "default", ALONE)


def test_one_of_five_owns_a_plain_run_and_not_one_by_default(
    records: Mapping[str, Dataset], alone: RunResult, tmp_path: Path
) -> None:
    """By default weights and thresholds stay those of the honest sites; plainly both are lost."""
    by_default = outcome(records, tmp_path / "default", "default", "all at once")
    plain = outcome(records, tmp_path / "plain", "plain", "all at once")
    moved = apart(alone.arrays, start())
    assert apart(by_default.arrays, alone.arrays) <= 0.5 * moved
    assert apart(plain.arrays, alone.arrays) > 5.0 * moved
    assert plain.released.thresholds["absolute"] >= SCORE_EDGES[-2]
    for name, threshold in by_default.released.thresholds.items():
        assert threshold == pytest.approx(alone.released.thresholds[name], rel=0.5)


@pytest.mark.parametrize("attack", ["NaN", "false records"])
def test_impossible_replies_count_for_nothing(
    records: Mapping[str, Dataset], alone: RunResult, tmp_path: Path, attack: str
) -> None:
    """The run ends as if the site had not been there."""
    attacked = outcome(records, tmp_path, "default", attack)
    assert apart(alone.arrays, attacked.arrays) < 1e-6
    assert attacked.thresholds == pytest.approx(alone.thresholds)


def test_hostile_sites_do_the_same_to_real_nodes(
    records: Mapping[str, Dataset], tmp_path: Path
) -> None:
    """Replies of nodes, serialised, and those of the stacked engine are changed alike."""
    found = [
        outcome(records, tmp_path / engine, "plain", "all at once", engine)
        for engine in ("nodes", "stacked")
    ]
    for key, value in found[0].arrays.items():
        np.testing.assert_allclose(value, found[1].arrays[key], rtol=1e-4, atol=1e-4)
    assert found[0].thresholds == pytest.approx(found[1].thresholds, rel=1e-6)


def test_jobs_differ_and_every_method_is_a_run() -> None:
    """No job comes twice, each rule is tried, and the hostile are a fifth of the sites."""
    made = list(jobs(("mitbih", "nsl_kdd", "groups"), (0, 1)))
    assert len(set(made)) == len(made)
    assert {job.method for job in made if job.sites == 20} == {*RULES, "plain"}
    assert all(job.sites == 5 * job.hostile for job in made)
    for tables_ in METHODS.values():
        data = tiny_federation().schema.to_dict()
        assert RunConfig.parse({"name": "x", "data": data, **tables_}, "test").data.shape


def test_every_data_set_is_split_into_the_sites_of_a_job(data_dir: Path) -> None:
    """Sites have records to train on; groups hold whole patients."""
    for data, sites in (("mitbih", 5), ("mitbih", 20), ("groups", 5), ("nsl_kdd", 5)):
        job = Job(data=data, sites=sites, hostile=sites // 5, method="plain", attack=HONEST, seed=0)
        present, absent = split(job, data_dir)
        assert len(present.sites) == sites
        assert min(len(site.train) for site in present.sites) >= 100
        assert sum(int(site.test_label.sum()) for site in absent.sites) > 100


def _measure(job: Job) -> dict[str, object]:
    """Made-up measures: an attack costs all of the AUROC."""
    value = 0.9 if job.attack in (ALONE, HONEST) else 0.0
    measures = dict.fromkeys(("auroc", "flagged", "recentred", "false_alarms"), value)
    return {"problem": "", **measures}


def test_table_marks_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Losses against the honest alone stand beside each mean, bold beyond what is accepted."""
    wanted = [
        Job(data="mitbih", sites=5, hostile=1, method="default", attack=attack, seed=seed)
        for attack in (ALONE, HONEST, "zero")
        for seed in (0, 1)
    ]
    told: list[str] = []
    run_jobs(tmp_path, wanted, _measure, 1, lambda number, total, job: told.append(job.attack))
    run_jobs(tmp_path, wanted, _measure, 1, lambda number, total, job: told.append(job.attack))
    assert told == [job.attack for job in wanted]
    command.main(["tables", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "| zero | **0.000 (-0.900; -0.900)** |" in shown
    assert f"| {ALONE} | 0.900 | 0.900 | 0.900 | 0.900 | 0 of 2 |" in shown
    stopped = [{"job": asdict(job), "answers": {"problem": "x"}} for job in wanted]
    assert "| zero | - | - | - | - | 2 of 2 |" in tables(stopped)
