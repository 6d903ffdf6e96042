"""Server optimisers (Reddi et al. 2021): Flower's own, one step at a time on the weighted mean."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi

from fedlatent.shared.arrays import Arrays, add_prefix, strip_prefix
from fedlatent.shared.config import StrategySection

_MOMENTUM = 0.9
_ADAPTIVE = {"adam": FedAdam, "yogi": FedYogi, "adagrad": FedAdagrad}


def server_step(
    section: StrategySection, round: int, before: Arrays, mean: Arrays, state: Arrays
) -> tuple[Arrays, Arrays]:
    """The shared arrays after a round, and the optimiser's state.

    Args:
        section: names the optimiser; "none" takes the mean as it is.
        round: training round, from 1.
        before: what the clients were sent.
        mean: the weighted mean of what they answered.
        state: what the last step returned, or nothing.
    """
    if section.server_optimizer == "none":
        return mean, {}
    if section.server_optimizer == "momentum":
        return _momentum(section.server_learning_rate, before, mean, state)
    rule = _ADAPTIVE[section.server_optimizer](eta=section.server_learning_rate)
    rule.current_arrays = {key: value.astype(np.float64) for key, value in before.items()}
    rule.m_t, rule.v_t = strip_prefix(state, "m/") or None, strip_prefix(state, "v/") or None
    record, _ = rule.aggregate_train(round, [_reply(mean)])
    kept = {**add_prefix("m/", dict(rule.m_t or {})), **add_prefix("v/", dict(rule.v_t or {}))}
    return _like(before, record), kept


def _momentum(rate: float, before: Arrays, mean: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
    rule = FedAvgM(server_learning_rate=rate, server_momentum=_MOMENTUM)
    rule.current_arrays = _record(before)
    velocity = strip_prefix(state, "m/")
    rule.momentum_vector = [velocity[key] for key in before] if velocity else None
    record, _ = rule.aggregate_train(1, [_reply({key: mean[key] for key in before})])
    kept = dict(zip(before, rule.momentum_vector or [], strict=True))
    return _like(before, record), add_prefix("m/", kept)


def _reply(mean: Mapping[str, np.ndarray]) -> Message:
    """The mean as the one answer of a round, which is how Flower's strategies take it."""
    content = RecordDict({"arrays": _record(mean), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, dst_node_id=1, message_type="train")


def _record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({key: Array(np.asarray(value, np.float64)) for key, value in arrays.items()})


def _like(before: Arrays, record: ArrayRecord | None) -> Arrays:
    if record is None:
        raise ValueError("Expected new arrays of the server optimiser, got none.")
    return {key: record[key].numpy().astype(value.dtype) for key, value in before.items()}
