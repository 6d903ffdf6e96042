"""The course of a run, without files and network: the time and what came in are arguments.

::

        Course.first                 the checkpoint
             |                            |
             v                            v
    +--> JoinState --FAIL--> stop    (next phase of fedlatent.shared.schedule)
    |        | GO
    |        v
    |   Course.request ........ what is asked, and of what shape the replies must be
    |        |
    |        v
    |     Tally --FAIL--> stop; the driver tries once more, then pauses the run
    |        | GO: all have answered, or the deadline has come and a quorum was good
    |        v
    +-- Course.advance ........ the next checkpoint

A state that waits (WAIT) is asked again after the next reply or look. What stops a run leaves the
last checkpoint as it was, so that the phase can be done again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Self

import numpy as np
from flwr.serverapp.strategy import Strategy

from fedlatent.server.checkpoint import Checkpoint
from fedlatent.server.collect import Collector, Counts
from fedlatent.server.screening import ReplySpec
from fedlatent.server.seal import Seal
from fedlatent.server.strategies.optimizer import server_step
from fedlatent.server.strategies.robust import Pool
from fedlatent.server.strategies.weighting import bounded, weight_of
from fedlatent.shared.arrays import Arrays, add_prefix, strip_prefix
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.models import VAE, build_model
from fedlatent.shared.models.base import ENCODER_PREFIX, use_prior
from fedlatent.shared.models.priors import StandardNormal
from fedlatent.shared.models.warm_start import warm_start
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import Form, SummarySpec
from fedlatent.shared.schedule import Phase, training_rounds
from fedlatent.shared.summaries import SUMMARIES, Replies, carried

#: Seconds past the deadline until an undelivered message expires.
TTL_MARGIN_S = 30.0
#: Before the names of what a strategy of one's own carries from round to round.
OWN = "strategy/"


class Verdict(Enum):
    """What to do next with a phase, or with the wait for nodes before it."""

    WAIT = "wait"
    GO = "go"  # enough: aggregate the replies, or start to ask
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class JoinState:
    """The bounded wait for nodes before a phase.

    Attributes:
        wanted: number of nodes worth waiting for.
        quorum: least number to go on with once the time is up.
        until: time at which the wait ends, in seconds of the caller's clock.
    """

    wanted: int
    quorum: int
    until: float

    def decide(self, online: int, now: float) -> Verdict:
        """Go when all wanted nodes are there, or the quorum is once the time is up."""
        if online >= max(self.wanted, self.quorum):
            return Verdict.GO
        if now < self.until:
            return Verdict.WAIT
        return Verdict.GO if online >= self.quorum else Verdict.FAIL


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Who was asked in one phase and who has answered; changed by events only.

    Attributes:
        asked: node ids that got a message.
        quorum: least number of good replies for the phase to count.
        until: the deadline, in seconds of the caller's clock.
        good: nodes whose reply passed screening.
        failed: nodes that refused, failed, or sent a reply that was dropped.
    """

    asked: frozenset[int]
    quorum: int
    until: float
    good: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()

    @classmethod
    def start(cls, asked: Iterable[int], quorum: int, until: float) -> Self:
        """A phase in which nobody has answered yet."""
        return cls(asked=frozenset(asked), quorum=quorum, until=until)

    @property
    def pending(self) -> frozenset[int]:
        """Nodes that have not answered; past the deadline, the late ones."""
        return self.asked - self.good - self.failed

    def reply(self, node: int, *, ok: bool) -> Self:
        """The state after the first answer of ``node``; a second one changes nothing.

        Raises:
            ValueError: the node was not asked.
        """
        return self.replies({node: ok})

    def replies(self, answers: Mapping[int, bool]) -> Self:
        """The state after the answers of several nodes, True where one was good.

        Raises:
            ValueError: a node was not asked.
        """
        strangers = answers.keys() - self.asked
        if strangers:
            raise ValueError(f"Expected one of the nodes asked, got node {min(strangers)}.")
        pending = self.pending
        new = {node: ok for node, ok in answers.items() if node in pending}
        return replace(
            self,
            good=self.good | {node for node, ok in new.items() if ok},
            failed=self.failed | {node for node, ok in new.items() if not ok},
        )

    def decide(self, now: float) -> Verdict:
        """Wait while the outcome is open; fail as soon as the quorum cannot be reached."""
        if len(self.good) + len(self.pending) < self.quorum:
            return Verdict.FAIL
        if self.pending and now < self.until:
            return Verdict.WAIT
        return Verdict.GO if len(self.good) >= self.quorum else Verdict.FAIL


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a phase sends.

    Attributes:
        arrays: by name.
        form: of moments.
        summary: what it wants back; None for weights.
    """

    arrays: Arrays
    form: Form
    summary: SummarySpec | None


class Course:
    """What a run asks in each phase, and what follows from the replies.

    Attributes:
        config: the run.
        run_id: its name.
        plan: its privacy plan.
        model: of its shape, with the first weights.
    """

    def __init__(self, config: RunConfig, run_id: str, start: Arrays | None = None) -> None:
        """Of run ``run_id``, which begins with the weights ``start`` or those of its seed.

        Raises:
            ConfigError: the noise that its epsilon needs cannot be reached.
        """
        self.config, self.run_id, self._start = config, run_id, start
        self.plan = _plan(config)
        self.model: VAE = build_model(config)
        if config.summaries.prior != "none":
            use_prior(self.model, StandardNormal())  # refused where a model trains its own

    def first(self) -> Checkpoint:
        """The state before the first phase.

        Raises:
            ConfigError: the weights to start from are of another model.
        """
        return Checkpoint(
            run_id=self.run_id, digest=self.config.digest(), done=0, encoder=self._first_arrays()
        )

    def least(self, phase: Phase, left_out: int) -> int:
        """Least number of nodes to ask when so many sites are left out of the run."""
        quorum, strategy = self.config.federation.quorum, self.config.strategy
        if phase.kind != "train" or not strategy.hostile:
            return quorum
        hostile = max(0, strategy.hostile - left_out)  # who is left out, and be it off, is one
        return max(quorum, strategy.sites_needed(hostile))

    def request(self, state: Checkpoint, phase: Phase, clients: int) -> Request:
        """What a phase sends, and what it wants back."""
        run, kind, released = self.config, phase.kind, state.released
        if kind == "train":
            arrays = {**state.encoder, **released.sent(carried(run, kind))}
            return Request(arrays=arrays, form=released.form, summary=None)
        summary, k = SUMMARIES[kind], self.model.latent_dim
        stated = [int(str(site["records"])) for site in state.sites.values()]
        records = bounded(stated).tolist() if run.summaries.robust and stated else stated
        epsilon = self.plan.epsilon_of_one(kind)
        form = summary.form(run, k, released, records, clients, epsilon)
        weights = state.encoder if summary.sees_model else {}
        if not (run.shares_decoder and summary.whole_model):
            weights = {k: v for k, v in weights.items() if k.startswith(ENCODER_PREFIX)}
        spec = summary.spec(run, k, replace(released, form=form))
        arrays = {**weights, **released.sent(carried(run, kind))}
        return Request(arrays=arrays, form=form, summary=spec)

    def collector(
        self,
        state: Checkpoint,
        phase: Phase,
        request: Request,
        names: Mapping[int, str],
        *,
        admitted: bool,
        counts: Mapping[str, int],
        strategy: Strategy | None,
        seal: Seal | None,
    ) -> Collector:
        """What takes the replies of a phase, still empty.

        Args:
            state: the last checkpoint.
            phase: that is asked.
            request: what is asked.
            names: of the sites that are asked, by node id.
            admitted: whether these are names of admitted sites.
            counts: records of the sites whose number the operator fixed.
            strategy: in place of the one that the run names.
            seal: of a server whose sites sign.
        """
        lasts_s = self.config.federation.round_deadline_s + TTL_MARGIN_S
        stated = {name: int(str(facts["records"])) for name, facts in state.sites.items()}
        asked = request.summary or state.encoder
        collector = Collector(
            phase,
            ReplySpec.of(self.run_id, self.config, self.plan, phase, asked),
            Pool(
                self.config,
                state.encoder,
                len(names),
                strategy=strategy,
                round=phase.trained + 1,
                state=strip_prefix(state.optimizer, OWN),
            ),
            names,
            admitted=admitted,
            weight=partial(weight_of, self.config.strategy.weighting),
            envelope=seal.envelope(names, lasts_s) if seal else None,
            counts=Counts(admitted=counts, stated=stated),
        )
        collector.sent = sum(value.nbytes for value in request.arrays.values())
        return collector

    def advance(
        self, state: Checkpoint, phase: Phase, collector: Collector, finished: float
    ) -> Checkpoint:
        """The state after a phase whose quorum was reached, ``finished`` seconds after 1970.

        Raises:
            DataError: the replies cannot be brought together.
        """
        follow, what = self._pooled, "summaries"
        if phase.kind == "train":
            follow, what = self._trained, "updates"
        state = replace(state, done=phase.number, sites=_renewed(state.sites, collector))
        try:
            after = follow(state, phase, collector)
        except ValueError as error:
            raise DataError(f"The {what} ({phase.kind}) cannot be pooled: {error}") from None
        entry = _entry(phase, collector, finished)
        return replace(after, history=[*state.history, entry])

    def _trained(self, state: Checkpoint, phase: Phase, collector: Collector) -> Checkpoint:
        """After a training round: the server optimiser's step, and the average over rounds."""
        number, decay = phase.trained + 1, self.config.training.ema
        mean = collector.average()
        arrays, kept = server_step(
            self.config.strategy, number, state.encoder, mean, state.optimizer
        )
        kept |= add_prefix(OWN, collector.pool.state)
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
        run, kind, plan = self.config, phase.kind, self.plan
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
        after = SUMMARIES[kind].pool(run, self.model.latent_dim, before, replies)
        sites = {name: dict(facts) for name, facts in state.sites.items()}
        for name, own in after.site_thresholds.items():
            sites[name]["thresholds"] = dict(own)
        state = replace(state, released=after, sites=sites)
        warmed = run.training.warm_start_steps and before.gaussian is None
        if not warmed or after.gaussian is None:
            return state
        warm_start(self.model, run, after.gaussian)
        return replace(state, encoder=_shared_arrays(self.model, whole=run.shares_decoder))

    def _first_arrays(self) -> Arrays:
        """What the run begins with: the seed's weights, or those of the run that it starts from."""
        arrays = _shared_arrays(self.model, whole=self.config.shares_decoder)
        if self._start is None:
            return arrays
        fits = {key: self._start[key] for key in arrays if key in self._start}
        if {k: v.shape for k, v in fits.items()} != {k: v.shape for k, v in arrays.items()}:
            raise ConfigError(
                "Expected a run to start from whose shared weights are those of this run's model, "
                "got others; name a run of the same model that shares as much."
            )
        return {key: value.astype(arrays[key].dtype) for key, value in fits.items()}


def _plan(config: RunConfig) -> PrivacyPlan:
    try:
        return PrivacyPlan.from_config(config)
    except ValueError:
        raise ConfigError(
            "Expected a reachable epsilon, got one too small for its rounds and steps; "
            "raise privacy.epsilon or train less."
        ) from None


def _shared_arrays(model: VAE, *, whole: bool) -> Arrays:
    """The float32 arrays that a run sends first: the encoder, or all parameters."""
    return {
        key: np.ascontiguousarray(value.detach().numpy())
        for key, value in model.state_dict().items()
        if whole or key.startswith(ENCODER_PREFIX)
    }


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


def _entry(phase: Phase, collector: Collector, finished: float) -> dict[str, object]:
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
        "finished": finished,
    }
