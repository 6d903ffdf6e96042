"""The schemas of docs/schemas describe the public data sets that they name."""

import os
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter

from fedlatent.shared.config import Data
from fedlatent.shared.data.catalog import absent, data_folder, paths
from fedlatent.shared.data.columns import raw_rows
from fedlatent.shared.data.schema import Schema

FOLDER = Path(__file__).parents[3] / "docs" / "schemas"
TABLES = ("heart_disease", "nsl_kdd", "etth1", "nab")


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
    if absent(data_folder(), [name]):
        pytest.skip(f"no {name} in {os.fspath(data_folder())}")
    path = paths(data_folder(), name)[-1]
    schema = shipped(name)
    raw = raw_rows(pd.read_csv(path, nrows=5000), schema.columns)
    assert raw.shape[1:] == (len(schema.columns),)
    for at, column in enumerate(schema.columns):
        assert np.mean(column.outside(raw[:, at])) <= 0.01, column.name
