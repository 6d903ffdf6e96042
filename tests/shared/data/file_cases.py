"""Small files of every kind that people have, and what every reader of ours makes of them.

A case is written by a function when it is asked for, so that no binary file lies in the repository.
"""

import gzip
import io
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
from PIL import Image

from fedlatent.shared.data.column import Column
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.selfies_tokens import molecule_schema
from fedlatent.shared.data.series import Window
from tests.shared.data.csv_cases import RIGHT, WRONG
from tests.shared.data.test_recordings import edf_file, wfdb_record
from tests.shared.data.test_recordings import schema as recorded

NAN = float("nan")
TRIPLE = Schema(name="triple", shape=(3,), lower=-1e29, upper=1e29)
#: Numbers, a number with gaps, and classes with gaps.
PATIENTS = Schema(
    name="patients",
    columns=(
        Column(name="age", upper=100.0),
        Column(name="hr", upper=300.0, missing="mask"),
        Column(name="pain", levels=("none", "mild", 3.0), missing="mask"),
    ),
)
#: Two numbers in windows of two rows a minute apart, of one host each.
LOADS = Schema(
    name="loads",
    columns=(Column(name="cpu", upper=100.0), Column(name="net", upper=1e6, missing="mask")),
    window=Window(length=2, step=2, time="at", group="host", rate=1 / 60, gap=1.5),
)
PICTURE = Schema(name="picture", shape=(1, 4, 6), scale=1 / 255)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file and what comes of it.

    Attributes:
        write: makes it in a folder, and returns its path.
        schema: of a record.
        said: how it is read, as keys of a study's [data]: delimiter, label, columns, array, ...
        map: what columns are called in the schema, by their own names; nodes and devices have it.
        records: raw values [N, ...] that every reader finds; None where every one refuses.
        reason: of the refusal; "" where nothing is asked of it.
        words: that the refusal says, beside the name of the file.
        device: whether a device reads it, which asks for an NPZ of `data convert` else.
        page: whether a person can open it on the page.
    """

    write: Callable[[Path], Path]
    schema: Schema = TRIPLE
    said: Mapping[str, Any] = field(default_factory=dict)
    map: Mapping[str, str] = field(default_factory=dict)
    records: Any = None
    reason: str = ""
    words: str = ""
    device: bool = True
    page: bool = False


def text(content: str, *, name: str = "t.csv", encoding: str = "utf-8") -> Callable[[Path], Path]:
    """Writes a text, packed where the name says so."""

    def write(folder: Path) -> Path:
        data = content.encode(encoding)
        packed = name.lower().endswith(".gz")
        (folder / name).write_bytes(gzip.compress(data) if packed else data)
        return folder / name

    return write


def raw(data: bytes, name: str = "t.csv") -> Callable[[Path], Path]:
    """Writes bytes."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def frame(made: Callable[[], pd.DataFrame], name: str = "t.parquet") -> Callable[[Path], Path]:
    """Writes a table of pandas."""

    def write(folder: Path) -> Path:
        path = folder / name
        made().to_parquet(path) if name.endswith(".parquet") else made().to_feather(path)
        return path

    return write


def arrays(name: str = "t.npz", **values: object) -> Callable[[Path], Path]:
    """Writes an NPZ."""

    def write(folder: Path) -> Path:
        np.savez(folder / name, **values)
        return folder / name

    return write


SHEET = b"PK\x03\x04\x14\x00\x06\x00\x08\xff[Content_Types].xml"
ABC = [[1.0, 2.5, -3.0], [4.0, 5.0, 6.0]]
SEMICOLONS = "a;b;c\n1;2.5;-3\n4;5;6\n"
GERMAN = "a;b;c\r\n1,0;2,5;-3\r\n4;5;6\r\n"
PATIENT_ROWS = [[30.0, 60.5, 0.0], [41.0, NAN, 1.0], [58.0, 72.0, NAN], [63.0, 80.0, 2.0]]
PATIENT_TEXT = "age,hr,pain\n30,60.5,none\n41,,mild\n58,72,\n63,80,3.0\n"
SHUFFLED = "note,pain,age,hr\nx,none,30,60.5\ny,mild,41,NA\nz,worse,58,72\nw,3,63,80\n"
LOAD_TEXT = (
    "at,host,cpu,net\n"
    "2026-01-31T12:00:00,a,1,10\n2026-01-31T12:01:00,a,2,20\n"  # a record
    "2026-01-31T12:02:00,a,3,30\n"  # before a hole
    "2026-01-31T12:09:00,a,4,40\n2026-01-31T12:10:00,a,5,\n"  # a record
    "2026-01-31T12:11:00,b,6,60\n"  # another host
    "2026-01-31 12:12:00+00:00,b,7,70\n"  # a record with the row before
)
LOAD_ROWS = [[1, 2, 10, 20], [4, 5, 40, NAN], [6, 7, 60, 70]]
GERMAN_LOADS = (
    "at;host;cpu;net\n0,5;a;1,5;10\n60,5;a;2,5;20\n120,5;a;3,5;30\n180,5;a;4,5;\n181;b;9;9\n"
)


