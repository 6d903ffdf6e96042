"""``fedlatent audit`` as scripts and people see it; the audit itself has tests of its own."""

import json
from pathlib import Path

import pytest

from fedlatent.simulations.audit import run as auditing
from tests.cli.conftest import Run
from tests.simulations.audit.test_report import TINY


def test_audit_that_proves_too_little_fails(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With far too few draws the bounds say nothing, and the command exits with 1."""
    monkeypatch.setattr(auditing, "QUICK", TINY)
    code, out, err = run("audit", "--quick", "--json", "--out", tmp_path, "--seed", 5)
    found = json.loads(out)
    assert code == 1
    assert err == ""
    assert found["good"] is False
    assert found["seed"] == 5
    assert {one["verdict"] for one in found["claims"]} >= {"TOO NOISY", "holds"}
    assert Path(found["report"]) == tmp_path / "report.html"
    assert (tmp_path / "report.html").is_file()


def test_audit_prints_tables_for_people(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims and controls on standard output, progress on standard error."""
    monkeypatch.setattr(auditing, "QUICK", TINY)
    code, out, err = run("audit", "--quick", "--out", tmp_path)
    assert code == 1
    assert "claims under attack" in out
    assert "negative controls" in out
    assert "caught" in out
    assert "training step" in err
    assert "the audit failed" in err
