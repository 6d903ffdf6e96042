"""A federation in one process: the real server loop, no sockets.

Two engines run the clients. ``nodes``: real nodes one after the other, each with a home that holds
ledger, store and release log. ``stacked``: all clients as one tensor program, without homes. Tests
hold both, and the deployed path, equal for the same seed.
"""

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flwr.app import Message

from fedlatent.client.home import ClientHome
from fedlatent.client.local import assemble
from fedlatent.client.node import Node
from fedlatent.client.policy import DEFAULT_SHARING, Caps, NodeConfig, NodeData, Policy
from fedlatent.client.store import SiteMaterial, Store
from fedlatent.server.driver import drive
from fedlatent.server.exchange import Pace
from fedlatent.server.home import ServerHome
from fedlatent.server.results import RunFolder
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.data.sources import Federation
from fedlatent.shared.files import append_line, read_lines
from fedlatent.shared.records import from_records, reply_of, reply_records
from fedlatent.shared.schedule import Kind, phase_of, phases, training_round
from fedlatent.shared.summaries import split_parts
from fedlatent.shared.wire import RequestHeader, deliver
from fedlatent.simulations.availability import Availability
from fedlatent.simulations.grid import Answers, ClientsFailed, Handler, InProcessGrid, by_handlers
from fedlatent.simulations.stacked.cohort import Cohort

#: Who computes what the clients answer.
Engine = Literal["nodes", "stacked"]

FIRST_NODE_ID = 1000
HISTORY = "rounds.jsonl"

_WATCH_S = 0.2  # between two reports of progress


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a simulation stands.

    Attributes:
        phase: number of the phase, from 1.
        phases: how many there are: the rounds and the summaries.
        kind: what is asked.
        round: of training, from 1: this one, or the last before a summary.
        asked: clients that were asked in this phase.
        answered: those that had their turn.
        loss: mean training loss of the clients so far in nats a record, which the simulator sees
            and no client releases; None outside training.
        epsilon: the highest of the clients so far; None without privacy.
    """

    phase: int
    phases: int
    kind: Kind
    round: int
    asked: int
    answered: int
    loss: float | None
    epsilon: float | None

    @property
    def share(self) -> float:
        """How much of the run is done, 0 to 1; clients of a phase count alike."""
        within = self.answered / self.asked if self.asked else 0.0
        return (self.phase - 1 + within) / self.phases


@dataclass(frozen=True, kw_only=True)
class RoundFacts:
    """What happened in one phase.

    Attributes:
        number: of the phase, from 1.
        kind: what was asked.
        round: of training, from 1: this one, or the last before a summary.
        seconds: from the request to the last answer.
        asked: clients that got a message.
        good: answers that arrived and were no refusal.
        late: clients that answered too late.
        away: clients that did nothing.
        loss: mean training loss of the clients in nats a record, or None.
        loss_spread: 10th, 50th and 90th percentile over clients of their loss, or None.
        epsilon: the highest over the clients; None without privacy.
        bytes_up: of the arrays that clients sent.
        bytes_down: of the arrays that clients got.
    """

    number: int
    kind: Kind
    round: int
    seconds: float
    asked: int
    good: int
    late: int
    away: int
    loss: float | None
    loss_spread: tuple[float, float, float] | None
    epsilon: float | None
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What a simulated federation leaves behind.

    Attributes:
        result: the server's result.
        history: facts of all phases, also of those before a resumption.
        material: gives what the bundle of one site is made of.
        homes: the nodes' homes by site name; empty where the clients had none.
    """

    result: RunFolder
    history: list[RoundFacts]
    material: Callable[[str], SiteMaterial]
    homes: dict[str, ClientHome] = field(default_factory=dict)


def datasets(federation: Federation) -> dict[str, Dataset]:
    """The training records of every site, preprocessed."""
    schema = federation.schema
    return {
        site.name: Dataset(records=schema.preprocess(site.train), schema=schema)
        for site in federation.sites
    }


def counts_of(sites: Mapping[str, Dataset]) -> Callable[[], dict[str, int]]:
    """Tells how many records each site works with, as the operator of a server knows it."""
    return functools.cache(lambda: {site: len(sites[site].normals()) for site in sites})


#: Of simulated nodes, whose server is not hostile: what a study asks for is computed.
OPEN_CAPS = Caps(
    largest_weight=float(np.finfo(np.float32).max),
    largest_learning_rate=1e6,
    largest_beta=1e6,
    largest_nats=1e6,
    largest_multiplicity=4096,
    largest_phases=1_000_000,
    smallest_clip=1e-12,
    largest_clip=1e12,
    smallest_radius=1e-12,
    largest_radius=1e12,
    smallest_sigma=0.0,
    smallest_batch=0.0,
    smallest_deviation=1e-12,
    largest_deviation=1e12,
    smallest_eigenvalue=1e-12,
    largest_eigenvalue=1e12,
)


