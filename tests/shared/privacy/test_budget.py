"""The budget of a run with every kind of release, against independent accountants."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import PrivacyAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlatent.client.ledger import Ledger
from fedlatent.shared.config import RunConfig
from fedlatent.shared.privacy.accounting import ORDERS, GaussianEvent, calibrate, epsilon_of
from fedlatent.shared.privacy.plan import PrivacyPlan, shares_of
from fedlatent.shared.schedule import Kind, phases

SHARE_NAMES = ("data", "moments", "mixture", "scores", "threshold")


def run_of(
    sharing: str = "encoder+summary",
    *,
    rounds: int = 6,
    data: str = "gaussian",
    components: int = 3,
    combined: bool = True,
    **privacy: Any,  # noqa: ANN401
) -> RunConfig:
    """A run that releases all there is."""
    return RunConfig.parse(
        {
            "name": "budget",
            "sharing": sharing,
            "data": {"name": "ecg", "shape": [8]},
            "training": {"rounds": rounds, "steps_per_round": 7},
            "summaries": {"data": data, "components": components, "em_rounds": 2, "every": 2},
            "scoring": {"combined": combined},
            "privacy": privacy,
        },
        "test",
    )


def compose(accountant: PrivacyAccountant, plan: PrivacyPlan) -> float:
    """Epsilon of a plan by one of dp-accounting's accountants."""
    for event, count in Counter(plan.events()).items():
        gaussian = GaussianDpEvent(event.noise_multiplier)
        one = (
            gaussian
            if event.sample_rate == 1.0
            else PoissonSampledDpEvent(event.sample_rate, gaussian)
        )
        accountant.compose(SelfComposedDpEvent(one, event.steps * count))
    return float(accountant.get_epsilon(plan.delta))


RUNS = st.builds(
    run_of,
    st.sampled_from(["encoder", "summary", "encoder+summary", "full"]),
    rounds=st.integers(1, 12),
    data=st.sampled_from(["none", "scaling", "gaussian"]),
    components=st.sampled_from([0, 3]),
    combined=st.booleans(),
    epsilon=st.floats(0.3, 12.0),
    sample_rate=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    delta=st.sampled_from([1e-5, 1e-7]),
    **{f"{name}_share": st.floats(0.005, 0.18) for name in SHARE_NAMES},
)


@settings(max_examples=40, deadline=None)
@given(RUNS)
def test_any_run_spends_its_epsilon_and_not_more(run: RunConfig) -> None:
    """For random modes, kinds and shares the whole run costs 97 to 100 % of its epsilon."""
    spent = PrivacyPlan.from_config(run).epsilon()
    assert 0.97 * run.privacy.epsilon < spent <= run.privacy.epsilon


@settings(max_examples=30, deadline=None)
@given(RUNS)
def test_multipliers_follow_the_shares(run: RunConfig) -> None:
    """Releases of a kind have a sum of 1/sigma^2 in proportion to the share of the kind."""
    plan, shares = PrivacyPlan.from_config(run), shares_of(run)
    assert sum(shares.values()) == pytest.approx(1.0)
    spent = {kind: count / sigma**2 for kind, count, sigma in plan.summaries}
    (first, *rest) = spent
    for kind in rest:
        assert spent[kind] / spent[first] == pytest.approx(shares[kind] / shares[first], rel=2e-3)


@settings(max_examples=20, deadline=None)
@given(RUNS.filter(lambda run: run.sharing != "summary"))
def test_shares_are_of_one_release_with_the_whole_budget(run: RunConfig) -> None:
    """In a run that trains a kind has share / sigma_1^2, with sigma_1 of a lone release."""
    plan, shares = PrivacyPlan.from_config(run), shares_of(run)
    epsilon, delta = run.privacy.epsilon, run.privacy.delta
    lone = calibrate(epsilon, delta, lambda s: [GaussianEvent(noise_multiplier=s)])
    for kind, count, sigma in plan.summaries:
        assert count / sigma**2 == pytest.approx(shares[kind] / lone**2, rel=2e-3)


