"""The driver of a run: takes it through its phases over any Flower grid, and survives ``kill -9``.

Each phase: wait for nodes (bounded), send one message to each, look for each reply in turn without
waiting for any, screen and fold each as it comes, close on all replies or at the deadline, write
the registry, then the checkpoint. Whatever a reply does, it fails its own node alone; a site whose
replies misbehaved three times is not asked any more (``fedlatent.server.strikes``).
The checkpoint is what counts: a phase that is not in it is done again, and nodes answer the same
request again from their store without a new charge.
"""

import fcntl
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fedlatent.server.checkpoint import Checkpoint, CheckpointStore
from fedlatent.server.collect import Collector, Counts
from fedlatent.server.home import ServerHome
from fedlatent.server.inbox import UNREADABLE, Inbox, open_inbox
from fedlatent.server.quota import ReplyQuota
from fedlatent.server.registry import Registry, SiteOutcome
from fedlatent.server.results import RunResult, silent_ones, write_result
from fedlatent.server.rounds import JoinState, RoundState, Verdict
from fedlatent.server.screening import ReplySpec, ScreeningFailure
from fedlatent.server.seal import Seal
from fedlatent.server.strategies.averaging import TTL_MARGIN_S, EncoderAveraging
from fedlatent.server.strategies.optimizer import server_step
from fedlatent.server.strategies.weighting import bounded
from fedlatent.server.strikes import LeftOut, Strikes
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError, DataError, FedlatentError, QuorumLost, ServiceError
from fedlatent.shared.files import sha256_hex, write_json
from fedlatent.shared.models import VAE, build
from fedlatent.shared.models.base import ENCODER_PREFIX, use_prior
from fedlatent.shared.models.priors import StandardNormal
from fedlatent.shared.models.warm_start import warm_start
from fedlatent.shared.privacy.summaries import Form, SummarySpec
from fedlatent.shared.schedule import Phase, phases, training_rounds
from fedlatent.shared.summaries import SUMMARIES, Replies, carried
from fedlatent.shared.wire import Arrays, check_run_id

_log = getLogger("fedlatent.server")

#: Times that a phase is tried before its run is paused.
ATTEMPTS = 2

#: Node id -> site name of the admitted sites; empty when the server keeps no such table.
SiteTable = Mapping[int, str]

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


def new_run_id(config: RunConfig) -> str:
    """A fresh name for a run of ``config``: its name, the time in UTC and four random digits."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{config.name[:50]}-{stamp}-{secrets.token_hex(2)}"


def drive(
    grid: Grid,
    config: RunConfig,
    home: ServerHome,
    *,
    run_id: str,
    strategy: EncoderAveraging | None = None,
    resume: bool = False,
    start: Arrays | None = None,
    sites: Callable[[], SiteTable] = dict,
    counts: Callable[[], Mapping[str, int]] = dict,
    pace: Pace | None = None,
    seal: Seal | None = None,
    announce: Callable[[ReplyQuota], None] | None = None,
) -> RunResult:
    """Take a run to its end, from its start or from its last checkpoint.

    Args:
        grid: who runs the clients: deployed, in one process, or Flower's simulation.
        config: the run; when resumed, the same one.
        home: where the registry, checkpoints and the result go.
        run_id: name of the run, as :func:`new_run_id` makes it.
        strategy: the aggregation rule; averaging by default.
        resume: go on with a run that exists; a run without a checkpoint starts from the beginning.
        start: shared weights to begin with; by default those of ``model.start``, a finished run
            of the same server, or the seed's.
        sites: reads the table of admitted sites; called before each phase. When the table has
            entries, nodes that are not in it are not asked.
        counts: number of records by site name, of the sites whose number is known beforehand;
            called before each phase. Such a site weighs by it, others by what they state first, and
            those never more than twice the median.
        pace: clock and waits.
        seal: signs what admitted sites are asked and checks that they answered; with one, no node
            but those of the table is asked.
        announce: told what one reply may weigh, before the messages of each phase are sent.

    Raises:
        ConfigError: the run exists and ``resume`` is not set, or the configuration is another.
        QuorumLost: too few good replies in two attempts; the run is paused and can be resumed.
        ServiceError: another process drives this run.
        DataError: a damaged checkpoint, or summaries of too few records.
    """
    folder = home.run(check_run_id(run_id))
    with _only_driver(folder), Registry(home.registry) as registry:
        _register(registry, config, run_id, folder, resume=resume)
        try:
            driver = Driver(
                grid=grid,
                config=config,
                run_id=run_id,
                strategy=strategy or _averaging(config, run_id),
                registry=registry,
                store=CheckpointStore(folder / "checkpoints", config),
                sites=sites,
                counts=counts,
                pace=pace or Pace(),
                seal=seal,
                start=start or _started_from(config, home),
                strikes=Strikes(folder),
                announce=announce,
            )
            result = driver.finish(driver.run(), folder / "result")
        except FedlatentError as error:
            paused = isinstance(error, QuorumLost)
            registry.set_status(run_id, "paused" if paused else "failed", str(error))
            raise
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            registry.set_status(run_id, "interrupted", f"unexpected {type(error).__name__}")
            raise
        registry.set_status(run_id, "complete")
        return result


def _started_from(config: RunConfig, home: ServerHome) -> Arrays | None:
    """The shared arrays of the finished run that ``model.start`` names."""
    name = config.model.start
    return RunResult.load(home.run(check_run_id(name)) / "result").arrays if name else None


@contextmanager
def _only_driver(folder: Path) -> Iterator[None]:
    """Hold the lock of a run; the kernel frees it when the process dies, however it dies."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceError(
                f"Expected run {folder.name} to be idle, got one that another process drives; "
                "wait for it or stop it."
            ) from None
        yield


