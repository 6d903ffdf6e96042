"""Hostile sites in a whole run, by default and against plain averaging, and in a study."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fedlatent.server.results import RunFolder
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import build_model
from fedlatent.shared.privacy.summaries import SCORE_EDGES
from fedlatent.simulations.federation import Engine, datasets, simulate
from fedlatent.simulations.study.attacks import ALONE, ATTACKS, Hostile, cut, grouped
from fedlatent.simulations.study.job import Job
from fedlatent.simulations.study.shipped import locate
from fedlatent.simulations.study.spec import Study
from tests.simulations.support import tiny_federation, tiny_run

SITES = 5
METHODS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    cell.setting["method"]: {
        key: cell.run.get(key, {}) for key in ("strategy", "federation", "summaries")
    }
    for cell in Study.load(locate("robustness")).cells
}


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
) -> RunFolder:
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
def alone(records: Mapping[str, Dataset], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """What the honest sites come to by themselves."""
    return outcome(records, tmp_path_factory.mktemp("alone"), "default", ALONE)


def test_one_of_five_owns_a_plain_run_and_not_one_by_default(
    records: Mapping[str, Dataset], alone: RunFolder, tmp_path: Path
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
    records: Mapping[str, Dataset], alone: RunFolder, tmp_path: Path, attack: str
) -> None:
    """The run ends as if the site had not been there."""
    attacked = outcome(records, tmp_path, "default", attack)
    assert apart(alone.arrays, attacked.arrays) < 1e-6
    assert attacked.released.thresholds == pytest.approx(alone.released.thresholds)


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
    assert found[0].released.thresholds == pytest.approx(found[1].released.thresholds, rel=1e-6)


def test_an_attack_is_rated_on_the_honest_sites(tmp_path: Path, data_dir: Path) -> None:
    """A quick cell gives shares, areas and the threshold; an unknown attack is refused."""
    study = Study.load(locate("robustness-groups"), quick=True)
    cell = study.cells[1]
    assert cell.setting == {"method": "default", "attack": "flipped"}
    found = Job(study=study, cell=cell, data_dir=data_dir, folder=tmp_path).work().figures
    assert found["finished"] == 1.0
    for key in ("auroc", "flagged", "recentred", "false_alarms"):
        assert 0.0 <= found[key] <= 1.0
    wrong = Study.load(locate("robustness-groups"), ['parameters.attack = "flip"'])
    job = Job(study=wrong, cell=wrong.cells[0], data_dir=data_dir, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"parameters.attack: expected one of .*'flip'"):
        job.work()


@pytest.mark.parametrize("name", ["robustness", "robustness-groups", "robustness-rules"])
def test_the_hostile_are_a_fifth_of_the_sites(name: str) -> None:
    """All cells differ, every attack is held against the honest alone, and each has its sites."""
    study = Study.load(locate(name))
    assert len({cell.id for cell in study.cells}) == len(study.cells)
    for cell in study.cells:
        assert cell.parameters["sites"] == 5 * cell.parameters["hostile"]
        assert cell.parameters["attack"] in (ALONE, "none", *ATTACKS)


def test_groups_are_whole_clients() -> None:
    """Each site's records are those of the clients that it is made of, as many as are left."""
    federation = cut(tiny_federation(SITES), 7)
    assert all(len(site.train) <= 7 for site in federation.sites)
    groups = grouped(federation, 2)
    assert [site.name for site in groups.sites] == ["group-0", "group-1"]
    first = np.concatenate([site.train for site in federation.sites[:3]])
    np.testing.assert_array_equal(groups.sites[0].train, first)
