"""The real data sets of the field load as federations of raw rows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.shared.data import benchmarks
from fedlatent.shared.data.benchmarks import asd, fashion, mnist, mnist_one, omniglot, smd, windows
from fedlatent.shared.data.sources import Federation
from fedlatent.shared.detection.baselines import pca
from fedlatent.shared.detection.metrics import auroc, per_site_mean
from fedlatent.shared.errors import DataError


def check(federation: Federation) -> None:
    """Records fit their schema within its bounds unclipped; labels and kinds belong to them."""
    pre, scale = federation.schema.preprocess, federation.schema.scale
    assert not federation.synthetic
    assert len({site.name for site in federation.sites}) == len(federation.sites)
    for site in federation.sites:
        for rows in (site.train, site.test):
            np.testing.assert_allclose(pre(rows), rows * scale, atol=1e-6)
        assert len(site.test) == len(site.test_label) == len(site.test_kind)
        assert set(np.unique(site.test_label)) == {0, 1}
        assert len(site.extra) == len(site.extra_kind) == 0


def local_auroc(federation: Federation, components: int = 8) -> float:
    """Mean AUROC of a PCA of each site's own training records."""
    pre = federation.schema.preprocess
    return per_site_mean(
        auroc,
        [
            (site.test_label, pca(pre(site.train), components)(pre(site.test)))
            for site in federation.sites
        ],
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(1, 9)),
    st.one_of(st.none(), st.integers(1, 12)),
)
def test_windows_are_consecutive_rows(
    rows: int, length: int, stride: int | None, most: int | None
) -> None:
    """Windows are consecutive rows at even starts, time last; at most so many, ends kept."""
    series = np.arange(rows * 2).reshape(rows, 2)
    if rows < length:
        with pytest.raises(ValueError, match="window"):
            windows(series, length, stride, most)
        return
    starts = list(range(0, rows - length + 1, stride or length))
    cut = windows(series, length, stride, most)
    assert cut.shape == (min(len(starts), most or rows), 2, length)
    found = (cut[:, 0, 0] // 2).tolist()
    for window, start in zip(cut, found, strict=True):
        np.testing.assert_array_equal(window, series[start : start + length].T)
    assert len(set(found)) == len(found)
    assert set(found) <= set(starts)
    assert found[0] == 0
    if len(found) > 1:
        assert found[-1] == starts[-1]


def test_windows_copy_nothing_unless_thinned() -> None:
    """All windows together are a view of the series, however much they overlap."""
    series = np.zeros((1000, 38))
    assert np.shares_memory(windows(series, 8, 1), series)
    assert not np.shares_memory(windows(series, 8, 1, 10), series)
    for wrong in ({"length": 0}, {"length": 1, "stride": 0}, {"length": 1, "most": 0}):
        with pytest.raises(ValueError, match="positive"):
            windows(series, **wrong)


def test_smd_has_five_machines(data_dir: Path) -> None:
    """Windows of 8 minutes cover each machine's rows once; PCA finds part of the anomalies."""
    federation = smd(data_dir)
    check(federation)
    assert [site.name for site in federation.sites] == [
        *("machine-1-6", "machine-2-1", "machine-2-2", "machine-2-8", "machine-3-4"),
    ]
    assert federation.schema.shape == (38, 8)
    share = {site.name: float(site.test_label.mean()) for site in federation.sites}
    assert share["machine-1-6"] == pytest.approx(0.166, abs=1e-3)
    assert share["machine-2-8"] == pytest.approx(0.007, abs=1e-3)
    assert all(2900 < len(site.train) <= benchmarks.MAX_WINDOWS for site in federation.sites)
    first = federation.sites[0]
    with np.load(data_dir / "smd_machine-1-6.npz") as archive:
        rows = archive["test"]
    np.testing.assert_array_equal(first.test[5], rows[40:48].T)
    assert 0.75 < local_auroc(federation) < 0.9


def test_smd_windows_may_overlap(data_dir: Path) -> None:
    """A shorter stride gives more test windows; training stays at its limit, evenly thinned."""
    federation = smd(data_dir, length=16, stride=4)
    assert federation.schema.shape == (38, 16)
    assert federation.schema.digest() != smd(data_dir).schema.digest()
    assert {len(site.train) for site in federation.sites} == {benchmarks.MAX_WINDOWS}
    assert all(len(site.test) > 5900 for site in federation.sites)


def test_asd_has_eight_servers(data_dir: Path) -> None:
    """Eight servers with 19 metrics; PCA finds part of the anomalies."""
    federation = asd(data_dir)
    check(federation)
    assert len(federation.sites) == 8
    assert federation.sites[0].name == "server-01"
    assert federation.schema.shape == (19, 8)
    assert {(len(site.train), len(site.test)) for site in federation.sites} == {(1080, 540)}
    assert 0.7 < local_auroc(federation) < 0.9


def test_omniglot_has_a_hundred_drawers(data_dir: Path) -> None:
    """Drawers train on their own letters; as many digits, none of them twice, are anomalies."""
    federation = omniglot(data_dir)
    check(federation)
    assert len(federation.sites) == 100
    letters = sum(len(one.train) + int((one.test_label == 0).sum()) for one in federation.sites)
    assert letters == 2720
    for site in federation.sites:
        assert site.train.dtype == np.uint8
        assert site.train_kind is not None
        assert len(set(site.train_kind)) == 1
        assert int(site.test_label.sum()) * 2 == len(site.test)
        np.testing.assert_array_equal(site.test_kind == "digit", site.test_label == 1)
    digits = np.concatenate([site.test[site.test_label == 1] for site in federation.sites])
    assert len({image.tobytes() for image in digits}) == len(digits) == 860
    pre = federation.schema.preprocess
    score = pca(np.concatenate([pre(site.train) for site in federation.sites]))
    pairs = [(site.test_label, score(pre(site.test))) for site in federation.sites]
    assert 0.7 < per_site_mean(auroc, pairs) < 0.92
    again, other = omniglot(data_dir), omniglot(data_dir, seed=1)
    np.testing.assert_array_equal(again.sites[7].train, federation.sites[7].train)
    assert not np.array_equal(other.sites[7].train, federation.sites[7].train)


def test_mnist_and_fashion_are_pools(data_dir: Path) -> None:
    """One class is never trained on; the test is the official one and neither easy nor random."""
    pools = (mnist(data_dir), 10_000, "2"), (fashion(data_dir), 1_500, "Ankle boot")
    for federation, tested, name in pools:
        check(federation)
        (site,) = federation.sites
        assert site.train.dtype == np.uint8
        assert site.train_kind is not None
        assert len(site.train_kind) == len(site.train)
        assert len(set(site.train_kind)) == 9
        assert name not in site.train_kind
        assert len(site.test) == tested
        np.testing.assert_array_equal(site.test_kind == name, site.test_label == 1)
        ink = site.test.mean(axis=(1, 2))
        assert abs(auroc(site.test_label, ink) - 0.5) < 0.15
    eight = mnist(data_dir, anomaly=8).sites[0]
    assert eight.train_kind is not None
    assert set(eight.train_kind) == set("012345679")
    for wrong in (-1, 10):
        with pytest.raises(ValueError, match="class"):
            mnist(data_dir, anomaly=wrong)
        with pytest.raises(ValueError, match="class"):
            fashion(data_dir, anomaly=wrong)


def test_one_digit_against_the_rest(data_dir: Path) -> None:
    """Training shows one digit; all others of the official test are anomalies, found by PCA."""
    values = []
    for digit in (0, 4):
        federation = mnist_one(data_dir, digit=digit)
        check(federation)
        assert federation.name == "mnist_one"
        (site,) = federation.sites
        with np.load(data_dir / "mnist_train20k.npz") as archive:
            np.testing.assert_array_equal(site.train, archive["X"][archive["y"] == digit])
        assert site.train_kind is None
        assert len(site.test) == 10_000
        np.testing.assert_array_equal(site.test_kind == "normal", site.test_label == 0)
        assert set(site.test_kind) == {"normal", *"0123456789"} - {str(digit)}
        values.append(local_auroc(federation))
    assert 0.95 < values[0] < 0.995
    assert 0.85 < values[1] < values[0]
    for wrong in (-1, 10):
        with pytest.raises(ValueError, match="Expected"):
            mnist_one(data_dir, digit=wrong)


@pytest.mark.parametrize("load", [smd, asd, omniglot, mnist, fashion])
def test_absent_or_wrong_files(tmp_path: Path, load: object) -> None:
    """A folder without the files, and files of another kind, are data errors."""
    assert callable(load)
    with pytest.raises(DataError, match=r"^Expected"):
        load(tmp_path)
    for name in (
        *("smd_machine-1-1", "asd_servers", "omniglot_small1_28"),
        *("mnist_train20k", "fashion_mnist_8k"),
    ):
        np.savez(tmp_path / f"{name}.npz", other=np.zeros(2))
    with pytest.raises(DataError, match=r"^Expected"):
        load(tmp_path)
