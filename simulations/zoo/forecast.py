"""Forecasts of the next day of transformer loads, with intervals, against seasonal baselines.

Data: ETTh1 (and ETTh2 where the folder has it), hourly, Zhou et al., 2021, "Informer". Measured is
the weighted quantile loss over nine deciles of the next 24 hours, as in Ansari et al., 2024,
"Chronos: Learning the Language of Time Series" (benchmark II, "ETT (Hourly)": the last window of
all 14 series of both files). There the seasonal naive forecast has 0.1221, with normal intervals
0.0966, and chronos-t5-small 0.0867; `baseline` gives the first two to four digits. With ETTh1 alone
they are 0.1670 and 0.1462. The last window is one draw, so the mean over all days of the last
fifth is given, too, none of which is trained on.

A record is a window of one series, fifteen days of which the last is forecast, scaled by mean and
deviation of its own first fourteen, which is preprocessing of a record by itself. The model adds to
the values one day before, and its mean has a linear path from the last week. Under DP what is
protected is a window of three days; windows do not overlap then, so that an hour is in one record
at most, and the model is smaller.

Shape suffixes: N windows, V series, T hours, L hours of history, H hours ahead, Q levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fedlatent.shared.data.catalog import absent, paths
from fedlatent.shared.detection.forecast_metrics import DECILES, coverage, weighted_quantile_loss
from fedlatent.shared.models.sequence import SequenceVAE
from fedlatent.simulations.zoo.images import png
from fedlatent.simulations.zoo.training import Watch, fit, run_for

HISTORY, HORIZON, SEASON = 336, 24, 24
LIMIT = 10.0  # of scaled values
TRAINED = 0.8  # share of the hours, from the first on
SAMPLES = 256

#: One step reads a day, so that the next day is one step ahead.
OPTIONS: dict[str, object] = {
    "latent_dim": 8,
    "width": 64,
    "hidden": 64,
    "patch": 24,
    "season": SEASON,
    "memory": 168,
}
DRAWN, RATE = 3200, 0.04  # windows drawn afresh for each round, and of a step's sample
TRAINING: dict[str, object] = {
    "rounds": 40,
    "steps_per_round": 50,
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "beta_warmup": 0.2,
}
#: Under DP records are shorter, for there are more of them, and the model is small and without the
#: linear path, for noise in its weights goes straight into the mean (measured at epsilon 8).
PRIVATE_HISTORY, PRIVATE_RATE = 48, 0.9
PRIVATE_OPTIONS: dict[str, object] = {
    **OPTIONS,
    "latent_dim": 1,
    "width": 4,
    "hidden": 8,
    "memory": 0,
}
PRIVATE: dict[str, object] = {
    "rounds": 3,
    "steps_per_round": 20,
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "ema": 0.5,
}
QUICK: dict[str, object] = {"rounds": 2, "steps_per_round": 2}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Windows:
    """Windows of series, scaled.

    Attributes:
        x: Records `[N, L + H]`.
        mean: Of each history `[N, 1]`.
        deviation: Of each history `[N, 1]`.
        actual: The hours ahead `[N, H]` in their own units.
    """

    x: NDArray[np.float32]
    mean: Array
    deviation: Array
    actual: Array


def series_of(data: Path) -> Array:
    """All columns of etth1, and of etth2 where it is there: `[V, T]`.

    Raises:
        DataError: etth1 is not there.
    """
    names = ["etth1"] if absent(data, ["etth2"]) else ["etth1", "etth2"]
    frames = [pd.read_csv(path) for name in names for path in paths(data, name)]
    return np.concatenate([frame.iloc[:, 1:].to_numpy(float).T for frame in frames])


def windows(
    values_VT: Array,
    series: NDArray[np.int64],
    ends: NDArray[np.int64],
    history: int = HISTORY,
) -> Windows:
    """Windows whose history ends at an hour of `ends`, in the series of the same place."""
    hours_NT = (ends - history)[:, None] + np.arange(history + HORIZON)
    raw_NT = values_VT[series[:, None], hours_NT]
    past_NL = raw_NT[:, :history]
    mean = past_NL.mean(1, keepdims=True)
    # A share of the magnitude, so that a constant history is not blown up.
    deviation = past_NL.std(1, keepdims=True) + 1e-3 * np.abs(past_NL).mean(1, keepdims=True) + 0.01
    scaled_NT = np.clip((raw_NT - mean) / deviation, -LIMIT, LIMIT)
    return Windows(scaled_NT.astype(np.float32), mean, deviation, raw_NT[:, history:])


def baseline(
    values_VT: Array, series: NDArray[np.int64], ends: NDArray[np.int64], *, intervals: bool
) -> Array:
    """Deciles `[Q, N, H]` of the seasonal naive forecast.

    The last season again; with intervals a normal distribution around it whose deviation is that
    of all seasonal differences of the past (Hyndman and Athanasopoulos, 2021, section 5.5). Of use
    for one season ahead only.
    """
    squares_VT = np.square(values_VT[:, SEASON:] - values_VT[:, :-SEASON])
    sums_VT = np.cumsum(squares_VT, 1)
    deviation_N = np.sqrt(sums_VT[series, ends - SEASON - 1] / (ends - SEASON))
    hours_NH = (ends - SEASON)[:, None] + np.arange(HORIZON)
    point_NH = values_VT[series[:, None], hours_NH]
    normal_Q = np.array([NormalDist().inv_cdf(level) if intervals else 0.0 for level in DECILES])
    found_QNH: Array = point_NH + normal_Q[:, None, None] * deviation_N[:, None]
    return found_QNH


def quantiles(model: SequenceVAE, found: Windows, seed: int, levels: Sequence[float]) -> Array:
    """Quantiles `[Q, N, H]` in the series' units, out of drawn paths."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for x in torch.split(torch.from_numpy(found.x), 64):
        with torch.no_grad():
            paths = model.forecast(x[:, :HISTORY], HORIZON, SAMPLES, generator)
        parts.append(np.quantile(paths[:, :, 0].double().numpy(), levels, axis=1))
    return np.concatenate(parts, 1) * found.deviation + found.mean


