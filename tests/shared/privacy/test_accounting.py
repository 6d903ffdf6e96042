"""The accounting against two independent implementations and known values."""

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant as OpacusAccountant

from shared.privacy.accounting import ORDERS, GaussianEvent, calibrate, epsilon_of

EVENTS = st.builds(
    GaussianEvent,
    noise_multiplier=st.floats(0.7, 20.0),
    sample_rate=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    steps=st.integers(1, 200),
)


def google_epsilon(events: list[GaussianEvent], delta: float) -> float:
    """Epsilon by dp-accounting, at the same Renyi orders."""
    accountant = RdpAccountant(list(ORDERS))
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
