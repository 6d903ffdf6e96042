"""Fixtures that every test may use."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

signal.signal(signal.SIGTERM, signal.default_int_handler)  # what tests have started ends too

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: FEDLATENT_DATA, by default ../shared/data."""
    folder = Path(os.environ.get("FEDLATENT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}; set FEDLATENT_DATA to their folder")
    return folder
