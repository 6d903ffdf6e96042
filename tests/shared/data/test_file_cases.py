"""One table of files: node, simulator, training and devices read alike, or refuse alike."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.client.edge.decoders import Layout
from fedlatent.client.edge.formats import CsvDecoder
from fedlatent.client.edge.reader import read_records
from fedlatent.client.edge.sources import OTHER_ENDINGS, Signal, open_source
from fedlatent.client.edge.windows import Windows, row_of
from fedlatent.client.home import ClientHome
from fedlatent.client.local import _read as read_at_node
from fedlatent.client.policy import NodeData
from fedlatent.shared.data.dialect import DELIMITERS, Dialect
from fedlatent.shared.data.readers import FOLDER
from fedlatent.shared.data.readers import READERS as READERS_BY_ENDING
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window
from fedlatent.shared.data.sources import Federation
from fedlatent.shared.errors import DataError
from fedlatent.shared.toml import dumps
from fedlatent.simulations import own_data
from fedlatent.simulations.own_data import clients_of_file
from fedlatent.simulations.study.job import file_federation
from fedlatent.simulations.study.tables import DataTable
from tests.shared.data.file_cases import CASES, PATIENTS, Case, text

DIALECT = ("delimiter", "decimal", "encoding", "header")


def _dialect(case: Case) -> dict[str, Any]:
    return {key: case.said[key] for key in DIALECT if key in case.said}


def _node(path: Path, case: Case) -> np.ndarray:
    said = {"label": "label_key", "array": "records_key"}
    fields = {said.get(key, key): one for key, one in case.said.items() if key != "client"}
    data = NodeData.model_validate(
        {"path": path, "schema": _facts(case.schema), "map": case.map} | fields
    )
    return np.asarray(read_at_node(ClientHome(path.parent), data).records)


def _facts(schema: Schema) -> dict[str, Any]:
    """A schema as a file has it: None and what is at its default are left out."""
    facts = schema.to_dict()
    if schema.columns:
        facts = {key: facts[key] for key in ("name", "columns", "window") if facts.get(key)}
    return facts


def _of(federation: Federation) -> np.ndarray:
    sites = federation.sites
    return np.concatenate([rows for one in sites for rows in (one.train, one.test)])


def _simulator(path: Path, case: Case) -> np.ndarray:
    (path.parent / "schema.toml").write_text(dumps({"data": _facts(case.schema)}))
    table = {"source": "file", "path": str(path), "schema": str(path.parent / "schema.toml")}
    return _of(file_federation(DataTable.model_validate(table | case.said), path.parent, 0))


def _train(path: Path, case: Case) -> np.ndarray:
    (path.parent / "schema.toml").write_text(dumps({"data": _facts(case.schema)}))
    return _of(
        clients_of_file(
            path,
            schema=path.parent / "schema.toml",
            records_key=case.said.get("array", "X"),
            columns=case.said.get("columns"),
            label_key=case.said.get("label"),
            client_key=case.said.get("client"),
            dialect=Dialect(**_dialect(case)),
        )
    )


def _score(path: Path, case: Case) -> np.ndarray:
    found = read_records(
        path,
        case.schema,
        key=case.said.get("array", "X"),
        columns=case.said.get("columns"),
        names=case.map,
        dialect=Dialect(**_dialect(case)),
    )
    return found.records


def _stream(path: Path, case: Case) -> np.ndarray:
    schema, window = case.schema, case.schema.window or Window(length=1)
    layout = Layout(
        columns=case.said.get("columns"),
        names=case.map,
        time=window.time,
        group=window.group,
        name=path.name,
        dialect=Dialect(**_dialect(case)),
    )
    source, decoder = open_source(str(path)), CsvDecoder(row_of(schema), layout)
    windows = Windows(window)
    found = [np.zeros((0, schema.raw_size))]
    try:
        while (data := source.read(1.0)) is not Signal.END:
            assert isinstance(data, bytes)
            found += [windows.push(rows).values for rows in decoder.feed(data)]
        found += [windows.push(rows).values for rows in decoder.finish()]
    finally:
        source.close()
    return np.concatenate(found)


READERS: dict[str, Callable[[Path, Case], np.ndarray]] = {
    "node": _node,
    "simulator": _simulator,
    "train": _train,
    "score": _score,
    "stream": _stream,
}
MIXED = ("simulator", "train")  # records in an order of their own


@pytest.fixture(autouse=True)
def few_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of two lines are read, too, where nobody trains on them."""
    monkeypatch.setattr(own_data, "LEAST_TRAINING", 0)


