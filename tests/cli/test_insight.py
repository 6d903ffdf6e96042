"""``fedlatent server sites`` on real runs: a start, and a later look with the same encoder."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fedlatent.shared.data.dataset import Dataset
from fedlatent.simulations.federation import datasets, simulate
from tests.cli.conftest import Run
from tests.simulations.support import tiny_federation, tiny_run

SITES = 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server with four runs: "first", "calm" and "moved" with its encoder, and "other"."""
    folder = tmp_path_factory.mktemp("sites")
    federation = tiny_federation(SITES)
    sites = datasets(federation)
    privacy = {"rng": "simulation", "epsilon": 8.0}
    first = tiny_run(federation, privacy=privacy, scoring={"per_client": True})
    table = first.model.model_dump() | {"start": "first"}
    later = tiny_run(federation, privacy=privacy, sharing="summary", seed=5, model=table)
    other = tiny_run(federation, privacy=privacy, seed=9)
    name = sorted(sites)[1]
    upside_down = replace(sites[name], records=-sites[name].records)
    moved: Mapping[str, Dataset] = {**sites, name: upside_down}
    for run_id, run, data in (
        ("first", first, sites),
        ("calm", later, sites),
        ("moved", later, moved),
        ("other", other, sites),
    ):
        simulate(run, data, folder, run_id=run_id, engine="stacked")
    return folder / "server"


def test_sites_of_a_run_are_listed_with_distance_group_and_thresholds(run: Run, home: Path) -> None:
    """One row a site, with its public facts and what its moments tell."""
    status, out, _ = run("server", "sites", "first", "--home", home, "--json")
    facts = json.loads(out)
    assert status == 0
    assert len(facts["sites"]) == SITES
    for one in facts["sites"]:
        assert one["records"] > 50
        assert 0 < one["epsilon"] <= 8.0
        assert one["distance"] >= 0
        assert 1 <= one["cluster"] <= SITES
        assert set(one["thresholds"]) == {"absolute", "recentred"}
        assert "drift" not in one
    status, out, _ = run("server", "sites", "first", "--home", home)
    assert status == 0
    assert "sites of first" in out
    assert all(one["site"] in out for one in facts["sites"])


def test_the_site_whose_data_moved_is_named(run: Run, home: Path) -> None:
    """The same data raises no alarm; one site upside down raises its own."""
    calm = json.loads(
        run("server", "sites", "first", "--against", "calm", "--home", home, "--json")[1]
    )
    assert [one["drift"]["alarm"] for one in calm["sites"]] == [False] * SITES
    arguments = ("server", "sites", "first", "--against", "moved", "--home", home)
    found = json.loads(run(*arguments, "--json")[1])
    named = [one["site"] for one in found["sites"] if one["drift"]["alarm"]]
    assert named == [found["sites"][1]["site"]]
    _, out, err = run(*arguments)
    assert "ALARM" in out
    assert named[0] in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("absent",), "absent"),
        (("../etc",), "run name"),
        (("first", "--against", "other"), "same encoder"),
    ],
)
def test_errors_are_one_sentence(
    run: Run, home: Path, arguments: tuple[str, ...], words: str
) -> None:
    """Unknown runs, and runs whose latents mean something else, are refused with exit code 2."""
    status, out, err = run("server", "sites", *arguments, "--home", home)
    assert (status, out) == (2, "")
    assert "error (config)" in err
    assert words in err
    assert "Traceback" not in err
