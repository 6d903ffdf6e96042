"""Sharing records among clients: a partition, seeded, skewed as asked, with nobody left empty."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.shared.data.sources import Federation, SiteData, digits, hearts
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.simulations.partition import (
    LEAST_ALPHA,
    MOST_ALPHA,
    NAMES,
    Kind,
    Partition,
    client_names,
    named_federation,
    repartition,
    split,
    split_dirichlet,
    split_iid,
    split_quantity,
    split_shards,
)

SHARED: Sequence[Kind] = tuple(kind for kind in get_args(Kind) if kind != "natural")
LABELS = np.random.default_rng(0).integers(0, 10, 20_000)


def skew(labels: np.ndarray, owner: np.ndarray) -> float:
    """Mean over clients of the total-variation distance of their labels from the pool's."""
    table = np.zeros((owner.max() + 1, labels.max() + 1))
    np.add.at(table, (owner, labels), 1)
    shares = table / table.sum(1, keepdims=True)
    return float(np.abs(shares - np.bincount(labels) / len(labels)).sum(1).mean() / 2)


def rows_of(federation: Federation, part: str) -> list[tuple[bytes, str]]:
    """Every record of a part with its kind, sorted."""
    found = []
    for site in federation.sites:
        rows, kinds = getattr(site, part), getattr(site, f"{part}_kind")
        kinds = np.full(len(rows), "") if kinds is None else kinds
        found += [(row.tobytes(), str(kind)) for row, kind in zip(rows, kinds, strict=True)]
    return sorted(found)


def same(one: Federation, two: Federation) -> bool:
    """Whether two federations hold the same records in the same places."""
    pairs = list(zip(one.sites, two.sites, strict=True))
    return all(
        np.array_equal(a.train, b.train) and np.array_equal(a.test, b.test) for a, b in pairs
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_record_goes_to_one_client_and_nobody_is_empty(data: st.DataObject) -> None:
    """For all kinds, sizes, labels and parameters: complete, seeded, at least one each."""
    labels = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=60)))
    partition = Partition(
        kind=data.draw(st.sampled_from(SHARED)),
        clients=data.draw(st.integers(1, 70)),
        alpha=data.draw(st.floats(LEAST_ALPHA, MOST_ALPHA) | st.floats(LEAST_ALPHA, 0.1)),
        shards=data.draw(st.integers(1, 4)),
    )
    seed = data.draw(st.integers(0, 2**31))
    clients = partition.clients
    assert clients is not None
    needed = clients * (partition.shards if partition.kind == "shards" else 1)
    if needed > len(labels):
        with pytest.raises(ConfigError, match=rf"at most {len(labels)}\b.*got {needed}"):
            split(labels, partition, seed)
        return
    owner = split(labels, partition, seed)
    assert owner.shape == labels.shape
    assert owner.min() >= 0
    counts = np.bincount(owner, minlength=clients)
    assert len(counts) == clients
    assert counts.min() >= 1
    if partition.kind in ("iid", "dirichlet", "feature-shift"):
        assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(split(labels, partition, seed), owner)


@pytest.mark.parametrize("kind", SHARED)
def test_another_seed_shares_otherwise(kind: Kind) -> None:
    """Seeds differ in what each client gets."""
    partition = Partition(kind=kind, clients=10)
    assert not np.array_equal(split(LABELS, partition, 0), split(LABELS, partition, 1))


@pytest.mark.parametrize("kind", SHARED)
def test_a_thousand_clients_are_quick(kind: Kind) -> None:
    """1,000 clients share 20,000 records in well under a second of work."""
    start = time.process_time()
    split(LABELS, Partition(kind=kind, clients=1000, alpha=0.1), 0)
    assert time.process_time() - start < 0.8


def test_label_skew_grows_as_alpha_falls() -> None:
    """From Dirichlet with a huge alpha, which equals chance, to one label a client."""
    alphas = (1e6, 10.0, 1.0, 0.1, 1e-3)
    skews = [skew(LABELS, split_dirichlet(LABELS, 50, alpha, 7)) for alpha in alphas]
    assert skews == sorted(skews)
    assert skews[0] == pytest.approx(skew(LABELS, split_iid(len(LABELS), 50, 7)), abs=0.01)
    assert 0.1 < skews[2] < 0.5
    assert skews[-1] > 0.75