def experiment(
    data: Path, *, epsilon: float | None, seed: int, quick: bool, watch: Watch | None = None
) -> dict[str, Any]:
    """Train on the first four fifths of the hours and forecast days of the rest.

    Args:
        data: Folder of the real data.
        epsilon: Of the training, or None for none.
        seed: Of weights, samples, noise and drawn paths.
        quick: A form of seconds, whose figures mean nothing.
        watch: Gets lines about the progress.
    """
    values_VT = series_of(data)
    model = train(values_VT, epsilon, seed, quick, watch)
    hours = values_VT.shape[1]
    days = np.arange(hours - HORIZON, int(TRAINED * hours), -HORIZON)[: 3 if quick else None]
    names = {1: "last day", len(days): "all days"}
    figures: dict[str, Any] = {
        "series": len(values_VT),
        "days": len(days),
        "parameters": _size(model),
    }
    for count, name in names.items():
        series = np.repeat(np.arange(len(values_VT)), count)
        ends = np.tile(days[:count], len(values_VT))
        figures[name] = compare(values_VT, model, series, ends, seed)
    figures["picture"] = _shown(values_VT, model, int(days[0]), seed)
    return figures


def compare(
    values_VT: Array,
    model: SequenceVAE,
    series: NDArray[np.int64],
    ends: NDArray[np.int64],
    seed: int,
) -> dict[str, dict[str, float]]:
    """Loss and coverage of the middle 80 % by method."""
    found = windows(values_VT, series, ends)
    forecasts = {
        "seasonal naive": baseline(values_VT, series, ends, intervals=False),
        "seasonal naive, intervals": baseline(values_VT, series, ends, intervals=True),
        "sequence VAE": quantiles(model, found, seed, DECILES),
    }
    return {
        name: {
            "loss": weighted_quantile_loss(found.actual, deciles),
            "coverage": coverage(found.actual, deciles[0], deciles[-1]),
        }
        for name, deciles in forecasts.items()
    }


