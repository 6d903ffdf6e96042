"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

import shared  # noqa: F401 - dependencies that would phone home are kept quiet from here on

os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: FEDLATENT_DATA, by default ../shared/data."""
    folder = Path(os.environ.get("FEDLATENT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}; set FEDLATENT_DATA to their folder")
    return folder
