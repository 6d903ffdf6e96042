from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.shared.bundle.archive import CARD, DECODER, SCORER
from fedlatent.shared.bundle.build import build_bundle
from fedlatent.shared.bundle.card import model_card
from fedlatent.shared.bundle.manifest import Manifest, Privacy, ScoreDefinition, Thresholds
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import BundleError
from fedlatent.shared.export import Scorer, export_decoder, export_scorer, scorer_outputs
from fedlatent.shared.keys import SigningKey
from fedlatent.shared.models import build
from fedlatent.shared.privacy.summaries import LatentDensity, squared_distance
from tests.shared.bundle import tiny

SCHEMA = Schema(
    name="beats", shape=(16,), unit="mV", scale=1e-3, center="median", lower=-2.5, upper=2.5
)
PRIVACY = Privacy(
    epsilon=8.0,
    delta=1e-5,
    noise_multiplier=0.9,
    sample_rate=0.05,
    steps=8000,
    rng="secure",
    adjacency="zero-out",
    unit="record",
)


def test_exported_model_becomes_a_bundle(tmp_path: Path, signing_key: SigningKey) -> None:
    """Graphs as the exporter makes them load on the device and give the model's own distances."""
    model = build("gaussian", {"latent_dim": 3, "hidden": [8]}, SCHEMA.shape, seed=0)
    spread = np.diag([1.0, 2.0, 3.0])
    density = LatentDensity(
        count=100.0, mean=np.array([0.1, 0.0, -0.1]), covariance=spread, within=spread / 2
    )
    outputs = scorer_outputs(with_decoder=True)
    manifest = replace(
        tiny.manifest(kind="site", privacy=PRIVACY),
        latent_dim=3,
        schema=SCHEMA,
        score=ScoreDefinition(outputs=outputs),
        thresholds=Thresholds(quantile=0.99, absolute=0.5, recentred=0.5),
    )
    raw = np.random.default_rng(0).normal(0, 500, (9, 16))
    path = tmp_path / "site.fedlatent"
    build_bundle(
        path,
        manifest,
        scorer=export_scorer(Scorer(model, density, with_decoder=True)),
        decoder=export_decoder(model),
        density=density.arrays(),
        golden_records=raw[:4],
        signing_key=signing_key,
    )
    edge = EdgeModel.load(path, [signing_key.public])
    assert DECODER in edge.bundle.files
    latents = edge.encode(raw)
    expected = squared_distance(latents, density.mean, density.precision(recentred=False))
    np.testing.assert_allclose(edge.score(raw).score, expected, rtol=1e-4)
    moved = edge.recentre(raw[:3], anyway=True)
    precision = density.precision(recentred=True)
    expected = squared_distance(latents, latents[:3].mean(axis=0), precision)
    np.testing.assert_allclose(moved.score(raw).score, expected, rtol=1e-4)


def test_unfit_parts_are_not_written(tmp_path: Path, signing_key: SigningKey) -> None:
    """A scorer that does not give what the manifest names leaves no file behind."""
    with pytest.raises(BundleError, match="Expected the outputs"):
        build_bundle(
            tmp_path / "bundle",
            tiny.manifest(),
            scorer=tiny.scorer(site=True),
            density=tiny.density(),
            golden_records=tiny.raw_records(),
            signing_key=signing_key,
        )
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("manifest", "present", "absent"),
    [
        (tiny.manifest(), "without differential privacy", "-differentially private"),
        (tiny.manifest(privacy=PRIVACY), "(8, 1e-05)-differentially private", "do not rely"),
        (
            tiny.manifest(privacy=replace(PRIVACY, rng="simulation")),
            "do not rely on this very model",
            "without differential privacy",
        ),
        (tiny.manifest(kind="site", privacy=PRIVACY), "keep it within the site", "took no part"),
        (
            tiny.manifest(kind="site", privacy=PRIVACY),
            "No epsilon covers this bundle",
            "this run included, is covered",
        ),
        (tiny.manifest(kind="site"), "No epsilon covers this bundle", "-differentially private"),
    ],
    ids=["none", "secure", "simulation", "site", "site, not covered", "site, not private"],
)
def test_card_says_what_is_claimed(manifest: Manifest, present: str, absent: str) -> None:
    """The card states the privacy that holds, and no other."""
    card = model_card(manifest, note="Made for a test.")
    assert present in card
    assert absent not in card
    assert "auroc_seen: 0.97" in card
    assert card.endswith("Made for a test.\n")


def test_card_is_in_the_bundle(tmp_path: Path, signing_key: SigningKey) -> None:
    """The bundle carries the card of its own manifest."""
    files = tiny.files(tiny.manifest())
    path = tmp_path / "bundle"
    build_bundle(
        path,
        tiny.manifest(),
        scorer=files[SCORER],
        density=tiny.density(),
        golden_records=tiny.raw_records(),
        signing_key=signing_key,
    )
    bundle = EdgeModel.load(path, [signing_key.public]).bundle
    assert bundle.files[CARD].decode() == model_card(tiny.manifest())
