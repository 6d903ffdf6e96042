"""Readers turn files into data sets or say in one sentence why not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedlatent.client.edge.reader import read_records
from fedlatent.shared.data.checks import check
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.readers import read, read_raw
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window
from fedlatent.shared.errors import DataError

SCHEMA = Schema(
    name="triple", shape=(3,), unit="", scale=0.5, center="none", lower=-100.0, upper=100.0
)
VALUES = np.arange(12.0).reshape(4, 3) + 0.25
KINDS = ["N", "V", "N", "F"]
OWNERS = [7, 7, 9, 9]


def write(folder: Path, suffix: str) -> Path:
    """Write the same four records as a file of the given kind."""
    path = folder / f"data{suffix}"
    if suffix == ".npz":
        np.savez(path, X=VALUES, kind=np.array(KINDS), owner=np.array(OWNERS))
        return path
    frame = pd.DataFrame(VALUES, columns=["a", "b", "c"]).assign(kind=KINDS, owner=OWNERS)
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".npz"])
def test_every_format_gives_the_same_records(tmp_path: Path, suffix: str) -> None:
    """CSV, gzipped CSV, Parquet and NPZ hold the same records, labels and owners."""
    path = write(tmp_path, suffix)
    data = read(path, SCHEMA, label_key="kind", normal_label="N", client_key="owner")
    np.testing.assert_allclose(data.records, VALUES * 0.5)
    np.testing.assert_array_equal(data.label, [0, 1, 0, 1])
    np.testing.assert_array_equal(data.client_id, ["7", "7", "9", "9"])


def test_columns_choose_and_order(tmp_path: Path) -> None:
    """Named columns make the record, in the order given."""
    raw = read_raw(write(tmp_path, ".csv"), columns=["c", "a"])
    np.testing.assert_array_equal(raw.records, VALUES[:, [2, 0]])
    assert raw.label is None
    assert raw.client_id is None


def test_numeric_labels(tmp_path: Path) -> None:
    """Numeric labels compare as numbers; without a normal label they must be 0 and 1."""
    path = tmp_path / "data.npz"
    np.savez(path, X=VALUES, y=[0, 2, 0, 1], ready=[0, 1, 1, 0], gap=[0.0, np.nan, 0.0, 1.0])
    np.testing.assert_array_equal(read_raw(path, label_key="y", normal_label=0).label, [0, 1, 0, 1])
    np.testing.assert_array_equal(read_raw(path, label_key="ready").label, [0, 1, 1, 0])
    with pytest.raises(DataError, match="normal_label"):
        read_raw(path, label_key="y")
    np.testing.assert_array_equal(
        read_raw(path, label_key="y", normal_label="0.0").label, [0, 1, 0, 1]
    )
    with pytest.raises(DataError, match="since the labels are numbers"):
        read_raw(path, label_key="y", normal_label="normal")
    with pytest.raises(DataError, match="gaps"):
        read_raw(path, label_key="gap", normal_label=0)


def _truncated(path: Path) -> None:
    np.savez_compressed(path, X=np.random.default_rng(0).normal(size=(50, 3)))
    path.write_bytes(path.read_bytes()[:300])


def _pickled(path: Path) -> None:
    np.savez(path, X=np.array([{"a": 1}], dtype=object))


WRITERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "empty csv": (".csv", lambda path: path.write_text("")),
    "text in csv": (".csv", lambda path: path.write_text("a,b,c\n1,2,x\n")),
    "missing value": (".csv", lambda path: path.write_text("a,b,c\n1,2,\n")),
    "ragged csv": (".csv", lambda path: path.write_text("a,b,c\n1,2,3\n1,2,3,4,5\n")),
    "binary csv": (".csv", lambda path: path.write_bytes(b"\xff\xfe\x00\x81" * 9)),
    "too few columns": (".csv", lambda path: path.write_text("a,b\n1,2\n")),
    "not gzip": (".csv.gz", lambda path: path.write_text("a,b,c\n1,2,3\n")),
    "not parquet": (".parquet", lambda path: path.write_text("a,b,c\n1,2,3\n")),
    "not npz": (".npz", lambda path: path.write_text("a,b,c\n1,2,3\n")),
    "empty npz": (".npz", lambda path: path.write_bytes(b"")),
    "truncated npz": (".npz", _truncated),
    "pickled npz": (".npz", _pickled),
    "flat npz": (".npz", lambda path: np.savez(path, X=np.zeros(3))),
    "other key": (".npz", lambda path: np.savez(path, Y=VALUES)),
    "text npz": (".npz", lambda path: np.savez(path, X=np.array([["a", "b", "c"]]))),
}


@pytest.mark.parametrize("name", WRITERS)
def test_bad_files_are_data_errors(tmp_path: Path, name: str) -> None:
    """Damaged, foreign and unsuitable files give a one-sentence data error."""
    suffix, writer = WRITERS[name]
    path = tmp_path / f"data{suffix}"
    writer(path)
    with pytest.raises(DataError, match=r"^Expected") as caught:
        read(path, SCHEMA)
    assert "\n" not in str(caught.value)


def test_wrong_paths_and_keys(tmp_path: Path) -> None:
    """An absent file, an unknown ending, an absent key and mixed options are refused."""
    path = write(tmp_path, ".csv")
    archive = write(tmp_path, ".npz")
    with pytest.raises(DataError, match="check the path"):
        read(tmp_path / "none.csv", SCHEMA)
    with pytest.raises(DataError, match=r"\.parquet"):
        read(tmp_path / "data.xlsx", SCHEMA)
    with pytest.raises(DataError, match="columns who"):
        read(path, SCHEMA, client_key="who")
    with pytest.raises(DataError, match=r"no columns for data\.npz"):
        read(archive, SCHEMA, columns=["a"])
    np.savez(tmp_path / "short.npz", X=VALUES, y=[0, 1])
    with pytest.raises(DataError, match="one of the labels"):
        read(tmp_path / "short.npz", SCHEMA, label_key="y")


def test_npy_under_npz_name(tmp_path: Path) -> None:
    """A single array saved under an .npz name is refused, not misread."""
    path = tmp_path / "data.npz"
    with path.open("wb") as stream:
        np.save(stream, VALUES)
    with pytest.raises(DataError, match="archive"):
        read(path, SCHEMA)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".npz"])
@pytest.mark.parametrize("key", ["owner", "kind"])
def test_every_format_tells_persons_apart(tmp_path: Path, suffix: str, key: str) -> None:
    """Numbers and texts become one number a person, and no value of the record."""
    columns = None if suffix == ".npz" else ["a", "b", "c"]
    data = read(write(tmp_path, suffix), SCHEMA, columns=columns, person_key=key)
    assert data.person is not None
    wanted = {"owner": [0, 0, 1, 1], "kind": [1, 2, 1, 0]}
    np.testing.assert_array_equal(data.person, wanted[key])
    assert data.person.dtype == np.int64
    assert data.records.shape == (4, 3)


def test_persons_are_told_apart_as_they_stand_in_the_file(tmp_path: Path) -> None:
    """Leading zeros count in a long CSV of numbers and texts; spaces around a person do not."""
    rows = 600_000  # pandas would read this in parts, some as numbers
    path = tmp_path / "data.csv"
    names = ["007"] * (rows // 2) + [" 007 ", "x7"] * (rows // 4)
    pd.DataFrame({"a": np.zeros(rows), "who": names}).to_csv(path, index=False)
    person = read_raw(path, person_key="who").person
    assert person is not None
    assert np.bincount(person).tolist() == [3 * rows // 4, rows // 4]


@pytest.mark.parametrize("gap", [None, "", "  ", float("nan")])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_record_without_a_person_is_named(
    tmp_path: Path, suffix: str, gap: str | float | None
) -> None:
    """The row is said, and no one else's name."""
    names = ["secret-a", "secret-b", gap, "secret-c"]
    frame = pd.DataFrame(VALUES, columns=["a", "b", "c"]).assign(who=names)
    path = tmp_path / f"data{suffix}"
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_csv(path, index=False)
    with pytest.raises(DataError, match="none in row 3 ") as caught:
        read(path, SCHEMA, person_key="who")
    assert "secret" not in str(caught.value)


