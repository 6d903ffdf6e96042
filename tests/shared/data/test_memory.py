"""What is in memory is read as a file with the same content is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedlatent.shared.data.describe import describe
from fedlatent.shared.data.memory import ArraysInMemory, TableInMemory
from fedlatent.shared.data.readers import read_raw
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import DataError
from fedlatent.simulations.own_data import clients_of_file


def frame() -> pd.DataFrame:
    """Ages with a gap, a class, a client and a label of 120 records."""
    rng = np.random.default_rng(0)
    age = rng.normal(50, 10, 120).round(1)
    age[7] = np.nan
    return pd.DataFrame(
        {
            "age": age,
            "sex": rng.choice(["f", "m"], 120),
            "ward": rng.choice(["a", "b"], 120),
            "ill": rng.choice([0, 1], 120, p=[0.9, 0.1]),
        }
    )


def test_a_frame_is_read_as_its_file(tmp_path: Path) -> None:
    """Proposed schema, records, labels and clients are those of the CSV and the Parquet file."""
    table, path = frame(), tmp_path / "table.parquet"
    table.to_parquet(path)
    table.to_csv(tmp_path / "table.csv", index=False)
    held = TableInMemory(frame=table)
    skip = ("ward", "ill")
    assert describe(held, skip=skip).data == describe(path, skip=skip).data
    fields = {"client_key": "ward", "label_key": "ill"}
    own = clients_of_file(held, **fields)  # type: ignore[arg-type]
    for other in (path, tmp_path / "table.csv"):
        filed = clients_of_file(other, **fields)  # type: ignore[arg-type]
        assert own.schema == filed.schema
        for one, two in zip(own.sites, filed.sites, strict=True):
            assert one.name == two.name
            np.testing.assert_array_equal(one.train, two.train)
            np.testing.assert_array_equal(one.test_label, two.test_label)


def test_arrays_are_read_as_their_archive(tmp_path: Path) -> None:
    """Records under X, labels and clients by name, as in an NPZ."""
    rng = np.random.default_rng(1)
    arrays = {
        "X": rng.normal(size=(90, 6)),
        "y": rng.choice([0, 1], 90),
        "who": np.array(["a", "b", "c"] * 30),
    }
    path = tmp_path / "table.npz"
    np.savez(path, **arrays)
    held = ArraysInMemory(arrays=arrays, name="table")
    assert describe(held).data == describe(path).data
    schema = Schema(name="six", shape=(6,), lower=-4.0, upper=4.0)
    one = read_raw(held, schema, label_key="y", client_key="who").dataset(schema)
    two = read_raw(path, schema, label_key="y", client_key="who").dataset(schema)
    np.testing.assert_array_equal(one.records, two.records)
    assert one.label is not None
    np.testing.assert_array_equal(one.label, two.label)  # type: ignore[arg-type]
    assert one.client_id is not None
    np.testing.assert_array_equal(one.client_id, two.client_id)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("held", "where", "told"),
    [
        (TableInMemory(frame=frame()), {"client_key": "hospital"}, "column 'hospital' in table"),
        (ArraysInMemory(arrays={"X": np.zeros((3, 2))}), {"label_key": "y"}, "array 'y' in arrays"),
        (ArraysInMemory(arrays={"X": np.zeros(3)}), {}, "records [N, ...] under 'X' in arrays"),
        (ArraysInMemory(arrays={"X": np.zeros((3, 2))}), {"columns": ["a"]}, "no columns"),
    ],
)
def test_what_is_not_there_is_told(
    held: TableInMemory | ArraysInMemory, where: dict[str, str], told: str
) -> None:
    """The sentence names what was asked for and what the place is called."""
    with pytest.raises(DataError) as caught:
        read_raw(held, **where)  # type: ignore[arg-type]
    assert told in str(caught.value)
