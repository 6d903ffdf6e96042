"""A table with a range for each column: federated, exported, scored on a device, alike on all."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.edge.single import SingleScorer
from fedlatent.server.export import export_global, global_contents
from fedlatent.server.home import ServerHome
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.columns import raw_rows
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.sources import Federation, split_site
from fedlatent.shared.errors import DataError
from fedlatent.shared.export.bundling import make_bundle
from fedlatent.shared.keys import SigningKey, VerifyKey
from fedlatent.simulations.federation import Engine, datasets, simulate
from fedlatent.simulations.study.evaluation import global_detector

COLUMNS = (
    Column(name="age", unit="years", lower=20.0, upper=90.0),
    Column(name="chol", unit="mg/dl", lower=100.0, upper=500.0, missing="mask"),
    Column(name="visits", upper=1000.0, transform="log", missing="value", fill=1.0),
    Column(name="pain", levels=("none", "mild", "strong"), missing="mask"),
)
MASKED = tuple(replace(one, missing="mask", fill=None) for one in COLUMNS)
SITES = 3


def patients(seed: int) -> pd.DataFrame:
    """Made-up patients, some values missing, some out of range."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "pain": rng.choice(["none", "mild", "strong", ""], 120),
            "visits": rng.poisson(3, 120).astype(object),
            "note": "x",
            "age": rng.normal(60, 15, 120),
            "chol": rng.normal(250, 50, 120),
        }
    )
    frame.loc[::7, "chol"] = np.nan
    frame.loc[::11, "visits"] = None
    return frame


def federation(columns: Sequence[Column]) -> Federation:
    """Three hospitals; strong pain is the anomaly."""
    sites = []
    for number in range(SITES):
        frame = patients(number)
        rows = raw_rows(frame, columns)
        kind = np.where(frame["pain"] == "strong", "strong", "normal").astype(np.str_)
        role = (kind == "strong").astype(np.uint8)
        rng = np.random.default_rng(number)
        sites.append(split_site(f"hospital-{number}", rows, kind, role, rng))
    schema = Schema(name="patient", columns=tuple(columns))
    return Federation(
        name="patients", schema=schema, sites=tuple(sites), synthetic=True, note="Made up."
    )


def run_of(family: str, schema: Schema) -> RunConfig:
    """Two short rounds."""
    values = {
        "name": "patients",
        "data": schema.to_dict(),
        "model": {"family": family, "options": {"hidden": [8], "latent_dim": 2}},
        "privacy": {"rng": "simulation"},
        "training": {"rounds": 2, "steps_per_round": 3},
        "federation": {"nodes": SITES, "quorum": SITES},
    }
    return RunConfig.parse(values, "test")


@pytest.mark.parametrize(
    ("engine", "family"), [("nodes", "gaussian"), ("stacked", "gaussian"), ("stacked", "mixed")]
)
def test_a_table_goes_from_rows_to_scores_of_a_device(
    tmp_path: Path, engine: Engine, family: str
) -> None:
    """Gaps, classes and values out of range train, and the bundle scores raw rows by itself."""
    one = federation(COLUMNS if family == "gaussian" else MASKED)
    done = simulate(run_of(family, one.schema), datasets(one), tmp_path / "sim", engine=engine)
    contents = global_contents(done.result, "patients-1")
    key, path = SigningKey.generate(tmp_path / "p.key"), tmp_path / "p.fedlatent"
    test = one.sites[0].test
    make_bundle(path, contents, key, test)
    model = EdgeModel.load(path, [key.public])
    assert model.bundle.manifest.schema == one.schema
    table = model.score(test)
    assert np.isfinite(table.score).all()
    # What the device clips, it scores as the bound.
    worse = test.copy()
    worse[:, 0] = 900.0
    bound = test.copy()
    bound[:, 0] = 90.0
    np.testing.assert_array_equal(model.score(worse).score, model.score(bound).score)
    assert SingleScorer(model)(worse[0])[0] == pytest.approx(model.score(worse).score[0], rel=1e-5)
    with pytest.raises(DataError, match="infinite"):
        model.score(np.full((1, len(COLUMNS)), np.inf))


def test_a_simulated_run_is_exported_like_a_deployed_one(tmp_path: Path) -> None:
    """The command's export of a simulated server's home scores as the model in memory does."""
    one = federation(COLUMNS)
    run = run_of("gaussian", one.schema)
    done = simulate(run, datasets(one), tmp_path / "sim", engine="stacked")
    home = ServerHome(tmp_path / "sim" / "server")
    report = export_global(home, path=tmp_path / "p.fedlatent")
    again = export_global(home, path=tmp_path / "q.fedlatent")
    key = VerifyKey.load(home.signing_key.with_name("signing.pem.pub"))
    model, second = (EdgeModel.load(made.path, [key]) for made in (report, again))
    test = one.sites[0].test
    expected = global_detector(done.result)(test)
    score = model.score(test).score
    assert np.corrcoef(expected, score)[0, 1] > 0.999999
    np.testing.assert_array_equal(second.score(test).score, score)