def _dialects() -> dict[str, Case]:
    """Delimiters, decimals, encodings and headers, said and unsaid."""
    umlauts = "größe;b;c\n1,0;2,5;-3\n4;5;6\n"
    german = {"delimiter": ";", "decimal": ","}
    right: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
        "semicolons": (text(SEMICOLONS), {"delimiter": ";"}),
        "decimal commas": (text(GERMAN), german),
        "decimal commas, bare": (text(GERMAN.partition("\n")[2]), german),
        "decimal commas in quotes": (text('a;b;c\n"1,0";"2,5";-3\n4;5;6\n'), german),
        "tabs": (text(SEMICOLONS.replace(";", "\t")), {"delimiter": "tab"}),
        "bars": (text(SEMICOLONS.replace(";", "|")), {"delimiter": "|"}),
        "tabs, decimal commas": (text(GERMAN.replace(";", "\t")), {**german, "delimiter": r"\t"}),
        "UTF-16": (text(SEMICOLONS.replace(";", ","), encoding="utf-16"), {"encoding": "utf-16"}),
        "UTF-16 without a mark": (
            text(GERMAN, encoding="utf-16-be"),
            {**german, "encoding": "utf-16-be"},
        ),
        "cp1252": (text(umlauts, encoding="cp1252"), {**german, "encoding": "cp1252"}),
        "UTF-8 with a mark, said": (text("\ufeff" + umlauts), {**german, "encoding": "utf-8-sig"}),
        "marks in the middle": (text("\ufeffa,b,c\n1,2.5,-3\n\ufeffa,b,c\n4,5,6\n"), {}),
        "years as names": (text("2020,2021,2022\n1,2.5,-3\n4,5,6\n"), {"header": True}),
        "counted as names": (text("0,1,2\n1,2.5,-3\n4,5,6\n"), {"header": True}),
        ".CSV": (text("1,2.5,-3\n4,5,6\n", name="T.CSV"), {}),
        ".CSV.GZ": (text(GERMAN, name="T.CSV.GZ"), german),
    }
    found = {
        name: Case(
            write=write, said=said, records=ABC, page=name not in (".CSV.GZ", "years as names")
        )
        for name, (write, said) in right.items()
    }
    counted = text("0,1,2\n3,4,5\n")
    found["counting values"] = Case(
        write=counted, said={"header": False}, records=[[0, 1, 2], [3, 4, 5]], page=True
    )
    found["chosen columns"] = Case(
        write=text("d,c,b,a\nx,-3,2.5,1\ny,6,5,4\n"),
        said={"columns": ["a", "b", "c"]},
        records=ABC,
    )
    wrong: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str, str]] = {
        "semicolons unsaid": (text(SEMICOLONS), {}, "delimiter", "delimiter=';'"),
        "tabs unsaid": (text("a\tb\tc\n1\t2\t3\n"), {}, "delimiter", r"delimiter='\t'"),
        "bars unsaid": (text("a|b|c\n1|2|3\n"), {}, "delimiter", "delimiter='|'"),
        "decimal commas unsaid": (text(GERMAN), {"delimiter": ";"}, "number", "decimal=','"),
        "commas said otherwise": (text("a,b,c\n1,2,3\n"), {"delimiter": ";"}, "delimiter", "','"),
        "a point with decimal commas": (text("a;b;c\n1.5;2;3\n"), german, "number", "record 1"),
        "UTF-16 unsaid": (text("1,2,3\n", encoding="utf-16"), {}, "encoding", "'utf-16'"),
        "cp1252 unsaid": (
            text("größe,b,c\n1,2,3\n", encoding="cp1252"), {}, "encoding", "'cp1252'"
        ),
        "another encoding than said": (
            text("1,2,3\n4,5,67\n"), {"encoding": "utf-16-be"}, "encoding", "name its encoding"
        ),
        "torn last line": (text("a,b,c\n1,2,3\n4,5"), {}, "width", "record 2"),
        "torn in quotes": (text('a,b,c\n1,2,3\n4,5,"6'), {}, "encoding", "record 2"),
        "label with a comma too much": (text("1,2,3\n4,5,6,\n"), {}, "width", "record 2"),
    }  # fmt: skip
    for name, (write, said, reason, words) in wrong.items():
        page = not said
        found[name] = Case(write=write, said=said, reason=reason, words=words, page=page)
    return found


