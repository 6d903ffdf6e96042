"""A data set keeps records, owners and labels together."""

import hashlib

import numpy as np
import pytest

from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import DataError

SCHEMA = Schema(name="pair", shape=(2,), unit="", scale=1.0, center="none", lower=-9.0, upper=9.0)


def make(count: int = 6) -> Dataset:
    """Build records 0, 1, 2, ... of two alternating clients; every third is anomalous."""
    index = np.arange(count)
    return Dataset(
        records=np.stack([index, index], axis=1).astype(np.float32),
        schema=SCHEMA,
        client_id=np.where(index % 2 == 0, "even", "odd"),
        label=(index % 3 == 0).astype(np.uint8),
    )


def test_by_client_keeps_rows_aligned() -> None:
    """Each client gets its own records with their labels."""
    parts = make().by_client()
    assert list(parts) == ["even", "odd"]
    np.testing.assert_array_equal(parts["odd"].records[:, 0], [1, 3, 5])
    np.testing.assert_array_equal(parts["odd"].label, [0, 1, 0])


def test_split_is_a_seeded_partition() -> None:
    """Both parts together are all records once; the seed decides which go where."""
    data = make(10)
    first, rest = data.split(0.7, seed=1)
    assert (len(first), len(rest)) == (7, 3)
    values = np.concatenate([first.records[:, 0], rest.records[:, 0]])
    np.testing.assert_array_equal(np.sort(values), np.arange(10))
    np.testing.assert_array_equal(data.split(0.7, seed=1)[0].records, first.records)
    assert not np.array_equal(data.split(0.7, seed=2)[0].records, first.records)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_fraction_must_leave_two_parts(fraction: float) -> None:
    """A fraction of nothing or everything is a programming error."""
    with pytest.raises(ValueError, match="fraction"):
        make().split(fraction, seed=0)


def test_select_by_mask_and_index_and_normals() -> None:
    """A mask and an index choose the same; normals leave labelled anomalies out."""
    data = make()
    mask = np.array([False, True, False, True, False, False])
    np.testing.assert_array_equal(data.select(mask).records, data.select([1, 3]).records)
    np.testing.assert_array_equal(data.normals().records[:, 0], [1, 2, 4, 5])
    plain = Dataset(records=data.records, schema=SCHEMA)
    assert plain.normals() is plain
    assert plain.select(mask).label is None


def test_arrays_must_agree() -> None:
    """Wrong dtype, shape, length or label values are refused, and owners must be known."""
    records = make().records
    with pytest.raises(DataError, match="float32"):
        Dataset(records=records.astype(np.float64), schema=SCHEMA)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="shape"):
        Dataset(records=records[:, :1], schema=SCHEMA)
    with pytest.raises(DataError, match="label"):
        Dataset(records=records, schema=SCHEMA, label=np.zeros(3, dtype=np.uint8))
    with pytest.raises(DataError, match="labels 0"):
        Dataset(records=records, schema=SCHEMA, label=np.full(6, 2, dtype=np.uint8))
    with pytest.raises(DataError, match="client"):
        Dataset(records=records, schema=SCHEMA).by_client()


def of_persons(persons: list[int]) -> Dataset:
    """Records 0, 1, 2, ... of those persons."""
    index = np.arange(len(persons), dtype=np.float32)
    return Dataset(
        records=np.stack([index, index], axis=1), schema=SCHEMA, person=np.array(persons, np.int64)
    )


def rows_of(data: Dataset) -> list[int]:
    """Which records these are."""
    return [int(value) for value in data.records[:, 0]]


def test_cap_keeps_at_most_so_many_of_each_person_in_order() -> None:
    """Persons with few records keep all; the others keep the cap, spread over theirs."""
    persons = [*([5] * 200), 1, *([3] * 4), *([5] * 200), 1]
    data = of_persons(persons).capped(4)
    assert data.person is not None
    assert np.unique(data.person, return_counts=True)[1].tolist() == [2, 4, 4]
    kept = rows_of(data)
    assert kept == sorted(kept)
    assert rows_of(data.capped(4)) == kept
    many = [row for row in kept if persons[row] == 5]
    assert many[0] > 4
    assert min(row < 200 for row in many) < max(row < 200 for row in many)


def test_cap_looks_at_no_one_elses_records() -> None:
    """Whatever others have, and wherever their rows lie, a person's own records stay the same."""
    alone = rows_of(of_persons([7] * 50).capped(5))
    rng = np.random.default_rng(0)
    for _ in range(5):
        persons = rng.permutation([7] * 50 + rng.integers(0, 7, 80).tolist()).tolist()
        own = np.flatnonzero(np.array(persons) == 7)
        kept = of_persons(persons).capped(5)
        assert kept.person is not None
        theirs = [rows_of(kept)[i] for i in np.flatnonzero(kept.person == 7)]
        assert theirs == own[alone].tolist()


def test_cap_is_the_rule_that_is_written_down() -> None:
    """The numbers with the smallest SHA-256 of their decimal text, on any machine, for ever."""
    order = sorted(range(30), key=lambda n: hashlib.sha256(str(n).encode()).hexdigest())
    assert rows_of(of_persons([1] * 30).capped(6)) == sorted(order[:6])
    grown = set(rows_of(of_persons([1] * 31).capped(6)))
    assert len(grown & set(order[:6])) >= 5


def test_cap_needs_persons_and_a_number() -> None:
    """Without persons there is nothing to count, and no cap is below one."""
    with pytest.raises(DataError, match="persons"):
        make().capped(3)
    with pytest.raises(ValueError, match="at least one"):
        of_persons([1, 2]).capped(0)
    with pytest.raises(DataError, match="person for each"):
        Dataset(records=make().records, schema=SCHEMA, person=np.zeros(2, np.int64))
