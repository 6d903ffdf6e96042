"""Columns by name and windows of a bundle: alike in score, stream and serve, and as on the node."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlatent.client.edge.main import main
from fedlatent.client.edge.reader import read_records
from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.edge.serve import EdgeServer, ServeOptions
from fedlatent.client.edge.web import Refusal
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.readers import read_raw
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.series import Window
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.keys import SigningKey
from tests.shared.bundle import tiny

TABLE = Schema(
    name="patient",
    columns=(
        Column(name="age", unit="years", lower=20.0, upper=90.0),
        Column(name="chol", lower=100.0, upper=500.0, missing="mask"),
        Column(name="pain", levels=("none", "mild", "strong"), missing="mask"),
    ),
)
SERIES = Schema(
    name="load",
    columns=(Column(name="load", upper=100.0),),
    window=Window(length=tiny.DIM, step=2, time="when", group="host", rate=1 / 60),
)
ROWS = [
    {"age": 63, "chol": 240, "pain": "mild"},
    {"age": 20.5, "chol": None, "pain": "none"},
    {"age": 900, "chol": 99, "pain": "strong"},
]
RAW = [[63, 240, 1], [20.5, np.nan, 0], [900, 99, 2]]


def _csv(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    lines = [
        ",".join("" if row[name] is None else str(row[name]) for name in names) for row in rows
    ]
    return "\n".join([",".join(names), *lines, ""])


def _bundle(folder: Path, key: SigningKey, schema: Schema) -> list[str]:
    """The arguments that name a bundle of this schema and its key."""
    (folder / "key.pub").write_bytes(key.public.to_pem())
    path = tiny.write(folder / "tiny.fedlatent", key, replace(tiny.manifest(), schema=schema))
    return [str(path), "--key", str(folder / "key.pub")]


def _model(folder: Path, key: SigningKey, schema: Schema) -> EdgeModel:
    return EdgeModel.load(Path(_bundle(folder, key, schema)[0]), [key.public])


def _run(
    capfd: pytest.CaptureFixture[str], command: str, bundle: list[str], *more: str
) -> tuple[list[float], str, list[dict[str, Any]]]:
    """Scores, warnings and events of ``score`` or ``stream``."""
    form = ["--json"] if command == "score" else ["--report", "all", "--beat", "0"]
    assert main([command, bundle[0], *more, *bundle[1:], *form]) == 0
    out, err = capfd.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    if command == "score":
        return events[0]["scores"], err, events
    return [event["score"] for event in events if event["event"] == "score"], err, events


@pytest.mark.parametrize("order", ["age,chol,pain", "pain,age,chol", "id,pain,note,chol,age"])
def test_columns_are_found_by_name(
    tmp_path: Path, signing_key: SigningKey, capfd: pytest.CaptureFixture[str], order: str
) -> None:
    """In any order, with others between, rows have the same scores; what is left out is said."""
    bundle, names = _bundle(tmp_path, signing_key, TABLE), order.split(",")
    model = EdgeModel.load(Path(bundle[0]), [signing_key.public])
    rows = [{"id": 7, "note": "x", **row} for row in ROWS]
    path = tmp_path / "rows.csv"
    path.write_text(_csv(rows, names))
    np.testing.assert_array_equal(read_records(path, TABLE).records, RAW)
    np.testing.assert_array_equal(read_raw(path, TABLE).records, RAW)
    lines = tmp_path / "rows.jsonl"
    chosen = [{name: row[name] for name in names} for row in rows]
    lines.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    raw = tmp_path / "rows.f64"
    raw.write_bytes(np.array(RAW).tobytes())
    expected = model.score(RAW).score
    extra = [name for name in names if name in ("id", "note")]
    scores, err, _ = _run(capfd, "score", bundle, str(path))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert ("columns id, note of rows.csv are none of the bundle's" in err) == bool(extra)
    for place, form in ((path, "csv"), (lines, "jsonl"), (raw, "f64")):
        scores, _, events = _run(capfd, "stream", bundle, str(place), "--format", form)
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        said = [event["extra"] for event in events if event["event"] == "columns"]
        assert said == ([extra] if extra and form != "f64" else [])
    with EdgeServer(model, ServeOptions(port=0)) as server:
        for body, kind in (
            (path.read_bytes(), "text/csv"),
            (json.dumps({"records": chosen}).encode(), "application/json"),
        ):
            answer = server.score(body, kind)
            np.testing.assert_allclose(answer["scores"], expected, rtol=1e-5)
            assert answer.get("extra", []) == extra
            assert answer["clipped"] == [0, 0, 2]


def test_own_names_are_mapped(
    tmp_path: Path, signing_key: SigningKey, capfd: pytest.CaptureFixture[str]
) -> None:
    """A column of another name here is taken for the bundle's by --map, in CSV and JSON lines."""
    bundle = _bundle(tmp_path, signing_key, TABLE)
    model = EdgeModel.load(Path(bundle[0]), [signing_key.public])
    own = [{"years": row["age"], "chol": row["chol"], "ache": row["pain"]} for row in ROWS]
    path, lines = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    path.write_text(_csv(own, ["ache", "years", "chol"]))
    lines.write_text("".join(json.dumps({"values": row}) + "\n" for row in own))
    names = ["--map", "years=age", "--map", "ache=pain"]
    for command, *more in (
        ("score", str(path)),
        ("stream", str(path)),
        ("stream", str(lines), "--format", "jsonl"),
    ):
        scores, err, _ = _run(capfd, command, bundle, *more, *names)
        np.testing.assert_allclose(scores, model.score(RAW).score, rtol=1e-5)
        assert "none of the bundle's" not in err
    with EdgeServer(model, ServeOptions(port=0, mapped={"years": "age", "ache": "pain"})) as server:
        for body, kind in (
            (path.read_bytes(), "text/csv"),
            (json.dumps({"records": own}).encode(), "application/json"),
        ):
            np.testing.assert_allclose(server.score(body, kind)["scores"], scores, rtol=1e-5)
    for wrong in (["--map", "age"], ["--map", "=age"], ["--map", "a=age", "--map", "b=age"]):
        assert main(["score", bundle[0], str(path), *bundle[1:], *wrong]) == 2
        assert "OWN=NAME" in capfd.readouterr().err


