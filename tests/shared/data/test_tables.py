"""Federations from tables: public ranges only, clients as they are, anomalies in their place."""

import gzip
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedlatent.shared.data import tabular
from fedlatent.shared.data.sources import Federation, SiteData, hearts
from fedlatent.shared.data.tabular import contaminate, heart_disease, nsl_kdd
from fedlatent.shared.detection.baselines import pca
from fedlatent.shared.detection.metrics import auroc, pooled
from fedlatent.shared.errors import DataError


def check(federation: Federation) -> None:
    """Rows fit the schema within its bounds unclipped; labels and kinds belong to them."""
    pre = federation.schema.preprocess
    assert not federation.synthetic
    for site in federation.sites:
        assert len(site.train) > 0
        for rows in (site.train, site.test):
            np.testing.assert_array_equal(pre(rows), rows)
        assert len(site.test) == len(site.test_label) == len(site.test_kind)
        assert set(np.unique(site.test_label)) == {0, 1}
        np.testing.assert_array_equal(site.test_kind != "normal", site.test_label == 1)
        assert len(site.extra) == 0


def pca_auroc(federation: Federation) -> float:
    """AUROC of a PCA of all training records, under one threshold."""
    pre = federation.schema.preprocess
    score = pca(np.concatenate([pre(site.train) for site in federation.sites]))
    return pooled(auroc, [(site.test_label, score(pre(site.test))) for site in federation.sites])


def multiset(federation: Federation) -> Counter[bytes]:
    """Every record of training and test, with how often it occurs."""
    return Counter(
        row.tobytes()
        for site in federation.sites
        for rows in (site.train, site.test)
        for row in rows
    )


def test_hospitals_are_clients(data_dir: Path) -> None:
    """Four hospitals; each trains on 70 % of its healthy patients and tests on all others."""
    federation = heart_disease(data_dir)
    check(federation)
    sizes = {site.name: (len(site.train), len(site.test)) for site in federation.sites}
    assert list(sizes) == ["cleveland", "hungarian", "switzerland", "va"]
    assert sum(train + test for train, test in sizes.values()) == 920
    ill = {site.name: int(site.test_label.sum()) for site in federation.sites}
    assert ill == {"cleveland": 139, "hungarian": 106, "switzerland": 115, "va": 149}
    healthy = {name: sum(sizes[name]) - ill[name] for name in sizes}
    assert all(sizes[name][0] == int(0.7 * healthy[name]) for name in sizes)
    assert 0.55 < pca_auroc(federation) < 0.8


def test_hospital_rows_are_seeded(data_dir: Path) -> None:
    """The seed alone decides who trains."""
    one, again, other = heart_disease(data_dir), heart_disease(data_dir), heart_disease(data_dir, 1)
    np.testing.assert_array_equal(one.sites[0].train, again.sites[0].train)
    assert not np.array_equal(one.sites[0].train, other.sites[0].train)
    assert multiset(one) == multiset(other)


def test_ranges_depend_on_no_patient(data_dir: Path, tmp_path: Path) -> None:
    """A patient's row stays the same whoever else is in the file."""
    frame = pd.read_csv(data_dir / "heart_disease.csv.gz")
    frame.loc[frame["hospital"] == "va", "age"] += 30
    frame.loc[frame["hospital"] == "va", "trestbps"] = 5_000
    frame.to_csv(tmp_path / "heart_disease.csv.gz", index=False)
    before, after = heart_disease(data_dir), heart_disease(tmp_path)
    for old, new in zip(before.sites[:3], after.sites[:3], strict=True):
        np.testing.assert_array_equal(np.sort(old.test, axis=0), np.sort(new.test, axis=0))
    check(after)


def test_what_was_not_measured_becomes_a_public_constant(data_dir: Path) -> None:
    """Cholesterol of 0 means not measured: all of Switzerland has the stated constant."""
    federation = heart_disease(data_dir)
    (site,) = [one for one in federation.sites if one.name == "switzerland"]
    column = list(tabular._HEART_RANGES).index("chol")
    low, high, unknown = tabular._HEART_RANGES["chol"]
    expected = (unknown - low) / (high - low)
    np.testing.assert_allclose(site.test[:, column], expected, rtol=1e-6)
    assert 0.0 < expected < 1.0


def test_services_are_clients(data_dir: Path) -> None:
    """Nine clients with normal training connections; the official test, each record once."""
    federation = nsl_kdd(data_dir)
    check(federation)
    assert 8 <= len(federation.sites) <= 12
    assert sum(len(site.train) for site in federation.sites) == 13_449
    assert sum(len(site.test) for site in federation.sites) == 22_544
    assert sum(int(site.test_label.sum()) for site in federation.sites) == 12_833
    assert min(len(site.train) for site in federation.sites) > 100
    kinds = set(np.concatenate([site.test_kind for site in federation.sites]))
    assert kinds == {"normal", "dos", "probe", "r2l", "u2r"}
    assert 0.93 < pca_auroc(federation) < 0.97


