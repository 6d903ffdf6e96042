"""A trained model becomes a signed bundle that computes the same and tells the truth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.shared.bundle.archive import DECODER, SCORER, read_bundle
from fedlatent.shared.bundle.graphs import Graphs
from fedlatent.shared.bundle.manifest import Thresholds
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.export.bundling import (
    BundleContents,
    Form,
    golden_records,
    keep_version,
    make_bundle,
    next_version,
)
from fedlatent.shared.export.onnx import Scorer
from fedlatent.shared.export.targets import Target
from fedlatent.shared.keys import SigningKey
from fedlatent.shared.models import build
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.summaries import latent_density, noisy_moments

RUN = RunConfig.parse(
    {
        "name": "bundled",
        "data": {"name": "curve", "shape": [16], "lower": -2.0, "upper": 2.0, "scale": 0.5},
        "model": {"options": {"hidden": [8], "latent_dim": 2}},
    },
    "test",
)
SCHEMA = RUN.data


def contents() -> BundleContents:
    """A small model with a density of random latents."""
    latents = np.random.default_rng(0).normal(size=(300, 2))
    density = latent_density([noisy_moments(latents, 3.0, 0.0, SimulationNoise(0))], 3.0, 0.0)
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
    """The next version follows the highest of the same name, also of those written elsewhere."""
    assert next_version(tmp_path, "hearts") == 1
    for name in ("hearts-1", "hearts-12", "hearts-x", "other-40"):
        (tmp_path / f"{name}.fedlatent").touch()
    assert next_version(tmp_path, "hearts") == 13
    keep_version(tmp_path, "hearts", 20)
    keep_version(tmp_path, "hearts", 15)
    assert next_version(tmp_path, "hearts") == 21
    assert next_version(tmp_path, "other") == 41
    (tmp_path / "versions.json").write_text('{"hearts": "many"}')
    with pytest.raises(DataError, match="versions by name"):
        next_version(tmp_path, "hearts")


@pytest.mark.parametrize("target", ["smallest", "web"])
def test_a_compact_bundle_says_what_it_is_and_scores_alike(tmp_path: Path, target: Target) -> None:
    """The manifest says precision, target and hardware; the file is smaller, scores stay near."""
    key = SigningKey.generate(tmp_path / "key.pem")
    options = {"hidden": [64, 48], "latent_dim": 2}
    wide = replace(contents(), model=build("gaussian", options, SCHEMA.shape, 0))
    plain = make_bundle(tmp_path / "a.fedlatent", wide, key)
    report = make_bundle(tmp_path / "b.fedlatent", wide, key, form=Form(target=target))
    runtime = report.manifest.runtime
    assert (runtime.precision, runtime.target) == ("int8-weights", target)
    assert "ONNX Runtime" in runtime.hardware
    assert report.size < plain.size
    rows = golden_records(SCHEMA)
    small, full = (EdgeModel.load(one.path, [key.public]) for one in (report, plain))
    np.testing.assert_allclose(small.score(rows).score, full.score(rows).score, rtol=0.05)


def test_thresholds_of_the_stored_graph_come_from_the_site(tmp_path: Path) -> None:
    """A site that can score its own records with the stored graph sets the threshold by them."""
    key = SigningKey.generate(tmp_path / "key.pem")
    seen: list[bytes] = []

    def rethreshold(graph: bytes) -> Thresholds:
        seen.append(graph)
        return Thresholds(quantile=0.99, absolute=7.25, recentred=None)

    form = Form(target="smallest", rethreshold=rethreshold)
    report = make_bundle(tmp_path / "a.fedlatent", contents(), key, form=form)
    bundle = read_bundle(report.path, [key.public])
    assert bundle.files[SCORER] == seen[0]
    assert bundle.manifest.thresholds.absolute == 7.25


def test_ort_form_loads_and_is_bound_to_its_version(tmp_path: Path) -> None:
    """An .ort bundle scores as the .onnx one and asks for this ONNX Runtime."""
    key = SigningKey.generate(tmp_path / "key.pem")
    made = replace(contents(), expires="2030-01-31T12:00:00Z")
    report = make_bundle(tmp_path / "a.fedlatent", made, key, form=Form(ort=True))
    plain = make_bundle(tmp_path / "b.fedlatent", made, key)
    runtime = report.manifest.runtime
    assert (runtime.format, report.manifest.expires) == ("ort", "2030-01-31T12:00:00Z")
    assert onnxruntime.__version__.startswith(runtime.min_onnxruntime)
    rows = golden_records(SCHEMA)
    one, other = (EdgeModel.load(r.path, [key.public]).score(rows) for r in (report, plain))
    np.testing.assert_allclose(one.score, other.score, rtol=1e-5)


def test_a_released_decoder_may_be_in_a_global_bundle(tmp_path: Path) -> None:
    """When clients shared whole models, the global bundle can reconstruct."""
    key = SigningKey.generate(tmp_path / "key.pem")
    full = RUN.model_copy(update={"sharing": "full"})
    made = replace(contents(), run=full, decoder=True)
    report = make_bundle(tmp_path / "a.fedlatent", made, key)
    assert DECODER in read_bundle(report.path, [key.public]).files
    assert report.manifest.training.sharing == "full"