def _tables() -> dict[str, Case]:
    """Tables of columns by name: order, names, classes, gaps, units, labels."""

    def right(content: str, records: object = PATIENT_ROWS, **fields: object) -> Case:
        return Case(
            **{"write": text(content), "schema": PATIENTS, "page": True, "records": records}
            | fields
        )

    def wrong(content: str, reason: str, words: str, **fields: object) -> Case:
        return right(content, None, reason=reason, words=words, **fields)

    german = {"delimiter": ";", "decimal": ","}
    owned = "who,age,hr,pain,ill\n" + "".join(
        f"{who},{line},{ill}\n"
        for who, line, ill in zip("ABBA", PATIENT_TEXT.splitlines()[1:], "0010", strict=True)
    )
    twice = PATIENT_ROWS[:1] * 3
    far = PATIENT_TEXT.replace("30,", "3000,").replace("72", "1e300")
    return {
        "columns": right(PATIENT_TEXT),
        "columns in another order and more": right(SHUFFLED),
        "columns, packed": right(
            "", write=text(PATIENT_TEXT, name="t.csv.gz"), page=False
        ),
        "columns of decimal commas": right(
            PATIENT_TEXT.replace(",", ";").replace("60.5", "60,5").replace("3.0", "3,0"),
            said=german,
        ),
        "own names": right(PATIENT_TEXT.replace("hr", "pulse"), map={"pulse": "hr"}, page=False),
        "clients and labels": right(owned, said={"client": "who", "label": "ill"}),
        "duplicates": right(PATIENT_TEXT + "30,60.5,none\n" * 3, [*PATIENT_ROWS, *twice]),
        "another unit, and 1e300": right(
            far, [[3000, 60.5, 0], PATIENT_ROWS[1], [58, 1e300, NAN], PATIENT_ROWS[3]]
        ),
        "constants": right("age,hr,pain\n" + "30,60,none\n" * 3, [[30, 60, 0]] * 3),
        "a column that is not there": wrong(
            PATIENT_TEXT.replace("hr", "pulse"), "column", "columns hr"
        ),
        "a column there twice": wrong("age,hr,hr,pain\n1,2,3,none\n", "column", "columns hr"),
        "no header for columns": wrong("30,60,3\n31,61,3\n", "column", "a line of names"),
        "a gap where none may be": wrong("age,hr,pain\n30,1,\n,2,\n", "missing", "record 2"),
        "text for a number": wrong("age,hr,pain\nold,1,\n", "number", "'age'"),
        "a date for a number": wrong("age,hr,pain\n2026-01-31,1,\n", "number", "'age'"),
        "infinity": wrong("age,hr,pain\n30,inf,\n", "finite", "'hr'"),
        "an unknown class": wrong(
            "pain\nnone\nworse\n",
            "level",
            "record 2",
            schema=Schema(name="p", columns=(Column(name="pain", levels=("none", "mild")),)),
        ),
    }  # fmt: skip


def _frames() -> dict[str, Case]:
    """Parquet and Arrow: nullable, of Arrow, categories, gaps, dates."""

    def rows() -> pd.DataFrame:
        return pd.DataFrame(
            {
                "note": ["x", "y", "z", "w"],
                "pain": ["none", "mild", None, "3"],
                "age": [30, 41, 58, 63],
                "hr": [60.5, NAN, 72.0, 80.0],
            }
        )

    kinds: dict[str, Callable[[], pd.DataFrame]] = {
        "as they are": rows,
        "nullable": lambda: rows().convert_dtypes(),
        "of Arrow": lambda: rows().convert_dtypes(dtype_backend="pyarrow"),
        "categories": lambda: rows().astype({"pain": "category"}),
        "texts": lambda: rows().astype(object).where(rows().notna(), None).astype({"age": str}),
    }
    found = {
        f"{ending}, {name}": Case(
            write=frame(made, f"t{ending}"), schema=PATIENTS, records=PATIENT_ROWS, device=False
        )
        for ending in (".parquet", ".arrow", ".feather")
        for name, made in kinds.items()
        if ending == ".parquet" or name in ("as they are", "of Arrow")
    }

    def dated() -> pd.DataFrame:
        return rows().assign(age=pd.Timestamp("2026-01-31"))

    def gappy() -> pd.DataFrame:
        return rows().assign(age=pd.array([30, None, 58, 63], dtype="Int64"))

    wrong = {
        "dates for numbers": (dated, "number", "'age'"),
        "gaps where none may be": (gappy, "missing", "record 2"),
        "no such column": (lambda: rows().drop(columns="hr"), "column", "'hr'"),
    }
    for name, (made, reason, words) in wrong.items():
        found[f".parquet, {name}"] = Case(
            write=frame(made), schema=PATIENTS, reason=reason, words=words, device=False
        )
    found[".parquet, torn"] = Case(
        write=raw(b"PAR1 torn", "t.parquet"), schema=PATIENTS, words="readable table", device=False
    )
    return found


