"""One attempt at one phase: every answer is screened and folded as it comes, then forgotten."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from flwr.app import Message

from fedlatent.server.outcome import SiteOutcome, excuses
from fedlatent.server.screening import (
    Opened,
    ReplySpec,
    ScreeningFailure,
    open_reply,
    screen_error,
)
from fedlatent.server.seal import Envelope
from fedlatent.server.strategies.robust import Pool
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.schedule import Phase
from fedlatent.shared.wire import ReplyHeader

_NOT_CHOSEN = (
    "update further from the others' than those that strategy.robust chose; it did not count in "
    "this round"
)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many records a site's replies must state, since they are what it weighs.

    Attributes:
        admitted: what the operator fixed at admission, by site.
        stated: what a site said first in this run.
    """

    admitted: Mapping[str, int] = field(default_factory=dict)
    stated: Mapping[str, int] = field(default_factory=dict)

    def check(self, site: str, records: int) -> ScreeningFailure | None:
        """Whether a reply states another number than it must."""
        if site in self.admitted:
            expected, origin = self.admitted[site], "the operator admitted the site with"
        else:
            expected, origin = self.stated.get(site, records), "the site stated first in this run"
        if records == expected:
            return None
        return ScreeningFailure(
            status="failed",
            code="records",
            sentence=f"Expected the {expected} records that {origin}, got {records}; the site "
            "corrects its data, or the operator asks it for the true number and admits it again: "
            f"'fedlatent server admit {site} KEY --records N'.",
        )


class Collector:
    """Folds the answers of one attempt.

    Attributes:
        names: site name by node id, of the nodes that were asked.
        admitted: whether the names are those of admitted sites, so that a reply must claim its own.
        outcomes: what each node did, by node id.
        sent: bytes of the arrays that each node was sent.
        released: the summary of each node, float64 by node id, in the phases that need them singly.
        envelope: signs what the nodes are sent, and checks their answers; None in simulations.
        counts: whose numbers of records are known.
        pool: takes the updates of a training round.
        spec: what a reply must be.
    """

    def __init__(
        self,
        phase: Phase,
        spec: ReplySpec,
        pool: Pool,
        names: Mapping[int, str],
        *,
        admitted: bool,
        weight: Callable[[ReplyHeader], float] = lambda header: float(header.records),
        envelope: Envelope | None = None,
        counts: Counts | None = None,
    ) -> None:
        """Collect for ``phase``; ``pool`` is empty, ``weight`` is that of a node's weights.

        With an ``envelope`` a reply counts only with its site's signature for this very request.
        """
        self.phase = phase
        self.names = dict(names)
        self.admitted = admitted
        self.outcomes: dict[int, SiteOutcome] = {}
        self.sent = 0
        self.released: dict[int, np.ndarray] = {}
        self.envelope = envelope
        self.counts = counts or Counts()
        self.spec = spec
        self.pool = pool
        self._weight = weight

    def take(self, node: int, message: Message, seconds: float) -> SiteOutcome:
        """Screen the answer of ``node``; fold it in when it passes."""
        opened = self._open(node, message)
        if isinstance(opened, ScreeningFailure):
            return self.fail(node, opened, seconds)
        header, arrays, sha256 = opened
        if self.phase.kind == "train":
            fixed = self.names[node] in self.counts.admitted
            self.pool.add(node, arrays, self._weight(header), fixed=fixed)
        else:
            (summary,) = arrays.values()
            self.released[node] = summary.astype(np.float64)
        return self._keep(
            SiteOutcome(
                site=self.names[node],
                node_id=node,
                status="ok",
                records=header.records,
                epsilon=header.epsilon,
                delta=header.delta,
                bytes=sum(value.nbytes for value in arrays.values()),
                sha256=sha256,
                seconds=seconds,
            )
        )

    def fail(self, node: int, failure: ScreeningFailure, seconds: float) -> SiteOutcome:
        """Note that ``node`` gave nothing to fold in."""
        return self._keep(
            SiteOutcome(
                site=self.names[node],
                node_id=node,
                status=failure.status,
                code=failure.code,
                sentence=failure.sentence,
                sha256=failure.sha256,
                seconds=seconds,
            )
        )

    def leave_out(self, node: int, site: str, sentence: str) -> SiteOutcome:
        """Note that ``node`` is not asked, and why."""
        return self._keep(
            SiteOutcome(
                site=site, node_id=node, status="left out", code="left-out", sentence=sentence
            )
        )

    def average(self) -> Arrays:
        """The shared arrays after the round (training phases).

        Updates that were scaled down, or that the rule did not choose, are noted.
        """
        arrays = self.pool.result()
        for node, scaled in self.pool.scaled.items():
            self._keep(replace(self.outcomes[node], code="scaled", sentence=scaled.sentence))
        for node in self.pool.passed_over:
            self._keep(replace(self.outcomes[node], code="not-chosen", sentence=_NOT_CHOSEN))
        return arrays

    def summaries(self) -> list[np.ndarray]:
        """The released summaries in the order of the nodes' ids."""
        return [self.released[node] for node in sorted(self.released)]

    def excuses(self) -> str:
        """Names and reasons of at most five nodes that did not count, in their own words."""
        bad = [outcome for outcome in self.outcomes.values() if outcome.status != "ok"]
        return excuses(bad) or "no other node was online"

    def _open(self, node: int, message: Message) -> Opened | ScreeningFailure:
        if message.has_error():
            return screen_error(message.error)
        check = None if self.envelope is None else partial(self.envelope.check, node)
        opened = open_reply(message.content, self.spec, check)
        if isinstance(opened, ScreeningFailure):
            return opened
        claim, name = opened.header.site, self.names[node]
        if self.admitted and claim != name:
            return ScreeningFailure(
                status="failed",
                code="identity",
                sentence=f"Expected the reply of site {name!r}, got one that claims {claim!r}; "
                "correct the site name in the node's configuration.",
                sha256=opened.sha256,
            )
        problem = self.counts.check(name, opened.header.records)
        return replace(problem, sha256=opened.sha256) if problem else opened

    def _keep(self, outcome: SiteOutcome) -> SiteOutcome:
        self.outcomes[outcome.node_id] = outcome
        return outcome