def test_dirichlet_mixtures_have_the_stated_spread() -> None:
    """With 10 even labels, one label's share has the variance of the symmetric Dirichlet(alpha)."""
    alpha, clients, size = 1.0, 400, 1000
    labels = np.repeat(np.arange(10), clients * size // 10)
    owner = split_dirichlet(labels, clients, alpha, 3)
    share = np.bincount(owner[labels == 0], minlength=clients) / size
    expected = 0.1 * 0.9 / (10 * alpha + 1)
    assert share.mean() == pytest.approx(0.1)
    assert 0.75 * expected < share.var() < 1.3 * expected


def test_rare_labels_are_shared_too() -> None:
    """Extreme concentrations and a label of one record among many leave nothing out."""
    labels = np.array([*[0] * 5000, 1, *[2] * 50])
    for alpha in (LEAST_ALPHA, MOST_ALPHA):
        owner = split_dirichlet(labels, 97, alpha, 1)
        assert np.bincount(owner).min() == len(labels) // 97
        assert np.bincount(split_quantity(len(labels), 97, alpha, 1)).min() >= 1


def test_shards_hold_few_labels() -> None:
    """With even labels that shards divide, a client has exactly its shards' labels."""
    labels = np.repeat(np.arange(10), 200)
    owner = split_shards(labels, 100, 2, 4)
    held = [len(set(labels[owner == client])) for client in range(100)]
    assert max(held) == 2
    assert set(np.bincount(owner)) == {20}
    assert np.mean(held) > 1.5
    ones = split_shards(labels, 100, 1, 4)
    assert all(len(set(labels[ones == client])) == 1 for client in range(100))
    more = split_shards(labels, 50, 10, 4)
    assert np.mean([len(set(labels[more == client])) for client in range(50)]) > 5


def test_quantity_skew_grows_as_alpha_falls() -> None:
    """Sizes spread more with less alpha; labels stay mixed; even the smallest client has one."""
    spreads = []
    for alpha in (100.0, 1.0, 0.05):
        owner = split_quantity(len(LABELS), 40, alpha, 2)
        spreads.append(float(np.bincount(owner).std()))
        largest = int(np.bincount(owner).argmax())
        shares = np.bincount(LABELS[owner == largest]) / (owner == largest).sum()
        assert shares.max() < 0.16
    assert spreads == sorted(spreads)
    assert spreads[-1] > 3 * spreads[0]


def test_natural_labels_are_clients() -> None:
    """Natural clients keep their records and are numbered as their names sort."""
    names = np.array(["b", "a", "c", "a"])
    np.testing.assert_array_equal(split(names, Partition(), 0), [1, 0, 2, 0])


def test_names_sort_by_number() -> None:
    """Names have four figures, or more where four do not reach."""
    assert client_names(2) == ("client-0000", "client-0001")
    assert client_names(10_000)[-1] == "client-9999"
    many = client_names(10_001)
    assert many[1] == "client-00001"
    assert sorted(many) == list(many)


@pytest.mark.parametrize(
    ("values", "key", "got"),
    [
        ({"kind": "random"}, "kind", "'random'"),
        ({"kind": "iid"}, "clients", "None"),
        ({"clients": 0}, "clients", "0"),
        ({"clients": -3}, "clients", "-3"),
        ({"clients": 2.0}, "clients", "2.0"),
        ({"clients": True}, "clients", "True"),
        ({"clients": "4"}, "clients", "'4'"),
        ({"alpha": 0}, "alpha", "0"),
        ({"alpha": float("nan")}, "alpha", "nan"),
        ({"alpha": float("inf")}, "alpha", "inf"),
        ({"alpha": "much"}, "alpha", "'much'"),
        ({"shards": 0}, "shards", "0"),
        ({"shards": 1.5}, "shards", "1.5"),
        ({"strength": -0.1}, "strength", "-0.1"),
        ({"strength": 5}, "strength", "5"),
        ({"strength": None}, "strength", "None"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], key: str, got: str) -> None:
    """Each value outside its range gives one sentence with key, range and value."""
    sentence = rf"^Expected partition {key} to be .*, got {got};"
    with pytest.raises(ConfigError, match=sentence) as caught:
        Partition(**values)
    assert caught.value.field == key


def test_wrong_values_of_the_functions() -> None:
    """The functions refuse what a partition refuses."""
    with pytest.raises(ConfigError, match="clients"):
        split_iid(10, 0, 0)
    with pytest.raises(ConfigError, match="alpha"):
        split_dirichlet([0, 1], 1, -1.0, 0)
    with pytest.raises(ConfigError, match="shards"):
        split_shards([0, 1], 1, 0, 0)
    with pytest.raises(ConfigError, match="alpha"):
        split_quantity(3, 1, 0.0, 0)
    with pytest.raises(ConfigError, match="at most 0"):
        split_iid(0, 1, 0)


@pytest.fixture(scope="module")
def patients() -> Federation:
    """Four patients whose last test records are set aside as extra ones of two kinds."""

    def with_extra(site: SiteData) -> SiteData:
        kinds = np.array(["S", "F", "F", "S", "F"])
        return replace(site, extra=site.test[-5:] + 0.25, extra_kind=kinds)

    made = hearts(4, seed=2, beats=120)
    return replace(made, sites=tuple(with_extra(site) for site in made.sites))


@pytest.mark.parametrize("kind", [kind for kind in SHARED if kind != "feature-shift"])
def test_sharing_anew_keeps_every_record_once(patients: Federation, kind: Kind) -> None:
    """Training, test and extra records stay in their part with their kind, each at one client."""
    partition = Partition(kind=kind, clients=9, alpha=0.3)
    shared = repartition(patients, partition, 5, images=False)
    assert tuple(site.name for site in shared.sites) == client_names(9)
    for part in ("train", "test", "extra"):
        assert rows_of(shared, part) == rows_of(patients, part)
    for site in shared.sites:
        assert len(site.train) >= 1
        np.testing.assert_array_equal(site.test_kind == "V", site.test_label == 1)
    assert same(shared, repartition(patients, partition, 5, images=False))
    assert not same(shared, repartition(patients, partition, 6, images=False))
    assert shared.schema == patients.schema
    assert shared.note.startswith(patients.note)
    assert partition.text() in shared.note


def test_sharing_copies_the_pool_once(patients: Federation) -> None:
    """The clients' arrays are slices of one array."""
    shared = repartition(patients, Partition(kind="iid", clients=30), 0, images=False)
    assert len({id(site.train.base) for site in shared.sites}) == 1
    assert len({id(site.test.base) for site in shared.sites}) == 1


def test_tests_follow_training() -> None:
    """A client is tested on normal classes that it trains on, and everybody gets anomalies."""
    whole = digits(10, seed=1)
    shared = repartition(whole, Partition(kind="dirichlet", clients=12, alpha=0.05), 3, images=True)
    assert rows_of(shared, "train") == rows_of(whole, "train")
    few = 0
    for site in shared.sites:
        assert site.train_kind is not None
        trained = set(site.train_kind)
        assert set(site.test_kind[site.test_label == 0]) <= trained
        few += len(trained) <= 4
        assert 8 <= int(site.test_label.sum()) <= 22
    assert few >= 6


def test_tests_are_in_proportion() -> None:
    """A client with more training records gets more test records, normal and anomalous."""
    shared = repartition(
        hearts(3, seed=0, beats=300), Partition(kind="quantity", clients=6), 1, images=False
    )
    sizes = np.array([len(site.train) for site in shared.sites])
    for label in (0, 1):
        tested = np.array([int((site.test_label == label).sum()) for site in shared.sites])
        np.testing.assert_allclose(tested, sizes / sizes.sum() * tested.sum(), atol=3.0)


def test_feature_shift_is_the_iid_share_transformed() -> None:
    """Strength 0 is iid; otherwise each client's records, tests too, pass its own map."""
    whole = hearts(3, seed=4, beats=60)
    plain = repartition(whole, Partition(kind="iid", clients=5), 8, images=False)
    none = Partition(kind="feature-shift", clients=5, strength=0.0)
    assert same(repartition(whole, none, 8, images=False), plain)
    moved = repartition(whole, replace(none, strength=1.0), 8, images=False)
    maps = []
    for before, after in zip(plain.sites, moved.sites, strict=True):
        gain, offset = np.polyfit(before.train.ravel(), after.train.ravel(), 1)
        np.testing.assert_allclose(after.train, gain * before.train + offset, atol=1e-9)
        np.testing.assert_allclose(after.test, gain * before.test + offset, atol=1e-9)
        maps.append(round(float(gain), 6))
    assert len(set(maps)) == 5


def test_natural_federations_return_as_they_are(patients: Federation) -> None:
    """A natural partition shares nothing anew."""
    assert repartition(patients, Partition(), 0, images=False) is patients


def test_made_data_have_as_many_clients_as_asked(tmp_path: Path) -> None:
    """Hearts and digits need no files: ten clients, or as many as asked."""
    assert len(named_federation("hearts", tmp_path, Partition(), 0).sites) == 10
    four = named_federation("hearts", tmp_path, Partition(clients=4), 3)
    assert same(four, hearts(4, 3))
    assert len(named_federation("digits", tmp_path, Partition(clients=25), 0).sites) == 25
    pooled = named_federation("digits", tmp_path, Partition(kind="iid", clients=300), 0)
    assert len(pooled.sites) == 300
    with pytest.raises(ConfigError, match="at most 100 natural clients of digits, got 101"):
        named_federation("digits", tmp_path, Partition(clients=101), 0)


@pytest.mark.parametrize(
    ("name", "clients"),
    [("mitbih", 22), ("smd", 5), ("asd", 8), ("omniglot", 100), ("nsl_kdd", 9)],
)
def test_natural_clients_of_real_data(data_dir: Path, name: str, clients: int) -> None:
    """All natural clients with their names, or a seeded choice in their order."""
    whole = named_federation(name, data_dir, Partition(), 0)
    assert len(whole.sites) == clients
    names = [site.name for site in whole.sites]
    some = named_federation(name, data_dir, Partition(clients=4), 0)
    chosen = [site.name for site in some.sites]
    assert len(chosen) == 4
    assert chosen == [one for one in names if one in chosen]
    others = [
        [site.name for site in named_federation(name, data_dir, Partition(clients=4), seed).sites]
        for seed in (1, 2)
    ]
    assert any(chosen != other for other in others)
    with pytest.raises(ConfigError, match=f"at most {clients} natural clients"):
        named_federation(name, data_dir, Partition(clients=clients + 1), 0)


@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_can_be_shared_anew(data_dir: Path, name: str) -> None:
    """Each named data set gives valid clients by label skew and by feature shift."""
    for kind in ("dirichlet", "feature-shift"):
        partition = Partition(kind=kind, clients=12, alpha=0.1)
        shared = named_federation(name, data_dir, partition, 1)
        assert shared.name == name
        assert len(shared.sites) == 12
        for site in shared.sites:
            assert shared.schema.preprocess(site.train[:20]).dtype == np.float32
            assert shared.schema.preprocess(site.test[:20]).shape[1:] == shared.schema.shape
            assert set(site.test_label) == {0, 1}


def test_hospitals_are_the_natural_clients(data_dir: Path) -> None:
    """Heart patients have four clients, and as many as asked when they are pooled."""
    whole = named_federation("heart_disease", data_dir, Partition(), 0)
    assert [site.name for site in whole.sites] == ["cleveland", "hungarian", "switzerland", "va"]
    pooled = named_federation("heart_disease", data_dir, Partition(kind="iid", clients=6), 0)
    assert {len(site.train) for site in pooled.sites} <= {47, 48}
    assert rows_of(pooled, "test") == rows_of(whole, "test")


def test_each_seed_has_its_digit(data_dir: Path) -> None:
    """One digit against the rest: ten seeds try all ten digits, shared at random."""
    partition = Partition(kind="iid", clients=10)
    for seed in (3, 13):
        shared = named_federation("mnist_one", data_dir, partition, seed)
        kinds = np.concatenate([site.test_kind for site in shared.sites])
        assert set(kinds) == {"normal", *"0123456789"} - {"3"}
        assert all(set(site.test_label) == {0, 1} for site in shared.sites)


def test_a_thousand_clients_share_mnist(data_dir: Path) -> None:
    """Strong label skew over 1,000 clients: the official test once, and no class trained on."""
    partition = Partition(kind="dirichlet", clients=1000, alpha=0.1)
    shared = named_federation("mnist", data_dir, partition, 0)
    assert len(shared.sites) == 1000
    assert {len(site.train) for site in shared.sites} == {18, 19}
    assert sum(len(site.test) for site in shared.sites) == 10_000
    assert sum(int(site.test_label.sum()) for site in shared.sites) == 1032
    kinds = [set(site.train_kind) for site in shared.sites if site.train_kind is not None]
    assert "2" not in set().union(*kinds)
    assert np.mean([len(one) for one in kinds]) < 4.5


def test_what_does_not_fit_is_refused(data_dir: Path, tmp_path: Path) -> None:
    """Pools without natural clients, unknown names, wrong seeds and absent files are said."""
    for name in ("mnist", "mnist_one", "fashion"):
        with pytest.raises(ConfigError, match=rf"kind to be one of iid, .* for {name}, .*natural"):
            named_federation(name, data_dir, Partition(), 0)
    with pytest.raises(ConfigError, match=r"hearts, .*fashion, got 'cifar'"):
        named_federation("cifar", data_dir, Partition(), 0)
    for seed in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="seed"):
            named_federation("hearts", tmp_path, Partition(), seed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at most 5856"):
        named_federation("fashion", data_dir, Partition(kind="iid", clients=6000), 0)
    with pytest.raises(DataError, match="smd_machine"):
        named_federation("smd", tmp_path, Partition(), 0)