def open_policy(run: RunConfig) -> Policy:
    """A policy that allows ``run`` and nothing beyond its epsilon."""
    training = run.training
    steps = training.rounds * training.steps_per_round + training.warm_start_steps
    return Policy(
        max_epsilon=run.privacy.epsilon,
        delta=run.privacy.delta,
        max_steps=steps,
        allowed_sharing=(*DEFAULT_SHARING, "full"),
        allow_simulation_rng=True,
        allow_non_private=True,
        caps=OPEN_CAPS,
    )


def make_node(
    site: str, dataset: Dataset, run: RunConfig, home: ClientHome, policy: Policy
) -> Node:
    """One node in memory whose files lie in ``home``."""
    config = NodeConfig(
        site=site,
        data=NodeData(path=Path("in-memory"), name="records", schema=run.data),
        policy=policy,
    )
    return assemble(config, dataset, home)


def handler(node: Node) -> Handler:
    """Answer Flower messages with ``node``, as the ClientApp and the resident do together."""

    def answer(message: Message) -> Message:
        header, arrays = from_records(message.content)
        frame = deliver(node.handle(header, arrays).payload)
        return Message(reply_records(frame), reply_to=message)

    return answer


def home_material(homes: Mapping[str, ClientHome], run_id: str) -> Callable[[str], SiteMaterial]:
    """What the bundle of one site is made of, from the site's home."""
    return lambda site: Store(homes[site].store).load_site(run_id)


def simulate(
    run: RunConfig,
    sites: Mapping[str, Dataset],
    folder: Path,
    *,
    run_id: str = "simulated",
    policy: Policy | None = None,
    resume: bool = False,
    engine: Engine = "nodes",
    availability: Availability | None = None,
    device: str = "cpu",
    watch: Callable[[Progress], None] | None = None,
    after_round: Callable[[int, Arrays], None] | None = None,
    tamper: Callable[[Answers], Answers] | None = None,
) -> Simulation:
    """Train ``run`` over ``sites`` in this process.

    No time passes here but that of the computation: a client is late because ``availability``
    says so, and the deadline then comes at once.

    Args:
        run: the run configuration.
        sites: preprocessed records by site name; the order gives the node ids. The engine
            "stacked" looks records up when it needs them and does not keep them.
        folder: receives ``server/``, the facts of the rounds and what the clients keep.
        run_id: name of the run.
        policy: of every client; by default one that just allows the run.
        resume: go on from the run's last checkpoint; from the start where there is none.
        engine: "nodes" or "stacked".
        availability: who is away or late; by default nobody.
        device: where the engine "stacked" computes.
        watch: told about progress, a few times a second.
        after_round: told the shared arrays after each finished training round; after a
            resumption, those of the last finished one again.
        tamper: what stands between the clients' answers and the server, such as hostile sites.

    Raises:
        ConfigError: the configuration is wrong, or does not fit the engine.
        QuorumLost: too few clients answered well, for instance because all refused.
        Exception: whatever ``watch``, ``after_round`` or the clients' computation raise; the run
            can then be resumed.
    """
    names = {FIRST_NODE_ID + place: site for place, site in enumerate(sites)}
    allowed, present = policy or open_policy(run), availability or Availability()
    homes: dict[str, ClientHome] = {}
    cohort: Cohort | None = None
    if engine == "stacked":
        cohort = Cohort(
            run,
            run_id,
            sites,
            names,
            folder / "clients",
            policy=allowed,
            availability=present,
            device=device,
        )
        answers: Answers = cohort.answers
    else:
        homes = {site: ClientHome(folder / "nodes" / site) for site in sites}
        handlers = {
            node: handler(make_node(site, sites[site], run, homes[site], allowed))
            for node, site in names.items()
        }
        answers = _with_absences(by_handlers(handlers), run.seed, names, present)
    answers = tamper(answers) if tamper else answers
    observer = _Observer(run, names, present, cohort, folder / HISTORY, watch, after_round)
    server = ServerHome(folder / "server")
    server.create()
    try:
        result = drive(
            InProcessGrid(names, observer.watched(answers)),
            run,
            server,
            run_id=run_id,
            resume=resume,
            sites=lambda: names,
            counts=counts_of(sites),
            pace=_timeless(),
        )
    except ClientsFailed as failed:
        raise failed.error from None
    if cohort is None:
        material = home_material(homes, run_id)
    else:
        own = cohort
        material = lambda site: own.material(site, result)  # noqa: E731
    return Simulation(
        result=result, history=read_history(folder / HISTORY), material=material, homes=homes
    )


def read_history(path: Path) -> list[RoundFacts]:
    """The facts of all phases in order; of a phase that was done twice, the last.

    A line that a kill cut short is left out; its phase was done again.
    """
    found = {facts.number: facts for facts in read_lines(path, _facts).values}
    return [found[number] for number in sorted(found)]


