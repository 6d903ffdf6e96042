import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.shared.bundle.archive import GOLDEN, SCORER
from fedlatent.shared.bundle.arrays import pack_arrays, unpack_arrays
from fedlatent.shared.bundle.manifest import Thresholds
from fedlatent.shared.errors import BundleError, ConfigError, DataError
from fedlatent.shared.keys import SigningKey
from tests.client.edge.conftest import Load
from tests.shared.bundle import tiny

RAW = tiny.raw_records(700, seed=5)


def test_global_scores_and_flags(load: Load) -> None:
    """A global bundle scores the distance to its own center and flags what exceeds `absolute`."""
    table = load().score(RAW)
    expected = ((tiny.latents(RAW) - tiny.CENTER) ** 2).sum(axis=1)
    np.testing.assert_allclose(table.score, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(table.flag, table.score > 1.0)
    assert table.threshold == 1.0
    assert set(table.parts) == set(tiny.OUTPUTS)
    assert 0 < table.flag.mean() < 1


def test_site_scores_by_reconstruction(load: Load) -> None:
    """A site bundle's score is the one that its graph combines."""
    thresholds = Thresholds(quantile=0.9, absolute=2.0, recentred=None)
    table = load(tiny.manifest(kind="site", thresholds=thresholds)).score(RAW)
    np.testing.assert_array_equal(table.score, table.parts["reconstruction_error"])
    np.testing.assert_array_equal(table.flag, table.score > 2.0)


def test_batches_do_not_matter(load: Load) -> None:
    """One record at a time gives the scores of all at once; no record gives an empty table."""
    model = load()
    single = np.concatenate([model.score(RAW[i : i + 1]).score for i in range(20)])
    np.testing.assert_allclose(single, model.score(RAW[:20]).score, rtol=1e-6)
    assert model.score(RAW[:0]).score.shape == model.score(RAW[:0]).flag.shape == (0,)


def test_recentring_uses_mean_latent_and_its_own_threshold(load: Load) -> None:
    """After re-centring, distances start at the mean latent and `recentred` flags."""
    model = load()
    moved = model.recentre(RAW[:10], anyway=True)
    offset = tiny.latents(RAW) - tiny.latents(RAW[:10]).mean(axis=0)
    expected = 4 * (offset**2).sum(axis=1)
    table = moved.score(RAW)
    np.testing.assert_allclose(table.score, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(table.flag, table.score > 4.0)
    assert model.center is None
    assert model.score(RAW).threshold == 1.0


def test_recentring_on_one_record(load: Load) -> None:
    """One normal record is enough; it then has distance zero."""
    moved = load().recentre(RAW[:1], anyway=True)
    assert moved.score(RAW[:1]).score == pytest.approx([0.0], abs=1e-9)
    assert moved.calibration is not None
    assert moved.calibration.records == 1


def test_normals_that_should_not_be_trusted_keep_the_absolute_score(
    load: Load, tmp_path: Path
) -> None:
    """A device says why it was not re-centred, and scores as the bundle comes."""
    model = load()
    kept = model.recentre(RAW[:30])
    assert kept.center is None
    assert "scatter wider" in str(kept.doubt)
    np.testing.assert_array_equal(kept.score(RAW).score, model.score(RAW).score)
    assert kept.threshold == model.threshold
    with pytest.raises(DataError, match="calibrate it first"):
        kept.save_calibration(tmp_path / "own.json")
    own = model.calibrate(RAW, 0.9, recentre=True)
    assert own.doubt == model.recentre(RAW[:30]).doubt
    own.save_calibration(tmp_path / "own.json")
    assert model.load_calibration(tmp_path / "own.json").threshold == own.threshold
    only = load(tiny.manifest(thresholds=Thresholds(quantile=0.9, absolute=None, recentred=1.0)))
    with pytest.raises(BundleError, match="scatter wider"):
        only.recentre(RAW[:30]).score(RAW)


def test_recentring_needs_records(load: Load) -> None:
    """Re-centring on no record, or on broken ones, is a DataError."""
    model = load()
    with pytest.raises(DataError, match="at least one"):
        model.recentre(RAW[:0], anyway=True)
    with pytest.raises(DataError, match="1 of 1"):
        model.recentre(np.full((1, tiny.DIM), np.nan))


def test_missing_thresholds_are_errors(load: Load, tmp_path: Path) -> None:
    """Without `absolute` a model must be re-centred first; without `recentred` it cannot be."""
    first = load(tiny.manifest(thresholds=Thresholds(quantile=0.9, absolute=None, recentred=1.0)))
    with pytest.raises(BundleError, match="re-centre it on a few normal records"):
        first.score(RAW)
    moved = first.recentre(RAW[:5], anyway=True)
    assert moved.score(RAW).threshold == 1.0
    moved.save_calibration(tmp_path / "calibration.json")
    only = load(tiny.manifest(thresholds=Thresholds(quantile=0.9, absolute=1.0, recentred=None)))
    with pytest.raises(BundleError, match="without"):
        only.recentre(RAW[:5], anyway=True)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bundle": only.bundle.digest}))
    with pytest.raises(BundleError, match="without"):
        only.load_calibration(path)


def test_saved_center_is_restored(load: Load, tmp_path: Path) -> None:
    """A restarted device that loads its center gives the very same scores."""
    path = tmp_path / "calibration.json"
    moved = load().recentre(RAW[:7], anyway=True)
    moved.save_calibration(path)
    again = load().load_calibration(path)
    np.testing.assert_array_equal(again.score(RAW).score, moved.score(RAW).score)
    assert again.info()["recentred_on"] == 7
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(DataError, match="calibrate it first"):
        load().save_calibration(path)


def test_center_of_another_bundle_is_refused(load: Load, tmp_path: Path) -> None:
    """A center belongs to one bundle; after an update the device must re-centre."""
    load().recentre(RAW[:7], anyway=True).save_calibration(tmp_path / "calibration.json")
    newer = load(replace(tiny.manifest(), version=4))
    with pytest.raises(DataError, match="another's"):
        newer.load_calibration(tmp_path / "calibration.json")


@pytest.mark.parametrize(
    "change",
    [
        {"center": [1.0]},
        {"center": [1.0, None]},
        {"center": [1.0, True]},
        {"center": [1.0, float("inf")]},
        {"center": [1.0, float("nan")]},
        {"center": [1.0, 10**400]},
        {"center": "ab"},
        {"records": 0},
        {"records": "7"},
        {"format": 1},
        {"more": 1},
        {"center": None},
        {"threshold": 1.0},
        {"threshold": float("nan"), "quantile": 0.9},
        {"threshold": "high", "quantile": 0.9},
    ],
    ids=lambda change: str(change)[:30],
)
def test_damaged_center_is_refused(load: Load, tmp_path: Path, change: dict[str, object]) -> None:
    """A center file that was changed or cut is a DataError."""
    path = tmp_path / "calibration.json"
    model = load()
    model.recentre(RAW[:7], anyway=True).save_calibration(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match="Expected"):
        model.load_calibration(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="JSON"):
        model.load_calibration(path)


@pytest.mark.parametrize("recentre", [False, True])
def test_calibrated_threshold_holds_on_new_records(load: Load, recentre: bool) -> None:
    """Of fresh normal records, on average over calibrations, at most 1 - quantile are flagged."""
    model, shares = load(), []
    for seed in range(40):
        own = model.calibrate(tiny.raw_records(60, seed), 0.9, recentre=recentre)
        shares.append(own.score(tiny.raw_records(500, 1000 + seed)).flag.mean())
    # Split conformal: between 1 - quantile - 1/(n + 1) and 1 - quantile, here with sampling error.
    assert 0.05 < np.mean(shares) < 0.115


def test_calibration_has_the_conformal_rank(load: Load, tmp_path: Path) -> None:
    """The threshold is the score of rank ceil((n + 1) q), survives a restart, and flags no more."""
    model, raw = load(), tiny.raw_records(19)
    own = model.calibrate(raw, 0.9)
    assert own.threshold == np.sort(model.score(raw).score)[17]
    own.save_calibration(tmp_path / "calibration.json")
    again = load().load_calibration(tmp_path / "calibration.json")
    assert again.threshold == own.threshold
    assert again.info()["calibrated_on"] == 19
    assert again.info()["recentred_on"] is None


def test_too_few_records_for_a_quantile_are_refused(load: Load) -> None:
    """Nine records bear 0.9, eight do not, and the sentence says how many are needed."""
    model = load()
    assert model.calibrate(tiny.raw_records(9), 0.9).threshold > 0
    with pytest.raises(DataError, match="at least 9 normal records"):
        model.calibrate(tiny.raw_records(8), 0.9)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        model.calibrate(tiny.raw_records(8), 1.0)


def test_untrusted_bundle_is_not_loaded(
    load: Load, tmp_path: Path, signing_key: SigningKey
) -> None:
    """A bundle of an unknown key is refused before its broken graph is touched."""
    other = SigningKey.generate(tmp_path / "other")
    path = tiny.write(tmp_path / "theirs", other, replaced={SCORER: b"not a graph"})
    with pytest.raises(BundleError, match="unknown key"):
        EdgeModel.load(path, [signing_key.public])


def test_broken_bundle_is_refused_at_load(load: Load) -> None:
    """Broken graphs, infinite scores and wrong golden vectors are found at load, though signed."""
    arrays = unpack_arrays(tiny.files(tiny.manifest())[GOLDEN], GOLDEN)
    arrays["scorer_score"] = arrays["scorer_score"] + 0.01
    cases = {
        "loads in": {SCORER: b"not a graph"},
        "finite": {SCORER: tiny.scorer(overflow=True)},
        "golden outputs": {GOLDEN: pack_arrays(arrays)},
    }
    for match, replaced in cases.items():
        with pytest.raises(BundleError, match=match):
            load(replaced=replaced)


def test_unfit_records_are_refused(load: Load) -> None:
    """Records of another width, or with NaN or infinity, are a DataError and show no value."""
    model = load()
    with pytest.raises(DataError, match="shape"):
        model.score(np.zeros((2, tiny.DIM + 1)))
    for bad in (np.nan, np.inf, -np.inf):
        raw = RAW[:3].astype(np.float64)
        raw[1, 2] = bad
        with pytest.raises(DataError, match="1 of 3 records"):
            model.score(raw)


def test_info_is_json(load: Load, signing_key: SigningKey) -> None:
    """The summary is JSON-ready and names the signer, the thresholds and the privacy."""
    info = json.loads(json.dumps(load().info()))
    assert info["signed_by"] == signing_key.key_id
    assert (info["name"], info["version"], info["kind"]) == ("tiny-hearts", 3, "global")
    assert (info["threshold_absolute"], info["threshold_recentred"]) == (1.0, 4.0)
    assert info["epsilon"] is None
    assert info["golden_error"] <= 1e-6