def test_connections_are_kept_apart_by_service(data_dir: Path) -> None:
    """A named client holds its own service alone; the rest holds none of the named ones."""
    federation = nsl_kdd(data_dir)
    frame = pd.read_csv(data_dir / "nsl_kdd_train20.csv.gz")
    normal = frame[frame["category"] == "normal"]["service"].value_counts()
    sizes = {site.name: len(site.train) for site in federation.sites}
    rest = sizes.pop("rest")
    assert all(sizes[name] == normal[name] for name in sizes)
    assert rest == normal.drop(list(sizes)).sum()


def test_counts_are_squeezed_by_public_ends(data_dir: Path) -> None:
    """The public end of log(1 + count) cuts off one record in ten thousand at most."""
    for name in ("nsl_kdd_train20", "nsl_kdd_test"):
        frame = pd.read_csv(data_dir / f"{name}.csv.gz")
        for column, end in tabular._KDD_COUNTS.items():
            assert (np.log1p(frame[column]) > end).mean() <= 1e-4, column


@pytest.mark.parametrize("load", [heart_disease, nsl_kdd])
def test_absent_or_wrong_tables(tmp_path: Path, load: object) -> None:
    """A folder without the table, and a table of other columns, are data errors."""
    assert callable(load)
    with pytest.raises(DataError, match=r"data get"):
        load(tmp_path)
    for name in ("heart_disease", "nsl_kdd_train20", "nsl_kdd_test"):
        with gzip.open(tmp_path / f"{name}.csv.gz", "wt") as file:
            file.write("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"^Expected columns"):
        load(tmp_path)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_contamination_moves_anomalies(share: float) -> None:
    """So many training records are anomalies, and they are gone from the test."""
    clean = hearts(4, 3, beats=400)
    mixed = contaminate(clean, share, seed=1)
    assert multiset(mixed) == multiset(clean)
    for before, after in zip(clean.sites, mixed.sites, strict=True):
        added = after.train[len(before.train) :]
        np.testing.assert_array_equal(after.train[: len(before.train)], before.train)
        anomalies = {row.tobytes() for row in before.test[before.test_label == 1]}
        assert {row.tobytes() for row in added} <= anomalies
        kept = {row.tobytes() for row in after.test}
        assert not kept & {row.tobytes() for row in added}
        most = int((before.test_label == 1).sum()) // 2
        if len(added) < most:
            assert len(added) / len(after.train) == pytest.approx(share, abs=0.002)
        else:
            assert len(added) == most
        assert len(after.test) == len(after.test_label) == len(after.test_kind)
        assert set(after.test_label) == {0, 1}
        assert int((after.test_label == 0).sum()) == int((before.test_label == 0).sum())


def test_contamination_is_seeded_and_optional() -> None:
    """No share changes nothing; equal seeds move equal anomalies."""
    clean = hearts(3, 3, beats=400)
    assert contaminate(clean, 0.0, seed=1) is clean
    one, again, other = (contaminate(clean, 0.05, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.sites[0].train, again.sites[0].train)
    assert any(
        not np.array_equal(a.train, b.train) for a, b in zip(one.sites, other.sites, strict=True)
    )
    for wrong in (-0.1, 0.5, 1.0, float("nan")):
        with pytest.raises(ValueError, match="share"):
            contaminate(clean, wrong, seed=1)


def test_contamination_keeps_types_and_classes() -> None:
    """Whole numbers stay so, classes follow records, a test without anomalies gives none."""
    images = np.arange(40, dtype=np.uint8).reshape(20, 2)
    site = SiteData(
        name="one",
        train=images[:10],
        test=images[10:],
        test_label=np.repeat([0, 1], [4, 6]).astype(np.uint8),
        test_kind=np.repeat(["a", "strange"], [4, 6]),
        extra=images[:0],
        extra_kind=np.array([], dtype=np.str_),
        train_kind=np.full(10, "a"),
    )
    bare = replace(
        site,
        name="two",
        test=site.test[:4],
        test_label=site.test_label[:4],
        test_kind=site.test_kind[:4],
    )
    federation = replace(hearts(2, 0, beats=20), sites=(site, bare))
    first, second = contaminate(federation, 0.2, seed=0).sites
    assert first.train.dtype == np.uint8
    assert first.train_kind is not None
    assert first.train_kind.tolist() == ["a"] * 10 + ["strange"] * 2
    np.testing.assert_array_equal(second.train, site.train)
