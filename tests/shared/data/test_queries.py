"""Records come out of a database by one query that only reads."""

import sqlite3
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from fedlatent.shared.data.column import Column
from fedlatent.shared.data.describe import describe
from fedlatent.shared.data.readers import read_raw
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window
from fedlatent.shared.errors import DataError

FRAME = pd.DataFrame(
    {
        "age": [30, 41, None, 58, 63, 29],
        "kind": ["a", "b", "a", None, "b", "a"],
        "sick": [0, 0, 1, 0, 1, 0],
        "place": ["n", "n", "s", "s", "s", "n"],
    }
)
COLUMNS = Schema(
    name="visits",
    columns=(
        Column(name="age", upper=100.0, missing="mask"),
        Column(name="kind", levels=("a", "b"), missing="mask"),
    ),
)
WHERE = {"label_key": "sick", "client_key": "place"}


def sqlite(folder: Path) -> Path:
    """A .sql file, and the SQLite file that it asks."""
    with sqlite3.connect(folder / "visits.db") as connection:
        FRAME.astype({"age": "Int64"}).to_sql("visits", connection, index=False)
    connection.close()
    return asked(folder, "sqlite:///visits.db", "SELECT * FROM visits")


def asked(folder: Path, place: str, query: str) -> Path:
    """A .sql file."""
    path = folder / "visits.sql"
    path.write_text(f"-- connection: {place}\n{query};\n")
    return path


def duck(folder: Path) -> Path:
    """A DuckDB file of one table."""
    path = folder / "visits.duckdb"
    visits = FRAME
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE visits AS SELECT * FROM visits")
    assert visits is FRAME
    return path


@pytest.mark.parametrize("make", [sqlite, duck])
def test_a_database_gives_what_a_csv_of_its_table_gives(tmp_path: Path, make: object) -> None:
    """Numbers, classes, gaps, labels and clients are the same, by name."""
    assert callable(make)
    table = tmp_path / "visits.csv"
    FRAME.to_csv(table, index=False)
    wanted, found = read_raw(table, COLUMNS, **WHERE), read_raw(make(tmp_path), COLUMNS, **WHERE)
    np.testing.assert_array_equal(found.records, wanted.records)
    np.testing.assert_array_equal(found.label, wanted.label)
    np.testing.assert_array_equal(found.client_id, wanted.client_id)


def test_a_schema_is_proposed_for_a_query(tmp_path: Path) -> None:
    """As for a table."""
    proposed = describe(sqlite(tmp_path), skip=["sick", "place"]).data["columns"]
    assert [(one["name"], one.get("missing")) for one in proposed] == [
        ("age", "mask"),
        ("kind", "mask"),
    ]


def test_duckdb_reads_files_that_a_query_names(tmp_path: Path) -> None:
    """Without a file of its own, its query may ask others, among them Parquet."""
    FRAME.to_parquet(tmp_path / "v.parquet")
    query = f"SELECT age, kind FROM '{tmp_path}/v.parquet' WHERE sick = 0 -- only; these"
    raw = read_raw(asked(tmp_path, "duckdb:", query), COLUMNS)
    assert raw.records[:, 0].tolist() == [30, 41, 58, 29]


def test_windows_need_an_order(tmp_path: Path) -> None:
    """Rows of a query without ORDER BY do not follow each other."""
    schema = Schema(name="w", shape=(1, 3), window=Window(length=3, step=3))
    sqlite(tmp_path)
    place = "sqlite:///visits.db"
    with pytest.raises(DataError, match=r"ORDER BY in visits\.sql"):
        read_raw(asked(tmp_path, place, "SELECT sick FROM visits -- order by"), schema)
    raw = read_raw(asked(tmp_path, place, "SELECT sick FROM visits ORDER BY age"), schema)
    assert raw.records.shape == (2, 1, 3)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("DELETE FROM visits", "one SELECT"),
        ("SELECT 1; DELETE FROM visits", "one SELECT"),
        ("WITH gone AS (SELECT 1) DELETE FROM visits", "Error of the database"),
        ("SELECT nothing FROM visits", "Error of the database"),
        ("SELECT * FROM elsewhere", "Error of the database"),
    ],
)
def test_a_database_is_only_read(tmp_path: Path, query: str, words: str) -> None:
    """What would write, and what the database refuses, is one sentence; nothing is changed."""
    path = sqlite(tmp_path)
    before = (tmp_path / "visits.db").read_bytes()
    asked(tmp_path, "sqlite:///visits.db", query)
    with pytest.raises(DataError, match=words):
        read_raw(path)
    assert (tmp_path / "visits.db").read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["visits.db", "visits.sql"]


def test_no_error_quotes_a_record_or_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sentences name the file, a variable or the kind of error, and nothing of the connection."""
    monkeypatch.setenv("CLINIC_PASSWORD", "hunter2")
    place = "postgresql://me:${CLINIC_PASSWORD}@127.0.0.1:9/clinic"
    for connection in (place, "nonsense://x:${CLINIC_PASSWORD}@y", "${CLINIC_PASSWORD}"):
        with pytest.raises(DataError) as told:
            read_raw(asked(tmp_path, connection, "SELECT 1 AS a"))
        assert "hunter2" not in repr((str(told.value), told.value.details))
    monkeypatch.delenv("CLINIC_PASSWORD")
    with pytest.raises(DataError, match="environment variable CLINIC_PASSWORD"):
        read_raw(asked(tmp_path, place, "SELECT 1 AS a"))
    with pytest.raises(DataError) as told:
        read_raw(asked(tmp_path, "duckdb:", "SELECT CAST('Ann Smith' AS INTEGER) AS a"))
    assert "Ann" not in str(told.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    """An absent database is not made; a file without a connection and one of two tables say so."""
    for place in ("sqlite:///none.db", "duckdb:none.duckdb"):
        with pytest.raises(DataError, match=r"database of visits\.sql at .*none\."):
            read_raw(asked(tmp_path, place, "SELECT 1 AS a"))
    (tmp_path / "visits.sql").write_text("SELECT 1")
    with pytest.raises(DataError, match="one comment '-- connection: URL'"):
        read_raw(tmp_path / "visits.sql")
    path = duck(tmp_path)
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE others AS SELECT 1 AS a")
    with pytest.raises(DataError, match=r"one table in visits\.duckdb, got others, visits"):
        read_raw(path)
    (tmp_path / "no.duckdb").write_bytes(b"no database")
    with pytest.raises(DataError, match=r"no\.duckdb, got a IOException of the database"):
        read_raw(tmp_path / "no.duckdb")