@pytest.mark.parametrize("case", [name for name, one in CASES.items() if one.records is not None])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_the_same_records(tmp_path: Path, reader: str, case: str) -> None:
    """The same file gives the same records wherever it is read."""
    chosen = CASES[case]
    path = chosen.write(tmp_path)
    on_device = reader in ("score", "stream")
    npz = ".npz" in path.name
    if (on_device and not chosen.device) or (reader == "stream" and npz):
        way = "edge score" if npz else "data convert"
        with pytest.raises(DataError, match=way) as caught:
            READERS[reader](path, chosen)
        assert path.name in str(caught.value)
        return
    if reader in MIXED and chosen.map:  # own names are for nodes and devices
        with pytest.raises(DataError, match=r"columns hr"):
            READERS[reader](path, chosen)
        return
    found = READERS[reader](path, chosen)
    if isinstance(chosen.records, str):
        assert str(list(found.shape)) == chosen.records
        return
    expected = np.asarray(chosen.records, dtype=np.float64)
    found, expected = (rows.reshape(len(rows), -1) for rows in (found, expected))
    if reader in MIXED:
        found, expected = (np.array(sorted(rows.tolist(), key=str)) for rows in (found, expected))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("case", [name for name, one in CASES.items() if one.records is None])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_the_same_files(tmp_path: Path, reader: str, case: str) -> None:
    """A refusal names file, place and what to do, and has one reason wherever the file is read."""
    chosen = CASES[case]
    path = chosen.write(tmp_path)
    if reader == "stream" and chosen.reason == "short":  # more may come
        assert not len(READERS[reader](path, chosen))
        return
    with pytest.raises(DataError, match=r"(?s)^Expected .+, got .+; .+\.$") as caught:
        READERS[reader](path, chosen)
    said = str(caught.value)
    assert path.name in said
    if reader == "stream" and case == "a spreadsheet":  # streams may end in anything
        assert "export it as CSV" in said
        return
    if reader in ("score", "stream") and not chosen.device:
        assert "data convert" in said
        return
    if reader == "stream" and ".npz" in path.name:
        assert "edge score" in said
        return
    assert chosen.words in said
    assert caught.value.reason == chosen.reason or not chosen.reason


@pytest.mark.parametrize("reader", ["node", "simulator", "train"])
@pytest.mark.parametrize("key", ["label", "client"])
def test_a_label_or_client_among_the_inputs_is_refused(
    tmp_path: Path, reader: str, key: str
) -> None:
    """A column that is told of records is never a part of them, wherever the file is read."""
    key = "label" if reader == "node" else key  # a node is one client
    said = {"delimiter": ";", "columns": ["a", "b", "c"], key: "c"}
    case = Case(write=text("a;b;c\n1;2;0\n4;5;1\n"), said=said)
    with pytest.raises(DataError, match=r"'c' to hold the .* of t\.csv and nothing else") as caught:
        READERS[reader](case.write(tmp_path), case)
    assert (caught.value.field, caught.value.reason) == ("c", "column")


CELLS = st.tuples(
    st.floats(0, 120).map(lambda value: round(value, 3)),
    st.none() | st.floats(-1e9, 1e9) | st.integers(0, 300),
    st.sampled_from(["none", "mild", "3", "", "worse"]),
)


@settings(deadline=None, max_examples=80)
@given(
    rows=st.lists(CELLS, min_size=1, max_size=12),
    delimiter=st.sampled_from([*DELIMITERS]),
    decimal=st.sampled_from(".,"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-le", "cp1252", "latin-1"]),
    ends=st.sampled_from(["\n", "\r\n", "\r\n\r\n"]),
    quoted=st.booleans(),
    packed=st.booleans(),
    order=st.permutations(["age", "hr", "pain", "größe"]),
)
def test_any_dialect_gives_every_reader_the_same_records(
    rows: list[tuple[float, float | None, str]],
    delimiter: str,
    decimal: str,
    encoding: str,
    ends: str,
    quoted: bool,
    packed: bool,
    order: list[str],
) -> None:
    """However a table is written, node, training, score and stream read the same records."""
    quoted |= delimiter == decimal
    delimiter = ";" if delimiter == decimal else delimiter
    quote = '"' if quoted else ""
    lines = [order]
    for age, hr, pain in rows:
        cells = {"age": repr(age), "hr": "NA" if hr is None else repr(hr), "größe": "a.b c"}
        cells = {name: cell.replace(".", decimal) for name, cell in cells.items()} | {"pain": pain}
        lines.append([cells[name] for name in order])
    content = "".join(delimiter.join(f"{quote}{c}{quote}" for c in line) + ends for line in lines)
    said = {"delimiter": delimiter, "decimal": decimal, "encoding": encoding}
    name = "t.csv.gz" if packed else "t.csv"
    case = Case(write=text(content, name=name, encoding=encoding), schema=PATIENTS, said=said)
    codes = {"none": 0.0, "mild": 1.0, "3": 2.0}
    expected = [
        [age, np.nan if hr is None else hr, codes.get(pain, np.nan)] for age, hr, pain in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = case.write(Path(folder))
        for reader in ("node", "score", "stream"):
            np.testing.assert_array_equal(READERS[reader](path, case), expected)


def test_a_stream_refuses_what_other_readers_have() -> None:
    """Every kind of file that is no CSV is known to a device as no stream."""
    assert set(OTHER_ENDINGS) == {*READERS_BY_ENDING} - {".csv", ".csv.gz", FOLDER}


def test_the_table_is_large_enough() -> None:
    """There are at least eighty files, of every kind, and many of them a page can open."""
    assert len(CASES) >= 80
    assert sum(one.page for one in CASES.values()) >= 40
