"""Named federations give raw rows, natural clients and honest difficulty."""

from pathlib import Path

import numpy as np
import pytest

from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window
from fedlatent.shared.data.sources import Federation, digits, from_file, hearts, mitbih
from fedlatent.shared.detection.baselines import mahalanobis, pca
from fedlatent.shared.detection.metrics import auroc, pooled
from fedlatent.shared.errors import DataError


def absent_auroc(federation: Federation, absent: int, seed: int) -> float:
    """AUROC on absent clients of PCA fitted on all records of the present ones."""
    present, away = federation.hold_out(absent, seed)
    pre = federation.schema.preprocess
    score = pca(np.concatenate([pre(site.train) for site in present.sites]))
    return pooled(auroc, [(site.test_label, score(pre(site.test))) for site in away.sites])


def same_rows(one: Federation, two: Federation) -> bool:
    """Say whether two federations hold the same training rows."""
    pairs = zip(one.sites, two.sites, strict=True)
    return all(np.array_equal(a.train, b.train) for a, b in pairs)


def test_hearts_are_seeded_and_fit_their_schema() -> None:
    """Equal seeds give equal federations; sites train on normals and test on both classes."""
    federation = hearts(3, seed=1, beats=100)
    assert federation.synthetic
    assert same_rows(federation, hearts(3, seed=1, beats=100))
    assert not same_rows(federation, hearts(3, seed=2, beats=100))
    for site in federation.sites:
        assert federation.schema.preprocess(site.train).shape == (len(site.train), 128)
        assert len(site.train) + len(site.test) == 100
        np.testing.assert_array_equal(site.test_kind == "V", site.test_label == 1)
        assert len(site.extra) == 0


def test_hearts_are_hard_for_pooled_pca() -> None:
    """On patients who took no part, pooled PCA is useful but far from perfect."""
    scores = [absent_auroc(hearts(16, seed=seed, beats=200), 5, seed) for seed in range(4)]
    assert 0.75 < np.mean(scores) < 0.97


def test_digits_share_each_image_once_and_hide_one_class() -> None:
    """No site trains on the anomaly, sites share no image, and pooled PCA is not perfect."""
    federation = digits(10, seed=0)
    total = sum(len(site.train) + len(site.test) for site in federation.sites)
    assert total == 1797
    for site in federation.sites:
        rows = federation.schema.preprocess(site.test)
        assert rows.shape[1:] == (1, 8, 8)
        np.testing.assert_array_equal(site.test_kind == "0", site.test_label == 1)
        assert site.train.min() >= 0.0
        assert site.train.max() <= 16.0
    assert same_rows(federation, digits(10, seed=0))
    assert 0.7 < absent_auroc(federation, 3, 0) < 0.95


def test_digit_sites_write_differently() -> None:
    """The mean image differs more between sites than chance draws of one style would."""
    federation = digits(6, seed=3)
    halves = [(site.train[::2].mean(0), site.train[1::2].mean(0)) for site in federation.sites]
    within = np.mean([np.square(a - b).sum() for a, b in halves])
    firsts = np.stack([a for a, _ in halves])
    between = np.mean(np.square(firsts[:, None] - firsts[None]).sum((2, 3, 4)))
    assert between > 2.0 * within


def test_mitbih_matches_published_baselines(data_dir: Path) -> None:
    """22 patients; pooled PCA and Mahalanobis reach the known figures on absent patients."""
    federation = mitbih(data_dir)
    assert len(federation.sites) == 22
    assert not federation.synthetic
    kinds = np.concatenate([site.extra_kind for site in federation.sites])
    assert {str(kind): int((kinds == kind).sum()) for kind in np.unique(kinds)} == {
        "F": 90,
        "Q": 4,
        "S": 280,
    }
    assert sum(int(site.test_label.sum()) for site in federation.sites) == 1107
    assert absent_auroc(federation, 7, 5) == pytest.approx(0.819, abs=2e-3)
    present, away = federation.hold_out(7, 5)
    pre = federation.schema.preprocess
    score = mahalanobis(np.concatenate([pre(site.train) for site in present.sites]))
    pairs = [(site.test_label, score(pre(site.test))) for site in away.sites]
    assert pooled(auroc, pairs) == pytest.approx(0.916, abs=2e-3)


def test_mitbih_absent_or_wrong(tmp_path: Path) -> None:
    """A folder without the file, and a file of another kind, are data errors."""
    with pytest.raises(DataError, match="mitbih_beats"):
        mitbih(tmp_path)
    np.savez(tmp_path / "mitbih_beats.npz", X=np.zeros((2, 128)))
    with pytest.raises(DataError, match="mitbih_beats"):
        mitbih(tmp_path)


def test_from_file_makes_a_site_per_client(tmp_path: Path) -> None:
    """Records of a file are grouped by client and split into training and test."""
    site = hearts(1, seed=0, beats=60).sites[0]
    rows = np.concatenate([site.train, site.test])
    label = np.concatenate([np.zeros(len(site.train), dtype=np.uint8), site.test_label])
    path = tmp_path / "beats.npz"
    np.savez(path, X=rows, y=label, who=np.where(np.arange(60) % 2 == 0, "b", "a"))
    schema = hearts(1, seed=0, beats=10).schema
    federation = from_file(path, schema, label_key="y", client_key="who")
    assert [one.name for one in federation.sites] == ["a", "b"]
    assert sum(int(one.test_label.sum()) for one in federation.sites) == label.sum()
    alone = from_file(path, schema)
    assert [one.name for one in alone.sites] == ["site"]
    assert len(alone.sites[0].train) == 42
    np.savez(path, X=rows[:, :5])
    with pytest.raises(DataError, match="shape"):
        from_file(path, schema)


def test_hold_out_is_a_partition() -> None:
    """Present and absent sites are all sites once, and neither side may be empty."""
    federation = hearts(5, seed=0, beats=20)
    present, absent = federation.hold_out(2, seed=4)
    names = {site.name for site in present.sites} | {site.name for site in absent.sites}
    assert (len(present.sites), len(absent.sites), len(names)) == (3, 2, 5)
    for count in (0, 5):
        with pytest.raises(ValueError, match="absent"):
            federation.hold_out(count, seed=0)


def test_wrong_arguments() -> None:
    """Impossible numbers of clients, beats or digits are programming errors."""
    with pytest.raises(ValueError, match="patient"):
        hearts(0, seed=0)
    with pytest.raises(ValueError, match="beats"):
        hearts(1, seed=0, beats=9)
    for arguments in ({"n_sites": 0}, {"n_sites": 101}, {"n_sites": 3, "anomaly": 10}):
        with pytest.raises(ValueError, match="sites"):
            digits(seed=0, **arguments)


def test_no_value_of_a_series_is_trained_on_and_tested(tmp_path: Path) -> None:
    """Windows that overlap are drawn in blocks, and none that reaches over a border is tested."""
    path = tmp_path / "series.csv"
    path.write_text("v\n" + "\n".join(f"{i / 1000}" for i in range(1000)))
    schema = Schema(name="s", shape=(1, 12), window=Window(length=12, step=5))
    (site,) = from_file(path, schema, seed=3).sites
    trained, tested = set(site.train.ravel().tolist()), set(site.test.ravel().tolist())
    assert trained
    assert tested
    assert not trained & tested
    assert len(site.train) == int(0.7 * 198)
    assert len(site.test) > 0.2 * 198
