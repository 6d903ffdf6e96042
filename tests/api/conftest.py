"""A folder as the examples of the docstrings expect it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedlatent as fl

HOSPITALS = ("east", "north", "south", "west")


def patients(seed: int = 0, records: int = 60) -> pd.DataFrame:
    """Synthetic patients of four hospitals; sick ones lie apart."""
    rng = np.random.default_rng(seed)
    frames = []
    for at, hospital in enumerate(HOSPITALS):
        sick = (rng.random(records) < 0.15).astype(int)
        frames.append(
            pd.DataFrame(
                {
                    "age": rng.normal(50 + at, 8, records).round(1),
                    "pressure": rng.normal(120, 10, records).round(1) + 40 * sick,
                    "cholesterol": rng.normal(200, 20, records).round(1) + 90 * sick,
                    "disease": sick,
                    "hospital": hospital,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with ``patients.csv``."""
    monkeypatch.chdir(tmp_path)
    patients().to_csv("patients.csv", index=False)
    return tmp_path


@pytest.fixture
def clients(inside: Path) -> fl.Federation:
    """The patients of that file by hospital."""
    return fl.read(inside / "patients.csv", client="hospital", label="disease")
