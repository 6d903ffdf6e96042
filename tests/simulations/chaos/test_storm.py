"""Forty faults on a real deployment of three nodes, and nothing is lost."""

from pathlib import Path

import pytest

from fedlatent.simulations.chaos.report import table
from fedlatent.simulations.chaos.weather import weather

FAULTS = 40


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_forty_faults_violate_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs go on or pause with a sentence; ledgers, logs, registry and checkpoints agree."""
    folder: Path = tmp_path_factory.mktemp("storm")
    report = weather(folder, seed=15, faults=FAULTS, limit_s=3000.0)
    print(table(report))
    assert report["violations"] == []
    assert report["faults"] == FAULTS
    assert {"signal", "side", "file", "line", "lie"} <= report["recovery"].keys()
    assert all(run["state"] == "completed" for run in report["runs"])
