"""Schemas proposed for files at hand."""

import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import TypeAdapter

from fedlatent.shared.config import Data
from fedlatent.shared.data.checks import check
from fedlatent.shared.data.column import Column
from fedlatent.shared.data.describe import Proposal, describe
from fedlatent.shared.data.readers import read_raw
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import DataError
from tests.shared.data.test_recordings import wfdb_record

RNG = np.random.default_rng(0)
N = 300


def table() -> pd.DataFrame:
    """A table as people have it."""
    return pd.DataFrame(
        {
            "name": [f"person {at}" for at in range(N)],
            "day": pd.date_range("2024-01-01", periods=N).astype(str),
            "age": RNG.integers(29, 78, N),
            "sex": RNG.choice(["f", "m"], N),
            "stage": RNG.integers(1, 5, N),
            "bytes": np.floor(RNG.lognormal(4, 3, N)),
            "pulse": np.where(np.arange(N) % 7 == 0, np.nan, RNG.uniform(48.3, 161.2, N)),
            "empty": [None] * N,
        }
    )


def schema_of(proposal: Proposal) -> Schema:
    """The schema that the text gives, unedited."""
    return TypeAdapter(Data).validate_python(tomllib.loads(proposal.text)["data"])


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet", "feather", "arrow"])
def test_a_table_gets_a_schema_that_fits_it(tmp_path: Path, ending: str) -> None:
    """Ranges are rounded outward, counts get logarithms, texts levels, gaps masks."""
    path = tmp_path / f"rows 1.{ending}"
    frame = table()
    write = {"parquet": frame.to_parquet, "feather": frame.to_feather, "arrow": frame.to_feather}
    write[ending](path) if ending in write else frame.to_csv(path, index=False)
    proposal = describe(path, skip=["stage"])
    schema = schema_of(proposal)
    by_name = {one.name: one for one in schema.columns}
    assert [*by_name] == ["age", "sex", "bytes", "pulse"]
    assert set(proposal.left_out) == {"name", "day", "empty"}
    assert "[data.window]" in proposal.left_out["day"]
    assert (by_name["age"].lower, by_name["age"].upper) == (25.0, 80.0)
    assert by_name["sex"].levels == ("f", "m")
    assert (by_name["bytes"].transform, by_name["bytes"].lower) == ("log", 0.0)
    assert (by_name["pulse"].lower, by_name["pulse"].upper) == (0.0, 180.0)
    assert by_name["pulse"].missing == "mask"
    assert check(read_raw(path, schema).records, schema).stops() == ()


def test_the_text_warns_before_all_else(tmp_path: Path) -> None:
    """Bounds of records are no public knowledge, which the first lines say; codes are marked."""
    table().to_csv(tmp_path / "t.csv", index=False)
    text = describe(tmp_path / "t.csv").text
    assert text.startswith("# PROPOSED FROM PRIVATE RECORDS")
    assert "must be public knowledge" in text
    assert "# taken for codes" in text.split('name = "stage"')[0]


def test_signals_and_images_get_one_range(tmp_path: Path) -> None:
    """An array gets its shape, with a channel for images."""
    np.savez(tmp_path / "a.npz", X=RNG.uniform(-1.3, 2.2, (9, 8, 8)), S=np.zeros((9, 5)))
    schema = schema_of(describe(tmp_path / "a.npz"))
    assert (schema.shape, schema.lower, schema.upper) == ((1, 8, 8), -1.5, 2.5)
    flat = schema_of(describe(tmp_path / "a.npz", records_key="S"))
    assert (flat.shape, flat.lower, flat.upper) == ((5,), 0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [("1,2\n3,4\n", "names of columns"), ("a,b\n", "got none"), ("", "names of columns")],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """A file without names or records says so."""
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        describe(tmp_path / "t.csv")


def test_an_unknown_column_is_named(tmp_path: Path) -> None:
    """A mistyped --skip is refused with the names that there are."""
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"'c' in t.csv, got a, b"):
        describe(tmp_path / "t.csv", skip=["c"])


@pytest.mark.parametrize("ending", ["csv", "parquet", "arrow"])
def test_every_table_says_the_names_of_its_inputs(tmp_path: Path, ending: str) -> None:
    """Names of the short form's values come from CSV, Parquet and Arrow alike; gaps stay gaps."""
    path = tmp_path / f"rows.{ending}"
    frame = pd.DataFrame({"u": [1, None, 3] * 10, "v": [*range(15)] * 2, "bad": [0] * 30})
    frame = frame.astype({"u": "Int64"})
    write = {"csv": lambda to: frame.to_csv(to, index=False), "parquet": frame.to_parquet}
    write.get(ending, frame.to_feather)(path)
    raw = read_raw(path, Schema(name="two", columns=(Column(name="u", missing="mask"),)))
    assert raw.names == ("u",)
    assert read_raw(path, columns=["v"]).names == ("v",)
    (first, _) = schema_of(describe(path, skip=["bad"])).columns
    assert first.missing == "mask"


def test_numbers_of_records_and_written_numbers_are_left_out(tmp_path: Path) -> None:
    """Whole numbers that only grow tell who a record is; 3.5 % and 12,500 are said to be texts."""
    frame = pd.DataFrame(
        {
            "id": 1000 + 3 * np.arange(40),
            "pct": [f"{at / 7:.1f} %" for at in range(40)],
            "sum": [f"{at * 1234567:,}" for at in range(40)],
            "price": [f"{at}.50 EUR" for at in range(40)],
            "real": RNG.normal(0, 1, 40),
            "count": RNG.integers(0, 900, 40),
            "code": [f"A{at % 3}" for at in range(40)],
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    found = describe(tmp_path / "t.csv")
    assert [one["name"] for one in found.data["columns"]] == ["real", "count", "code"]
    assert "only grow" in found.left_out["id"]
    for name in ("pct", "sum", "price"):
        assert "write plain ones" in found.left_out[name]


def test_identifiers_beyond_exact_numbers_are_left_out(tmp_path: Path) -> None:
    """Whole numbers above 2^53 run into each other, and name records."""
    frame = pd.DataFrame({"id": [2**60 + at for at in range(9, 0, -1)], "v": np.linspace(0, 1, 9)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    found = describe(tmp_path / "t.csv")
    assert [one["name"] for one in found.data["columns"]] == ["v"]
    assert "too large to be told apart" in found.left_out["id"]


def test_a_column_to_skip_is_there(tmp_path: Path) -> None:
    """Of whatever kind the file is: a name that is mistyped changes nothing in silence."""
    wave = wfdb_record(tmp_path / "waves")
    np.savez(tmp_path / "x.npz", X=np.zeros((5, 4)))
    (tmp_path / "x.smi").write_text("CCO\nCC\n")
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / "a.png")
    for place in (tmp_path / "x.npz", tmp_path / "x.smi", tmp_path / "images"):
        with pytest.raises(DataError, match=r"no columns to leave out of .*, got 'V2'"):
            describe(place, skip=["V2"])
    for place in (wave, wave.parent):
        with pytest.raises(DataError, match=r"column to leave out 'V2' in r1\.hea, got MLII, V1"):
            describe(place, skip=["V2"])
        (column,) = describe(place, skip=["V1", "beat", "record"]).data["columns"]
        assert column["name"] == "MLII"
        with pytest.raises(DataError, match=r"a signal of r1\.hea to stay, got none"):
            describe(place, skip=["MLII", "V1"])
