"""One file becomes a signed bundle and a report beside simple baselines."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dialect import Dialect
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.keys import VerifyKey
from fedlatent.shared.models import FAMILIES, build_model
from fedlatent.simulations.own_data import clients_of_file, federation_of_file
from fedlatent.simulations.train import leave_out, run_of, train, worry

SCHEMA = """
[data]
name = "rows"
[[data.columns]]
name = "age"
lower = 20
upper = 90
[[data.columns]]
name = "pulse"
lower = 40
upper = 200
missing = "mask"
[[data.columns]]
name = "kind"
levels = ["a", "b"]
"""
WHERE = {"label_key": "bad", "client_key": "place"}


def table(folder: Path, rows: int = 240, *, quiet: str = "") -> tuple[Path, Path]:
    """A file of three places with gaps, and its schema; place ``quiet`` has no anomalies."""
    rng = np.random.default_rng(0)
    place = rng.choice(["north", "south", "west"], rows)
    bad = ((rng.random(rows) < 0.2) & (place != quiet)).astype(int)
    frame = pd.DataFrame(
        {
            "place": place,
            "note": "x",
            "pulse": rng.normal(80, 8, rows) + 70 * bad,
            "kind": np.where(bad, "b", rng.choice(["a", "a", "b"], rows)),
            "age": rng.normal(55, 8, rows),
            "bad": bad,
        }
    )
    frame.loc[::9, "pulse"] = np.nan
    path, schema = folder / "rows.csv", folder / "rows.toml"
    frame.to_csv(path, index=False)
    schema.write_text(SCHEMA)
    return path, schema


def short(run: RunConfig, rng: str = "simulation") -> RunConfig:
    """The same run with few steps, and by default noise that a seed gives."""
    tables = run.model_dump(mode="json")
    tables["privacy"]["rng"] = rng
    tables["training"] |= {"rounds": 2, "steps_per_round": 5}
    return RunConfig.parse(tables, "test")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_run(tmp_path: Path, family: str) -> None:
    """Options that a family does not have are not asked of it."""
    path, schema = table(tmp_path)
    if family == "molecule":
        federation = clients_of_file(path, schema=schema, **WHERE)
        with pytest.raises(ConfigError, match="unit is 'SELFIES token'"):
            run_of(federation, family=family)
        return
    schema.write_text(SCHEMA.replace("upper = 90", 'upper = 90\nmissing = "mask"'))
    run = run_of(clients_of_file(path, schema=schema, **WHERE), family=family)
    assert build_model(run).input_shape == run.data.shape


@pytest.mark.parametrize("epsilon", [None, 4.0])
def test_a_file_becomes_a_bundle_and_a_report(tmp_path: Path, epsilon: float | None) -> None:
    """The bundle scores the raw rows; the report names the absent and rates the baselines."""
    path, schema = table(tmp_path, quiet="west")
    federation = clients_of_file(path, schema=schema, **WHERE)
    present, away = leave_out(federation, 1)
    run = run_of(present, epsilon=epsilon)
    assert run.privacy.rng == ("secure" if epsilon else "simulation")
    run = short(run)
    target = tmp_path / "out" / "rows.fedlatent"
    done = train(present, target, run=run, away=away, work=tmp_path / "work")
    model = EdgeModel.load(target, [VerifyKey.load(done.public_key)])
    privacy = model.bundle.manifest.privacy
    assert (privacy is None) == (epsilon is None)
    if epsilon is not None:
        assert done.report.epsilon is not None
        assert done.report.epsilon <= epsilon
        assert model.bundle.manifest.kind == "global"
    assert np.isfinite(model.score(federation.sites[0].test).score).all()
    assert len(done.report.absent) == 1
    told = json.loads(target.with_suffix(".json").read_text())
    assert told["absent"] == done.report.absent
    found = {row["name"]: row for row in told["clients"]}
    assert set(found) == {"north", "south", "west"}
    assert found["west"]["anomalies"] == 0
    assert found["west"]["auroc"]["fedlatent"] is None
    assert found["north"]["auroc"]["Mahalanobis"] > 0.9
    compared = set(told["auroc"]["took part"])
    usual = {"fedlatent", "PCA", "Mahalanobis", "isolation forest", "kNN"}
    assert compared == usual | ({"DP Mahalanobis"} if epsilon else set())
    page = done.page.read_text()
    assert f"took no part: {done.report.absent[0]}" in page
    row = told["auroc"]["took part"]
    better = {name for name, value in row.items() if value > row["fedlatent"]}
    assert set(told["beaten_by"]) == better
    assert ("Rated better than the bundle by" in page) == bool(better)
    assert "not rated by themselves: west" in page


def test_a_private_bundle_is_made_by_nodes_with_secure_noise(tmp_path: Path) -> None:
    """What leaves a client is paid for in its ledger, and the bundle says which noise it is."""
    path, schema = table(tmp_path)
    federation = clients_of_file(path, schema=schema, **WHERE)
    run = short(run_of(federation, epsilon=50.0), rng="secure")
    done = train(federation, tmp_path / "m.fedlatent", run=run, work=tmp_path / "work")
    privacy = done.bundle.manifest.privacy
    assert privacy is not None
    assert privacy.rng == "secure"
    assert len(list((tmp_path / "work").glob("nodes/*/ledger.db"))) == 3


def test_a_threshold_that_noise_would_place_is_told_before_training(tmp_path: Path) -> None:
    """Few records at a small epsilon are warned of; many, or no privacy, are not."""
    path, schema = table(tmp_path)
    few = clients_of_file(path, schema=schema, **WHERE)
    told = worry(run_of(few, epsilon=1.0), few)
    assert told is not None
    assert f"{sum(len(site.train) for site in few.sites)} records of 3 clients" in told
    assert worry(run_of(few, epsilon=200.0), few) is None
    assert worry(run_of(few), few) is None


def test_records_without_labels_are_not_rated(tmp_path: Path) -> None:
    """Without anomalies there is a bundle and its false alarms, and no AUROC."""
    path, schema = table(tmp_path)
    federation = clients_of_file(path, schema=schema)
    done = train(federation, tmp_path / "m.fedlatent", run=short(run_of(federation)), work=tmp_path)
    assert set(done.report.auroc["took part"].values()) == {None}
    assert done.report.clients[0].false_alarms is not None
    assert "no detector can be rated" in done.page.read_text()


def test_series_are_compared_with_a_rolling_z_score(tmp_path: Path) -> None:
    """Windows of a series train, and the z-score of their last row stands beside."""
    rng = np.random.default_rng(1)
    rows = pd.DataFrame({"load": rng.normal(0.5, 0.05, 300), "bad": 0})
    rows.loc[40::40, ["load", "bad"]] = (0.95, 1)
    path, schema = tmp_path / "load.csv", tmp_path / "load.toml"
    rows.to_csv(path, index=False)
    columns = '[[data.columns]]\nname = "load"\n[data.window]\nlength = 8\nstep = 1\n'
    schema.write_text(f'[data]\nname = "load"\n{columns}')
    federation = clients_of_file(path, schema=schema, label_key="bad")
    done = train(federation, tmp_path / "m.fedlatent", run=short(run_of(federation)), work=tmp_path)
    assert done.report.auroc["took part"]["rolling z-score"] is not None


def test_too_few_records_are_one_sentence(tmp_path: Path) -> None:
    """A file too small is refused before training, with how many are needed."""
    path, schema = table(tmp_path, rows=12)
    with pytest.raises(DataError, match="at least 29 normal records") as told:
        clients_of_file(path, schema=schema, **WHERE)
    assert told.value.reason == "few"


def test_as_many_absent_as_there_are_is_refused(tmp_path: Path) -> None:
    """Somebody has to take part."""
    path, schema = table(tmp_path)
    federation = clients_of_file(path, schema=schema, **WHERE)
    with pytest.raises(ConfigError, match="Expected fewer absent clients than the 3"):
        leave_out(federation, 3)


def test_a_demo_takes_clients_without_anomalies_and_names_them(tmp_path: Path) -> None:
    """They take part; the note says that they are not rated by themselves."""
    path, schema = table(tmp_path, quiet="west")
    found = federation_of_file(path, 3, schema=schema, **WHERE)
    assert len(found.sites) == 3
    assert "not rated by themselves: west" in found.note


def test_a_file_of_another_dialect_is_read_as_it_is_said(tmp_path: Path) -> None:
    """Semicolons and decimal commas give the same records; bounds are proposed by column."""
    path = tmp_path / "rows.csv"
    rows = "".join(f"A;{60 + n % 9},5;{n % 3}\n" for n in range(60))
    path.write_text("place;pulse;kind\n" + rows)
    with pytest.raises(DataError, match="delimiter=';'"):
        clients_of_file(path, client_key="place")
    dialect = Dialect(delimiter=";", decimal=",")
    found = clients_of_file(path, client_key="place", dialect=dialect)
    assert [one.name for one in found.schema.columns] == ["pulse", "kind"]
    (site,) = found.sites
    assert sorted(set(site.train[:, 0].tolist())) == [60.5 + n for n in range(9)]


def test_a_named_column_that_is_none_of_numbers_is_refused(tmp_path: Path) -> None:
    """What a person asks for by --column is not left out in silence."""
    path, _ = table(tmp_path)
    frame = pd.read_csv(path).assign(id=range(240))
    frame.to_csv(path, index=False)
    with pytest.raises(DataError, match=r"'id' of rows\.csv, but its whole numbers only grow"):
        clients_of_file(path, columns=["age", "id"], **WHERE)
