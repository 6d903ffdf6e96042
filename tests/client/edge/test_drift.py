"""The drift monitor: few false alarms, quick detection, right quantiles, bounded memory."""

import json

import numpy as np
import pytest

from client.edge.drift import DriftEvent, DriftMonitor, hotelling_quantile, t_quantile
from shared.errors import ConfigError

BLOCK = 128
BASELINE = 16


def _series(rng: np.random.Generator, records: int, k: int, rho: float) -> np.ndarray:
    """A stationary AR(1) series [records, k] with variance 1."""
    noise = rng.normal(size=(records, k))
    if rho:
        noise[1:] *= np.sqrt(1 - rho**2)
        for step in range(1, records):
            noise[step] += rho * noise[step - 1]
    return noise


def _monitor(k: int, mix: np.ndarray) -> DriftMonitor:
    within = mix @ mix.T
    return DriftMonitor(np.zeros(k), 2 * within, within, block=BLOCK, baseline=BASELINE)


@pytest.mark.parametrize(("k", "rho"), [(2, 0.0), (8, 0.0), (8, 0.5), (2, 0.9), (32, 0.9)])
def test_stationary_latents_raise_at_most_one_alarm_in_a_thousand_blocks(
    k: int, rho: float
) -> None:
    """On independent and on correlated latents the stated rate holds: 1 in 1,000 blocks."""
    rng = np.random.default_rng(11)
    blocks = alarms = 0
    parallel = 20  # series next to each other
    series = _series(rng, BLOCK * (100 + BASELINE), k * parallel, rho)
    for number in range(parallel):
        mix = np.eye(k) + rng.normal(size=(k, k)) / np.sqrt(k)
        monitor = _monitor(k, mix * rng.uniform(0.8, 1.3))
        shift = rng.normal(size=k)  # this device lies elsewhere, which is no drift
        own = (series[:, number * k : (number + 1) * k] + shift) @ mix.T
        monitor.update(own)
        alarms += monitor.alarms
        blocks += monitor.blocks - BASELINE
    assert blocks == 100 * parallel
    assert alarms <= 2


@pytest.mark.parametrize(("k", "rho", "within"), [(2, 0.0, 3), (8, 0.0, 4), (8, 0.5, 12)])
def test_half_a_deviation_in_one_latent_is_found(k: int, rho: float, within: int) -> None:
    """A shift of 0.5 deviations in one latent is found in most of 30 runs within few blocks."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(30):
        mix = np.eye(k)
        monitor = _monitor(k, mix)
        monitor.update(_series(rng, BLOCK * 24, k, rho))
        before = monitor.blocks
        moved = _series(rng, BLOCK * 12, k, rho)
        moved[:, 0] += 0.5
        events = [event for event in monitor.update(moved) if event.kind == "mean"]
        found.append(events[0].block - before if events else 99)
    assert np.mean(np.array(found) <= within) >= 0.8


def test_change_of_spread_is_found_and_ends() -> None:
    """Latents that spread 1.5 times as far raise "spread"; when they calm down, it ends."""
    rng = np.random.default_rng(2)
    monitor = _monitor(4, np.eye(4))
    monitor.update(_series(rng, BLOCK * 20, 4, 0.0))
    assert not monitor.drifted
    (begun,) = monitor.update(1.5 * _series(rng, BLOCK * 4, 4, 0.0))
    assert (begun.kind, begun.drifted, begun.limit) == ("spread", True, None)
    assert 1.5 < begun.statistic < 2.5
    assert monitor.drifted
    (ended,) = monitor.update(_series(rng, BLOCK * 4, 4, 0.0))
    assert (ended.kind, ended.drifted) == ("spread", False)
    assert not monitor.drifted
    assert monitor.alarms == 1


def test_distance_and_scale_are_of_the_released_summary() -> None:
    """The distance is the Mahalanobis distance to the released mean, the scale that of within."""
    rng = np.random.default_rng(4)
    mix = np.array([[2.0, 0.0], [0.5, 1.0]])
    monitor = _monitor(2, mix)
    shift = np.array([3.0, -1.0])
    monitor.update((_series(rng, BLOCK * 100, 2, 0.0) * 1.2 + shift) @ mix.T)
    released = 2 * mix @ mix.T
    expected = np.sqrt((mix @ shift) @ np.linalg.solve(released, mix @ shift))
    assert monitor.distance == pytest.approx(expected, abs=0.15)
    assert monitor.scale == pytest.approx(1.2**2, abs=0.2)
    assert not monitor.drifted


def test_single_anomalies_are_no_drift() -> None:
    """One wild record in a hundred, from some moment on, raises nothing."""
    rng = np.random.default_rng(6)
    monitor = _monitor(4, np.eye(4))
    monitor.update(_series(rng, BLOCK * 40, 4, 0.0))
    wild = _series(rng, BLOCK * 60, 4, 0.0)
    wild[::100] = 50.0 * rng.normal(size=(len(wild[::100]), 4))
    assert [event for event in monitor.update(wild) if event.kind == "mean"] == []


def test_portions_do_not_matter() -> None:
    """One record at a time gives the events of all at once."""
    rng = np.random.default_rng(8)
    series = _series(rng, BLOCK * 24, 3, 0.3)
    series[BLOCK * 20 :] += 1.0
    whole, single = _monitor(3, np.eye(3)), _monitor(3, np.eye(3))
    expected = whole.update(series)
    got: list[DriftEvent] = []
    for row in series:
        got += single.update(row[None])
    assert got == expected != []
    assert json.loads(json.dumps(single.report())) == json.loads(json.dumps(whole.report()))
    assert whole.report()["ready"] is True


def test_latents_that_stand_still() -> None:
    """Constant latents and a degenerate covariance are no error, and a jump is then found."""
    monitor = DriftMonitor(np.zeros(3), np.zeros((3, 3)), np.diag([1.0, 1.0, 0.0]))
    still = np.tile([1.0, 2.0, 3.0], (BLOCK * 20, 1))
    assert monitor.update(still) == []
    assert monitor.ready
    jumped = still[: BLOCK * 2] + np.array([1.0, 0.0, 0.0])
    assert [event.kind for event in monitor.update(jumped)] == ["mean"]


def test_settings_are_checked() -> None:
    """Blocks, baselines and levels that make no test are ConfigErrors."""
    for change in ({"block": 2}, {"baseline": 1}, {"level": 0.7}):
        with pytest.raises(ConfigError, match="blocks of at least"):
            DriftMonitor(np.zeros(2), np.eye(2), np.eye(2), **change)  # type: ignore[arg-type]


def test_quantiles() -> None:
    """Approximate quantiles agree with those of scipy to 3 %."""
    from scipy import stats

    for k, records in [(1, 100), (2, 50), (8, 100), (8, 1e9), (32, 100), (32, 2000)]:
        exact = k * records / (records - k) * stats.f.ppf(0.995, k, records - k)
        assert hotelling_quantile(0.995, k, records) == pytest.approx(exact, rel=0.03)
    assert t_quantile(0.9975, 15) == pytest.approx(stats.t.ppf(0.9975, 15), rel=0.01)
