"""The experiment on forecasts."""

from pathlib import Path

import numpy as np
import pytest

from fedlatent.shared.detection.forecast_metrics import weighted_quantile_loss
from fedlatent.simulations.zoo import forecast


def test_the_baselines_have_their_known_losses(data_dir: Path) -> None:
    """On the last day of ETTh1 the seasonal naive forecast has 0.1670, with intervals 0.1462."""
    values = forecast.series_of(data_dir)[:7]
    series, ends = np.arange(7), np.full(7, values.shape[1] - forecast.HORIZON)
    actual = forecast.windows(values, series, ends).actual
    losses = [
        weighted_quantile_loss(actual, forecast.baseline(values, series, ends, intervals=intervals))
        for intervals in (False, True)
    ]
    assert losses == pytest.approx([0.1670, 0.1462], abs=1e-4)


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_the_quick_form_runs(data_dir: Path, epsilon: float | None) -> None:
    """It gives finite losses for all methods, and a picture."""
    found = forecast.experiment(data_dir, epsilon=epsilon, seed=0, quick=True)
    for name in ("last day", "all days"):
        assert set(found[name]) == {"seasonal naive", "seasonal naive, intervals", "sequence VAE"}
        assert all(0 < one["loss"] < 10 for one in found[name].values())
    image = forecast.picture(found["picture"])
    assert image is not None
    assert image.startswith(b"\x89PNG")
