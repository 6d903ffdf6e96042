"""The seam of strategies: Flower's own ``flwr.serverapp.strategy.Strategy``, of whatever class.

On every grid, two of its methods are called in each training phase:

``configure_train``
    Who is asked, of the nodes that are there: the receivers of its messages. Their contents are
    left, since what a site is asked is the run's own request, signed.
``aggregate_train``
    The new weights [float64], of the replies that passed screening. Each comes as Flower's
    strategies take it: ``arrays`` has the weights [float64], by name; ``metrics`` what they count,
    as ``num-examples``. Updates far longer than the others' are drawn back before
    (``federation.norm_factor``).

A strategy is one class. Flower's work as they are; one's own is a subclass in a file of its own.
Either is given to ``drive(strategy=...)``. Those that ``strategy.robust`` names stand in one table
(``fedlatent.server.strategies.robust.RULES``); they are made once the replies are counted, and all
sites are asked. What Flower's optimisers hold between rounds is part of the checkpoint; whatever
else a strategy holds is lost when its run is resumed. Flower's evaluation is not called: exact
metrics of private records would be an unaccounted release.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvgM, Strategy
from flwr.serverapp.strategy.fedopt import FedOpt
from flwr.supercore.run import Run

from fedlatent.shared.arrays import Arrays, add_prefix, strip_prefix
from fedlatent.shared.errors import QuorumLost

#: Metrics by which a strategy says more of a round: numbers of the replies that it did not choose,
#: and the distance from its result to which other updates are to be drawn.
PASSED_OVER, RADIUS = "passed-over", "radius"

_WEIGHT = "num-examples"
#: Looks for nodes, a second apart in Flower's strategies, after which one waits for too many.
_LOOKS = 5


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """What a strategy made of a round.

    Attributes:
        arrays: the new weights, float64, named and shaped as what was sent.
        state: what Flower's optimisers carry to the next round, for the checkpoint.
        radius: distance from the new weights to which other updates are drawn; None: not said.
        passed_over: numbers of the replies that it did not choose.
    """

    arrays: Arrays
    state: Arrays = field(default_factory=dict)
    radius: float | None = None
    passed_over: Sequence[int] = ()


def asked_by(
    strategy: Strategy, round: int, sent: Mapping[str, np.ndarray], nodes: Iterable[int]
) -> list[int]:
    """The nodes that a strategy asks in a training round (from 1), in the order of their ids.

    Raises:
        QuorumLost: it waits for more nodes than there are.
    """
    there = _There(nodes)
    messages = strategy.configure_train(round, _record(sent), ConfigRecord(), there)
    return sorted({message.metadata.dst_node_id for message in messages} & there.nodes)


def aggregate(
    strategy: Strategy,
    round: int,
    sent: Mapping[str, np.ndarray],
    replies: Iterable[tuple[Mapping[str, np.ndarray], float]],
    state: Mapping[str, np.ndarray],
) -> Aggregate:
    """What a strategy makes of weights, each with what it counts.

    Args:
        strategy: of any class.
        round: training round, from 1.
        sent: what the sites were sent.
        replies: weights by name and what they count, of each site.
        state: of the last round's result, or nothing.

    Raises:
        ValueError: the strategy gave no weights, or others than were sent.
    """
    _restore(strategy, sent, state)
    messages = [_reply({key: arrays[key] for key in sent}, weight) for arrays, weight in replies]
    record, metrics = strategy.aggregate_train(round, messages)
    found = {key: record[key].numpy() for key in sent if key in record} if record else {}
    if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in sent.items()}:
        raise ValueError(
            f"Expected of {type(strategy).__name__} the weights that were sent, got "
            f"{sorted(record) if record else 'none'}."
        )
    said = metrics or MetricRecord()
    radius, passed_over = said.get(RADIUS), said.get(PASSED_OVER, [])
    return Aggregate(
        arrays=found,
        state=_kept(strategy, sent),
        radius=radius if isinstance(radius, int | float) else None,
        passed_over=[int(one) for one in passed_over] if isinstance(passed_over, list) else (),
    )


class _There(Grid):
    """The nodes that are there, for a strategy to choose among; nothing can be sent through it."""

    def __init__(self, nodes: Iterable[int]) -> None:
        self.nodes = frozenset(nodes)
        self._looks = 0

    def get_node_ids(self) -> Iterable[int]:
        self._looks += 1
        if self._looks > _LOOKS:
            raise QuorumLost(
                f"Expected as many nodes as the strategy waits for, got {len(self.nodes)}; start "
                "the nodes and resume the run, or give the strategy a lower min_available_nodes."
            )
        return sorted(self.nodes)

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError


def _restore(
    strategy: Strategy, sent: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray]
) -> None:
    """Give Flower's optimisers what they hold between rounds."""
    first, second = strip_prefix(state, "m/"), strip_prefix(state, "v/")
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = _record(sent)
        strategy.momentum_vector = [first[key] for key in sent] if first else None
    elif isinstance(strategy, FedOpt):
        strategy.current_arrays = {key: value.astype(np.float64) for key, value in sent.items()}
        strategy.m_t, strategy.v_t = first or None, second or None


def _kept(strategy: Strategy, sent: Mapping[str, np.ndarray]) -> Arrays:
    """What Flower's optimisers hold between rounds, under "m/" and "v/"."""
    if isinstance(strategy, FedAvgM):
        return add_prefix("m/", dict(zip(sent, strategy.momentum_vector or [], strict=False)))
    if isinstance(strategy, FedOpt):
        m, v = strategy.m_t or {}, strategy.v_t or {}
        return {**add_prefix("m/", m), **add_prefix("v/", v)}
    return {}


def _reply(arrays: Mapping[str, np.ndarray], weight: float) -> Message:
    """Weights as the answer that Flower's strategies take."""
    metrics = MetricRecord({_WEIGHT: weight})
    content = RecordDict({"arrays": _record(arrays), "metrics": metrics})
    return Message(content, dst_node_id=1, message_type="train")


def _record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({key: Array(np.asarray(value, np.float64)) for key, value in arrays.items()})
