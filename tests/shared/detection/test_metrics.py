"""Measures agree with hand-made cases."""

import numpy as np
import pytest

from shared.detection.metrics import auprc, auroc, fpr_at_tpr, per_site_mean, pooled

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
