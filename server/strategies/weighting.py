"""How much each client's weights count in the average; all of it from public numbers."""

import math
from collections.abc import Sequence

import numpy as np

from fedlatent.shared.wire import ReplyHeader

#: From this ratio of signal to noise on, the weight is that without noise to the last bit.
_DROWNS_NOISE = 1e9
#: Of the median weight: no site counts for more where its say is to be bounded.
LARGEST_SHARE = 2.0


def weight_of(rule: str, header: ReplyHeader) -> float:
    """The weight of one reply.

    Args:
        rule: "records": the number of records (FedAvg; McMahan et al. 2017). "uniform": 1 for
            every client. "noise-aware": the number of records times s^2 / (1 + s^2), where
            s = q N sqrt(steps) / sigma is the signal-to-noise ratio of the client's summed
            gradients, each at most of the clipping norm. A client whose noise drowns its signal
            counts less than its records; without noise the rule is that of "records".
        header: of the reply.
    """
    records = float(header.records)
    if rule == "uniform":
        return 1.0
    if rule == "records" or header.noise_multiplier == 0.0:
        return records
    ratio = header.sample_rate * records * math.sqrt(header.steps) / header.noise_multiplier
    if ratio > _DROWNS_NOISE:
        return records
    square = ratio**2
    return records * square / (1.0 + square)


def bounded(weights: Sequence[float]) -> np.ndarray:
    """The weights [n], none above twice their median."""
    found = np.asarray(weights, dtype=np.float64)
    capped: np.ndarray = np.minimum(found, LARGEST_SHARE * np.median(found))
    return capped