def _arrays() -> dict[str, Case]:
    """NPZ and NPY."""
    values = np.array(ABC)
    pickled = io.BytesIO()
    np.savez(pickled, X=np.array([[1, "a", None]], dtype=object))
    return {
        ".npz": Case(write=arrays(X=values), records=ABC),
        ".NPZ, another array": Case(
            write=arrays("T.NPZ.npz", beats=values, X=values[:1]),
            said={"array": "beats"},
            records=ABC,
        ),
        ".npz, columns": Case(
            write=arrays(X=np.array(PATIENT_ROWS)), schema=PATIENTS, records=PATIENT_ROWS
        ),
        ".npz, small integers": Case(
            write=arrays(X=values.astype(np.int8)), records=values.astype(np.int8)
        ),
        ".npz, pickled": Case(write=raw(pickled.getvalue(), "t.npz"), words="plain arrays"),
        ".npz, no archive": Case(write=raw(b"no archive", "t.npz"), words="plain arrays"),
        ".npz, torn": Case(write=raw(pickled.getvalue()[:-30], "t.npz"), words="plain arrays"),
        ".npz, no such array": Case(
            write=arrays(beats=values), reason="column", words="'X' in t.npz, got beats"
        ),
        ".npz, another width": Case(write=arrays(X=values[:, :2]), words="[2, 2]"),
        ".npz, NaN": Case(write=arrays(X=[[1.0, NAN, 3.0]]), words="finite"),
        ".npz, texts": Case(write=arrays(X=[["a", "b", "c"]]), words="numbers"),
        ".npy": Case(write=_npy, records=ABC, device=False),
    }


def _npy(folder: Path) -> Path:
    np.save(folder / "t.npy", ABC)
    return folder / "t.npy"


def _series() -> dict[str, Case]:
    """Rows in time, cut into windows that reach over no hole and no other series."""
    lines = [line.split(",") for line in LOAD_TEXT.splitlines()[1:]]
    stamps, hosts = np.array([line[:2] for line in lines]).T
    values = np.array([[float(cell or "nan") for cell in line[2:]] for line in lines])
    table = pd.DataFrame({"at": pd.to_datetime(stamps, format="ISO8601", utc=True), "host": hosts})

    def right(write: Callable[[Path], Path], **fields: object) -> Case:
        return Case(**{"write": write, "schema": LOADS, "records": LOAD_ROWS} | fields)

    def wrong(content: str, reason: str, words: str) -> Case:
        return right(text(content), records=None, reason=reason, words=words, page=True)

    backwards = "at,host,cpu,net\n120,a,1,\n60,a,2,\n0,a,3,\n"
    return {
        "a series": right(text(LOAD_TEXT), page=True),
        "a series, packed": right(text(LOAD_TEXT, name="t.csv.gz")),
        "a series of decimal commas": right(
            text(GERMAN_LOADS),
            said={"delimiter": ";", "decimal": ","},
            records=[[1.5, 2.5, 10, 20], [3.5, 4.5, 30, NAN]],
            page=True,
        ),
        "a series, .npz": right(arrays(X=values, at=stamps, host=hosts)),
        "a series, .parquet": right(
            frame(lambda: table.assign(cpu=values[:, 0], net=values[:, 1])), device=False
        ),
        "time that goes backwards": wrong(backwards, "short", "2 rows"),
        "a series that is too short": wrong("at,host,cpu,net\n0,a,1,\n", "short", "2 rows"),
        "a time that is none": wrong(
            "at,host,cpu,net\n0,a,1,\nnoon,a,2,\n60,a,3,\n", "time", "record 2"
        ),
        "no column of times": wrong("host,cpu,net\na,1,\na,2,\n", "column", "columns at"),
    }


