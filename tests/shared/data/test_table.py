"""The one rule of tables, and that node, device, page and exporter read by it."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedlatent.cli.export import _public
from fedlatent.client.edge.reader import read_records
from fedlatent.server.page.build import read_stream
from fedlatent.shared.data.readers import read, read_raw
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.table import REASONS, read_table
from fedlatent.shared.errors import DataError
from tests.shared.data.csv_cases import RIGHT, WRONG

SCHEMA = Schema(name="triple", shape=(3,), lower=-1e29, upper=1e29)

READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "rule": lambda path: read_table(path)[0],
    "node": lambda path: read_raw(path).records,
    "device": lambda path: read_records(path, SCHEMA).records,
    "page": lambda path: read_stream("a", path, {3}, 99),
    "export": _public,
}


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_reads_a_table_alike(tmp_path: Path, reader: str, case: str) -> None:
    """The same file gives the same records on the node, the device, the page and in an export."""
    text, expected = RIGHT[case]
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    np.testing.assert_array_equal(READERS[reader](path), expected)
    packed = tmp_path / "table.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    np.testing.assert_array_equal(READERS[reader](packed), expected)


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_a_table_alike(tmp_path: Path, reader: str, case: str) -> None:
    """The same file is refused for the same reason, in a sentence without a value."""
    text, reason = WRONG[case]
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    with pytest.raises(DataError, match=r"^Expected.*(record \d|header)") as caught:
        READERS[reader](path)
    assert caught.value.reason == reason
    assert "secret" not in str(caught.value)
    of_schemas = {"column", "missing", "level"}
    assert {reason for _, reason in WRONG.values()} | of_schemas == set(REASONS)


def test_an_error_says_file_record_and_column(tmp_path: Path) -> None:
    """Name or number of the column is the field; the sentence has file, record and column."""
    path = tmp_path / "beats.csv"
    path.write_text("when,a,b\nmonday,1,2\ntuesday,3,\n")
    with pytest.raises(DataError, match=r"'b' of beats\.csv, got nothing in record 2;") as caught:
        read_table(path, ["a", "b"])
    assert caught.value.field == "b"
    path.write_text("1,2\n3,x\n")
    with pytest.raises(DataError, match="column '2'") as caught:
        read_table(path)
    assert (caught.value.field, caught.value.reason) == ("2", "number")


def test_columns_are_names_of_the_header(tmp_path: Path) -> None:
    """Chosen columns come in order, others are text; an absent or doubled name is refused."""
    path = tmp_path / "table.csv"
    path.write_text("who,a,b,a\n007,1,2,3\nx,4,5,6\n")
    rows, (who,) = read_table(path, ["b"], ["who"])
    np.testing.assert_array_equal(rows, [[2], [5]])
    assert who == ["007", "x"]
    assert read_table(path, None, ["who"])[0].shape == (2, 3)
    for name in ("a", "c"):
        with pytest.raises(DataError, match=f"columns {name} once") as caught:
            read_table(path, ["b", name])
        assert (caught.value.field, caught.value.reason) == (name, "column")
    path.write_text("1,2\n")
    with pytest.raises(DataError, match="add a header"):
        read_table(path, ["a"])


def test_tables_longer_than_a_batch_are_read_whole(tmp_path: Path) -> None:
    """Records keep their numbers and texts over batches; a late mistake names its record."""
    path = tmp_path / "long.csv"
    lines = [f"{number},p{number % 7}" for number in range(10_000)]
    path.write_text("\n".join(["x,who", *lines, "x,who", "1,p1"]))
    rows, (who,) = read_table(path, ["x"], ["who"])
    np.testing.assert_array_equal(rows[:, 0], [*range(10_000), 1])
    assert who[9_999] == f"p{9_999 % 7}"
    path.write_text("\n".join(["x,who", *lines, "no,p1"]))
    with pytest.raises(DataError, match="in record 10001;"):
        read_table(path, ["x"])


def test_a_table_of_no_records_has_none(tmp_path: Path) -> None:
    """A header alone gives no records of its columns; an empty file fits no schema."""
    path = tmp_path / "empty.csv"
    path.write_text("a,b,c\n")
    assert read(path, SCHEMA).records.shape == (0, 3)
    path.write_text("")
    assert read_table(path)[0].shape == (0, 0)
    with pytest.raises(DataError, match="Expected records"):
        read(path, SCHEMA)


@pytest.mark.parametrize(
    ("cells", "normal", "expected"),
    [
        (["0", "1", "0"], None, [0, 1, 0]),
        (["False", "True", "False"], None, [0, 1, 0]),
        (["2", "1", "2.0"], 2, [0, 1, 0]),
        (["N", "V", "N"], "N", [0, 1, 0]),
    ],
)
def test_labels_are_numbers_truth_values_or_text(
    tmp_path: Path, cells: list[str], normal: str | int | None, expected: list[int]
) -> None:
    """A column of labels has the type that all its cells have."""
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["a,y", *(f"1,{cell}" for cell in cells)]))
    raw = read_raw(path, label_key="y", normal_label=normal)
    np.testing.assert_array_equal(raw.label, expected)
    path.write_text("\n".join(["a,y", "1,", *(f"1,{cell}" for cell in cells)]))
    with pytest.raises(DataError, match=r"labels 0 and 1|gaps"):
        read_raw(path, label_key="y", normal_label=normal)
