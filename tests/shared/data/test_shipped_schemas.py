"""The schemas of docs/schemas describe the public data sets that they name."""

import os
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter

from fedlatent.shared.config import Data
from fedlatent.shared.data.columns import raw_rows
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.sources import data_folder

FOLDER = Path(__file__).parents[3] / "docs" / "schemas"
TABLES = {
    "heart_disease": "heart_disease.csv.gz",
    "nsl_kdd": "nsl_kdd_test.csv.gz",
    "etth1": "ETTh1.csv.gz",
    "nab": "nab_real.csv.gz",
}


def shipped(name: str) -> Schema:
    """A schema out of its file."""
    table = tomllib.loads((FOLDER / f"{name}.toml").read_text())["data"]
    found: Schema = TypeAdapter(Data).validate_python(table)
    return found


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_every_schema_is_one(name: str) -> None:
    """The files are run files' tables [data]."""
    schema = shipped(name)
    assert Schema.from_dict(schema.to_dict()) == schema


@pytest.mark.parametrize("name", TABLES)
def test_few_values_lie_beyond_the_public_ranges(name: str) -> None:
    """At most one value of a hundred of any column is clipped."""
    path = data_folder() / TABLES[name]
    if not path.exists():
        pytest.skip(f"no {path.name} in {os.fspath(data_folder())}")
    schema = shipped(name)
    raw = raw_rows(pd.read_csv(path, nrows=5000), schema.columns)
    assert raw.shape[1:] == (len(schema.columns),)
    for at, column in enumerate(schema.columns):
        assert np.mean(column.outside(raw[:, at])) <= 0.01, column.name
