"""Membership inference on what a usual run releases: was this record among those trained on?

Members are training records, others are held-out normal records of the same clients, split at
random. The attacker has the final encoder, the encoder from before the first round and the released
density, and learns on half of the records how members differ, as if it knew those; then it scores
the other half. These are no worst-case records, so the bound is far from tight.
"""

import math
from dataclasses import dataclass

import numpy as np

from fedlatent.client.compute import run_model
from fedlatent.shared.detection.metrics import auroc
from fedlatent.shared.privacy.audit import clopper_pearson, dp_lower_bound
from fedlatent.shared.privacy.summaries import squared_distance
from fedlatent.simulations.audit.results import Finding
from fedlatent.simulations.audit.usual import UsualRun, codes

#: False positive rates at which hits are counted.
RATES = (0.01, 0.1)

_RIDGE = 0.01  # of the attacker's linear discriminant, on standardised statistics
_NORMAL_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Hits:
    """The attack at one threshold.

    Attributes:
        fpr: share of others taken for members.
        tpr: share of members found.
        surely: 95 % lower limit of ``tpr``.
        allowed: largest true positive rate that epsilon allows, at the upper limit of ``fpr``.
    """

    fpr: float
    tpr: float
    surely: float
    allowed: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Membership:
    """What the attack reached on the records that it did not learn from.

    Attributes:
        finding: the bound; None without privacy, where there is no claim to test.
        auroc: 0.5 is guessing.
        interval: 95 % of ``auroc``.
        hits: at the rates ``RATES``.
        members: scores [N].
        others: scores [M].
    """

    finding: Finding | None
    auroc: float
    interval: tuple[float, float]
    hits: tuple[Hits, ...]
    members: np.ndarray
    others: np.ndarray

    def to_json(self) -> dict[str, object]:
        """The attack's success as JSON values."""
        return {
            "auroc": self.auroc,
            "interval": list(self.interval),
            "hits": [
                {"fpr": one.fpr, "tpr": one.tpr, "surely": one.surely, "allowed": one.allowed}
                for one in self.hits
            ],
            "members": len(self.members),
            "others": len(self.others),
        }


def membership(name: str, usual: UsualRun) -> Membership:
    """Attack the final encoder of a run."""
    parts = statistics(usual, usual.members()), statistics(usual, usual.others())
    direction = _discriminant(*(part[::2] for part in parts))
    members, others = (part[1::2] @ direction for part in parts)
    epsilon, delta = usual.transcript.epsilon, usual.config.privacy.delta
    labels = np.repeat([1, 0], [len(members), len(others)])
    area = auroc(labels, np.concatenate([members, others]))
    spread = _NORMAL_95 * _deviation(area, len(members), len(others))
    finding = None
    if epsilon is not None:
        finding = Finding(
            name=name,
            claimed=epsilon,
            lower=dp_lower_bound(members, others, delta),
            draws=len(members) + len(others),
            attack=f"discriminant of the latent code, AUROC {area:.3f}",
        )
    return Membership(
        finding=finding,
        auroc=area,
        interval=(max(area - spread, 0.0), min(area + spread, 1.0)),
        hits=tuple(_hits(members, others, rate, epsilon, delta) for rate in RATES),
        members=members,
        others=others,
    )


def statistics(usual: UsualRun, records: np.ndarray) -> np.ndarray:
    """What the attacker sees of each record [N, columns].

    Latent means and log variances under the final encoder, the rates under both encoders, and the
    distance to the released density.
    """
    density = usual.transcript.result.released.density
    means, logvars = codes(usual.released(), records)
    before = codes(run_model(usual.config), records)
    distance = squared_distance(means, density.mean, density.precision(recentred=False))
    columns = [_rate(means, logvars), _rate(*before), distance, np.log(distance + 1e-9)]
    return np.column_stack([means, logvars, np.square(means), *columns])


def _rate(means: np.ndarray, logvars: np.ndarray) -> np.ndarray:
    """Divergence of posteriors from N(0, I) in nats [N]."""
    each = np.square(means) + np.exp(logvars) - 1.0 - logvars
    return np.asarray(0.5 * each.sum(axis=1))


def _discriminant(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Linear discriminant [columns] of the two kinds (Fisher 1936), with a ridge."""
    pooled = np.concatenate([members - members.mean(axis=0), others - others.mean(axis=0)])
    scale = pooled.std(axis=0) + 1e-9
    covariance = np.cov((pooled / scale).T) + _RIDGE * np.eye(len(scale))
    offset = (members.mean(axis=0) - others.mean(axis=0)) / scale
    return np.asarray(np.linalg.solve(covariance, offset) / scale)


def _deviation(area: float, positives: int, negatives: int) -> float:
    """Standard error of an area under the ROC curve (Hanley & McNeil 1982, equation 1)."""
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area)
    variance += (positives - 1) * (first - area**2) + (negatives - 1) * (second - area**2)
    return math.sqrt(max(variance, 0.0) / (positives * negatives))


def _hits(
    members: np.ndarray, others: np.ndarray, rate: float, epsilon: float | None, delta: float
) -> Hits:
    threshold = np.quantile(others, 1 - rate)
    wrong, found = int((others > threshold).sum()), int((members > threshold).sum())
    most = clopper_pearson(wrong, len(others), 0.95)[1]
    return Hits(
        fpr=wrong / len(others),
        tpr=found / len(members),
        surely=clopper_pearson(found, len(members), 0.95)[0],
        allowed=1.0 if epsilon is None else min(math.exp(epsilon) * most + delta, 1.0),
    )
