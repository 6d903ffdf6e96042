"""Quality of forecasts given as quantiles; numpy only.

Shape suffixes: Q levels, N forecasts, H steps ahead.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.errors import ConfigError

DECILES = tuple(level / 10 for level in range(1, 10))

Array = NDArray[np.float64]


def weighted_quantile_loss(
    actual_NH: Array, quantiles_QNH: Array, levels: Sequence[float] = DECILES
) -> float:
    """Weighted quantile loss, without unit; 0 is perfect.

    For each level twice the pinball loss (Koenker and Bassett, 1978) summed over all values,
    divided by the sum of their magnitudes; then the mean over levels. As in GluonTS (Alexandrov et
    al., 2020) and in Ansari et al., 2024, "Chronos: Learning the Language of Time Series", D.2.

    Args:
        actual_NH: What came.
        quantiles_QNH: Forecast at each level.
        levels: Between 0 and 1.

    Raises:
        ConfigError: The shapes do not fit, or all values are 0.
    """
    if quantiles_QNH.shape != (len(levels), *actual_NH.shape):
        raise ConfigError(
            f"Expected quantiles of shape {(len(levels), *actual_NH.shape)}, got "
            f"{quantiles_QNH.shape}; give one forecast for each level."
        )
    size = float(np.abs(actual_NH).sum())
    if size == 0:
        raise ConfigError("Expected a value other than 0, got none; measure another loss.")
    level_Q11 = np.asarray(levels, dtype=np.float64)[:, None, None]
    under_QNH = actual_NH - quantiles_QNH
    pinball_QNH = np.maximum(level_Q11 * under_QNH, (level_Q11 - 1.0) * under_QNH)
    return float(2.0 * pinball_QNH.sum((1, 2)).mean() / size)


def coverage(actual_NH: Array, lower_NH: Array, upper_NH: Array) -> float:
    """Share of values within an interval, bounds included."""
    return float(((actual_NH >= lower_NH) & (actual_NH <= upper_NH)).mean())