def test_persons_of_an_archive_are_checked(tmp_path: Path) -> None:
    """A gap, another length and the records themselves are no persons."""
    path = tmp_path / "data.npz"
    gap = np.array([1.0, np.nan, 2.0, 2.0])
    np.savez(path, X=VALUES, gap=gap, short=[1, 2], text=["a", "a", "", "b"], wide=VALUES)
    for key, words in (
        ("gap", "none in row 2 "),
        ("text", "none in row 3 "),
        ("short", r"persons for each of 4 records in data.npz, got shape \[2\]"),
        ("wide", r"persons for each of 4 records in data.npz, got shape \[4, 3\]"),
        ("X", "records or labels"),
        ("none", "array 'none'"),
    ):
        with pytest.raises(DataError, match=words):
            read(path, SCHEMA, person_key=key)


COLUMNS = (
    Column(name="pulse", lower=40.0, upper=200.0, missing="mask"),
    Column(name="pain", levels=("none", "mild"), missing="mask"),
    Column(name="age", lower=20.0, upper=90.0),
)


def series_file(folder: Path, suffix: str) -> Path:
    """Rows of two hosts a minute apart, with a hole, gaps, own names and a column too many."""
    frame = pd.DataFrame(
        {
            "note": ["x"] * 12,
            "Alter": np.arange(30, 42),
            "hr": [60.0, np.nan, *range(70, 80)],
            "pain": ["none", "mild", None, "worse"] * 3,
            "host": ["a"] * 8 + ["b"] * 4,
            "at": pd.date_range("2026-01-31", periods=12, freq="min").astype(str),
            "bad": [0, 0, 1, *[0] * 9],
        }
    ).drop(index=5)
    path = folder / f"series{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_schemas_columns_are_found_by_name(tmp_path: Path, suffix: str) -> None:
    """Order, further columns and own names do not matter; gaps and unknown classes are NaN."""
    schema = Schema(name="rows", columns=COLUMNS)
    raw = read_raw(series_file(tmp_path, suffix), schema, names={"hr": "pulse", "Alter": "age"})
    assert raw.records.shape == (11, 3)
    np.testing.assert_array_equal(
        raw.records[:4], [[60, 0, 30], [np.nan, 1, 31], [70, np.nan, 32], [71, np.nan, 33]]
    )
    with pytest.raises(DataError, match="pulse"):
        read_raw(series_file(tmp_path, suffix), schema)
    with pytest.raises(DataError, match="from the schema alone"):
        read_raw(series_file(tmp_path, suffix), schema, columns=["hr"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_window_cuts_series_into_records(tmp_path: Path, suffix: str) -> None:
    """Records keep within a host and a client, over no hole; one bad row makes a bad record."""
    window = Window(length=3, time="at", group="host", rate=1 / 60)
    schema = Schema(name="rows", columns=COLUMNS, window=window)
    where = {"names": {"hr": "pulse", "Alter": "age"}, "label_key": "bad", "client_key": "host"}
    raw = read_raw(series_file(tmp_path, suffix), schema, **where)
    assert raw.records[:, 2, 0].tolist() == [30, 31, 32, 38, 39]
    assert raw.label is not None
    assert raw.client_id is not None
    assert raw.label.tolist() == [1, 1, 1, 0, 0]
    assert raw.client_id.tolist() == ["a", "a", "a", "b", "b"]
    assert read(series_file(tmp_path, suffix), schema, **where).records.shape == (5, 5, 3)


def test_a_wrong_time_is_named(tmp_path: Path) -> None:
    """The refusal of a time says file, column and record."""
    path = tmp_path / "rows.csv"
    path.write_text("at,pulse\n0,60\nsoon,70\n")
    schema = Schema(name="rows", columns=COLUMNS[:1], window=Window(length=1, time="at"))
    with pytest.raises(DataError, match=r"'at' of rows\.csv.*record 2") as told:
        read_raw(path, schema)
    assert (told.value.field, told.value.reason) == ("at", "time")


def test_records_of_an_archive_may_be_rows_or_windows(tmp_path: Path) -> None:
    """Rows are cut, whole windows are taken as they are, and another width is refused."""
    schema = Schema(name="load", shape=(2, 4), window=Window(length=4, step=2))
    path = tmp_path / "load.npz"
    rows = np.arange(20.0).reshape(10, 2) / 20
    np.savez(path, X=rows, cut=np.zeros((3, 2, 4)), other=np.zeros((10, 3)))
    raw = read_raw(path, schema)
    assert raw.records.shape == (4, 2, 4)
    np.testing.assert_array_equal(raw.records[1], rows[2:6].T)
    assert read_raw(path, schema, records_key="cut").records.shape == (3, 2, 4)
    with pytest.raises(DataError, match=r"rows of 2 values in load\.npz"):
        read_raw(path, schema, records_key="other")


FRAMES = {
    ".parquet": pd.DataFrame.to_parquet,
    ".arrow": pd.DataFrame.to_feather,
    ".feather": pd.DataFrame.to_feather,
}


@pytest.mark.parametrize("suffix", FRAMES)
def test_types_of_tables_do_not_matter(tmp_path: Path, suffix: str) -> None:
    """Nullable, Arrow-backed and categorical columns are read as plain ones are."""
    path = tmp_path / f"data{suffix}"
    frame = pd.DataFrame(
        {
            "a": pd.array([1, 2, 3], dtype="Int64"),
            "b": pd.array([0.5, 1.5, 2.5], dtype="Float64"),
            "c": pd.array([4.0, 5.0, 6.0], dtype="float32[pyarrow]"),
            "kind": pd.Categorical(["N", "V", "N"]),
            "bad": pd.array([False, True, False], dtype="boolean"),
            "day": pd.date_range("2026-01-31", periods=3),
        }
    )
    FRAMES[suffix](frame, path)
    for key, normal in (("kind", "N"), ("bad", "False"), ("bad", False), ("bad", None)):
        raw = read_raw(
            path, columns=["a", "b", "c"], label_key=key, normal_label=normal, client_key="day"
        )
        np.testing.assert_array_equal(raw.records, [[1, 0.5, 4], [2, 1.5, 5], [3, 2.5, 6]])
        np.testing.assert_array_equal(raw.label, [0, 1, 0])
    schema = Schema(name="rows", columns=(Column(name="kind", levels=("N", "V")),))
    np.testing.assert_array_equal(read_raw(path, schema).records, [[0], [1], [0]])
    FRAMES[suffix](frame.assign(b=pd.array([0.5, None, 2.5], dtype="Float64")), path)
    with pytest.raises(DataError, match=f"'b' of data{suffix}, got a gap.*record 2") as told:
        read_raw(path, columns=["a", "b"])
    assert (told.value.field, told.value.reason) == ("b", "finite")
    gap = Schema(name="rows", columns=(Column(name="b", upper=9.0, missing="mask"),))
    np.testing.assert_array_equal(read_raw(path, gap).records, [[0.5], [np.nan], [2.5]])


def test_a_gap_among_the_labels_of_a_table_is_refused(tmp_path: Path) -> None:
    """An empty cell of texts or truth values is no anomaly."""
    path = tmp_path / "data.parquet"
    for labels in (["N", None, "V"], [True, None, False]):
        pd.DataFrame({"a": [1.0, 2.0, 3.0], "y": labels}).to_parquet(path)
        with pytest.raises(DataError, match="gaps"):
            read_raw(path, label_key="y", normal_label="N")


@pytest.mark.parametrize(
    ("cells", "normal"),
    [("-1,1,-1", "-1"), ("1.5,2,1.50", "1.5"), ("False,True,false", "False"), (" N ,V,N", "N")],
)
def test_a_normal_label_is_typed_as_the_column_has_it(
    tmp_path: Path, cells: str, normal: str
) -> None:
    """Negative, broken and true or false labels compare as what the column is."""
    path = tmp_path / "data.csv"
    path.write_text("\n".join(["a,y", *(f"1,{cell}" for cell in cells.split(","))]))
    np.testing.assert_array_equal(
        read_raw(path, label_key="y", normal_label=normal).label, [0, 1, 0]
    )


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """Also where a name of one's own makes them so."""
    path = tmp_path / "data.parquet"
    pd.DataFrame({"a": [1.0], "b": [2.0]}).to_parquet(path)
    with pytest.raises(DataError, match="'a' once"):
        read_raw(path, names={"b": "a"})


def test_one_array_of_records_is_read(tmp_path: Path) -> None:
    """A file of numpy.save is records alone; pickled objects and single rows are refused."""
    np.save(tmp_path / "x.npy", np.arange(12).reshape(4, 3))
    assert read_raw(tmp_path / "x.npy").records[3].tolist() == [9, 10, 11]
    np.save(tmp_path / "row.npy", np.arange(3))
    with pytest.raises(DataError, match=r"records \[N, \.\.\.\] in row\.npy, got shape \[3\]"):
        read_raw(tmp_path / "row.npy")
    np.save(tmp_path / "o.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(DataError, match="one plain array"):
        read_raw(tmp_path / "o.npy")
    (tmp_path / "torn.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-3])
    with pytest.raises(DataError, match="one plain array"):
        read_raw(tmp_path / "torn.npy")


def test_rows_that_no_window_holds_are_counted(tmp_path: Path) -> None:
    """Rows out of the order of time are no silent loss: the check says how many, and stops."""
    schema = Schema(name="s", shape=(1, 4), window=Window(length=4, step=2, time="t", rate=1.0))
    times = [*range(20), *range(100, 103), 50, 40, 30, 20, 10, 5, 4]
    (tmp_path / "s.csv").write_text("t,v\n" + "\n".join(f"{t},0.{t}" for t in times))
    raw = read_raw(tmp_path / "s.csv", schema, columns=["v"])
    assert len(raw.records) == 9
    assert raw.left_out == {"rows at holes in time or at the end of a series": 10}
    (found,) = (one for one in check(raw.records, schema, left_out=raw.left_out).findings)
    assert (found.kind, found.severity) == ("left-out", "stop")
    spaced = Schema(name="s", shape=(1, 4), window=Window(length=4, step=8))
    assert read_raw(tmp_path / "s.csv", spaced, columns=["v"]).left_out == {}


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([f"20251026{hour:02}00" for hour in (0, 1, 2, 15, 16, 17)], "seconds or an ISO 8601 date"),
        (list(range(6)), r"3600 seconds from row to row of s\.csv, .*got 1 in the middle"),
    ],
)
def test_times_that_are_no_seconds_hide_no_holes(
    tmp_path: Path, times: list[object], words: str
) -> None:
    """A date without its dashes, and hours that count as seconds, are refused everywhere."""
    window = Window(length=6, time="t", rate=1 / 3600)
    schema = Schema(name="s", columns=(Column(name="v", upper=9.0),), window=window)
    path = tmp_path / "s.csv"
    path.write_text("t,v\n" + "\n".join(f"{t},{at}" for at, t in enumerate(times)))
    with pytest.raises(DataError, match=words):
        read_raw(path, schema)
    with pytest.raises(DataError, match=words):
        read_records(path, schema)


def test_a_first_line_that_may_be_a_record_is_not_repeated(tmp_path: Path) -> None:
    """Where none of the wanted columns is in it, no text of it stands in the sentence."""
    (tmp_path / "t.csv").write_text("Miller,Berlin,flu\nSmith,Bonn,cold\n")
    with pytest.raises(DataError, match="with columns age, bp once each") as told:
        read_raw(tmp_path / "t.csv", columns=["age", "bp"])
    assert "Miller" not in str(told.value)
