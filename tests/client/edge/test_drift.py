"""The drift monitor: few false alarms, quick detection of what counts, right quantiles."""

import json

import numpy as np
import pytest

from fedlatent.client.edge.drift import BASELINE, CALM, LEVEL, DriftMonitor, hotelling_quantile
from fedlatent.shared.bundle.graphs import Density
from fedlatent.shared.errors import ConfigError

BLOCK = 128


def _series(rng: np.random.Generator, records: int, k: int, rho: float) -> np.ndarray:
    """A stationary AR(1) series [records, k] with variance 1."""
    noise = rng.normal(size=(records, k))
    if rho:
        noise[1:] *= np.sqrt(1 - rho**2)
        for step in range(1, records):
            noise[step] += rho * noise[step - 1]
    return noise


def _monitor(mix: np.ndarray, **options: float) -> DriftMonitor:
    within = mix @ mix.T
    density = Density(mean=np.zeros(len(mix)), covariance=2 * within, within=within)
    return DriftMonitor(density, **{"block": BLOCK, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(("k", "rho"), [(2, 0.0), (8, 0.0), (8, 0.5), (2, 0.9), (32, 0.9)])
def test_stationary_latents_raise_at_most_one_alarm_in_a_thousand_blocks(
    k: int, rho: float
) -> None:
    """On independent and on correlated latents the rate holds even when any shift counts."""
    rng = np.random.default_rng(11)
    blocks = alarms = 0
    parallel = 20  # series next to each other
    series = _series(rng, BLOCK * (100 + BASELINE), k * parallel, rho)
    for number in range(parallel):
        mix = np.eye(k) + rng.normal(size=(k, k)) / np.sqrt(k)
        monitor = _monitor(mix * rng.uniform(0.8, 1.3), least=0.0)
        shift = rng.normal(size=k)  # this device lies elsewhere, which is no drift
        own = (series[:, number * k : (number + 1) * k] + shift) @ mix.T
        monitor.update(own)
        alarms += monitor.alarms
        blocks += monitor.blocks - BASELINE
    assert blocks == 100 * parallel
    assert alarms <= 2


def _delay(monitor: DriftMonitor, k: int, rho: float, shift: float, blocks: int, seed: int) -> int:
    """Blocks from a shift of one latent to the alarm; 99 when none comes."""
    rng = np.random.default_rng(seed)
    monitor.update(_series(rng, BLOCK * 24, k, rho))
    assert not monitor.drifted
    before = monitor.blocks
    moved = _series(rng, BLOCK * blocks, k, rho)
    moved[:, 0] += shift
    events = [event for event in monitor.update(moved) if event["kind"] == "mean"]
    return int(str(events[0]["blocks"])) - before if events else 99


@pytest.mark.parametrize(
    ("k", "rho", "least", "shift", "within"),
    [
        (2, 0.0, 0.0, 0.5, 4),
        (8, 0.0, 0.0, 0.5, 5),
        (8, 0.5, 0.0, 0.5, 12),
        (2, 0.0, 1.0, 1.5, 7),
        (8, 0.5, 1.0, 1.5, 7),
        (8, 0.9, 1.0, 2.0, 7),
        (8, 0.9, 1.0, 4.0, 3),
    ],
)
def test_shifts_above_the_least_are_found(
    k: int, rho: float, least: float, shift: float, within: int
) -> None:
    """A shift of one latent, in deviations, is found in most of 20 runs within few blocks."""
    found = [_delay(_monitor(np.eye(k), least=least), k, rho, shift, 12, n) for n in range(20)]
    assert np.mean(np.array(found) <= within) >= 0.8


@pytest.mark.parametrize(("k", "rho"), [(2, 0.0), (8, 0.0), (8, 0.5)])
def test_shifts_below_the_least_raise_nothing(k: int, rho: float) -> None:
    """A lasting shift of 0.6 deviations is no alarm by default, though it is surely there."""
    for number in range(10):
        monitor = _monitor(np.eye(k))
        assert _delay(monitor, k, rho, 0.6, 40, number) == 99
        assert monitor.shift == pytest.approx(0.6, abs=0.35)


def test_change_of_spread_is_found_and_ends() -> None:
    """Latents that spread 1.5 times as far raise "spread"; after calm blocks, it ends."""
    rng = np.random.default_rng(2)
    monitor = _monitor(np.eye(4))
    monitor.update(_series(rng, BLOCK * 20, 4, 0.0))
    assert not monitor.drifted
    (begun,) = monitor.update(1.5 * _series(rng, BLOCK * 4, 4, 0.0))
    assert (begun["kind"], begun["begun"]) == ("spread", True)
    assert begun["spread"] == pytest.approx(1.5, abs=0.15)
    assert monitor.drifted
    (ended,) = monitor.update(_series(rng, BLOCK * 10, 4, 0.0))
    assert (ended["kind"], ended["begun"], ended["blocks"]) == ("spread", False, 20 + 4 + CALM)
    assert not monitor.drifted
    assert monitor.alarms == 1


def test_shift_to_and_fro_is_one_alarm() -> None:
    """Latents that come and go every few blocks give one alarm, not one each time."""
    rng = np.random.default_rng(3)
    monitor = _monitor(np.eye(4))
    monitor.update(_series(rng, BLOCK * 20, 4, 0.0))
    for _ in range(10):
        monitor.update(_series(rng, BLOCK * 6, 4, 0.0) + 1.5)
        monitor.update(_series(rng, BLOCK * 6, 4, 0.0))
    assert monitor.alarms == 1
    monitor.update(_series(rng, BLOCK * 30, 4, 0.0))
    assert not monitor.drifted


def test_distance_is_to_the_released_mean_and_shift_to_the_baseline() -> None:
    """Both are Mahalanobis distances: by the released covariance, and by that within clients."""
    rng = np.random.default_rng(4)
    mix = np.array([[2.0, 0.0], [0.5, 1.0]])
    monitor = _monitor(mix)
    place, moved = np.array([3.0, -1.0]), np.array([1.5, 0.5])
    monitor.update((_series(rng, BLOCK * 60, 2, 0.0) + place) @ mix.T)
    assert not monitor.drifted  # far from others, but where it began
    monitor.update((_series(rng, BLOCK * 60, 2, 0.0) + place + moved) @ mix.T)
    released = 2 * mix @ mix.T
    now = mix @ (place + moved)
    expected = np.sqrt(now @ np.linalg.solve(released, now))
    assert monitor.distance == pytest.approx(expected, abs=0.15)
    assert monitor.shift == pytest.approx(np.linalg.norm(moved), abs=0.15)
    assert monitor.drifted


def test_single_anomalies_are_no_drift() -> None:
    """One wild record in a hundred, from some moment on, raises nothing."""
    rng = np.random.default_rng(6)
    monitor = _monitor(np.eye(4), least=0.0)
    monitor.update(_series(rng, BLOCK * 40, 4, 0.0))
    wild = _series(rng, BLOCK * 60, 4, 0.0)
    wild[::100] = 50.0 * rng.normal(size=(len(wild[::100]), 4))
    assert [event for event in monitor.update(wild) if event["kind"] == "mean"] == []


def test_a_calm_device_moves_far_beyond_its_own_spread() -> None:
    """A device that varies a tenth as much as others is in alarm after a move that counts there.

    Single wild records of it still raise nothing.
    """
    rng = np.random.default_rng(7)
    for moves in (True, False):
        monitor = _monitor(np.eye(4))
        monitor.update(0.1 * _series(rng, BLOCK * 20, 4, 0.0))
        later = 0.1 * _series(rng, BLOCK * 10, 4, 0.0)
        if moves:
            later += np.array([2.0, 0.0, 0.0, 0.0])
        else:
            later[::100] = 50.0
        monitor.update(later)
        assert monitor.drifted == moves


def test_portions_do_not_matter() -> None:
    """One record at a time gives the events of all at once."""
    rng = np.random.default_rng(8)
    series = _series(rng, BLOCK * 24, 3, 0.3)
    series[BLOCK * 20 :] += 2.0
    whole, single = _monitor(np.eye(3)), _monitor(np.eye(3))
    expected = whole.update(series)
    got: list[dict[str, object]] = []
    for row in series:
        got += single.update(row[None])
    assert got == expected != []
    assert json.loads(json.dumps(single.report())) == json.loads(json.dumps(whole.report()))


def test_latents_that_stand_still() -> None:
    """Constant latents and a degenerate covariance are no error, and a jump is then found."""
    within = np.diag([1.0, 1.0, 0.0])
    monitor = DriftMonitor(Density(mean=np.zeros(3), covariance=np.zeros((3, 3)), within=within))
    still = np.tile([1.0, 2.0, 3.0], (BLOCK * 20, 1))
    assert monitor.update(still) == []
    assert monitor.report()["shift"] == 0.0
    jumped = still[: BLOCK * 3] + np.array([4.0, 0.0, 0.0])
    assert [event["kind"] for event in monitor.update(jumped)] == ["mean"]


def test_settings_are_checked() -> None:
    """Blocks and least shifts that make no test are ConfigErrors."""
    for change in ({"block": 2}, {"least": -1.0}, {"least": np.nan}):
        with pytest.raises(ConfigError, match="blocks of at least"):
            _monitor(np.eye(2), **change)


def test_quantiles() -> None:
    """Approximate quantiles are those of scipy, or up to 5 % more cautious far out."""
    from scipy import stats

    for k, records in [(1, 100), (2, 50), (8, 100), (8, 1e9), (32, 100), (32, 2000)]:
        for level in (0.005, LEVEL):
            exact = k * records / (records - k) * stats.f.ppf(1 - level, k, records - k)
            assert 0.99 <= hotelling_quantile(1 - level, k, records) / exact <= 1.05