WRONG = [
    ("csv", "chol,pain\n240,mild\n", "column"),
    ("csv", "63,240,mild\n", "column"),
    ("csv", "63,240,1\n", "column"),
    ("csv", "age,chol,pain,age\n63,240,mild,64\n", "column"),
    ("csv", "age,chol,pain\n63,secret,mild\n", "number"),
    ("csv", "age,chol,pain\n,240,mild\n", "missing"),
    ("csv", "age,chol,pain\ninf,240,mild\n", "finite"),
    ("csv", "age,chol,pain\n63,240\n", "width"),
    ("jsonl", '{"chol": 240, "pain": "mild"}\n', "column"),
    ("jsonl", "[63, 240, 1]\n", "number"),
    ("jsonl", '{"values": [63, 240, 1]}\n', "column"),
    ("jsonl", '{"age": [63], "chol": 240, "pain": "mild"}\n', "number"),
    ("jsonl", '{"age": "secret", "chol": 240, "pain": "mild"}\n', "number"),
    ("jsonl", '{"age": null, "chol": 240, "pain": "mild"}\n', "missing"),
    ("jsonl", '{"age": 1e999, "chol": 240, "pain": "mild"}\n', "finite"),
]


@pytest.mark.parametrize(("form", "text", "reason"), WRONG)
def test_rows_without_the_columns_are_refused(
    tmp_path: Path,
    signing_key: SigningKey,
    capfd: pytest.CaptureFixture[str],
    form: str,
    text: str,
    reason: str,
) -> None:
    """A missing or doubled column, a wrong cell and rows without names are refused by every way."""
    bundle = _bundle(tmp_path, signing_key, TABLE)
    path = tmp_path / f"rows.{form}"
    path.write_text(text)
    assert main(["stream", bundle[0], str(path), *bundle[1:], "--format", form]) == 3
    err = capfd.readouterr().err
    assert ("secret" in err, str(path) in err) == (False, True)
    if form == "csv":
        with pytest.raises(DataError) as caught:
            read_records(path, TABLE)
        assert caught.value.reason == reason
        with pytest.raises(DataError) as caught:
            read_raw(path, TABLE)
        assert caught.value.reason == reason
    model = EdgeModel.load(Path(bundle[0]), [signing_key.public])
    kind, body = (
        ("text/csv", text) if form == "csv" else ("application/json", f'{{"records": [{text}]}}')
    )
    with EdgeServer(model, ServeOptions(port=0)) as server, pytest.raises(Refusal):
        server.score(body.encode(), kind)


def test_columns_are_the_bundles_alone(
    tmp_path: Path, signing_key: SigningKey, capfd: pytest.CaptureFixture[str]
) -> None:
    """Columns or a window on the command line, beside those of the bundle, are refused."""
    bundle = _bundle(tmp_path, signing_key, TABLE)
    path = tmp_path / "rows.csv"
    path.write_text(_csv(ROWS, ["age", "chol", "pain"]))
    for call in (
        ["score", "--column", "age"],
        ["stream", "--column", "age"],
        ["stream", "--window", "1"],
    ):
        assert main([call[0], bundle[0], str(path), *bundle[1:], *call[1:]]) == 2
        assert "bundle" in capfd.readouterr().err
    with pytest.raises(ConfigError):
        read_records(path, TABLE, columns=["age"])