def train(
    values_VT: Array, epsilon: float | None, seed: int, quick: bool, watch: Watch | None
) -> SequenceVAE:
    """The model; only hours of the first four fifths are seen."""
    last = int(TRAINED * values_VT.shape[1]) - HORIZON  # end of the last history
    private = epsilon is not None
    tiled = _tiled(values_VT, last, PRIVATE_HISTORY if private else HISTORY)
    options = PRIVATE_OPTIONS if private else OPTIONS
    run = run_for(
        "sequence",
        {**options, **({"width": 8, "hidden": 8} if quick else {})},
        tiled.shape[1:],
        training=QUICK if quick else (PRIVATE if private else TRAINING),
        epsilon=epsilon,
        sample_rate=PRIVATE_RATE if private else RATE,
        seed=seed,
        bounds=(-LIMIT, LIMIT),
    )

    def fresh(_: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        random = np.random.default_rng((seed, number))
        series = random.integers(0, len(values_VT), DRAWN)
        return windows(values_VT, series, random.integers(HISTORY, last + 1, DRAWN)).x

    augment = None if private else fresh
    return cast(SequenceVAE, fit(run, tiled, augment=augment, watch=watch))


def _tiled(values_VT: Array, last: int, history: int) -> NDArray[np.float32]:
    """Windows that do not overlap, so that under DP one hour is in one record."""
    ends = np.arange(history, last + 1, history + HORIZON)
    series = np.repeat(np.arange(len(values_VT)), len(ends))
    return windows(values_VT, series, np.tile(ends, len(values_VT)), history).x


def _shown(values_VT: Array, model: SequenceVAE, end: int, seed: int) -> dict[str, Any]:
    """Forecasts of three series' last day: two loads and the oil temperature."""
    series = np.array([0, 2, 6])
    ends = np.full(len(series), end)
    found = windows(values_VT, series, ends)
    return {
        "names": ["HUFL", "MUFL", "OT"],
        "past": values_VT[series, end - 72 : end],
        "actual": found.actual,
        "model": quantiles(model, found, seed, DECILES),
        "baseline": baseline(values_VT, series, ends, intervals=True),
    }


def picture(found: Any) -> bytes | None:  # noqa: ANN401
    """Fans of the middle 80 and 40 % with the interval of the baseline, one row for each series."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(found["names"]), 1, sharex=True)
    past, ahead = np.arange(-len(found["past"][0]), 0), np.arange(HORIZON)
    for number, (axes, name) in enumerate(zip(rows, found["names"], strict=True)):
        model, simple = found["model"][:, number], found["baseline"][:, number]
        axes.plot(past, found["past"][number], color="black", lw=1)
        axes.plot(ahead, found["actual"][number], color="black", lw=1, label="what came")
        axes.fill_between(ahead, model[0], model[-1], color="C0", alpha=0.25, lw=0)
        axes.fill_between(ahead, model[2], model[-3], color="C0", alpha=0.35, lw=0)
        axes.plot(ahead, model[4], color="C0", label="sequence VAE: median, 40 %, 80 %")
        for edge in (simple[0], simple[-1]):
            axes.plot(ahead, edge, color="C1", ls="--", lw=1)
        axes.plot(ahead, simple[4], color="C1", lw=1, label="seasonal naive: median, 80 %")
        axes.set_ylabel(name)
    rows[0].legend(loc="upper left", ncols=3, frameon=False, fontsize=8)
    rows[-1].set_xlabel("hours from the beginning of the forecast")
    return png(figure)


def _size(model: SequenceVAE) -> int:
    return sum(value.numel() for value in model.parameters())
