"""One command makes a detector of a public file, and a device scores that file with it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedlatent.shared.data.catalog import absent, data_folder, paths
from tests.cli.conftest import Run

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


def rows(count: int) -> Callable[[Path, Path], None]:
    """Keep the first rows of a table."""

    def cut(source: Path, target: Path) -> None:
        pd.read_csv(source, nrows=count, dtype=str, keep_default_na=False).to_csv(
            target, index=False
        )

    return cut


def arrays(**count: int) -> Callable[[Path, Path], None]:
    """Keep the first records of some arrays of an archive."""

    def cut(source: Path, target: Path) -> None:
        with np.load(source) as archive:
            np.savez(target, **{name: archive[name][:first] for name, first in count.items()})

    return cut


#: By data set: its schema, how the file is made small, and what `train` is told.
FILES: dict[str, tuple[str, Callable[[Path, Path], None], list[str]]] = {
    "mitbih": (
        "mitbih",
        arrays(X=2100, y=2100, record=2100),
        ["--label", "y", "--normal-label", "0", "--client", "record"],
    ),
    "smd": (
        "smd",
        arrays(test=6000, test_label=6000),
        ["--array", "test", "--label", "test_label"],
    ),
    "nsl_kdd": ("nsl_kdd", rows(1500), ["--label", "category", "--normal-label", "normal"]),
    "etth1": ("etth1", rows(2000), []),
    "nab": ("nab", rows(8000), ["--label", "anomaly"]),
    "omniglot": ("omniglot", arrays(X=300, client=300), []),
    "moses": ("moses", rows(200), ["--column", "smiles"]),
    "heart_disease": ("heart_disease", rows(920), ["--label", "disease", "--client", "hospital"]),
}


def told(options: list[str], option: str) -> list[str]:
    """One option of a command line and its value, or nothing."""
    at = options.index(option) if option in options else len(options)
    return options[at : at + 2]


@pytest.mark.parametrize("name", FILES)
def test_a_public_file_becomes_a_bundle_that_scores_it(run: Run, tmp_path: Path, name: str) -> None:
    """From the file to a report with baselines, and to a finite score for every record."""
    if absent(data_folder(), [name]):
        pytest.skip(f"no {name} in {os.fspath(data_folder())}")
    schema, cut, options = FILES[name]
    source = paths(data_folder(), name)[-1]
    own = tmp_path / ("own.npz" if source.suffix == ".npz" else "own.csv")
    cut(source, own)
    bundle = tmp_path / "own.fedlatent"
    asked = ["train", own, "--schema", SCHEMAS / f"{schema}.toml", *options, "-o", bundle, "--json"]
    code, printed, error = run(*asked)
    assert code == 0, error
    told_of: dict[str, Any] = json.loads(printed)
    rated = "--label" in options
    for row in told_of["auroc"].values():
        assert {"fedlatent", "PCA", "Mahalanobis", "isolation forest", "kNN"} <= set(row)
        assert all((value is not None) == rated for value in row.values())
    if name == "moses":  # devices have no chemistry
        own = tmp_path / "own.npz"
        schema_of = ["--schema", SCHEMAS / f"{schema}.toml"]
        code, _, error = run("data", "convert", tmp_path / "own.csv", own, *schema_of, *options)
        assert code == 0, error
    key = ["--key", tmp_path / "publisher.pem.pub"]
    code, printed, error = run(
        "edge", "score", bundle, own, *told(options, "--array"), *key, "--json"
    )
    assert code == 0, error
    scores = json.loads(printed)["scores"]
    assert len(scores) >= sum(one["trained"] + one["tested"] for one in told_of["clients"])
    assert np.isfinite(scores).all()
