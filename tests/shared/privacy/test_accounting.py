"""The accounting against independent implementations and known values."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from dp_accounting import (
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import PrivacyAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from opacus.accountants import RDPAccountant as OpacusAccountant
from opacus.accountants.analysis.rdp import compute_rdp

from fedlatent.shared.privacy.accounting import (
    ORDERS,
    PLD_LIMIT,
    GaussianEvent,
    calibrate,
    epsilon_of,
    filter_order,
    pld_epsilon_of,
    rdp_of,
)
from fedlatent.shared.privacy.audit import gaussian_epsilon

EVENTS = st.builds(
    GaussianEvent,
    noise_multiplier=st.floats(0.7, 20.0),
    sample_rate=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    steps=st.integers(1, 200),
)


def google_epsilon(events: list[GaussianEvent], delta: float) -> float:
    """Epsilon by dp-accounting, at the same Renyi orders."""
    return composed(RdpAccountant(list(ORDERS)), events, delta)


def composed(accountant: PrivacyAccountant, events: list[GaussianEvent], delta: float) -> float:
    """Epsilon by an accountant of dp-accounting."""
    for event in events:
        gaussian = GaussianDpEvent(event.noise_multiplier)
        one = (
            gaussian
            if event.sample_rate == 1.0
            else PoissonSampledDpEvent(event.sample_rate, gaussian)
        )
        accountant.compose(SelfComposedDpEvent(one, event.steps))
    return float(accountant.get_epsilon(delta))


@settings(max_examples=15, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=3))
def test_epsilon_equals_dp_accounting(events: list[GaussianEvent]) -> None:
    """The epsilon of any composition equals dp-accounting's to 1e-6."""
    assert epsilon_of(events, 1e-5) == pytest.approx(google_epsilon(events, 1e-5), rel=1e-6)


def test_epsilon_equals_opacus() -> None:
    """The epsilon of 200 DP-SGD steps equals Opacus's own accountant."""
    accountant = OpacusAccountant()
    for _ in range(200):
        accountant.step(noise_multiplier=1.3, sample_rate=0.1)
    ours = epsilon_of([GaussianEvent(noise_multiplier=1.3, sample_rate=0.1, steps=200)], 1e-5)
    theirs = accountant.get_epsilon(1e-5, alphas=list(ORDERS))
    assert ours == pytest.approx(theirs, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(sigma=st.floats(0.05, 1000.0), rate=st.floats(1e-6, 1.0))
def test_divergences_are_those_of_opacus_to_the_last_bit(sigma: float, rate: float) -> None:
    """Ledgers that Opacus's own figures once filled go on without a difference."""
    ours = rdp_of([GaussianEvent(noise_multiplier=sigma, sample_rate=rate)])
    theirs = compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=list(ORDERS))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("epsilon", "sigma"), [(0.5, 7.03), (1.0, 3.73), (2.0, 1.99), (4.0, 1.08), (8.0, 0.60)]
)
def test_single_release_is_a_little_noisier_than_the_analytic_mechanism(
    epsilon: float, sigma: float
) -> None:
    """RDP asks for more noise than the exact Gaussian mechanism, by less than a fifth."""
    solved = calibrate(epsilon, 1e-5, lambda s: [GaussianEvent(noise_multiplier=s)])
    assert sigma <= solved <= 1.2 * sigma


def test_rounds_compose_over_the_whole_life() -> None:
    """Fifty rounds cost what fifty rounds cost, not what one costs."""
    one = GaussianEvent(noise_multiplier=1.0, sample_rate=0.05, steps=10)
    assert epsilon_of([one] * 50, 1e-5) == pytest.approx(
        epsilon_of([GaussianEvent(noise_multiplier=1.0, sample_rate=0.05, steps=500)], 1e-5)
    )
    assert epsilon_of([one] * 50, 1e-5) > 2 * epsilon_of([one], 1e-5)
    assert epsilon_of([], 1e-5) == 0.0


@pytest.mark.parametrize(
    "bad",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": float("nan")},
        {"noise_multiplier": 1.0, "sample_rate": 1.5},
        {"noise_multiplier": 1.0, "steps": -1},
    ],
)
def test_an_event_without_an_epsilon_is_refused(bad: dict[str, float]) -> None:
    """Parameters outside the theory raise instead of giving a number."""
    with pytest.raises(ValueError, match="Expected"):
        GaussianEvent(**bad)  # type: ignore[arg-type]


def test_calibration_is_tight() -> None:
    """The solved noise meets epsilon, and one part in a thousand less noise does not."""

    def events(s: float) -> list[GaussianEvent]:
        return [GaussianEvent(noise_multiplier=s, sample_rate=0.1, steps=100)]

    solved = calibrate(2.0, 1e-5, events)
    assert epsilon_of(events(solved), 1e-5) <= 2.0
    assert epsilon_of(events(solved * 0.999), 1e-5) > 2.0
    assert np.isfinite(solved)


# By privacy loss distribution.

#: Noise multiplier, sampling rate and steps of each event.
MIXED = [
    [(1.3, 0.1, 200)],
    [(0.8, 0.02, 400), (5.0, 1.0, 1), (9.0, 1.0, 1)],
    [(2.5, 0.5, 20), (1.7, 0.2, 30), (6.0, 1.0, 3)],
    [(40.0, 0.3, 150), (60.0, 1.0, 2)],
]