def _pictures(folder: Path) -> Path:
    (folder / "shots").mkdir()
    for at in range(3):
        Image.new("L", (6, 4), 10 * at).save(folder / "shots" / f"{at}.png")
    return folder / "shots"


def _sqlite(folder: Path) -> Path:
    with sqlite3.connect(folder / "t.db") as connection:
        connection.execute("CREATE TABLE t (age INT, hr REAL, pain TEXT, note TEXT)")
        rows = ((30, 60.5, "none"), (41, None, "mild"), (58, 72, None), (63, 80, "3"))
        connection.executemany("INSERT INTO t VALUES (?, ?, ?, 'x')", rows)
    connection.close()
    (folder / "t.sql").write_text("-- connection: sqlite:///t.db\nSELECT * FROM t;\n")
    return folder / "t.sql"


def _no_database(folder: Path) -> Path:
    (folder / "t.sql").write_text("-- connection: sqlite:///none.db\nSELECT * FROM t;\n")
    return folder / "t.sql"


def _duckdb(folder: Path) -> Path:
    with duckdb.connect(str(folder / "t.duckdb")) as connection:
        connection.execute("CREATE TABLE t (age INT, hr DOUBLE, pain VARCHAR)")
        connection.execute(
            "INSERT INTO t VALUES (30, 60.5, 'none'), (41, NULL, 'mild'), (58, 72, NULL), "
            "(63, 80, '3')"
        )
    return folder / "t.duckdb"


def _torn_edf(folder: Path) -> Path:
    path = edf_file(folder / "t.edf")
    path.write_bytes(path.read_bytes()[:300])
    return path


def _others() -> dict[str, Case]:
    """What only a machine with the packages for it reads; a device is given an NPZ of it."""
    patients: dict[str, Any] = {"schema": PATIENTS, "records": PATIENT_ROWS, "device": False}
    grey = np.repeat([0.0, 10.0, 20.0], 24).reshape(3, 4, 6)
    return {
        "images": Case(write=_pictures, schema=PICTURE, records=grey, device=False),
        "images of another size": Case(
            write=_pictures, schema=TRIPLE, words="[3, 4, 6]", device=False
        ),
        "SQLite": Case(write=_sqlite, **patients),
        "DuckDB": Case(write=_duckdb, **patients),
        "no database": Case(
            write=_no_database, schema=PATIENTS, words="database of t.sql", device=False
        ),
        "WFDB": Case(
            write=wfdb_record, schema=recorded(("MLII",)), records="[4, 1, 50]", device=False
        ),
        "WFDB without the signal": Case(
            write=wfdb_record, schema=recorded(("II",)), words="'II'", device=False
        ),
        "EDF": Case(
            write=lambda folder: edf_file(folder / "t.edf"),
            schema=recorded(("EEG Fz",)),
            records="[4, 1, 50]",
            device=False,
        ),
        "EDF, torn": Case(
            write=_torn_edf, schema=recorded(("EEG Fz",)), words="readable EDF", device=False
        ),
        "SMILES": Case(
            write=text("CCO\nC\nc1ccccc1\n", name="t.smi"),
            schema=molecule_schema(16),
            records="[3, 16]",
            device=False,
        ),
        "no SMILES": Case(
            write=text("no_molecule\n", name="t.smi"),
            schema=molecule_schema(16),
            words="molecules in t.smi",
            device=False,
        ),
        "a spreadsheet": Case(write=raw(SHEET, "t.xlsx"), words="ending in", device=False),
        "a spreadsheet called .csv": Case(
            write=raw(SHEET), reason="encoding", words="export it as CSV", page=True
        ),
        "no file": Case(write=lambda folder: folder / "t.csv", words="t.csv"),
        "torn .gz": Case(write=raw(gzip.compress(b"1,2,3\n" * 9)[:-9], "t.csv.gz"), words="t.csv"),
        "nothing packed": Case(write=raw(b"1,2,3\n", "t.csv.gz"), words="t.csv.gz"),
    }


CASES: dict[str, Case] = {
    **{
        f"CSV, {name}": Case(write=text(content), records=records, page=True)
        for name, (content, records) in RIGHT.items()
    },
    **{
        f"CSV, {name}": Case(write=text(content), reason=reason, page=True)
        for name, (content, reason) in WRONG.items()
    },
    **_dialects(),
    **_tables(),
    **_frames(),
    **_arrays(),
    **_series(),
    **_others(),
}
"""By name."""
