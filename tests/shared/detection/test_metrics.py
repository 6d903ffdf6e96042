"""Measures agree with hand-made cases."""

import math

import numpy as np
import pytest

from fedlatent.shared.detection.metrics import (
    auprc,
    auroc,
    fpr_at_tpr,
    per_site_mean,
    pooled,
    vus_pr,
)

LABEL = [0, 0, 0, 0, 1, 1]


def test_perfect_reversed_and_tied() -> None:
    """Perfect, reversed and constant scores give 1, 0 and one half."""
    assert auroc(LABEL, [1, 2, 3, 4, 5, 6]) == 1.0
    assert auroc(LABEL, [6, 5, 4, 3, 2, 1]) == 0.0
    assert auroc(LABEL, np.zeros(6)) == 0.5
    assert auprc(LABEL, [1, 2, 3, 4, 5, 6]) == 1.0
    assert auprc(LABEL, np.zeros(6)) == pytest.approx(1 / 3)


def test_false_positives_at_a_detection_rate() -> None:
    """The threshold is the highest that still finds the wanted share of anomalies."""
    score = [1.0, 2.0, 3.0, 5.5, 5.0, 6.0]
    assert fpr_at_tpr(LABEL, score, tpr=0.5) == 0.0
    assert fpr_at_tpr(LABEL, score, tpr=0.95) == 0.25
    assert fpr_at_tpr(LABEL, np.zeros(6)) == 1.0
    many = np.r_[np.zeros(100), np.ones(20)]
    values = np.r_[np.linspace(0, 1, 100), np.linspace(0.5, 1.5, 20)]
    expected = (values[:100] >= np.sort(values[100:])[1]).mean()
    assert fpr_at_tpr(many, values, tpr=0.95) == pytest.approx(expected)


def test_site_mean_leaves_single_class_sites_out() -> None:
    """Sites of one class do not count in the mean, but do in the pooled measure."""
    sites = [(LABEL, [1, 2, 3, 4, 5, 6]), (LABEL, np.zeros(6)), ([0, 0], [9, 9])]
    assert per_site_mean(auroc, sites) == 0.75
    assert pooled(auroc, sites) < 0.75
    with pytest.raises(ValueError, match="at least one site"):
        per_site_mean(auroc, sites[2:])


@pytest.mark.parametrize("metric", [auroc, auprc, fpr_at_tpr])
@pytest.mark.parametrize(
    ("label", "score"),
    [
        ([0, 0], [1.0, 2.0]),
        ([0, 2], [1.0, 2.0]),
        ([0, 1], [1.0]),
        ([0, 1], [1.0, np.nan]),
        ([[0, 1]], [[1.0, 2.0]]),
    ],
)
def test_wrong_arguments(metric, label, score) -> None:  # noqa: ANN001
    """Missing classes, unequal lengths and NaN are programming errors."""
    with pytest.raises(ValueError, match="Expected"):
        metric(label, score)


def test_wrong_rate() -> None:
    """A detection rate of zero or above one is a programming error."""
    with pytest.raises(ValueError, match="true-positive"):
        fpr_at_tpr(LABEL, np.arange(6), tpr=0.0)


def slow_area(label: list[int], score: list[float], length: int) -> float:
    """Area under range-aware precision and recall for one buffer, point by point."""
    count, half = len(label), length // 2
    starts = [i for i in range(count) if label[i] and (i == 0 or not label[i - 1])]
    ends = [i for i in range(count) if label[i] and (i == count - 1 or not label[i + 1])]
    weight = [float(one) for one in label]
    for s, e in zip(starts, ends, strict=True):
        for i in range(count):
            d = s - i if i < s else i - e
            if 0 < d <= half:
                weight[i] = min(1.0, weight[i] + math.sqrt(1.0 - d / length))
    area = before = 0.0
    for threshold in sorted(set(score), reverse=True):
        flagged = [i for i in range(count) if score[i] >= threshold]
        true = sum(weight[i] for i in flagged)
        touched = sum(
            any(s - half <= i <= e + half for i in flagged)
            for s, e in zip(starts, ends, strict=True)
        )
        recall = min(1.0, true / ((sum(label) + sum(weight)) / 2)) * touched / len(starts)
        area += (recall - before) * true / len(flagged)
        before = recall
    return area


