"""Measures of a detector: scores are higher for anomalies, labels are 0 normal and 1 anomalous.

Point-adjusted F1 is left out on purpose: it credits random scores.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Metric = Callable[[ArrayLike, ArrayLike], float]


def auroc(label: ArrayLike, score: ArrayLike) -> float:
    """Return the area under the ROC curve; ties count one half.

    Raises:
        ValueError: If lengths differ, a score is not finite, or one of the classes is absent.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_checked(label, score)))


def auprc(label: ArrayLike, score: ArrayLike) -> float:
    """Return the average precision, that is, the area under the precision-recall steps.

    Raises:
        ValueError: As `auroc`.
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_checked(label, score)))


def fpr_at_tpr(label: ArrayLike, score: ArrayLike, tpr: float = 0.95) -> float:
    """Return the share of normals flagged at the highest threshold that finds `tpr` of anomalies.

    Raises:
        ValueError: As `auroc`, or if `tpr` is outside (0, 1].
    """
    if not 0.0 < tpr <= 1.0:
        raise ValueError(f"Expected a true-positive rate in (0, 1], got {tpr}.")
    labels, scores = _checked(label, score)
    found = np.sort(scores[labels == 1])[::-1]
    threshold = found[int(np.ceil(round(tpr * len(found), 9))) - 1]
    return float((scores[labels == 0] >= threshold).mean())


def vus_pr(label: ArrayLike, score: ArrayLike, *, buffer: int) -> float:
    """Return the volume under the precision-recall surface of one series (VUS-PR).

    Measure of Paparrizos et al. 2022 ("Volume Under the Surface", PVLDB 15(11), section 4): the
    area under precision and recall, averaged over buffers l = 0 ... `buffer`. With a buffer l an
    anomaly reaches l / 2 points beyond either end, where a point at distance d counts as
    sqrt(1 - d / l); where buffers overlap they add up, to 1 at most. For predictions p and such
    labels w, TP = w p, precision = TP / sum p, and recall = min(1, 2 TP / (sum label + sum w))
    times the share of anomalies that are touched within their buffers.

    Three points are settled here that paper and published code treat differently: both slopes
    have the same length, anomalies whose buffers meet stay separate ones, and the area is the sum
    of steps over all thresholds, as in `auprc`, rather than trapezoids over some. So the value at
    a buffer of 0 or 1 is `auprc` for a single anomaly; for more, late discovery of one costs.

    Args:
        label: [T], 0 or 1 in order of time. Give one series at a time.
        score: [T].
        buffer: Largest buffer in points; the period of the series or the usual length of an
            anomaly.

    Raises:
        ValueError: As `auroc`, or if `buffer` is negative.
    """
    if buffer < 0:
        raise ValueError(f"Expected a buffer of at least 0 points, got {buffer}.")
    labels, scores = _checked(label, score)
    edges = np.diff(np.concatenate([[0], labels, [0]]))
    ranges = np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)])
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    areas = []
    for length in range(buffer + 1):
        weight, reach = _buffered(labels, ranges, length)
        true = np.cumsum(weight[order])[last_of_tie]
        best = np.maximum.reduceat(np.append(scores, -np.inf), reach.T.ravel())[::2]
        touched = np.searchsorted(np.sort(-best), -scores[order[last_of_tie]], side="right")
        recall = np.minimum(2.0 * true / (labels.sum() + weight.sum()), 1.0) * touched / len(best)
        areas.append(np.diff(recall, prepend=0.0) @ (true / (last_of_tie + 1)))
    return float(np.mean(areas))


def pooled(metric: Metric, sites: Iterable[tuple[ArrayLike, ArrayLike]]) -> float:
    """Return `metric` of the (label, score) pairs of all sites put together: one threshold for all.

    Raises:
        ValueError: As the metric.
    """
    pairs = [(np.asarray(label), np.asarray(score)) for label, score in sites]
    return metric(
        np.concatenate([label for label, _ in pairs]), np.concatenate([score for _, score in pairs])
    )


def per_site_mean(metric: Metric, sites: Iterable[tuple[ArrayLike, ArrayLike]]) -> float:
    """Return the mean of `metric` over the sites that hold both classes.

    Args:
        metric: Takes labels and scores.
        sites: One (label, score) pair per site.

    Raises:
        ValueError: If no site holds both classes.
    """
    values = [
        metric(label, score) for label, score in sites if len(np.unique(np.asarray(label))) == 2
    ]
    if not values:
        raise ValueError("Expected at least one site with normal and anomalous records, got none.")
    return float(np.mean(values))


def _buffered(
    labels: NDArray[np.int64], ranges: NDArray[np.int64], length: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Weights [T] of the points under a buffer, and the ranges [2, K] with their buffers."""
    count, half = len(labels), length // 2
    starts, ends = np.maximum(ranges[0] - half, 0), np.minimum(ranges[1] + half, count)
    covered = np.bincount(starts, minlength=count + 1) - np.bincount(ends, minlength=count + 1)
    covered = np.cumsum(covered)[:count]
    place, points = np.arange(count), np.flatnonzero(labels)
    after = np.searchsorted(points, place)  # the next anomalous point at or after each place
    distance = np.minimum(
        np.abs(points[np.minimum(after, len(points) - 1)] - place),
        np.abs(place - points[np.maximum(after - 1, 0)]),
    )
    slope = np.sqrt(np.maximum(1.0 - distance / max(length, 1), 0.0))
    # One slope is at least sqrt(1/2), so that two of them reach the greatest weight.
    weight = np.where(covered >= 2, 1.0, np.where(covered == 1, slope, 0.0))
    return np.where(labels == 1, 1.0, weight), np.stack([starts, ends])


def _checked(label: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return labels and scores as arrays after checking what every measure needs."""
    labels, scores = np.asarray(label), np.asarray(score, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(
            f"Expected one label for each score, got shapes {labels.shape} and {scores.shape}."
        )
    if set(np.unique(labels).tolist()) != {0, 1}:
        raise ValueError("Expected labels 0 and 1, both present; got others or one class only.")
    if not np.isfinite(scores).all():
        raise ValueError("Expected finite scores, got NaN or infinity.")
    return labels.astype(np.int64), scores
