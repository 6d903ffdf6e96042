"""Every family through a whole federation under privacy, a signed bundle, scores and samples."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedlatent.client.compute import load_weights, run_model
from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.export import fit_score, site_model
from fedlatent.server.export import global_contents
from fedlatent.shared.bundle.manifest import Thresholds
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.export.bundling import BundleContents, make_bundle
from fedlatent.shared.keys import SigningKey
from fedlatent.simulations.federation import Simulation, simulate
from fedlatent.testing import Case, records
from tests.shared.models.cases import CASES

ROUNDS, CLIENTS = 3, 4
SIZES = (40, 30, 20, 25)

every_family = pytest.mark.parametrize(
    "case",
    [case for case in CASES.values() if case.exported],
    ids=[name for name, case in CASES.items() if case.exported],
)


def run_of(case: Case) -> RunConfig:
    """Three private rounds of four clients that share whole models."""
    return RunConfig.parse(
        {
            "name": "zoo",
            "seed": 3,
            "sharing": "full",
            "data": {"name": "zoo", "shape": list(case.shape), "lower": 0.0, "upper": case.upper},
            "model": {"family": case.family, "options": dict(case.options)},
            "privacy": {"rng": "simulation", "epsilon": 8.0, "sample_rate": 0.3},
            "training": {"rounds": ROUNDS, "steps_per_round": 4},
            "federation": {"nodes": CLIENTS, "quorum": CLIENTS},
        },
        "zoo",
    )


def sites_of(case: Case, run: RunConfig) -> dict[str, Dataset]:
    """Four clients of unequal size."""
    return {
        f"site-{i}": Dataset(records=records(case, size, 10 + i).float().numpy(), schema=run.data)
        for i, size in enumerate(SIZES)
    }


def assert_equal(one: Simulation, other: Simulation) -> None:
    """Shared weights, the density and thresholds agree."""
    for key, value in one.result.arrays.items():
        np.testing.assert_allclose(other.result.arrays[key], value, rtol=1e-3, atol=1e-5)
    for key, value in one.result.released.density.arrays().items():
        np.testing.assert_allclose(
            other.result.released.density.arrays()[key], value, rtol=1e-3, atol=1e-4
        )


@every_family
def test_federation_to_bundle(tmp_path: Path, case: Case) -> None:
    """Nodes and stacked clients agree; both kinds of bundle score; the shared model draws."""
    run = run_of(case)
    sites = sites_of(case, run)
    nodes = simulate(run, sites, tmp_path / "nodes", engine="nodes")
    stacked = simulate(run, sites, tmp_path / "stacked", engine="stacked")
    assert_equal(nodes, stacked)
    assert [fact.good for fact in stacked.history if fact.kind == "train"] == [CLIENTS] * ROUNDS
    spent = stacked.result.facts["sites"]
    assert isinstance(spent, dict)
    assert all(7.0 < site["epsilon"] <= 8.0 for site in spent.values())

    key = SigningKey.generate(tmp_path / "key.pem")
    fresh = records(case, 16, 77).float().numpy()
    make_bundle(tmp_path / "global.fedlatent", global_contents(stacked.result, "zoo"), key, fresh)
    model = EdgeModel.load(tmp_path / "global.fedlatent", [key.public])
    assert np.isfinite(model.score(fresh).score).all()

    material = stacked.material("site-0")
    own = site_model(material)
    combine, threshold = fit_score(material, own, sites["site-0"].records)
    contents = BundleContents(
        kind="site",
        run_id="zoo",
        run=run,
        model=own,
        density=material.density,
        thresholds=Thresholds(quantile=run.scoring.quantile, absolute=threshold, recentred=None),
        epsilon=material.epsilon,
        delta=material.delta,
        clients=1,
        combine=combine,
        decoder=True,
    )
    report = make_bundle(tmp_path / "site.fedlatent", contents, key, fresh)
    assert set(report.parity) == {"scorer.onnx", "decoder.onnx"}
    scored = EdgeModel.load(tmp_path / "site.fedlatent", [key.public]).score(fresh)
    assert np.isfinite(scored.score).all()
    assert (scored.parts["reconstruction_error"] >= 0).all()

    whole = run_model(run)
    load_weights(whole, stacked.result.arrays, whole=True)
    with torch.no_grad():
        drawn = whole.eval().draw(3, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, *case.shape)
    assert torch.isfinite(drawn).all()
