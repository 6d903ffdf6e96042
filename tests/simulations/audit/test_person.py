"""The audit of persons: the claim for a person holds and is tight, that for a record is false."""

from dataclasses import replace

import numpy as np

from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.person import person_epsilon
from fedlatent.shared.privacy.summaries import Form
from fedlatent.shared.summaries import SUMMARIES, Federated, View
from fedlatent.simulations.audit.person import (
    RECORDS,
    STEP_SIGMA,
    SUMMARY_SIGMA,
    person_lower_bound,
)
from fedlatent.simulations.audit.results import Finding
from fedlatent.simulations.audit.run import Audit
from fedlatent.simulations.audit.unit import (
    DELTA,
    Draws,
    audit_run,
    one_step_plan,
    summary_cases,
    summary_draws,
)
from tests.simulations.audit.conftest import unwatched


def of_persons(findings: tuple[Finding, ...]) -> list[Finding]:
    """Those about a person."""
    return [one for one in findings if one.name.startswith("person")]


def test_a_persons_claims_hold_and_are_tight(audit: Audit) -> None:
    """For a sampled step and every kind of summary: at most the claim, and at least 80 % of it."""
    claims = of_persons(audit.claims)
    assert len(claims) == 1 + len(summary_cases(0))
    for one in claims:
        assert one.verdict == "holds", one
        assert 0.8 <= one.ratio <= 1.0, one


def test_the_epsilon_of_a_record_is_false_for_a_person(audit: Audit) -> None:
    """The same attacks prove more than the epsilon of one record."""
    controls = of_persons(audit.controls)
    assert len(controls) == len(of_persons(audit.claims))
    for one in controls:
        assert one.verdict == "caught", one


def test_a_cap_that_is_not_applied_breaks_the_claim() -> None:
    """Twice as many records of the person as claimed are proven to be too many."""
    for case in summary_cases(0):
        plan = one_step_plan(1.0, summaries=((case.kind, 1, SUMMARY_SIGMA),))
        moved = case.without + 2 * RECORDS * (case.with_ - case.without)
        uncapped = replace(case, with_=moved)
        draws = summary_draws(uncapped, plan, 2000, SimulationNoise(5), unwatched)
        event = plan.required(case.kind)
        assert person_lower_bound(draws, event) > 1.2 * person_epsilon([event], DELTA, RECORDS)


def test_sampled_records_of_a_person_are_drawn_one_by_one() -> None:
    """Drawn together, as one record would be, they show more than the claim."""
    rng, draws = np.random.default_rng(0), 4000
    event = one_step_plan(STEP_SIGMA, sample_rate=0.2).required("train")
    moved = RECORDS * (rng.random(draws) < 0.2)
    noise = STEP_SIGMA * rng.normal(size=(2, draws))
    together = Draws(with_=moved + noise[0], without=noise[1])
    claim = person_epsilon([event], DELTA, RECORDS)
    assert person_lower_bound(together, event) > claim


def test_copies_of_a_record_add_so_many_times_what_it_adds() -> None:
    """The planted sums are those that the client computes for several equal records."""
    rng = np.random.default_rng(0)
    latents = rng.normal(0, 3, (9, 3))
    copied = np.vstack([latents, np.repeat(latents[-1:], RECORDS - 1, axis=0)])
    forms: tuple[Form, ...] = ("full", "diagonal")
    for form in forms:
        sums = [
            SUMMARIES["moments"].exact(
                audit_run(), Federated(form=form), View(records=np.zeros(0), latents=part)
            )
            for part in (latents[:-1], latents, copied)
        ]
        np.testing.assert_allclose(sums[2], sums[0] + RECORDS * (sums[1] - sums[0]))