@settings(max_examples=15, deadline=None)
@given(RUNS)
def test_a_plan_pays_for_every_phase_of_the_schedule(run: RunConfig) -> None:
    """The events of a plan are those of the phases, one by one."""
    plan = PrivacyPlan.from_config(run)
    each = [plan.required(phase.kind) for phase in phases(run)]
    assert Counter(each) == Counter(plan.events())
    assert epsilon_of(each, plan.delta) == pytest.approx(plan.epsilon())
    kinds = Counter(phase.kind for phase in phases(run))
    assert {kind: count for kind, count, _ in plan.summaries} == {
        kind: count for kind, count in kinds.items() if kind != "train"
    }
    assert plan.rounds == kinds["train"]


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("sharing", ["encoder+summary", "summary"])
def test_a_mixed_plan_costs_what_dp_accounting_says(sharing: str, epsilon: float) -> None:
    """Data, training, moments, mixture, scores and threshold: equal by RDP, less by PLD."""
    plan = PrivacyPlan.from_config(run_of(sharing, epsilon=epsilon))
    expected = {"data", "moments", "mixture", "scores", "threshold"}
    assert {kind for kind, _, _ in plan.summaries} == expected
    rdp = compose(RdpAccountant(), plan)
    pld = compose(PLDAccountant(value_discretization_interval=1e-3), plan)
    assert plan.epsilon() == pytest.approx(rdp, rel=2e-2)  # fractional orders gain up to 2 %
    assert rdp <= plan.epsilon() * (1 + 1e-9)
    assert 0.85 * plan.epsilon() < pld <= plan.epsilon()


@settings(max_examples=8, deadline=None)
@given(RUNS)
def test_any_plan_costs_what_dp_accounting_says_at_the_same_orders(run: RunConfig) -> None:
    """At our Renyi orders dp-accounting has the same epsilon to a thousandth."""
    plan = PrivacyPlan.from_config(run)
    assert plan.epsilon() == pytest.approx(compose(RdpAccountant(list(ORDERS)), plan), rel=1e-3)


@pytest.mark.parametrize("sharing", ["encoder", "encoder+summary", "full"])
def test_shares_that_leave_nothing_for_training_are_refused(sharing: str) -> None:
    """A sum of shares of 1 or more raises, whichever kinds make it."""
    greedy: dict[str, Any] = {f"{name}_share": 0.2 for name in SHARE_NAMES}
    with pytest.raises(ValueError, match="sum below 1"):
        PrivacyPlan.from_config(run_of(sharing, **greedy))
    # A kind that the run does not have takes nothing away.
    plan = PrivacyPlan.from_config(run_of(sharing, components=0, **greedy))
    assert plan.epsilon() <= 4.0


def test_a_run_of_summaries_alone_spends_all_on_them() -> None:
    """Without training shares are proportions, so even small ones use up the whole epsilon."""
    small: dict[str, Any] = {f"{name}_share": 0.01 for name in SHARE_NAMES}
    plan = PrivacyPlan.from_config(run_of("summary", epsilon=2.0, **small))
    assert plan.rounds == 0
    assert plan.noise_multiplier == 0.0
    assert all(event.sample_rate == 1.0 for event in plan.events())
    assert 1.99 < plan.epsilon() <= 2.0
    large: dict[str, Any] = {f"{name}_share": 0.9 for name in SHARE_NAMES}
    assert PrivacyPlan.from_config(run_of("summary", epsilon=2.0, **large)) == plan


def test_a_larger_share_means_less_noise_there_and_more_in_training() -> None:
    """What moments gain, training pays."""
    few, many = (
        PrivacyPlan.from_config(run_of(moments_share=share, epsilon=2.0)) for share in (0.05, 0.4)
    )
    assert many.multiplier("moments") < few.multiplier("moments")
    assert many.multiplier("train") > few.multiplier("train")
    assert many.multiplier("threshold") == few.multiplier("threshold")


def test_a_plan_knows_its_own_kinds_alone() -> None:
    """A kind that the run does not have has no multiplier; no privacy means zeros and no event."""
    plan = PrivacyPlan.from_config(run_of("encoder", components=0, data="none", combined=False))
    with pytest.raises(KeyError):
        plan.multiplier("mixture")
    bare = PrivacyPlan.from_config(run_of(mechanism="none"))
    kinds: tuple[Kind, ...] = ("train", "data", "moments", "mixture", "scores", "threshold")
    assert {bare.multiplier(kind) for kind in kinds} == {0.0}
    assert {bare.event(kind) for kind in kinds} == {None}
    assert math.isinf(bare.epsilon())
    with pytest.raises(ValueError, match="private run"):
        bare.required("moments")


def test_the_ledger_charges_a_run_as_it_was_planned(tmp_path: Path) -> None:
    """Reserving every phase in turn ends at the epsilon of the plan."""
    run = run_of(epsilon=2.0)
    plan = PrivacyPlan.from_config(run)
    ledger = Ledger(tmp_path / "ledger.db", "records", 2.0, plan.delta)
    ledger.open_run("run-1", run.digest(), plan.events())
    for phase in phases(run):
        ledger.reserve("run-1", phase.number, phase.kind, "a", plan.event(phase.kind), "secure")
    assert ledger.epsilon() == pytest.approx(plan.epsilon())
