"""Unit audits: every release is as private as stated, and no more noisy."""

import numpy as np
import pytest

from fedlatent.shared.privacy import summaries
from fedlatent.shared.privacy.audit import gaussian_epsilon, gdp_lower_bound
from fedlatent.shared.privacy.noise import SecureNoise, SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.schedule import Kind
from fedlatent.shared.summaries import SUMMARIES
from fedlatent.simulations.audit.results import Finding
from fedlatent.simulations.audit.run import Audit
from fedlatent.simulations.audit.unit import (
    DELTA,
    SUMMARY_SIGMA,
    one_step_plan,
    step_finding,
    summary_cases,
    summary_draws,
    summary_findings,
)
from tests.simulations.audit.conftest import unwatched

CASES = {case.name: case for case in summary_cases(0)}


def plan_of(kind: Kind, sigma: float) -> PrivacyPlan:
    """A plan with one summary of that noise."""
    return one_step_plan(1.0, summaries=((kind, 1, sigma),))


def test_all_unit_claims_hold_and_are_tight(audit: Audit) -> None:
    """Every bound lies between 0.8 and 1 times the exact epsilon, and that below the claim."""
    tight = [one for one in audit.claims if one.exact is not None and one.tight]
    assert [one.name for one in tight] == ["training step", *CASES]
    for one in tight:
        assert 0.8 <= one.ratio <= 1.0, one
        assert one.exact is not None
        assert one.exact <= one.claimed <= 1.12 * one.exact, one


def test_every_kind_of_release_is_audited() -> None:
    """A kind that clients answer but no case attacks fails here."""
    assert {case.kind for case in CASES.values()} == set(SUMMARIES)


@pytest.mark.parametrize("name", CASES)
def test_canary_moves_a_summary_by_its_whole_sensitivity(name: str) -> None:
    """The attack is the worst case: one record adds just what the spec allows."""
    case = CASES[name]
    moved = float(np.linalg.norm(case.with_ - case.without))
    assert moved == pytest.approx(case.spec.sensitivity, rel=1e-9)


@pytest.mark.parametrize("name", ["moments, full", "histograms of scores"])
def test_too_little_noise_breaks_a_claim(name: str) -> None:
    """A fifth less noise than stated gives a bound above the exact epsilon of the stated noise."""
    case = CASES[name]
    scores = summary_draws(
        case, plan_of(case.kind, 0.8 * SUMMARY_SIGMA), 20_000, SimulationNoise(1), unwatched
    )
    lower = gdp_lower_bound(scores.with_, scores.without, DELTA)
    assert finding(lower).verdict == "BROKEN"


def test_understated_sensitivity_breaks_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise for a sensitivity of 1, where a record adds sqrt 2, is caught in both users."""
    monkeypatch.setattr(summaries, "DIAGONAL_SENSITIVITY", 1.0)
    verdicts = {one.name: one.verdict for one in summary_findings(10_000, 4, unwatched)}
    broken = {name for name, verdict in verdicts.items() if verdict == "BROKEN"}
    assert broken == {"moments, diagonal", "feature scaling"}


def test_too_much_noise_is_named() -> None:
    """Half as much noise again is a fault, too: the release is worse than it needs to be."""
    case = CASES["moments, full"]
    scores = summary_draws(
        case, plan_of(case.kind, 1.5 * SUMMARY_SIGMA), 20_000, SimulationNoise(2), unwatched
    )
    lower = gdp_lower_bound(scores.with_, scores.without, DELTA)
    assert finding(lower).verdict == "TOO NOISY"


def test_noise_of_real_nodes_is_audited_too() -> None:
    """The cryptographic stream gives the stated epsilon; the bound fails once in a million."""
    case = CASES["moments, diagonal"]
    scores = summary_draws(
        case, plan_of(case.kind, SUMMARY_SIGMA), 10_000, SecureNoise(), unwatched
    )
    lower = gdp_lower_bound(scores.with_, scores.without, DELTA, confidence=1 - 1e-6)
    assert 0.6 < lower / gaussian_epsilon(1 / SUMMARY_SIGMA, DELTA) < 1


@pytest.mark.slow
def test_sampled_step_is_tight_too() -> None:
    """With half of the records sampled the bound reaches 0.8 of the exact epsilon as well."""
    found = step_finding("half sampled", 0.5, 8000, 0, unwatched)
    assert 0.8 <= found.ratio <= 1.0
    assert found.exact is not None
    assert found.exact <= found.claimed


def finding(lower: float) -> Finding:
    """A finding about a summary with that bound."""
    return Finding(
        name="summary",
        claimed=5.0,
        exact=gaussian_epsilon(1 / SUMMARY_SIGMA, DELTA),
        lower=lower,
        tight=True,
        draws=1,
        attack="",
    )
