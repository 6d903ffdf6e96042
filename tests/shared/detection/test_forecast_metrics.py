"""Losses of forecasts that are given as quantiles."""

import numpy as np
import pytest

from fedlatent.shared.detection.forecast_metrics import DECILES, coverage, weighted_quantile_loss
from fedlatent.shared.errors import ConfigError


def test_a_point_forecast_has_the_relative_absolute_error() -> None:
    """With one number at every level the loss is the sum of errors over the sum of magnitudes."""
    random = np.random.default_rng(0)
    actual, point = random.normal(size=(4, 5)), random.normal(size=(4, 5))
    expected = np.abs(actual - point).sum() / np.abs(actual).sum()
    repeated = np.broadcast_to(point, (9, 4, 5))
    assert weighted_quantile_loss(actual, repeated) == pytest.approx(expected, rel=1e-12)


def test_a_perfect_forecast_costs_nothing() -> None:
    """The loss of what came is 0, and every value lies in its interval."""
    actual = np.arange(1.0, 7.0).reshape(2, 3)
    assert weighted_quantile_loss(actual, np.stack([actual] * 9)) == 0
    assert coverage(actual, actual, actual) == 1


def test_true_quantiles_beat_moved_and_widened_ones() -> None:
    """The loss is proper: in the mean the quantiles of the distribution are best."""
    actual = np.random.default_rng(1).random((20_000, 1))
    true = np.broadcast_to(np.array(DECILES)[:, None, None], (9, *actual.shape))
    best = weighted_quantile_loss(actual, true)
    assert best < weighted_quantile_loss(actual, true + 0.1)
    assert best < weighted_quantile_loss(actual, 0.5 + 1.5 * (true - 0.5))
    assert best < weighted_quantile_loss(actual, 0.5 + 0.5 * (true - 0.5))
    assert coverage(actual, true[0], true[-1]) == pytest.approx(0.8, abs=0.02)


def test_it_refuses_what_it_cannot_measure() -> None:
    """Missing levels, and values that are all 0, are errors that say so."""
    with pytest.raises(ConfigError, match="quantiles of shape"):
        weighted_quantile_loss(np.ones((2, 3)), np.ones((8, 2, 3)))
    with pytest.raises(ConfigError, match="other than 0"):
        weighted_quantile_loss(np.zeros((2, 3)), np.ones((9, 2, 3)))