def _register(
    registry: Registry, config: RunConfig, run_id: str, folder: Path, *, resume: bool
) -> None:
    known = registry.run(run_id)
    if known is not None and not resume:
        raise ConfigError(f"Expected a new run, got {run_id!r} again; resume it or rename it.")
    if known is not None and known.digest != config.digest():
        raise ConfigError(
            f"Expected the configuration that run {run_id} was started with, got another one; "
            "resume without a configuration or start a new run."
        )
    write_json(folder / "config.json", config.model_dump(mode="json"))
    registry.start_run(
        run_id,
        name=config.name,
        digest=config.digest(),
        config=config.to_json(),
        phases=len(phases(config)),
    )


def _averaging(config: RunConfig, run_id: str) -> EncoderAveraging:
    try:
        return EncoderAveraging(config, run_id)
    except ValueError:
        raise ConfigError(
            "Expected a reachable epsilon, got one too small for its rounds and steps; "
            "raise privacy.epsilon or train less."
        ) from None


@dataclass(kw_only=True)
class Driver:
    """The loop of one run; :func:`drive` puts it together and keeps the run's status."""

    grid: Grid
    config: RunConfig
    run_id: str
    strategy: EncoderAveraging
    registry: Registry
    store: CheckpointStore
    sites: Callable[[], SiteTable]
    counts: Callable[[], Mapping[str, int]]
    pace: Pace
    strikes: Strikes
    start: Arrays | None = None
    seal: Seal | None = None
    announce: Callable[[ReplyQuota], None] | None = None

    def __post_init__(self) -> None:
        """Build the model once, for its first weights and its size."""
        model = self.config.model
        self._model: VAE = build(
            model.family, model.options, self.config.data.shape, self.config.seed
        )
        if self.config.summaries.prior != "none":
            use_prior(self._model, StandardNormal())  # refused where a model trains its own
        self._strangers: set[int] = set()
        self._noted: set[tuple[str, str]] = set()

    def run(self) -> Checkpoint:
        """Do the phases that the last checkpoint lacks."""
        state = self._begin()
        todo = phases(self.config)[state.done :]
        wanted = self.config.federation.nodes
        if state.done:
            wanted = int(str(state.history[-1]["good"]))
            _log.info("run %s: goes on after phase %d", self.run_id, state.done)
        for phase in todo:
            collector = self._phase(state, phase, wanted)
            state = self._advance(state, phase, collector)
            self.registry.finish_round(
                self.run_id, phase.number, "complete", collector.outcomes.values()
            )
            self.store.save(state)
            wanted = self.config.federation.quorum
        return state

    def finish(self, state: Checkpoint, folder: Path) -> RunResult:
        """Write the result folder and name its files in the registry."""
        result = write_result(
            state, self.config, self.strategy.plan, self._model.latent_dim, folder
        )
        for name, path in result.files().items():
            data = path.read_bytes()
            self.registry.add_artefact(self.run_id, name, path, sha256_hex(data), len(data))
        _log.info("run %s: complete, result in %s", self.run_id, folder)
        return result

    def _begin(self) -> Checkpoint:
        """The newest checkpoint, or the first one with the seed's weights."""
        state = self.store.load()
        if state is None:
            state = Checkpoint(
                run_id=self.run_id,
                digest=self.config.digest(),
                done=0,
                encoder=self._first_arrays(),
            )
            self.store.save(state)
        if (state.run_id, state.digest) != (self.run_id, self.config.digest()):
            raise DataError(
                f"Expected a checkpoint of run {self.run_id}, got one of run {state.run_id} or of "
                "another configuration; restore the run's folder."
            )
        return state

    def _phase(self, state: Checkpoint, phase: Phase, wanted: int) -> Collector:
        """One phase with its second attempt; QuorumLost when both lack replies."""
        for attempt in range(1, ATTEMPTS):
            try:
                return self._attempt(state, phase, wanted, attempt)
            except QuorumLost as error:
                _log.warning("run %s: %s Trying once more.", self.run_id, error)
                self.pace.sleep(self.pace.retry_pause_s)
        return self._attempt(state, phase, wanted, ATTEMPTS)

    def _attempt(self, state: Checkpoint, phase: Phase, wanted: int, attempt: int) -> Collector:
        names, admitted, left_out = self._join(phase, wanted)
        request = self._request(state, phase, len(names))
        self.registry.start_round(self.run_id, phase.number, phase.kind, attempt, len(names))
        spec = ReplySpec.of(
            self.run_id, self.config, self.strategy.plan, phase, request.summary or state.encoder
        )
        stated = {name: int(str(facts["records"])) for name, facts in state.sites.items()}
        lasts_s = self.config.federation.round_deadline_s + TTL_MARGIN_S
        collector = Collector(
            phase,
            spec,
            self.strategy.accumulator(state.encoder, len(names)),
            names,
            admitted=admitted,
            weight=self.strategy.weight,
            envelope=self.seal.envelope(names, lasts_s) if self.seal else None,
            counts=Counts(admitted=self.counts(), stated=stated),
        )
        collector.sent = sum(value.nbytes for value in request.arrays.values())
        for node, one in left_out.items():
            outcome = collector.leave_out(node, one.site, one.sentence)
            self._report(phase, outcome)
        verdict = self._collect(collector, request, ReplyQuota.of(spec.shapes.values()))
        outcomes = collector.outcomes.values()
        good = sum(outcome.status == "ok" for outcome in outcomes)
        _log.info(
            "run %s: %s %d: %d of %d nodes counted",
            self.run_id,
            phase.kind,
            phase.number,
            good,
            len(names),
        )
        if verdict is Verdict.FAIL:
            self.registry.finish_round(self.run_id, phase.number, "failed", outcomes)
            raise QuorumLost(
                f"Expected {self.config.federation.quorum} good replies in phase {phase.number} "
                f"({phase.kind}), got {good} of {len(names)} nodes: {_excuses(collector)}; "
                f"bring the nodes back and resume the run.{_way_back(left_out.values())}"
            )
        return collector

    def _join(self, phase: Phase, wanted: int) -> tuple[dict[int, str], bool, dict[int, LeftOut]]:
        """Wait for nodes that may be asked.

        Returns:
            Their names; whether these come from a table of admitted sites; who is left out.
        """
        rules, strategy, pace = self.config.federation, self.config.strategy, self.pace
        until = pace.clock() + rules.join_timeout_s
        while True:
            table = self.sites()
            online = sorted(self.grid.get_node_ids())
            known = bool(table or self.seal)
            if known:
                self._name_strangers(set(online) - table.keys())
                online = [node for node in online if node in table]
            names = {node: table.get(node, f"node-{node}") for node in online}
            banned = self.strikes.left_out()
            left_out = {node: banned[name] for node, name in names.items() if name in banned}
            names = {node: name for node, name in names.items() if node not in left_out}
            least = rules.quorum
            if phase.kind == "train" and strategy.hostile:  # who is left out, and be it off, is one
                hostile = max(0, strategy.hostile - len(banned))
                least = max(least, strategy.sites_needed(hostile))
            # Who is left out is not waited for in addition to the others.
            state = JoinState(wanted=wanted - len(left_out), quorum=least, until=until)
            verdict = state.decide(len(names), pace.clock())
            if verdict is Verdict.GO:
                return names, known, left_out
            if verdict is Verdict.FAIL:
                raise QuorumLost(
                    f"Expected {least} nodes for phase {phase.number} ({phase.kind}), got "
                    f"{len(names)} within {rules.join_timeout_s:g} s; start the nodes and resume "
                    f"the run.{_way_back(left_out.values())}"
                )
            pace.sleep(pace.poll_s)

    def _name_strangers(self, nodes: set[int]) -> None:
        for node in sorted(nodes - self._strangers):
            _log.warning("run %s: node %d is not an admitted site; not asked", self.run_id, node)
        self._strangers |= nodes

    def _request(self, state: Checkpoint, phase: Phase, clients: int) -> "_Request":
        """What a phase sends, and what it wants back."""
        run, kind, released = self.config, phase.kind, state.released
        if kind == "train":
            arrays = {**state.encoder, **released.sent(carried(run, kind))}
            return _Request(arrays=arrays, form=released.form, summary=None)
        summary, k = SUMMARIES[kind], self._model.latent_dim
        stated = [int(str(site["records"])) for site in state.sites.values()]
        records = bounded(stated).tolist() if run.summaries.robust and stated else stated
        epsilon = self.strategy.plan.epsilon_of_one(kind)
        form = summary.form(run, k, released, records, clients, epsilon)
        weights = state.encoder if summary.sees_model else {}
        if not (run.shares_decoder and summary.whole_model):
            weights = {k: v for k, v in weights.items() if k.startswith(ENCODER_PREFIX)}
        spec = summary.spec(run, k, replace(released, form=form))
        arrays = {**weights, **released.sent(carried(run, kind))}
        return _Request(arrays=arrays, form=form, summary=spec)

    def _collect(self, collector: Collector, request: "_Request", quota: ReplyQuota) -> Verdict:
        """Send, then look for replies until the phase is decided.

        The deadline starts once all is sent. No reply is waited for: each look takes what is there.
        """
        pace, rules = self.pace, self.config.federation
        inbox = open_inbox(self.grid, quota, pace.clock)
        if self.announce is not None:
            self.announce(quota)
        started = pace.clock()
        nodes = sorted(collector.names)
        waiting = self._send(collector, request, nodes)
        state = RoundState.start(nodes, rules.quorum, pace.clock() + rules.round_deadline_s)
        untaken = set(nodes) - set(waiting.values())
        for node in untaken:
            self._report(collector.phase, collector.fail(node, _NOT_SENT, 0.0))
        state = state.replies(dict.fromkeys(untaken, False))
        visit = _Visit(inbox=inbox, waiting=waiting, collector=collector, started=started)
        verdict = state.decide(pace.clock())
        while verdict is Verdict.WAIT:
            state = state.replies(self._look(visit, state.until))
            verdict = state.decide(pace.clock())
            if verdict is Verdict.WAIT and not inbox.moved:
                pace.sleep(max(0.0, min(pace.poll_s, state.until - pace.clock())))
                verdict = state.decide(pace.clock())
        if state.pending:
            timely = pace.clock() >= state.until  # the deadline ended the phase, and nothing else
            state = self._last_look(visit, state)
            verdict = state.decide(state.until)
            for node in sorted(state.pending):
                self._close(visit, node, timely=timely)
        return verdict

    def _last_look(self, visit: "_Visit", state: RoundState) -> RoundState:
        """Take what lies ready at the end of a phase, however soon after its sender that came."""
        end = self.pace.clock() + LAST_LOOK_S
        while state.pending:
            state = state.replies(self._look(visit, end, whole=True))
            if not visit.inbox.moved or self.pace.clock() >= end:
                break
        return state

    def _look(self, visit: "_Visit", until: float, *, whole: bool = False) -> dict[int, bool]:
        """Look once for each reply in turn; good or not by node, of those that are decided by it.

        Args:
            visit: whose replies.
            until: time at which the looks end.
            whole: look for each once, however late it is.
        """
        answers: dict[int, bool] = {}
        visit.inbox.moved = False
        for identifier, node in list(visit.waiting.items()):
            if not whole and self.pace.clock() >= until:
                break
            found = visit.inbox.look(identifier, until)
            if found is None:
                continue
            del visit.waiting[identifier]
            visit.inbox.moved = True
            seconds = self.pace.clock() - visit.started
            if isinstance(found, ScreeningFailure):
                outcome = visit.collector.fail(node, found, seconds)
            else:
                outcome = self._take(visit.collector, node, found, seconds)
            del found
            self._report(visit.collector.phase, outcome)
            answers[node] = outcome.status == "ok"
        return answers

    def _take(
        self, collector: Collector, node: int, message: Message, seconds: float
    ) -> SiteOutcome:
        """Screen and fold one reply; whatever it does to that is a failure of its node alone."""
        try:
            return collector.take(node, message, seconds)
        except Exception:
            _log.exception("run %s: the reply of %s", self.run_id, collector.names[node])
            return collector.fail(node, UNREADABLE, seconds)

    def _close(self, visit: "_Visit", node: int, *, timely: bool) -> None:
        """Name a node that has not answered; late is who was waited for up to the deadline."""
        (identifier,) = (one for one, other in visit.waiting.items() if other == node)
        failure, arrived = _LATE, visit.inbox.arrived(identifier)
        if not timely:
            failure = _NOT_AWAITED
        elif visit.inbox.unheard(identifier):
            failure = _UNHEARD
        elif arrived is not None:
            failure = replace(
                _LATE,
                code="incomplete",
                sentence=f"Expected the reply that was announced before the deadline, got "
                f"{arrived.objects} of its {arrived.of} objects ({arrived.bytes} bytes).",
            )
        seconds = self.pace.clock() - visit.started
        self._report(visit.collector.phase, visit.collector.fail(node, failure, seconds))

    def _send(self, collector: Collector, request: "_Request", nodes: list[int]) -> dict[str, int]:
        """Push one message for each node; node by message id, of those that were taken."""
        messages = self.strategy.request(
            collector.phase, request.arrays, nodes, request.form, collector.envelope
        )
        ids: list[str | None] = list(self.grid.push_messages(messages))
        if len(ids) != len(nodes):  # the grid took none and has logged why
            return {}
        return {identifier: node for identifier, node in zip(ids, nodes, strict=True) if identifier}

    def _report(self, phase: Phase, outcome: SiteOutcome) -> None:
        """Log an outcome that is not good, and count it when it is misbehaviour."""
        if outcome.status == "ok":
            return
        _log.warning(
            "run %s: %s %d: node %s %s (%s): %s",
            self.run_id,
            phase.kind,
            phase.number,
            outcome.site,
            outcome.status,
            outcome.code,
            outcome.sentence,
        )
        left_out = self.strikes.note(outcome, phase)
        if left_out is not None:
            _log.warning(
                "run %s: node %s is left out of the run from the next phase on: %s",
                self.run_id,
                left_out.site,
                left_out.sentence,
            )

    def _advance(self, state: Checkpoint, phase: Phase, collector: Collector) -> Checkpoint:
        """The state after a phase whose quorum was reached."""
        state = replace(
            state,
            done=phase.number,
            sites=_renewed(state.sites, collector),
            history=[*state.history, _entry(phase, collector)],
        )
        if phase.kind == "train":
            mean = collector.average()
            self._tell_noted(phase, collector)
            return self._trained(state, phase, mean)
        try:
            return self._pooled(state, phase, collector)
        except ValueError as error:
            raise DataError(f"The summaries ({phase.kind}) cannot be pooled: {error}") from None

    def _tell_noted(self, phase: Phase, collector: Collector) -> None:
        """Log the first update of each site that was scaled or not chosen; all are registered."""
        for outcome in collector.outcomes.values():
            note = (outcome.site, outcome.code)
            if outcome.status == "ok" and outcome.code and note not in self._noted:
                self._noted.add(note)
                facts = (self.run_id, phase.kind, phase.number, outcome.site, outcome.sentence)
                _log.info("run %s: %s %d: node %s: %s", *facts)

    def _trained(self, state: Checkpoint, phase: Phase, mean: Arrays) -> Checkpoint:
        """After a training round: the server optimiser's step, and the average over rounds."""
        number, decay = phase.trained + 1, self.config.training.ema
        arrays, kept = server_step(
            self.config.strategy, number, state.encoder, mean, state.optimizer
        )
        state = replace(state, encoder=arrays, optimizer=kept)
        if not decay:
            return state
        average = {
            key: value if not state.average else decay * state.average[key] + (1 - decay) * value
            for key, value in arrays.items()
        }
        average = {key: np.asarray(value, arrays[key].dtype) for key, value in average.items()}
        last = number == training_rounds(self.config)
        return replace(state, average=average, encoder=average if last else arrays)

    def _pooled(self, state: Checkpoint, phase: Phase, collector: Collector) -> Checkpoint:
        """After a summary phase; a Gaussian of the data may warm the first weights."""
        run, kind, plan = self.config, phase.kind, self.strategy.plan
        nodes = sorted(collector.released)
        records = [collector.outcomes[node].records for node in nodes]
        replies = Replies(
            nodes=nodes,
            sites=[collector.names[node] for node in nodes],
            sums=collector.summaries(),
            records=records,
            weights=bounded(records) if run.summaries.robust else None,
            sigma=plan.multiplier(kind),
            epsilon=plan.epsilon_of_one(kind),
        )
        before = state.released
        after = SUMMARIES[kind].pool(run, self._model.latent_dim, before, replies)
        new = {k: v for k, v in after.thresholds.items() if k not in before.thresholds}
        for name in silent_ones(new):
            _log.warning(
                "run %s: the %s threshold lies in the last bin and flags nothing; the scores of "
                "most sites are out of range",
                self.run_id,
                name,
            )
        sites = {name: dict(facts) for name, facts in state.sites.items()}
        for name, own in after.site_thresholds.items():
            sites[name]["thresholds"] = dict(own)
        state = replace(state, released=after, sites=sites)
        warmed = run.training.warm_start_steps and before.gaussian is None
        if not warmed or after.gaussian is None:
            return state
        warm_start(self._model, run, after.gaussian)
        return replace(state, encoder=_shared_arrays(self._model, whole=run.shares_decoder))

    def _first_arrays(self) -> Arrays:
        """What the run begins with: the seed's weights, or those of the run that it starts from."""
        arrays = _shared_arrays(self._model, whole=self.config.shares_decoder)
        if self.start is None:
            return arrays
        fits = {key: self.start[key] for key in arrays if key in self.start}
        if {k: v.shape for k, v in fits.items()} != {k: v.shape for k, v in arrays.items()}:
            raise ConfigError(
                "Expected a run to start from whose shared weights are those of this run's model, "
                "got others; name a run of the same model that shares as much."
            )
        return {key: value.astype(arrays[key].dtype) for key, value in fits.items()}


