"""A data set keeps records, owners and labels together."""

import numpy as np
import pytest

from shared.data.dataset import Dataset
from shared.data.schema import Schema
from shared.errors import DataError

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
