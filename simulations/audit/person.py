"""Audits of one person with several records, all planted in the worst way.

The records are copies of the canary, so what they add is aligned, as the accounting of persons
assumes. Each release is attacked once; against the epsilon of a person the attack must fail and
come near it, and against that of one record, claimed for the person, it must succeed.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy import stats

from fedlatent.shared.privacy.accounting import GaussianEvent
from fedlatent.shared.privacy.audit import group_mu_lower_bound
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.person import person_epsilon
from fedlatent.simulations.audit.results import Finding, Watch
from fedlatent.simulations.audit.unit import (
    DELTA,
    Draws,
    claimed,
    one_step_plan,
    step_draws,
    summary_cases,
    summary_draws,
)

#: Records of the person, and what shares of all records a training step samples.
RECORDS, RATE = 3, 0.8
#: Noise multipliers of a training step and of a summary.
STEP_SIGMA, SUMMARY_SIGMA = 1.0, 3.0


def person_findings(steps: int, summaries: int, seed: int, watch: Watch) -> Iterator[Finding]:
    """One sampled training step and every kind of summary; claims, each followed by its control.

    Args:
        steps: training steps in each world.
        summaries: releases of each summary in each world.
        seed: of all records, weights and noise.
        watch: told about progress.
    """
    name = f"person of {RECORDS}, training step"
    plan = one_step_plan(STEP_SIGMA, sample_rate=RATE)
    draws = step_draws(name, plan, steps, seed, watch, copies=RECORDS)
    event = plan.required("train")
    yield from _findings(name, event, draws, claimed(plan, "train"), 2 * steps)
    for number, case in enumerate(summary_cases(seed)):
        # Sums over records: copies add what the canary adds, so many times.
        several = case.without + RECORDS * (case.with_ - case.without)
        planted = replace(case, name=f"person of {RECORDS}, {case.name}", with_=several)
        plan = one_step_plan(1.0, summaries=((case.kind, 1, SUMMARY_SIGMA),))
        noise = SimulationNoise(seed, number, RECORDS)
        found = summary_draws(planted, plan, summaries, noise, watch)
        event, record = plan.required(case.kind), claimed(plan, case.kind)
        yield from _findings(planted.name, event, found, record, 2 * summaries)


def _findings(
    name: str, event: GaussianEvent, draws: Draws, record: float, count: int
) -> Iterator[Finding]:
    """The claim about a person, and the claim about one record made for the person."""
    attack = f"projection on what {RECORDS} copies of the canary add"
    lower = person_lower_bound(draws, event)
    person = person_epsilon([event], DELTA, RECORDS)
    yield Finding(name=name, claimed=person, lower=lower, tight=True, draws=count, attack=attack)
    yield Finding(
        name=f"{name}, as if one record",
        control=True,
        claimed=record,
        lower=lower,
        draws=count,
        attack=attack,
    )


def person_lower_bound(draws: Draws, event: GaussianEvent) -> float:
    """What the draws prove about a person's epsilon, whatever the noise was."""
    shares = stats.binom.pmf(np.arange(RECORDS + 1), RECORDS, event.sample_rate)
    mu = group_mu_lower_bound(draws.with_, draws.without, shares)
    if mu == 0.0:
        return 0.0
    return person_epsilon([replace(event, noise_multiplier=1 / mu)], DELTA, RECORDS)