def test_volume_of_a_series_by_hand() -> None:
    """One anomaly of one point, found one point late, at buffers 0 and 2."""
    label, score = [0, 0, 1, 0, 0], [0.0, 0.0, 0.5, 1.0, 0.0]
    assert vus_pr(label, score, buffer=0) == pytest.approx(0.5)
    slope = math.sqrt(0.5)
    positives = (1.0 + (1.0 + 2.0 * slope)) / 2.0
    first, second = slope / positives, min(1.0, (1.0 + slope) / positives)
    area = first * slope + (second - first) * (1.0 + slope) / 2.0
    assert second == 1.0
    assert vus_pr(label, score, buffer=2) == pytest.approx((0.5 + 0.5 + area) / 3.0)


def test_volume_counts_anomalies_found_late() -> None:
    """Of two anomalies the recall of the first alone counts half, until the second is touched."""
    label = [1, 1, 0, 0, 1, 1]
    assert vus_pr(label, [4, 3, 0, 0, 2, 1], buffer=0) == pytest.approx(1.0)
    late = 0.25 * 1.0 + (1.0 - 0.25) * 4 / 6  # recall 1/2 * 1/2, then all points at once
    assert vus_pr(label, [4, 3, 0, 0, 0, 0], buffer=0) == pytest.approx(late)


@pytest.mark.parametrize("seed", range(6))
def test_volume_agrees_with_the_slow_one(seed: int) -> None:
    """For drawn labels and tied scores, ends of the series included, both give one number."""
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.integers(0, 2, 14), rng.integers(1, 5, 14)).tolist()
    label[0], label[-1] = seed % 2, 1
    label[1:3] = [0, 0]
    score = rng.integers(0, 8, len(label)).astype(float).tolist()
    areas = [slow_area(label, score, length) for length in range(10)]
    for buffer in (0, 1, 4, 9):
        expected = np.mean(areas[: buffer + 1])
        assert vus_pr(label, score, buffer=buffer) == pytest.approx(expected, abs=1e-12)


def test_volume_without_a_buffer_is_average_precision() -> None:
    """For a single anomaly and no buffer nothing but points counts, ties included."""
    rng = np.random.default_rng(4)
    label = np.repeat([0, 1, 0], [40, 20, 60])
    for score in (rng.normal(size=120) + label, rng.integers(0, 5, 120) + label):
        for buffer in (0, 1):
            assert vus_pr(label, score, buffer=buffer) == pytest.approx(auprc(label, score))


def test_volume_ranks_detectors() -> None:
    """Perfect is near 1, a bit late loses little with buffers and much without, chance is low."""
    label = np.zeros(2000)
    for start in (300, 900, 1500):
        label[start : start + 60] = 1
    rng = np.random.default_rng(0)
    perfect, late, chance = label + 0.0, np.roll(label, 6), rng.random(2000)
    by_name = {
        name: vus_pr(label, score, buffer=20)
        for name, score in {"perfect": perfect, "late": late, "chance": chance}.items()
    }
    assert by_name["perfect"] > 0.93
    assert vus_pr(label, perfect, buffer=0) == pytest.approx(1.0)
    assert by_name["perfect"] > by_name["late"] > by_name["chance"]
    assert by_name["late"] > vus_pr(label, late, buffer=0) + 0.02
    assert by_name["chance"] < 0.15


def test_volume_refuses_what_is_no_series() -> None:
    """A negative buffer, one class and NaN are programming errors."""
    for call in (
        lambda: vus_pr(LABEL, np.arange(6), buffer=-1),
        lambda: vus_pr([0, 0], [1.0, 2.0], buffer=2),
        lambda: vus_pr([0, 1], [1.0, np.nan], buffer=2),
    ):
        with pytest.raises(ValueError, match="Expected"):
            call()