def _facts(values: dict[str, Any]) -> RoundFacts:
    spread = values["loss_spread"]
    return RoundFacts(**{**values, "loss_spread": tuple(spread) if spread else None})


class _Observer:
    """Sees every phase pass: reports progress and writes the facts."""

    def __init__(
        self,
        run: RunConfig,
        names: Mapping[int, str],
        availability: Availability,
        cohort: Cohort | None,
        history: Path,
        watch: Callable[[Progress], None] | None,
        after_round: Callable[[int, Arrays], None] | None,
    ) -> None:
        self._run, self._names, self._availability = run, dict(names), availability
        self._cohort, self._history = cohort, history
        self._watch, self._after_round = watch, after_round
        self._phases = len(phases(run))

    def watched(self, answers: Answers) -> Answers:
        """The same answers, observed."""

        def observed(messages: Sequence[Message]) -> Iterator[Message | None]:
            if not messages:
                return
            header, arrays = from_records(messages[0].content)
            before = phase_of(self._run, header.round - 1)
            if self._after_round and before is not None and before.kind == "train":
                weights, _ = split_parts(header.config, arrays)
                self._after_round(before.trained + 1, weights)
            tally = _Tally()
            started = reported = time.monotonic()
            for place, reply in enumerate(answers(messages), start=1):
                tally.take(reply)
                now = time.monotonic()
                if self._watch and (now - reported > _WATCH_S or place == len(messages)):
                    reported = now
                    self._watch(self._progress(header, len(messages), place, tally))
                if place == len(messages):
                    self._write(header, messages, arrays, tally, now - started)
                yield reply

        return observed

    def _losses(self, header: RequestHeader) -> np.ndarray:
        found = self._cohort.losses if self._cohort and header.kind == "train" else {}
        values = np.fromiter(found.values(), dtype=np.float64, count=len(found))
        return values[np.isfinite(values)]

    def _progress(
        self, header: RequestHeader, asked: int, answered: int, tally: "_Tally"
    ) -> Progress:
        losses = self._losses(header)
        return Progress(
            phase=header.round,
            phases=self._phases,
            kind=header.kind,
            round=training_round(self._run, header.round),
            asked=asked,
            answered=answered,
            loss=float(losses.mean()) if len(losses) else None,
            epsilon=tally.epsilon,
        )

    def _write(
        self,
        header: RequestHeader,
        messages: Sequence[Message],
        arrays: Arrays,
        tally: "_Tally",
        seconds: float,
    ) -> None:
        losses = self._losses(header)
        presences = [
            self._availability.presence(
                self._run.seed, self._names[message.metadata.dst_node_id], header.round
            )
            for message in messages
        ]
        low, middle, high = np.percentile(losses, [10, 50, 90]) if len(losses) else (0.0, 0.0, 0.0)
        facts = RoundFacts(
            number=header.round,
            kind=header.kind,
            round=training_round(self._run, header.round),
            seconds=seconds,
            asked=len(messages),
            good=tally.good,
            late=presences.count("late"),
            away=presences.count("away"),
            loss=float(losses.mean()) if len(losses) else None,
            loss_spread=(float(low), float(middle), float(high)) if len(losses) else None,
            epsilon=tally.epsilon,
            bytes_up=tally.bytes,
            bytes_down=len(messages) * sum(value.nbytes for value in arrays.values()),
        )
        append_line(self._history, json.dumps(asdict(facts)))


@dataclass
class _Tally:
    """What the answers of one phase add up to."""

    good: int = 0
    bytes: int = 0
    epsilon: float | None = None

    def take(self, reply: Message | None) -> None:
        """Count one answer; None is one that did not arrive."""
        if reply is None or reply.has_error():
            return
        header, arrays = reply_of(reply.content)
        if header.status != "ok":
            return
        self.good += 1
        self.bytes += sum(value.nbytes for value in arrays.values())
        if header.epsilon is not None:
            self.epsilon = max(self.epsilon or 0.0, header.epsilon)


def _with_absences(
    answers: Answers, seed: int, names: Mapping[int, str], availability: Availability
) -> Answers:
    """Real nodes of which some are away or late."""

    def present(messages: Sequence[Message]) -> Iterator[Message | None]:
        for message in messages:
            site, phase = names[message.metadata.dst_node_id], int(message.metadata.group_id)
            presence = availability.presence(seed, site, phase)
            replies = [] if presence == "away" else list(answers([message]))
            yield replies[0] if presence == "here" else None

    return present


def _timeless() -> Pace:
    """A clock that stands still while clients compute and jumps when the server waits."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += max(seconds, 1e-3)

    return Pace(poll_s=3600.0, retry_pause_s=0.0, clock=lambda: now, sleep=sleep)
