"""Records come out of a database by one query that only reads."""

import sqlite3
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
import sqlalchemy

from fedlatent.shared.data.column import Column
from fedlatent.shared.data.describe import describe
from fedlatent.shared.data.queries import connection_of, load_query
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


@pytest.mark.parametrize("name", ["a lab.db", "50 %25?.db", "a#b.db"])
def test_a_database_has_any_name(tmp_path: Path, name: str) -> None:
    """Spaces, percent and question marks and a # in the path of the .sql file and the database."""
    folder = tmp_path / f"of {name}"
    folder.mkdir()
    sqlite(folder)
    (folder / "visits.db").rename(folder / "my visits.db")
    path = asked(folder, "sqlite:///my visits.db", "SELECT age FROM visits WHERE age > 0")
    assert read_raw(path).records[:, 0].tolist() == [30, 41, 58, 63, 29]


def test_a_query_names_files_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From wherever it is asked."""
    FRAME.to_parquet(tmp_path / "v.parquet")
    monkeypatch.chdir("/")
    raw = read_raw(asked(tmp_path, "duckdb:", "SELECT age, kind FROM 'v.parquet'"), COLUMNS)
    assert len(raw.records) == 6


def test_a_query_is_written_by_any_editor(tmp_path: Path) -> None:
    """With a mark of UTF-8 and Windows line ends, and with a % in it."""
    path = sqlite(tmp_path)
    text = "-- connection: sqlite:///visits.db\r\nSELECT age FROM visits\r\nWHERE place LIKE 'n%'"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b" AND age > 0\r\n")
    assert read_raw(path).records[:, 0].tolist() == [30, 41, 29]


def test_no_driver_takes_a_percent_for_a_parameter(tmp_path: Path) -> None:
    """Some drivers look for parameters wherever an empty list of them is given."""
    path = sqlite(tmp_path)
    seen: list[str] = []

    def note(cursor: object, statement: str, context: object) -> None:
        seen.append(statement)

    sqlalchemy.event.listen(sqlalchemy.Engine, "do_execute_no_params", note)
    try:
        load_query(path)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "do_execute_no_params", note)
    assert [one for one in seen if "SELECT * FROM visits" in one]


@pytest.mark.parametrize("place", ["sqlite:///visits.db", "duckdb:visits.duckdb"])
def test_what_a_query_gives_is_there_and_named_once(tmp_path: Path, place: str) -> None:
    """No row, and two columns of a name, are refused alike by whoever reads."""
    sqlite(tmp_path)
    duck(tmp_path)
    none = asked(tmp_path, place, "SELECT age FROM visits WHERE age > 999")
    for act in (read_raw, describe):
        with pytest.raises(DataError, match=r"Expected records in visits\.sql, got none"):
            act(none)
    twice = asked(tmp_path, place, "SELECT age, sick, sick FROM visits WHERE age > 0")
    for act in (read_raw, describe):
        with pytest.raises(DataError, match=r"column 'sick' once in visits\.sql, got it twice"):
            act(twice)


def test_names_of_people_are_told_apart(tmp_path: Path) -> None:
    """Whole numbers stay so beside NULL; those that DuckDB rounds are refused, not made one."""
    duck(tmp_path)
    query = "SELECT age, nullif(sick, 1) AS site FROM visits WHERE age > 0"
    raw = read_raw(asked(tmp_path, "duckdb:visits.duckdb", query), client_key="site")
    assert raw.client_id is not None
    assert raw.client_id.tolist() == ["0", "0", "0", "", "0"]
    query = "SELECT sick, (rowid + 1152921504606846976)::HUGEINT AS who FROM visits"
    with pytest.raises(DataError, match=r"'who' of visits\.sql, got numbers too large"):
        read_raw(asked(tmp_path, "duckdb:visits.duckdb", query), person_key="who")
    query = query.replace("HUGEINT", "BIGINT")
    raw = read_raw(asked(tmp_path, "duckdb:visits.duckdb", query), person_key="who")
    assert raw.person is not None
    assert len(set(raw.person.tolist())) == 6


def test_cells_that_are_lists_are_left_out(tmp_path: Path) -> None:
    """No range and no level is proposed for them."""
    duck(tmp_path)
    path = asked(tmp_path, "duckdb:visits.duckdb", "SELECT age, [age, 1] AS pair FROM visits")
    assert [*describe(path).left_out] == ["pair"]


@pytest.mark.parametrize("levels", [(), (0.0, 1.0), ("false", "true"), ("False", "True")])
def test_truth_values_are_the_same_beside_gaps(tmp_path: Path, levels: tuple[str, ...]) -> None:
    """A BOOLEAN is 0 and 1, or its level in any case, with NULL in the column or without."""
    duck(tmp_path)
    schema = Schema(name="x", columns=(Column(name="ill", levels=levels, missing="mask"),))
    for ill, wanted in (
        ("sick = 1", [0, 0, 1, 0, 1, 0]),
        ("CASE WHEN age > 0 THEN sick = 1 END", [0, 0, np.nan, 0, 1, 0]),
    ):
        query = f"SELECT {ill} AS ill FROM visits"
        raw = read_raw(asked(tmp_path, "duckdb:visits.duckdb", query), schema)
        np.testing.assert_array_equal(raw.records[:, 0], wanted)


@pytest.mark.parametrize(
    "place",
    [
        "postgresql://u:geheim@127.0.0.1:port/db",
        "duckdb:md:x?token=geheim",
        "duckdb:${SECRET}",
        "sqlite:///x?key=${SECRET}",
        "mssql://u:geheim@h",
    ],
)
def test_a_wrong_connection_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """One sentence, without what may be secret in it."""
    monkeypatch.setenv("SECRET", "geheim")
    with pytest.raises(DataError) as told:
        read_raw(asked(tmp_path, place, "SELECT 1 AS a"))
    assert "geheim" not in repr((str(told.value), told.value.details))


def test_a_password_holds_any_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is encoded where a URL has it; a variable elsewhere stands as it is."""
    monkeypatch.setenv("SECRET", "p@s/s:%41#?")
    monkeypatch.setenv("PLACE", "db.example/clinic")
    place = "postgresql+psycopg://me:${SECRET}@${PLACE}"
    url = sqlalchemy.make_url(connection_of(asked(tmp_path, place, "SELECT 1 AS a")))
    assert (url.password, url.host, url.database) == ("p@s/s:%41#?", "db.example", "clinic")
