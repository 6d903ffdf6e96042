"""Bringing the shared arrays of all good replies together, by the rule that the run names."""

from collections.abc import Iterable, Mapping
from logging import getLogger

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedlatent.server.screening import ReplySpec, ScreeningFailure, open_reply, screen_error
from fedlatent.server.seal import Envelope
from fedlatent.server.strategies.robust import Pool
from fedlatent.server.strategies.weighting import weight_of
from fedlatent.shared.config import RunConfig
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import Form
from fedlatent.shared.records import HEADER, header_record, to_records
from fedlatent.shared.schedule import Phase
from fedlatent.shared.signing import digest_of
from fedlatent.shared.wire import PROTOCOL, Arrays, ReplyHeader, RequestHeader

_log = getLogger("fedlatent.server")

#: Flower's message type of every phase; the header says what is asked.
MESSAGE_TYPE = "train"
#: Seconds past the deadline until an undelivered message expires.
TTL_MARGIN_S = 30.0


class EncoderAveraging(Strategy):
    """Brings the shared arrays of all good replies together (``server.strategies.robust``).

    The round driver uses :meth:`request` and :meth:`accumulator`; the methods of Flower's
    ``Strategy`` are built on the same two and on the same screening, so that
    ``EncoderAveraging.start`` runs the training rounds on any grid.
    """

    def __init__(self, config: RunConfig, run_id: str) -> None:
        """Pool the replies of run ``run_id``."""
        self.config = config
        self.run_id = run_id
        self.plan = PrivacyPlan.from_config(config)
        self._sent: Arrays = {}
        self._asked = 0

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

    def accumulator(self, sent: Mapping[str, np.ndarray], asked: int) -> Pool:
        """The empty accumulator of one training round, of what so many nodes are sent."""
        return Pool(self.config, sent, asked)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every node that is online; Flower's loop calls this."""
        self._sent = {key: value.numpy() for key, value in arrays.items()}
        phase = Phase(number=server_round, kind="train", trained=server_round - 1)
        nodes = sorted(grid.get_node_ids())
        self._asked = len(nodes)
        return self.request(phase, self._sent, nodes)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Screen and fold the replies; below the quorum the arrays stay as they are."""
        phase = Phase(number=server_round, kind="train", trained=server_round - 1)
        spec = ReplySpec.of(self.run_id, self.config, self.plan, phase, self._sent)
        pool = self.accumulator(self._sent, self._asked)
        for reply in replies:
            opened = (
                screen_error(reply.error) if reply.has_error() else open_reply(reply.content, spec)
            )
            if isinstance(opened, ScreeningFailure):
                _log.warning("round %d: dropped a reply: %s", server_round, opened.sentence)
                continue
            header, arrays, _ = opened
            try:
                pool.add(reply.metadata.src_node_id, arrays, self.weight(header))
            except ValueError as error:  # a weight of nothing
                _log.warning("round %d: dropped a reply: %s", server_round, error)
        if pool.count < self.config.federation.quorum:
            _log.warning(
                "round %d: expected %d good replies, got %d; the arrays stay as they are",
                server_round,
                self.config.federation.quorum,
                pool.count,
            )
            return None, None
        record = to_arrays(pool.result())
        return record, MetricRecord({"num-examples": int(pool.weight), "replies": pool.count})

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
        rule = self.config.strategy.robust
        _log.info(
            "run %s: %s of the %s, quorum %d, noise multiplier %g",
            self.run_id,
            "weighted mean" if rule == "none" else rule,
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