@dataclass(frozen=True, kw_only=True)
class _Visit:
    """The replies of one attempt that are looked for.

    Attributes:
        inbox: where.
        waiting: node by id of its message, of replies that have not been taken; error replies
            carry the server's own node id, so nodes are known by the message.
        collector: takes them.
        started: time at which the messages were sent.
    """

    inbox: Inbox
    waiting: dict[str, int]
    collector: Collector
    started: float


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a phase sends.

    Attributes:
        arrays: by name.
        form: of moments.
        summary: what it wants back; None for weights.
    """

    arrays: Arrays
    form: Form
    summary: SummarySpec | None


def _shared_arrays(model: VAE, *, whole: bool) -> Arrays:
    """The float32 arrays that a run sends first: the encoder, or all parameters."""
    return {
        key: np.ascontiguousarray(value.detach().numpy())
        for key, value in model.state_dict().items()
        if whole or key.startswith(ENCODER_PREFIX)
    }


def _excuses(collector: Collector) -> str:
    """Names and reasons of at most five nodes that did not count."""
    bad = [outcome for outcome in collector.outcomes.values() if outcome.status != "ok"]
    named = [f"{outcome.site} {outcome.status} ({outcome.code})" for outcome in bad[:5]]
    more = [f"{len(bad) - 5} more"] if len(bad) > 5 else []
    return ", ".join([*named, *more]) or "no other node was online"


def _way_back(left_out: Iterable[LeftOut]) -> str:
    """Who is left out of a run that lacks nodes, and how the operator lets them back."""
    return "".join(f" Site {one.site} is {one.sentence}." for one in left_out)


def _renewed(
    sites: Mapping[str, dict[str, object]], collector: Collector
) -> dict[str, dict[str, object]]:
    """Public facts of every site that has counted so far, with how often it did."""
    renewed = dict(sites)
    for outcome in collector.outcomes.values():
        if outcome.status == "ok":
            before = sites.get(outcome.site, {"phases": 0})
            renewed[outcome.site] = {
                "node_id": str(outcome.node_id),
                "records": outcome.records,
                "epsilon": outcome.epsilon,
                "delta": outcome.delta,
                "phases": int(str(before["phases"])) + 1,
            }
    return renewed


def _entry(phase: Phase, collector: Collector) -> dict[str, object]:
    good = [outcome for outcome in collector.outcomes.values() if outcome.status == "ok"]
    return {
        "number": phase.number,
        "kind": phase.kind,
        "bytes_sent": collector.sent,
        "asked": len(collector.names),
        "good": len(good),
        "records": sum(outcome.records for outcome in good),
        "absent": sorted(
            outcome.site for outcome in collector.outcomes.values() if outcome.status != "ok"
        ),
        "finished": time.time(),
    }
