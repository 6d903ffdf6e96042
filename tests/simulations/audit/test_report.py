"""The whole audit: same seed, same result; and its report."""

from pathlib import Path
from typing import Any

import pytest

from fedlatent.simulations.audit.report import write_report
from fedlatent.simulations.audit.run import Audit, Sizes, run_audit
from tests.simulations.audit.conftest import unwatched

#: Too few draws for tight bounds, enough for every part to run.
TINY = Sizes(
    steps=10,
    sampled=10,
    summaries=200,
    broken=10,
    toys=200,
    canaries=60,
    rounds=2,
    beats=60,
    node_runs=1,
    hostile=10,
    tries=3,
)


@pytest.fixture(scope="module")
def tiny() -> Audit:
    """An audit that proves too little."""
    return run_audit(TINY, 3, unwatched)


def test_equal_seeds_give_equal_audits(tiny: Audit) -> None:
    """All numbers and their order are functions of sizes and seed, but for secure noise."""
    again, other = (_seeded(run_audit(TINY, seed, unwatched)) for seed in (3, 4))
    assert _seeded(tiny) == again
    assert _seeded(tiny)["claims"] != other["claims"]


def _seeded(audit: Audit) -> dict[str, Any]:
    """An audit's JSON without what real nodes drew."""
    claims = [one.to_json() for one in audit.claims if "real node" not in one.name]
    return {**audit.to_json(), "good": None, "claims": claims, "checks": None}


def test_quick_audit_is_good(audit: Audit) -> None:
    """Every claim holds and every control is caught: this is what continuous runs check."""
    assert audit.good
    assert audit.to_json()["good"] is True


def test_report_opens_offline_and_says_what_failed(
    audit: Audit, tiny: Audit, tmp_path: Path
) -> None:
    """One file with tables and pictures and no address; a failed audit names what failed."""
    text = write_report(audit, tmp_path / "good").read_text()
    assert text.count("data:image/png;base64,") == 3
    assert "http" not in text
    assert "No attack passed a claim" in text
    for one in (*audit.claims, *audit.controls, *audit.checks):
        assert one.name in text
    names = sorted(path.name for path in (tmp_path / "good").iterdir())
    assert names == ["bounds.png", "canaries.png", "inversion.png", "report.html"]
    failed = write_report(tiny, tmp_path / "failed").read_text()
    assert "The audit failed for: training step" in failed