def mixed(*parts: tuple[float, float, int]) -> list[GaussianEvent]:
    """Events of such triples."""
    return [GaussianEvent(noise_multiplier=s, sample_rate=q, steps=k) for s, q, k in parts]


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("sigma", [0.3, 0.6, 1.0, 2.0, 7.0, 50.0, 300.0])
def test_pld_of_whole_gaussians_is_exact_and_never_below(sigma: float, delta: float) -> None:
    """Releases on all records cost what the analytic Gaussian mechanism costs, rounded up."""
    split = [GaussianEvent(noise_multiplier=sigma * 3**0.5, steps=k) for k in (1, 2)]
    exact = gaussian_epsilon(1 / sigma, delta)
    assert exact <= pld_epsilon_of(split, delta) <= exact * (1 + 1e-4) + 1e-4


@pytest.mark.parametrize("parts", MIXED)
def test_pld_of_sampled_steps_lies_within_the_bounds_of_opacus(
    parts: list[tuple[float, float, int]],
) -> None:
    """Opacus' PRV accountant states an upper bound that is within 0.02 of a lower one."""
    accountant = PRVAccountant()
    accountant.history = [(s, q, k) for s, q, k in parts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # logarithms of zeros that it masks, and its own orders
        upper = accountant.get_epsilon(1e-5, eps_error=0.01)
    found = pld_epsilon_of(mixed(*parts), 1e-5)
    assert upper - 0.022 <= found <= upper
    assert found <= epsilon_of(mixed(*parts), 1e-5)


@pytest.mark.parametrize("parts", MIXED)
def test_zero_out_costs_what_add_remove_costs(parts: list[tuple[float, float, int]]) -> None:
    """dp-accounting's own accountant gives the same for both adjacencies, and what ours gives."""
    found = pld_epsilon_of(mixed(*parts), 1e-5)
    for relation in (NeighboringRelation.REPLACE_SPECIAL, NeighboringRelation.ADD_OR_REMOVE_ONE):
        theirs = composed(PLDAccountant(relation), mixed(*parts), 1e-5)
        assert found == pytest.approx(theirs, rel=1e-3)
        assert found >= theirs - 1e-6  # ours tells losses apart less finely, and rounds up


def test_pld_counts_the_worse_direction() -> None:
    """Replace-one is worse than zero-out, and one direction of zero-out is worse than the other."""
    events = mixed((1.0, 0.1, 10))
    once = composed(PLDAccountant(NeighboringRelation.REPLACE_ONE), events, 1e-5)
    assert pld_epsilon_of(events, 1e-5) < once


@settings(max_examples=5, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=2), EVENTS)
def test_pld_is_tighter_than_rdp_and_grows(
    events: list[GaussianEvent], more: GaussianEvent
) -> None:
    """PLD never exceeds RDP, and one release more never costs less, but for the rounding."""
    found = pld_epsilon_of(events, 1e-5)
    assert 0.0 <= found <= epsilon_of(events, 1e-5)
    assert pld_epsilon_of([*events, more], 1e-5) >= found * (1 - 1e-3)


def test_pld_at_the_ends() -> None:
    """No event costs nothing; what promises nothing is RDP's figure, at once and without memory."""
    assert pld_epsilon_of([], 1e-5) == 0.0
    assert pld_epsilon_of(mixed((1.0, 1.0, 0)), 1e-5) == 0.0
    for sigma in (1e-6, 0.05):
        hopeless = mixed((sigma, 0.1, 100))
        assert pld_epsilon_of(hopeless, 1e-5) == epsilon_of(hopeless, 1e-5) > PLD_LIMIT
    with pytest.raises(ValueError, match="delta"):
        pld_epsilon_of(mixed((1.0, 1.0, 1)), 0.0)


def test_a_node_starts_without_the_pld_accountant() -> None:
    """dp-accounting is loaded for the figure alone, and neither it nor absl changes the log."""
    code = (
        "import logging, sys, fedlatent.client.node, fedlatent.client.ledger\n"
        "before = (list(logging.root.handlers), logging.root.level)\n"
        "from fedlatent.shared.privacy.accounting import GaussianEvent, pld_epsilon_of\n"
        "assert not {'dp_accounting', 'absl'} & sys.modules.keys()\n"
        "pld_epsilon_of([GaussianEvent(noise_multiplier=1.0)], 1e-5)\n"
        "assert 'dp_accounting' in sys.modules\n"
        "assert (logging.root.handlers, logging.root.level) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


# The order of the filter.


@pytest.mark.parametrize("budget", [1.0, 4.0, 8.0, 40.0])
@pytest.mark.parametrize("parts", MIXED)
def test_the_order_of_a_filter_holds_what_comes_first_the_most_often(
    parts: list[tuple[float, float, int]], budget: float
) -> None:
    """As many repetitions fit at the fixed order as fit at the best order in hindsight."""
    order = filter_order(mixed(*parts), budget, 1e-5)

    def fit(fixed: float | None) -> int:
        count = 0
        while count < 60 and epsilon_of(mixed(*parts) * (count + 1), 1e-5, fixed) <= budget:
            count += 1
        return count

    assert fit(order) == fit(None)


def test_no_order_is_better_than_the_best() -> None:
    """Without an order epsilon is the least over all; a fixed one only ever says more."""
    events = mixed((1.3, 0.1, 200))
    every = [epsilon_of(events, 1e-5, order) for order in ORDERS]
    assert epsilon_of(events, 1e-5) == min(every)
    assert epsilon_of([], 1e-5, 6.0) == 0.0
