"""The driver of a run: takes it through its phases over any Flower grid, and survives ``kill -9``.

Each phase: wait for nodes (bounded), exchange messages with them (``fedlatent.server.exchange``),
write the registry, then the checkpoint. What is asked, when a phase is over and what follows says
``fedlatent.server.rounds``. A site whose replies misbehaved three times is not asked any more
(``fedlatent.server.strikes``).
The checkpoint is what counts: a phase that is not in it is done again, and nodes answer the same
request again from their store without a new charge.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from logging import getLogger
from pathlib import Path

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedlatent.server.checkpoint import Checkpoint, CheckpointStore
from fedlatent.server.collect import Collector
from fedlatent.server.exchange import Exchange, Pace, messages
from fedlatent.server.home import ServerHome
from fedlatent.server.inbox import open_inbox
from fedlatent.server.outcome import SiteOutcome
from fedlatent.server.quota import ReplyQuota
from fedlatent.server.registry import Registry
from fedlatent.server.results import RunFolder, silent_ones, write_result
from fedlatent.server.rounds import Course, JoinState, Request, Verdict
from fedlatent.server.seal import Seal
from fedlatent.server.strategies.flower import asked_by
from fedlatent.server.strategies.robust import check_strategy
from fedlatent.server.strikes import LeftOut, Strikes, way_back
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError, DataError, FedlatentError, QuorumLost, ServiceError
from fedlatent.shared.files import file_lock, sha256_hex, write_json
from fedlatent.shared.schedule import Phase, phases
from fedlatent.shared.wire import check_run_id

_log = getLogger("fedlatent.server")

#: Times that a phase is tried before its run is paused.
ATTEMPTS = 2

#: Node id -> site name of the admitted sites; empty when the server keeps no such table.
SiteTable = Mapping[int, str]


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
    strategy: Strategy | None = None,
    resume: bool = False,
    start: Arrays | None = None,
    sites: Callable[[], SiteTable] = dict,
    counts: Callable[[], Mapping[str, int]] = dict,
    pace: Pace | None = None,
    seal: Seal | None = None,
    announce: Callable[[ReplyQuota], None] | None = None,
) -> RunFolder:
    """Take a run to its end, from its start or from its last checkpoint.

    Args:
        grid: who runs the clients: deployed, in one process, or Flower's simulation.
        config: the run; when resumed, the same one.
        home: where the registry, checkpoints and the result go.
        run_id: name of the run, as :func:`new_run_id` makes it.
        strategy: how updates are brought together, and who is asked: one of Flower's strategies or
            one's own (``fedlatent.server.strategies.flower``). By default what ``[strategy]`` says.
            It is no part of the configuration: give it again when the run is resumed.
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
        ConfigError: the run exists and ``resume`` is not set, the configuration is another, or no
            package here has its strategy.
        QuorumLost: too few good replies in two attempts; the run is paused and can be resumed.
        ServiceError: another process drives this run.
        DataError: a damaged checkpoint, or summaries of too few records.
    """
    if strategy is None:
        check_strategy(config)
    folder = home.run(check_run_id(run_id))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    busy = ServiceError(
        f"Expected run {folder.name} to be idle, got one that another process drives; wait for it "
        "or stop it."
    )
    with file_lock(folder / "lock", busy), Registry(home.registry) as registry:
        _register(registry, config, run_id, folder, resume=resume)
        try:
            driver = Driver(
                grid=grid,
                course=Course(config, run_id, start or _started_from(config, home)),
                strategy=strategy,
                registry=registry,
                store=CheckpointStore(folder / "checkpoints", config),
                sites=sites,
                counts=counts,
                pace=pace or Pace(),
                seal=seal,
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
    return RunFolder.load(home.run(check_run_id(name)) / "result").arrays if name else None


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


@dataclass(kw_only=True)
class Driver:
    """The loop of one run; :func:`drive` puts it together and keeps the run's status."""

    grid: Grid
    course: Course
    strategy: Strategy | None
    registry: Registry
    store: CheckpointStore
    sites: Callable[[], SiteTable]
    counts: Callable[[], Mapping[str, int]]
    pace: Pace
    strikes: Strikes
    seal: Seal | None = None
    announce: Callable[[ReplyQuota], None] | None = None

    def __post_init__(self) -> None:
        """Nobody has been named in the log yet."""
        self.config, self.run_id = self.course.config, self.course.run_id
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
            collector, before = self._phase(state, phase, wanted), state
            state = self.course.advance(state, phase, collector, time.time())
            self._tell(phase, collector, before, state)
            self.registry.finish_round(
                self.run_id, phase.number, "complete", collector.outcomes.values()
            )
            self.store.save(state)
            wanted = self.config.federation.quorum
        return state

    def finish(self, state: Checkpoint, folder: Path) -> RunFolder:
        """Write the result folder and name its files in the registry."""
        course = self.course
        result = write_result(state, self.config, course.plan, course.model.latent_dim, folder)
        for name, path in result.files().items():
            data = path.read_bytes()
            self.registry.add_artefact(self.run_id, name, path, sha256_hex(data), len(data))
        _log.info("run %s: complete, result in %s", self.run_id, folder)
        return result

    def _begin(self) -> Checkpoint:
        """The newest checkpoint, or the first one with the seed's weights."""
        state = self.store.load()
        if state is None:
            state = self.course.first()
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
        if phase.kind == "train" and self.strategy is not None:
            asked = asked_by(self.strategy, phase.trained + 1, state.encoder, names)
            names = {node: names[node] for node in asked}
        request = self.course.request(state, phase, len(names))
        self.registry.start_round(self.run_id, phase.number, phase.kind, attempt, len(names))
        collector = self.course.collector(
            state,
            phase,
            request,
            names,
            admitted=admitted,
            counts=self.counts(),
            strategy=self.strategy,
            seal=self.seal,
        )
        for node, one in left_out.items():
            self._report(phase, collector.leave_out(node, one.site, one.sentence))
        verdict = self._exchange(collector, request)
        outcomes = collector.outcomes.values()
        good = sum(outcome.status == "ok" for outcome in outcomes)
        facts = (self.run_id, phase.kind, phase.number, good, len(names))
        _log.info("run %s: %s %d: %d of %d nodes counted", *facts)
        if verdict is Verdict.FAIL:
            self.registry.finish_round(self.run_id, phase.number, "failed", outcomes)
            raise QuorumLost(
                f"Expected {self.config.federation.quorum} good replies in phase {phase.number} "
                f"({phase.kind}), got {good} of {len(names)} nodes: {collector.excuses()}. "
                f"Mend that and resume the run.{way_back(left_out.values())}"
            )
        return collector

    def _exchange(self, collector: Collector, request: Request) -> Verdict:
        """Ask the nodes of the collector, and let it take their replies."""
        quota, phase = ReplyQuota.of(collector.spec.shapes.values()), collector.phase
        rules = self.config.federation
        inbox = open_inbox(self.grid, quota, self.pace.clock)
        if self.announce is not None:
            self.announce(quota)
        exchange = Exchange(
            grid=self.grid,
            inbox=inbox,
            pace=self.pace,
            collector=collector,
            report=partial(self._report, phase),
            quorum=rules.quorum,
            deadline_s=rules.round_deadline_s,
        )
        nodes, envelope = sorted(collector.names), collector.envelope
        return exchange.run(messages(self.config, self.run_id, phase, request, nodes, envelope))

    def _join(self, phase: Phase, wanted: int) -> tuple[dict[int, str], bool, dict[int, LeftOut]]:
        """Wait for nodes that may be asked.

        Returns:
            Their names; whether these come from a table of admitted sites; who is left out.
        """
        rules, pace = self.config.federation, self.pace
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
            least = self.course.least(phase, len(banned))
            # Who is left out is not waited for in addition to the others.
            state = JoinState(wanted=wanted - len(left_out), quorum=least, until=until)
            verdict = state.decide(len(names), pace.clock())
            if verdict is Verdict.GO:
                return names, known, left_out
            if verdict is Verdict.FAIL:
                raise QuorumLost(
                    f"Expected {least} nodes for phase {phase.number} ({phase.kind}), got "
                    f"{len(names)} within {rules.join_timeout_s:g} s; start the nodes and resume "
                    f"the run.{way_back(left_out.values())}"
                )
            pace.sleep(pace.poll_s)

    def _name_strangers(self, nodes: set[int]) -> None:
        for node in sorted(nodes - self._strangers):
            _log.warning("run %s: node %d is not an admitted site; not asked", self.run_id, node)
        self._strangers |= nodes

    def _report(self, phase: Phase, outcome: SiteOutcome) -> None:
        """Log an outcome that is not good, and count it when it is misbehaviour."""
        if outcome.status == "ok":
            return
        facts = (self.run_id, phase.kind, phase.number, outcome.site, outcome.status)
        told = (*facts, outcome.code, outcome.sentence)
        _log.warning("run %s: %s %d: node %s %s (%s): %s", *told)
        if (one := self.strikes.note(outcome, phase)) is not None:
            text = "run %s: node %s is left out of the run from the next phase on: %s"
            _log.warning(text, self.run_id, one.site, one.sentence)

    def _tell(
        self, phase: Phase, collector: Collector, before: Checkpoint, after: Checkpoint
    ) -> None:
        """Log what a phase brought that people should know.

        Of each site the first update that was scaled or not chosen (all are registered), and
        thresholds that flag nothing.
        """
        for outcome in collector.outcomes.values():
            note = (outcome.site, outcome.code)
            if outcome.status == "ok" and outcome.code and note not in self._noted:
                self._noted.add(note)
                facts = (self.run_id, phase.kind, phase.number, outcome.site, outcome.sentence)
                _log.info("run %s: %s %d: node %s: %s", *facts)
        known, found = before.released.thresholds, after.released.thresholds
        for name in silent_ones({k: v for k, v in found.items() if k not in known}):
            text = (
                "the %s threshold lies in the last bin and flags nothing; the scores of most sites"
            )
            _log.warning(f"run %s: {text} are out of range", self.run_id, name)
