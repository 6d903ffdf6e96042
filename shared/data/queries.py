"""Read records out of a database: a .sql file, or a DuckDB file that holds one table.

A .sql file is one SELECT below a comment that says where it is asked, by a URL of SQLAlchemy or,
for DuckDB, ``duckdb:`` and the path of its file (none where the query itself names files):

    -- connection: postgresql+psycopg://reader:${CLINIC_PASSWORD}@db.example/clinic
    SELECT age, pressure, sick FROM visits WHERE year >= 2020 ORDER BY patient, taken

``${NAME}`` is taken from the environment, so that no password lies in a file; before the @ of a
URL it may hold any letters. Paths are relative to the .sql file; files that a query of DuckDB
names are looked for in the working folder first. Connections only read, and what a database says of
an error, which may quote a record, is not passed on.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from fedlatent.shared.data.asked import Asked, Found, needed
from fedlatent.shared.data.frames import found_in
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import ending_of

if TYPE_CHECKING:
    import pandas as pd

#: Endings of what is read by a query.
QUERIES = (".sql", ".duckdb", ".ddb")
_CONNECTION = re.compile(r"^\s*--\s*connection\s*:[ \t]*(\S.*?)\s*$", re.MULTILINE | re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
#: Texts, quoted names and comments, which may hold anything.
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
_ORDER = re.compile(r"\border\s+by\b", re.IGNORECASE)
_DUCKDB = "duckdb:"


def find_by_query(path: Path, asked: Asked) -> Found:
    """Records and other columns of what a query gives."""
    if asked.series and ending_of(path, [".sql"]) and not _ORDER.search(_bare(path)):
        raise DataError(
            f"Expected ORDER BY in {path.name}, since the schema's window makes records of rows "
            "that follow each other, got a query without; order by series and time.",
            field="window",
            reason="order",
        )
    frame = load_query(path)
    if not len(frame):
        raise DataError(f"Expected records in {path.name}, got none; check the query.")
    return found_in(frame, path.name, asked)


def load_query(path: Path) -> "pd.DataFrame":
    """What the query of a .sql file gives, or the one table of a DuckDB file.

    Raises:
        DataError: The file has no connection or more than one statement, a variable is not set, a
            package is missing, or the database refuses.
    """
    if ending_of(path, [".sql"]) is None:
        return _one_table(path)
    query, place = _query(path), connection_of(path)
    if place.startswith(_DUCKDB):
        name = place.removeprefix(_DUCKDB).strip()
        return _duckdb(path, _there(path, name) if name else None, query)
    return _sqlalchemy(path, place, query)


def connection_of(path: Path) -> str:
    """The URL of a .sql file with its variables put in."""
    found = _CONNECTION.findall(_text(path))
    if len(found) != 1:
        raise DataError(
            f"Expected one comment '-- connection: URL' in {path.name}, got {len(found)}; write it "
            "into the first line.",
            field="connection",
            reason="missing",
        )
    absent = [name for name in _VARIABLE.findall(found[0]) if name not in os.environ]
    if absent:
        raise DataError(
            f"Expected the environment variable {absent[0]} for the connection of {path.name}, got "
            "none; set it.",
            field=absent[0],
            reason="missing",
        )
    user = re.match(r"[^/@]*://[^@]*@", found[0])
    ends = user.end() if user else 0

    def value(one: re.Match[str]) -> str:
        text = os.environ[one[1]]
        return quote(text, safe="") if one.end() <= ends else text

    return _VARIABLE.sub(value, found[0])


def _query(path: Path) -> str:
    """The one SELECT of a .sql file."""
    bare = _bare(path)
    if not re.match(r"(select|with)\b", bare, re.IGNORECASE) or ";" in bare:
        raise DataError(
            f"Expected one SELECT in {path.name}, got another statement or several; records are "
            "only read.",
            field="query",
            reason="query",
        )
    return _text(path)


def _bare(path: Path) -> str:
    """The statement of a .sql file without comments and what it quotes."""
    return _QUOTED.sub(" ", _text(path)).strip().rstrip(";").strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"Expected UTF-8 text in {path.name}, got other bytes; check it.") from None


def _sqlalchemy(path: Path, place: str, query: str) -> "pd.DataFrame":
    with needed("sql", path.name):
        import sqlalchemy
    import pandas as pd

    try:
        url = sqlalchemy.make_url(place)
        if url.get_backend_name() == "sqlite" and url.database:
            file = _there(path, url.database).resolve()
            place = f"file:{quote(str(file))}"
            url = url.set(database=place, query={"mode": "ro", "uri": "true"})
        with needed("sql", f"{path.name} from {url.get_backend_name()}"):
            engine = sqlalchemy.create_engine(url)
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError, ValueError):
        raise DataError(
            f"Expected a URL of SQLAlchemy as the connection of {path.name}, such as "
            "sqlite:///visits.db, got none that it knows; correct it.",
            field="connection",
            reason="connection",
        ) from None
    # Without parameters a % is a letter.
    options = {"no_parameters": True}
    if engine.dialect.name == "postgresql":
        options["postgresql_readonly"] = True
    try:
        with engine.connect().execution_options(**options) as connection:
            return pd.read_sql_query(query, connection)  # rolled back as it closes
    except (sqlalchemy.exc.SQLAlchemyError, OSError, TypeError, ValueError) as error:
        raise _refused(path, error) from None
    finally:
        engine.dispose()


def _there(path: Path, name: str) -> Path:
    """The file of a database, named from the folder of a .sql file."""
    file = path.parent / name
    if not file.is_file():
        secret = "?" in name or _VARIABLE.search(_text(path))
        told = "where its connection says" if secret else f"at {file}"
        raise DataError(
            f"Expected the database of {path.name} {told}, got none; check the path.",
            field="connection",
            reason="missing",
        )
    return file


def _duckdb(path: Path, file: Path | None, query: str) -> "pd.DataFrame":
    with needed("sql", path.name):
        import duckdb

    try:
        with duckdb.connect(str(file or ":memory:"), read_only=file is not None) as connection:
            beside = str(path.parent.resolve()).replace("'", "''")
            connection.execute(f"SET file_search_path = '{beside}'")
            frame = connection.execute(query).df()
            frame.columns = [one[0] for one in connection.description]  # a name twice stays so
            return frame
    except (duckdb.Error, OSError) as error:
        raise _refused(path, error) from None


def _one_table(path: Path) -> "pd.DataFrame":
    """The table of a DuckDB file that holds one, or its one view."""
    listed = "SELECT table_schema, table_name FROM information_schema.tables ORDER BY ALL"
    tables = _duckdb(path, path, listed).to_numpy().tolist()
    if len(tables) != 1:
        names = ", ".join(name for _, name in tables[:20]) or "none"
        raise DataError(
            f"Expected one table in {path.name}, got {names}; choose by a .sql file with "
            f"'-- connection: {_DUCKDB}{path.name}' and a SELECT.",
            field="query",
            reason="query",
        )
    ((space, name),) = tables
    quoted = ".".join('"' + one.replace('"', '""') + '"' for one in (space, name))
    return _duckdb(path, path, f"SELECT * FROM {quoted}")


def _refused(path: Path, error: Exception) -> DataError:
    return DataError(
        f"Expected rows of the query in {path.name}, got a {type(error).__name__} of the database; "
        "try the query with the database's own program.",
        field="query",
        reason="database",
    )
