"""A trained model becomes a signed bundle that computes the same and tells the truth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.bundle.archive import read_bundle
from shared.bundle.graphs import Graphs
from shared.bundle.manifest import Thresholds
from shared.config import RunConfig
from shared.data.schema import Schema
from shared.errors import ConfigError
from shared.export.bundling import (
    BundleContents,
    golden_records,
    make_bundle,
    next_version,
)
from shared.export.onnx import Scorer
from shared.keys import SigningKey
from shared.models import build
from shared.privacy.noise import SimulationNoise
from shared.privacy.summaries import latent_density, release_moments

RUN = RunConfig.parse(
    {
        "name": "bundled",
        "data": {"name": "curve", "shape": [16], "lower": -2.0, "upper": 2.0, "scale": 0.5},
        "model": {"options": {"hidden": [8], "latent_dim": 2}},
    },
    "test",
)
SCHEMA = Schema.from_dict(RUN.data.model_dump(mode="json"))


def contents() -> BundleContents:
    """A small model with a density of random latents."""
    latents = np.random.default_rng(0).normal(size=(300, 2))
    density = latent_density([release_moments(latents, 3.0, 0.0, SimulationNoise(0))], 3.0, 0.0)
    return BundleContents(
        kind="global",
        run_id="bundled-1",
        run=RUN,
        model=build("gaussian", RUN.model.options, (16,), seed=1),
        density=density,
        thresholds=Thresholds(quantile=0.99, absolute=9.2, recentred=9.2),
        epsilon=3.5,
        delta=1e-5,
        clients=3,
    )


def test_a_bundle_scores_as_the_model_does(tmp_path: Path) -> None:
    """Scores from the written file equal torch's to 1e-5, and the manifest has the facts."""
    key = SigningKey.generate(tmp_path / "key.pem")
    made = contents()
    report = make_bundle(tmp_path / "a.fedlatent", made, key)
    bundle = read_bundle(report.path, [key.public])
    rows = golden_records(SCHEMA)
    graphs = Graphs.open(bundle.manifest, bundle.files)
    scorer = Scorer(made.model, made.density).eval()
    center = torch.from_numpy(made.density.mean.astype(np.float32))
    with torch.no_grad():
        expected = scorer(torch.from_numpy(SCHEMA.preprocess(rows)), center)[-1].numpy()
    assert np.allclose(graphs.score(rows)["score"], expected, rtol=1e-5, atol=1e-5)
    assert bundle.manifest.privacy is not None
    assert bundle.manifest.privacy.epsilon == 3.5
    assert max(one.max_rel for one in report.parity.values()) <= 1e-5
    assert report.size < 1_000_000


def test_golden_records_are_synthetic_and_inside_the_bounds() -> None:
    """They are the same on every machine, and nothing of them is clipped away."""
    rows = golden_records(SCHEMA)
    assert np.array_equal(rows, golden_records(SCHEMA))
    seen = SCHEMA.preprocess(rows)
    assert seen.min() >= -2.0
    assert seen.max() <= 2.0
    assert seen.std() > 0.05


def test_a_decoder_that_may_not_be_shipped_is_refused(tmp_path: Path) -> None:
    """A global bundle takes no decoder, and an undefended decoder goes nowhere."""
    key = SigningKey.generate(tmp_path / "key.pem")
    with pytest.raises(ConfigError, match="site bundle"):
        make_bundle(tmp_path / "a.fedlatent", replace(contents(), decoder=True), key)
    plain = RUN.model_copy(update={"privacy": RUN.privacy.model_copy(update={"mechanism": "none"})})
    undefended = replace(contents(), kind="site", run=plain, decoder=True)
    with pytest.raises(ConfigError, match="differential privacy"):
        make_bundle(tmp_path / "a.fedlatent", undefended, key)
    assert not (tmp_path / "a.fedlatent").exists()


def test_versions_rise(tmp_path: Path) -> None:
    """The next version follows the highest one of the same name."""
    assert next_version(tmp_path, "hearts") == 1
    for name in ("hearts-1", "hearts-12", "hearts-x", "other-40"):
        (tmp_path / f"{name}.fedlatent").touch()
    assert next_version(tmp_path, "hearts") == 13
