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
