import gzip
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.edge.reader import read_records
from fedlatent.shared.data.readers import read_raw
from fedlatent.shared.errors import DataError
from tests.shared.bundle import tiny

VALUES = np.array([[1.5, -2.0, 3e3, 0.0, 5.0, 6.25], [7.0, 8.0, 9.0, 1.0, 2.0, 3.0]])
ROWS = "1.5,-2,3e3,0,5,6.25\n7,8,9,1,2,3\n"
HEADER = "a,b,c,d,e,f\n"


@pytest.mark.parametrize(
    "text", [ROWS, HEADER + ROWS, "\ufeff" + HEADER + ROWS, HEADER + "\n" + ROWS]
)
def test_csv_with_and_without_header(tmp_path: Path, text: str) -> None:
    """Every column of every row is read, with or without a header, mark or blank line."""
    path = tmp_path / "records.csv"
    path.write_text(text)
    np.testing.assert_array_equal(read_records(path, tiny.SCHEMA).records, VALUES)
    packed = tmp_path / "records.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    np.testing.assert_array_equal(read_records(packed, tiny.SCHEMA).records, VALUES)


def test_columns_are_chosen_by_name_in_order(tmp_path: Path) -> None:
    """Named columns are taken in the order given, others are ignored even when they are text."""
    path = tmp_path / "records.csv"
    path.write_text("when,f,e,d,c,b,a\nmonday,6.25,5,0,3e3,-2,1.5\ntuesday,3,2,1,9,8,7\n")
    np.testing.assert_array_equal(
        read_records(path, tiny.SCHEMA, columns=list("abcdef")).records, VALUES
    )


def test_npz_by_key(tmp_path: Path) -> None:
    """An npz gives the array of the given key as it is stored."""
    path = tmp_path / "records.npz"
    raw = tiny.raw_records(4)
    np.savez(path, X=raw, other=VALUES)
    np.testing.assert_array_equal(read_records(path, tiny.SCHEMA).records, raw)
    np.testing.assert_array_equal(read_records(path, tiny.SCHEMA, key="other").records, VALUES)


@pytest.mark.parametrize(
    ("text", "columns", "match"),
    [
        ("1,2,3\n", None, r"in the other lines of records\.csv, got 3 in record 1"),
        (
            HEADER + "1,2,3,4,5,6\n1,2,3,4,5\n",
            None,
            r"6 cells as in the header of records\.csv, got 5 in record 2",
        ),
        ("1,2,3,4,5,6\n1,2,secret,4,5,6\n", None, "got text in record 2"),
        ("1,2,3,4,5,6\n1,2,,4,5,6\n", None, "got nothing in record 2"),
        (ROWS, ["a"], "add a header"),
        (HEADER + ROWS, ["a", "z"], "columns z"),
        (HEADER + ROWS, ["a"], "got 1 in record 1"),
        ("a" * 200_000 + "\n", None, "at most 65920 bytes"),
    ],
)
def test_irregular_csv_is_refused(
    tmp_path: Path, text: str, columns: list[str] | None, match: str
) -> None:
    """Rows of other lengths, cells that are no number and absent columns name the record only."""
    path = tmp_path / "records.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=match) as caught:
        read_records(path, tiny.SCHEMA, columns=columns)
    assert "secret" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    """Absent, damaged, pickled and other files are DataErrors."""
    np.savez(tmp_path / "pickle.npz", X=np.array([{}], dtype=object))
    np.savez(tmp_path / "key.npz", Y=VALUES)
    np.save(tmp_path / "bare.npy", VALUES)
    (tmp_path / "bare.npy").rename(tmp_path / "bare.npz")
    for name in ("text.npz", "cut.csv.gz"):
        (tmp_path / name).write_bytes(b"hello")
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe\n")
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    names = ["pickle.npz", "key.npz", "bare.npz", "text.npz", "cut.csv.gz", "latin.csv"]
    for name in [*names, "table.parquet", "absent.csv", "absent.npz"]:
        with pytest.raises(DataError, match="Expected"):
            read_records(tmp_path / name, tiny.SCHEMA)


@pytest.mark.parametrize("name", ["A.CSV", "a.Csv.GZ", "a.NPZ"])
def test_endings_count_in_any_case(tmp_path: Path, name: str) -> None:
    """A device and a node take the same file by its ending in capitals."""
    path = tmp_path / name
    if name.endswith("NPZ"):
        with path.open("wb") as stream:
            np.savez(stream, X=VALUES)
    else:
        path.write_bytes(gzip.compress(ROWS.encode()) if name.endswith("GZ") else ROWS.encode())
    np.testing.assert_array_equal(read_records(path, tiny.SCHEMA).records, VALUES)
    np.testing.assert_array_equal(read_raw(path).records, VALUES)


def test_no_row_gives_no_record(tmp_path: Path) -> None:
    """An empty file and a header alone give an array of no records."""
    path = tmp_path / "records.csv"
    for text in ("", HEADER):
        path.write_text(text)
        assert read_records(path, tiny.SCHEMA).records.shape == (0, tiny.DIM)
