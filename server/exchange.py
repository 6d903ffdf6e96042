"""One exchange with the nodes: send, and look for replies until the phase is decided.

No reply is waited for: each look takes what is there, and whatever one does fails its node alone.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from logging import getLogger

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedlatent.server.collect import Collector
from fedlatent.server.inbox import UNREADABLE, Inbox
from fedlatent.server.outcome import SiteOutcome
from fedlatent.server.rounds import TTL_MARGIN_S, Request, Tally, Verdict
from fedlatent.server.screening import ScreeningFailure
from fedlatent.server.seal import Envelope
from fedlatent.shared.config import RunConfig
from fedlatent.shared.records import HEADER, header_record, to_records
from fedlatent.shared.schedule import Phase
from fedlatent.shared.signing import digest_of
from fedlatent.shared.wire import PROTOCOL, RequestHeader

_log = getLogger("fedlatent.server")

#: Flower's message type of every phase; the header says what is asked.
MESSAGE_TYPE = "train"
_NOT_SENT = ScreeningFailure(
    status="failed",
    code="not-sent",
    sentence="the message could not be handed to the node; see the log of the server",
)
_LATE = ScreeningFailure(
    status="late", code="late", sentence="no answer before the deadline of the round"
)
_UNHEARD = ScreeningFailure(
    status="open",
    code="link",
    sentence="the SuperLink did not say whether an answer is there; see its log",
)
_NOT_AWAITED = ScreeningFailure(
    status="open",
    code="not-awaited",
    sentence="no answer yet when the quorum came out of reach, which ended the phase",
)
#: Seconds past the end of a phase in which answers that lie ready are still taken.
LAST_LOOK_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The clock of a driver, and how it waits.

    Attributes:
        poll_s: seconds between two looks for nodes or replies.
        retry_pause_s: seconds before a phase that lost its quorum is tried again.
        clock: a clock that never goes back.
        sleep: waits for a number of seconds.
    """

    poll_s: float = 1.0
    retry_pause_s: float = 10.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def messages(
    config: RunConfig,
    run_id: str,
    phase: Phase,
    request: Request,
    nodes: Iterable[int],
    envelope: Envelope | None = None,
) -> list[Message]:
    """One message for each node; the records are built once and their payloads shared.

    With an ``envelope`` each node gets a signed header of its own.
    """
    header = RequestHeader(
        protocol=PROTOCOL,
        run_id=run_id,
        round=phase.number,
        kind=phase.kind,
        config=config,
        form=request.form,
        deadline_s=config.federation.round_deadline_s,
    )
    content = to_records(header, request.arrays)
    digest = digest_of(request.arrays) if envelope else b""

    def own(node: int) -> RequestHeader:
        return envelope.sign(header, digest, node) if envelope else header

    return [
        Message(
            RecordDict({**content, HEADER: header_record(own(node))}),
            node,
            MESSAGE_TYPE,
            ttl=header.deadline_s + TTL_MARGIN_S,
            group_id=str(phase.number),
        )
        for node in nodes
    ]


@dataclass(kw_only=True)
class Exchange:
    """The messages of one attempt at a phase, and the replies to them.

    Attributes:
        grid: takes the messages.
        inbox: where replies are looked for.
        pace: clock and waits.
        collector: screens the replies and folds them in.
        report: told what each node did.
        quorum: least number of good replies.
        deadline_s: how long the nodes have once all is sent.
        waiting: node by id of its message, of replies that have not been taken; error replies
            carry the server's own node id, so nodes are known by the message.
    """

    grid: Grid
    inbox: Inbox
    pace: Pace
    collector: Collector
    report: Callable[[SiteOutcome], None]
    quorum: int
    deadline_s: float
    waiting: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._started = self.pace.clock()

    def run(self, sent: list[Message]) -> Verdict:
        """Push the messages, one for each node in the order of their ids; take what they answer."""
        pace, inbox = self.pace, self.inbox
        nodes = sorted(self.collector.names)
        self.waiting = self._send(sent, nodes)
        state = Tally.start(nodes, self.quorum, pace.clock() + self.deadline_s)
        untaken = set(nodes) - set(self.waiting.values())
        for node in untaken:
            self.report(self.collector.fail(node, _NOT_SENT, 0.0))
        state = state.replies(dict.fromkeys(untaken, False))
        verdict = state.decide(pace.clock())
        while verdict is Verdict.WAIT:
            state = state.replies(self._look(state.until))
            verdict = state.decide(pace.clock())
            if verdict is Verdict.WAIT and not inbox.moved:
                pace.sleep(max(0.0, min(pace.poll_s, state.until - pace.clock())))
                verdict = state.decide(pace.clock())
        if state.pending:
            timely = pace.clock() >= state.until  # the deadline ended the phase, and nothing else
            state = self._last_look(state)
            verdict = state.decide(state.until)
            for node in sorted(state.pending):
                self._close(node, timely=timely)
        return verdict

    def _last_look(self, state: Tally) -> Tally:
        """Take what lies ready at the end of a phase, however soon after its sender that came."""
        end = self.pace.clock() + LAST_LOOK_S
        while state.pending:
            state = state.replies(self._look(end, whole=True))
            if not self.inbox.moved or self.pace.clock() >= end:
                break
        return state

    def _look(self, until: float, *, whole: bool = False) -> dict[int, bool]:
        """Look once for each reply in turn; good or not by node, of those that are decided by it.

        Args:
            until: time at which the looks end.
            whole: look for each once, however late it is.
        """
        answers: dict[int, bool] = {}
        self.inbox.moved = False
        for identifier, node in list(self.waiting.items()):
            if not whole and self.pace.clock() >= until:
                break
            found = self.inbox.look(identifier, until)
            if found is None:
                continue
            del self.waiting[identifier]
            self.inbox.moved = True
            seconds = self.pace.clock() - self._started
            if isinstance(found, ScreeningFailure):
                outcome = self.collector.fail(node, found, seconds)
            else:
                outcome = self._take(node, found, seconds)
            del found
            self.report(outcome)
            answers[node] = outcome.status == "ok"
        return answers

    def _take(self, node: int, message: Message, seconds: float) -> SiteOutcome:
        """Screen and fold one reply; whatever it does to that is a failure of its node alone."""
        try:
            return self.collector.take(node, message, seconds)
        except Exception:
            facts = (self.collector.spec.run_id, self.collector.names[node])
            _log.exception("run %s: the reply of %s", *facts)
            return self.collector.fail(node, UNREADABLE, seconds)

    def _close(self, node: int, *, timely: bool) -> None:
        """Name a node that has not answered; late is who was waited for up to the deadline."""
        (identifier,) = (one for one, other in self.waiting.items() if other == node)
        failure, arrived = _LATE, self.inbox.arrived(identifier)
        if not timely:
            failure = _NOT_AWAITED
        elif self.inbox.unheard(identifier):
            failure = _UNHEARD
        elif arrived is not None:
            failure = replace(
                _LATE,
                code="incomplete",
                sentence=f"Expected the reply that was announced before the deadline, got "
                f"{arrived.objects} of its {arrived.of} objects ({arrived.bytes} bytes).",
            )
        seconds = self.pace.clock() - self._started
        self.report(self.collector.fail(node, failure, seconds))

    def _send(self, sent: list[Message], nodes: list[int]) -> dict[str, int]:
        """Push one message for each node; node by message id, of those that were taken."""
        ids: list[str | None] = list(self.grid.push_messages(sent))
        if len(ids) != len(nodes):  # the grid took none and has logged why
            return {}
        return {identifier: node for identifier, node in zip(ids, nodes, strict=True) if identifier}