def _series(seed: int) -> list[dict[str, Any]]:
    """Rows a minute of two hosts, one of them with a hole of two minutes."""
    rng = np.random.default_rng(seed)
    rows = []
    for host, holes in (("web", {9}), ("db", set())):
        for minute in range(20):
            if minute not in holes:
                when = f"2026-01-31T12:{minute:02}:00Z"
                rows.append(
                    {"load": round(float(rng.uniform(0, 100)), 2), "when": when, "host": host}
                )
    return rows


def test_windows_are_the_bundles(
    tmp_path: Path, signing_key: SigningKey, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bundle's window cuts a file and a stream as a node does: by time, series and step."""
    bundle, rows = _bundle(tmp_path, signing_key, SERIES), _series(1)
    model = EdgeModel.load(Path(bundle[0]), [signing_key.public])
    path, lines, archive = (tmp_path / name for name in ("rows.csv", "rows.jsonl", "rows.npz"))
    path.write_text(_csv(rows, ["host", "load", "when"]))
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {name: np.array([row[name] for row in rows]) for name in ("load", "when", "host")}
    np.savez(archive, X=columns["load"][:, None], when=columns["when"], host=columns["host"])
    expected = read_raw(path, SERIES).records
    assert expected.shape == (2 + 3 + 8, 1, tiny.DIM)
    for file in (path, archive):
        found = read_records(file, SERIES)
        np.testing.assert_array_equal(found.records, expected.reshape(13, -1))
        assert found.gaps == 1
    scores = model.score(expected).score
    for command, *more in (
        ("score", str(path)),
        ("score", str(archive)),
        ("stream", str(path)),
        ("stream", str(lines), "--format", "jsonl"),
    ):
        got, err, events = _run(capfd, command, bundle, *more)
        np.testing.assert_allclose(got, scores, rtol=1e-5)
        assert not err
        assert events[-1]["gaps"] == 1
        if command == "stream":
            assert events[-1]["unused"] == (9 - 8) + (10 - 10)
    assert main(["score", bundle[0], str(path), *bundle[1:]]) == 0
    assert "gaps in time: 1" in capfd.readouterr().out
    for file in (path, archive):
        made = tmp_path / "scores.csv"
        assert main(["score", bundle[0], str(file), *bundle[1:], "--out", str(made)]) == 0
        lines_of = [line.split(",") for line in made.read_text().splitlines()]
        assert lines_of[0][:4] == ["record", "row", "row_time", "score"]
        assert lines_of[3][:3] == ["2", "15", "2026-01-31T12:15:00Z"]
    with EdgeServer(model, ServeOptions(port=0)) as server:
        for body, kind in (
            (path.read_bytes(), "text/csv"),
            (json.dumps({"records": rows}).encode(), "application/json"),
        ):
            np.testing.assert_allclose(server.score(body, kind)["scores"], scores, rtol=1e-5)


def test_options_change_the_bundles_window(
    tmp_path: Path, signing_key: SigningKey, capfd: pytest.CaptureFixture[str]
) -> None:
    """--window, --time and --step take the place of hop, column and rate of the bundle's window."""
    bundle, rows = _bundle(tmp_path, signing_key, SERIES), _series(2)
    path = tmp_path / "rows.csv"
    path.write_text(_csv([{**row, "at": row["when"]} for row in rows], ["host", "load", "at"]))
    options = ["--window", "1", "--time", "at", "--step", "2min"]
    scores, _, events = _run(capfd, "stream", bundle, str(path), *options)
    assert (len(scores), events[-1]["gaps"]) == (14 + 15, 0)
    raw = tmp_path / "rows.f32"
    raw.write_bytes(np.arange(10, dtype="<f4").tobytes())  # one series, as it has no names
    scores, _, _ = _run(capfd, "stream", bundle, str(raw), "--format", "f32")
    assert len(scores) == 3


def test_series_too_short_for_a_window(tmp_path: Path, signing_key: SigningKey) -> None:
    """Rows that fill no window are refused by device and node, as is a file without its times."""
    path = tmp_path / "rows.csv"
    path.write_text(_csv(_series(3)[:5], ["host", "load", "when"]))
    for read in (read_records, read_raw):
        with pytest.raises(DataError, match="that follow each other") as caught:
            read(path, SERIES)
        assert caught.value.reason == "short"
        path.write_text(_csv(_series(3)[:5], ["host", "load", "when"]))
    path.write_text(_csv(_series(3), ["host", "load"]))
    for read in (read_records, read_raw):
        with pytest.raises(DataError, match="columns when") as caught:
            read(path, SERIES)
        assert caught.value.reason == "column"
