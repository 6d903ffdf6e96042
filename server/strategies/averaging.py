"""Weighted averaging of the shared arrays, streamed: memory is O(model), not O(clients)."""

from collections.abc import Iterable, Mapping
from logging import getLogger

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server.screening import ReplySpec, ScreeningFailure, open_reply, screen_error
from server.seal import Envelope
from server.strategies.weighting import weight_of
from shared.config import RunConfig
from shared.privacy.plan import PrivacyPlan
from shared.privacy.summaries import Form
from shared.records import HEADER, header_record, to_records
from shared.schedule import Phase
from shared.signing import digest_of
from shared.wire import PROTOCOL, Arrays, ReplyHeader, RequestHeader

_log = getLogger("fedlatent.server")

#: Flower's message type of every phase; the header says what is asked.
MESSAGE_TYPE = "train"
#: Seconds past the deadline until an undelivered message expires.
TTL_MARGIN_S = 30.0

_BLOCK = 2**14


class WeightedMean:
    """A running weighted mean of named arrays with an error-free sum.

    The sum of each entry is kept as two float64 numbers (Knuth's TwoSum), and a whole weight
    below 2^24 times a float32 is exact in float64; so the order of arrival does not change the
    float32 result.

    Attributes:
        weight: sum of the weights so far.
        count: number of contributions.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.weight = 0.0
        self.count = 0
        self._sums: Arrays = {}
        self._rests: Arrays = {}
        self._dtypes: dict[str, np.dtype[np.generic]] = {}

    def add(self, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        """Fold in one contribution; ``arrays`` may be dropped afterwards.

        Raises:
            ValueError: other keys or shapes than before, or a weight that is not positive.
        """
        if not weight > 0:
            raise ValueError(f"Expected a positive weight, got {weight}.")
        if not self.count:
            for key, value in arrays.items():
                self._sums[key] = np.zeros(value.shape)
                self._rests[key] = np.zeros(value.shape)
                self._dtypes[key] = value.dtype
        if arrays.keys() != self._sums.keys():
            raise ValueError(f"Expected arrays {sorted(self._sums)}, got {sorted(arrays)}.")
        for key, value in arrays.items():
            _add_exactly(self._sums[key], self._rests[key], value, weight)
        self.weight += weight
        self.count += 1

    def result(self) -> Arrays:
        """The mean, each array in the dtype of the first contribution.

        Raises:
            ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("Expected at least one contribution, got none.")
        return {
            key: ((self._sums[key] + self._rests[key]) / self.weight).astype(self._dtypes[key])
            for key in self._sums
        }


def _add_exactly(sums: np.ndarray, rests: np.ndarray, value: np.ndarray, weight: float) -> None:
    """Add ``weight * value`` to ``sums`` in place, and what rounding lost to ``rests``.

    Block by block, so that the intermediate values stay in the processor's cache.
    """
    flat, flat_sums, flat_rests = value.reshape(-1), sums.reshape(-1), rests.reshape(-1)
    for start in range(0, len(flat), _BLOCK):
        block = slice(start, start + _BLOCK)
        before, term = flat_sums[block], flat[block] * np.float64(weight)
        total = before + term
        part = total - before
        term -= part
        part -= total
        part += before  # (before - (total - part)), the part of ``before`` that was lost
        part += term
        flat_rests[block] += part
        before[:] = total


class EncoderAveraging(Strategy):
    """Averages the shared arrays of all good replies, weighted by the number of records.

    The round driver uses :meth:`request` and :meth:`accumulator`; the methods of Flower's
    ``Strategy`` are built on the same two and on the same screening, so that
    ``EncoderAveraging.start`` runs the training rounds on any grid.
    """

    def __init__(self, config: RunConfig, run_id: str) -> None:
        """Average the replies of run ``run_id``."""
        self.config = config
        self.run_id = run_id
        self.plan = PrivacyPlan.from_config(config)
        self._sent: Arrays = {}

    def request(
        self,
        phase: Phase,
        arrays: Mapping[str, np.ndarray],
        nodes: Iterable[int],
        form: Form = "full",
        envelope: Envelope | None = None,
    ) -> list[Message]:
        """One message for each node; the records are built once and their payloads shared.

        With an ``envelope`` each node gets a signed header of its own.
        """
        header = RequestHeader(
            protocol=PROTOCOL,
            run_id=self.run_id,
            round=phase.number,
            kind=phase.kind,
            config=self.config,
            form=form,
            deadline_s=self.config.federation.round_deadline_s,
        )
        content = to_records(header, arrays)
        digest = digest_of(arrays) if envelope else b""
        return [
            Message(
                RecordDict({**content, HEADER: _header(header, digest, node, envelope)}),
                node,
                MESSAGE_TYPE,
                ttl=header.deadline_s + TTL_MARGIN_S,
                group_id=str(phase.number),
            )
            for node in nodes
        ]

    def weight(self, header: ReplyHeader) -> float:
        """How much a node's weights count in the average."""
        return weight_of(self.config.strategy.weighting, header)

    def accumulator(self) -> WeightedMean:
        """The empty accumulator of one training round."""
        return WeightedMean()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every node that is online; Flower's loop calls this."""
        self._sent = {key: value.numpy() for key, value in arrays.items()}
        phase = Phase(number=server_round, kind="train", trained=server_round - 1)
        return self.request(phase, self._sent, sorted(grid.get_node_ids()))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen and fold the replies; below the quorum the arrays stay as they are."""
        phase = Phase(number=server_round, kind="train", trained=server_round - 1)
        spec = ReplySpec.of(self.run_id, self.config, self.plan, phase, self._sent)
        mean = self.accumulator()
        for reply in replies:
            opened = (
                screen_error(reply.error) if reply.has_error() else open_reply(reply.content, spec)
            )
            if isinstance(opened, ScreeningFailure):
                _log.warning("round %d: dropped a reply: %s", server_round, opened.sentence)
                continue
            header, arrays = opened
            try:
                mean.add(arrays, self.weight(header))
            except ValueError as error:  # a weight of nothing
                _log.warning("round %d: dropped a reply: %s", server_round, error)
        if mean.count < self.config.federation.quorum:
            _log.warning(
                "round %d: expected %d good replies, got %d; the arrays stay as they are",
                server_round,
                self.config.federation.quorum,
                mean.count,
            )
            return None, None
        record = to_arrays(mean.result())
        return record, MetricRecord({"num-examples": int(mean.weight), "replies": mean.count})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nothing: exact metrics on private records would be an unaccounted release."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """There is nothing to aggregate."""
        return None

    def summary(self) -> None:
        """Log what is averaged and at what privacy."""
        _log.info(
            "run %s: weighted mean of the %s, quorum %d, noise multiplier %g",
            self.run_id,
            "whole model" if self.config.shares_decoder else "encoder",
            self.config.federation.quorum,
            self.plan.noise_multiplier,
        )


def _header(
    header: RequestHeader, digest: bytes, node: int, envelope: Envelope | None
) -> ConfigRecord:
    """The record of one node's header."""
    return header_record(envelope.sign(header, digest, node) if envelope else header)


def to_arrays(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Named numpy arrays as Flower's record."""
    return ArrayRecord({key: Array(value) for key, value in arrays.items()})
