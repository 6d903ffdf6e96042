"""All clients of one run without a process or a home each: what real nodes answer, chunk by chunk.

A client here is a row of numbers. What it is asked, what it computes, what it pays and what it
answers are those of ``fedlatent.client.node``: the same requests, policy, plan, noise streams,
composition and reply headers; a test holds whole runs equal. What real nodes also do for their
owners, such as the ledger file, stored payloads and the release log, has no place here. Noise is
seeded, so a client's past follows from the run: a phase done again gives the same bits and charges
nothing new.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from flwr.app import Message

from fedlatent.client.compute import (
    Request,
    first_model,
    load_weights,
    make_noise,
    out_of_turn,
    prior_of,
    run_model,
    scaled,
    site_weights,
)
from fedlatent.client.core import Task, permit, phase_asked, site_material
from fedlatent.client.door import clamped
from fedlatent.client.policy import Policy
from fedlatent.client.store import RoundState, SiteMaterial
from fedlatent.client.trainer import EMA, Pull
from fedlatent.server.results import RunFolder
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.errors import ConfigError, FedlatentError, PolicyRefusal, ProtocolError
from fedlatent.shared.models import VAE
from fedlatent.shared.models.base import ENCODER_PREFIX
from fedlatent.shared.privacy.accounting import epsilon_of
from fedlatent.shared.privacy.noise import NoiseSource
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.records import LocalRecords, from_records
from fedlatent.shared.schedule import Kind, Phase, last_phase, phases
from fedlatent.shared.summaries import View
from fedlatent.shared.wire import ReplyHeader, RequestHeader
from fedlatent.simulations.availability import Availability, Presence
from fedlatent.simulations.stacked.engine import Chunk, StackedTrainer
from fedlatent.simulations.stacked.states import ClientStates

#: Clients whose summaries are computed together.
_TOGETHER = 64
#: Fields of an optimiser that a client keeps, each as wide as the model.
_MOMENTS: dict[str, tuple[str, ...]] = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ()}


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """One client's request of a phase."""

    message: Message
    place: int  # of the client among all
    site: str


class Cohort:
    """The clients of one run.

    Attributes:
        losses: mean training loss in nats of each client that trained in the current phase, by
            site; what the simulator sees and no client releases.
    """

    def __init__(
        self,
        run: RunConfig,
        run_id: str,
        sites: Mapping[str, Dataset],
        nodes: Mapping[int, str],
        folder: Path,
        *,
        policy: Policy,
        availability: Availability,
        device: str = "cpu",
    ) -> None:
        """Prepare the clients.

        Args:
            run: the run.
            run_id: its name.
            sites: records by site name. They are looked up chunk by chunk and not kept, so a
                mapping that makes or loads them when asked bounds the memory.
            nodes: site name by node id.
            folder: receives what the clients keep between rounds.
            policy: of every client.
            availability: who is away or late.
            device: where to compute.

        Raises:
            ConfigError: noise that is not seeded, a policy that asks a person, a model that cannot
                be built or stacked, an epsilon that cannot be reached, or a device that is absent.
        """
        if run.privacy.rng != "simulation":
            raise ConfigError(
                f"Expected privacy.rng 'simulation' on the grid 'stacked', got "
                f"{run.privacy.rng!r}: its clients keep no ledger file; set it, or choose the grid "
                "'nodes', 'flower' or 'deployed'."
            )
        if policy.approval != "none":
            raise ConfigError(
                f"Expected policy.approval 'none' on the grid 'stacked', got {policy.approval!r}: "
                "nobody is there to ask; choose another grid."
            )
        self._run, self._run_id, self._sites = run, run_id, sites
        self._places = {node: place for place, node in enumerate(sorted(nodes))}
        self._names = dict(nodes)
        self._policy, self._availability = policy, availability
        self._schema = run.data
        self._plan, self._model = _plan_of(run), _model_of(run)
        self._trainer = StackedTrainer(self._model, self._plan, run.training, device=device)
        self._first = {key: value.clone() for key, value in self._model.state_dict().items()}
        self._personal = run.strategy.name == "mr-mtl"
        self._own = _own_parts(self._trainer, whole=self._personal)
        self._refusals: dict[int, FedlatentError | None] = {}
        self._phases: tuple[Phase, ...] = phases(run)
        self._moments = _MOMENTS[run.training.optimizer] or (
            ("momentum_buffer",) if run.training.momentum else ()
        )
        self._moments += (EMA,) if run.training.ema else ()
        self._warmed = False
        kept = sum(part.stop - part.start for part in self._own)
        width = kept + len(self._moments) * self._trainer.size
        self._states = ClientStates(folder / run_id / "states.f32", width)
        self.losses: dict[str, float] = {}

    def answers(self, messages: Sequence[Message]) -> Iterator[Message | None]:
        """Replies to the messages of one phase, lazily and in order; None where none arrives."""
        if not messages:
            return
        self.losses = {}
        header, arrays = from_records(messages[0].content)
        asked = [
            _Asked(message=one, place=self._places[node], site=self._names[node])
            for one in messages
            for node in [one.metadata.dst_node_id]
        ]
        presences = [self._presence(one.site, header.round) for one in asked]
        working = [one for one, seen in zip(asked, presences, strict=True) if seen != "away"]
        replies = self._replies(header, arrays, working)
        for presence in presences:
            # A late client works like the others; its answer is lost.
            reply = next(replies) if presence != "away" else None
            yield reply if presence == "here" else None

    def _replies(
        self, header: RequestHeader, arrays: Arrays, asked: Sequence[_Asked]
    ) -> Iterator[Message]:
        phase, caps = phase_asked(header), self._policy.caps
        try:
            task = Task.parse(header, arrays, phase, self._plan, self._model, caps)
        except PolicyRefusal as error:
            for one in asked:
                refusal = self._refusal(len(self._records(one.site))) or error
                yield self._refuse(header, one, refusal)
            return
        task.load()
        answer = self._train if header.kind == "train" else self._summaries
        yield from answer(task, asked)

    def material(self, site: str, result: RunFolder) -> SiteMaterial:
        """What the bundle of one site is made of, after the run.

        Args:
            site: its name.
            result: of the finished run.
        """
        run, last = self._run, phases(self._run)[-1].number
        asked = Request(weights=result.arrays, state=result.released)
        load_weights(self._model, asked.weights, whole=run.shares_decoder)
        own = site_weights(run, self._model, self._kept(site), asked)
        records = self._records(site)
        return site_material(
            self._run_id,
            run,
            asked,
            own,
            self._model,
            records,
            epsilon=self._epsilon(site, last, len(records)),
            delta=self._policy.effective_delta(len(records)),
            rng=self._plan.rng,
        )

    def _kept(self, site: str) -> RoundState | None:
        """What a client kept of its last training round; None when it never trained."""
        trained = self._trained(site, phases(self._run)[-1].number + 1)
        if not trained:
            return None
        row = torch.zeros(self._trainer.size)
        averages = torch.zeros(self._trainer.size)
        found = {name: torch.empty(self._trainer.size) for name in self._moments}
        if EMA in found:
            found[EMA] = averages
        place = next(i for n, i in self._places.items() if self._names[n] == site)
        self._take_own(place, trained, row, found)
        own = {
            name: value.clone()
            for name, value in self._trainer.cut(row).items()
            if self._personal or not name.startswith(ENCODER_PREFIX)
        }
        means = {f"{k}/{EMA}": v.clone() for k, v in self._trainer.cut(averages).items()}
        return RoundState(decoder=own, optimizer=means if self._run.training.ema else {})

    def _train(self, task: Task, asked: Sequence[_Asked]) -> Iterator[Message]:
        request, gaussian = task.request, task.request.state.gaussian
        if gaussian is not None and not self._warmed:
            self._first = dict(first_model(self._run, gaussian).state_dict())
            self._warmed = True
        self._trainer.set_prior(prior_of(self._run, request.state))
        received = self._received(request.weights)
        for group in self._groups(task.header, asked):
            yield from self._train_group(task, received, group)

    def _received(self, arrays: Mapping[str, np.ndarray]) -> torch.Tensor:
        """The row [P] of a client that got ``arrays`` and has nothing of its own yet."""
        state = self._first | {key: torch.from_numpy(value) for key, value in arrays.items()}
        return self._trainer.row(state)

    def _groups(
        self, header: RequestHeader, asked: Sequence[_Asked]
    ) -> Iterator[list[tuple[_Asked, torch.Tensor]]]:
        """Neighbouring clients that fit the memory together and have trained equally often."""
        window: list[tuple[_Asked, torch.Tensor]] = []
        before, most = -1, 0
        for one in asked:
            records, trained = self._records(one.site), self._trained(one.site, header.round)
            most = max(most, len(records))
            if window and (trained != before or not self._trainer.fits(len(window) + 1, most)):
                yield window
                window, most = [], len(records)
            window.append((one, records))
            before = trained
        if window:
            yield window

    def _train_group(
        self, task: Task, received: torch.Tensor, group: Sequence[tuple[_Asked, torch.Tensor]]
    ) -> Iterator[Message]:
        header = task.header
        refused = [self._refusal(len(records)) for _, records in group]
        admitted = [pair for pair, no in zip(group, refused, strict=True) if no is None]
        results: Iterator[Arrays] = iter(())
        if admitted:
            chunk = self._chunk(task, received, admitted)
            self._trainer.train_chunk(chunk, task.phase.trained)
            results = self._leaving(header, chunk, admitted)
        for (one, records), error in zip(group, refused, strict=True):
            if error is not None:
                yield self._refuse(header, one, error)
                continue
            yield self._reply(header, one, len(records), next(results))

    def _chunk(
        self, task: Task, received: torch.Tensor, group: Sequence[tuple[_Asked, torch.Tensor]]
    ) -> Chunk:
        number, scaling = task.phase.number, task.request.state.scaling
        weights = received.repeat(len(group), 1)
        moments = {name: torch.zeros_like(weights) for name in self._moments}
        trained = self._trained(group[0][0].site, number)
        full = self._run.shares_decoder
        for slot, (one, _) in enumerate(group):
            own = {name: value[slot] for name, value in moments.items()}
            self._take_own(one.place, trained, None if full else weights[slot], own)
        return Chunk(
            weights=weights,
            records=[scaled(records, scaling) for _, records in group],
            noises=[self._noise(one.site, number, "train") for one, _ in group],
            steps=trained * self._plan.steps_per_round,
            moments=moments if trained else {},
            pull=Pull.of(self._run, self._sent(received)),
        )

    def _sent(self, received: torch.Tensor) -> dict[str, torch.Tensor]:
        """The shared weights among those of a received row."""
        return {
            name: value
            for name, value in self._trainer.cut(received).items()
            if self._run.shares_decoder or name.startswith(ENCODER_PREFIX)
        }

    def _take_own(
        self,
        place: int,
        trained: int,
        row: torch.Tensor | None,
        moments: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Write what a client kept into its row [P] and its optimiser's moments [P] each."""
        if not trained:
            return
        # What is not wanted is read all the same, so that the row stays one piece.
        target = torch.empty(self._trainer.size) if row is None else row
        found = moments or {name: torch.empty(self._trainer.size) for name in self._moments}
        places = [target[part] for part in self._own] + [found[name] for name in self._moments]
        self._states.read(place, trained, [own.numpy() for own in places])

    def _leaving(
        self, header: RequestHeader, chunk: Chunk, group: Sequence[tuple[_Asked, torch.Tensor]]
    ) -> Iterator[Arrays]:
        """Keep each client's own state; what the run shares of its weights, clamped like it."""
        for rows in (chunk.weights, *chunk.moments.values()):
            torch.nan_to_num(rows, out=rows)
        whole = self._run.shares_decoder
        for place, (one, _) in enumerate(group):
            row = chunk.weights[place]
            kept = [row[part] for part in self._own]
            kept += [chunk.moments[name][place] for name in self._moments]
            trained = self._trained(one.site, header.round)
            self._states.write(one.place, trained + 1, [part.numpy() for part in kept])
            self.losses[one.site] = float(chunk.losses[place])
            arrays = {
                key: value
                for key, value in self._views(row).items()
                if whole or key.startswith(ENCODER_PREFIX)
            }
            yield arrays

    def _views(self, row: torch.Tensor) -> Arrays:
        return {name: part.numpy() for name, part in self._trainer.cut(row).items()}

    def _summaries(self, task: Task, asked: Sequence[_Asked]) -> Iterator[Message]:
        """A summary of every client, under one encoder for all."""
        for start in range(0, len(asked), _TOGETHER):
            group = asked[start : start + _TOGETHER]
            records = [self._records(one.site) for one in group]
            offsets = np.cumsum([len(own) for own in records])[:-1]
            latents = np.split(task.latents(torch.cat(records)), offsets)
            for one, own, means in zip(group, records, latents, strict=True):
                error = self._refusal(len(own)) or self._out_of_turn(task, one)
                if error is not None:
                    yield self._refuse(task.header, one, error)
                    continue
                released = self._summary(task, one.site, task.view(own, means))
                yield self._reply(task.header, one, len(own), released)

    def _summary(self, task: Task, site: str, view: View) -> Arrays:
        number, base = task.phase.number, task.summary.builds_on
        if base is not None:
            # The client's last release of that kind: the same bits as in that phase.
            last = last_phase(self._run, base, number)
            noise = self._noise(site, last.number if last else 0, base)
            view = replace(view, own=task.summarise(view, noise, base))
        noise = self._noise(site, number, task.phase.kind)
        return {task.spec.key: clamped(task.summarise(view, noise))}

    def _out_of_turn(self, task: Task, one: _Asked) -> FedlatentError | None:
        if task.summary.builds_on is None:
            return None
        last = last_phase(self._run, task.summary.builds_on, task.phase.number)
        away = last is None or self._presence(one.site, last.number) == "away"
        return out_of_turn(task.summary) if away else None

    def _records(self, site: str) -> torch.Tensor:
        normals = self._sites[site].normals()
        return torch.from_numpy(np.ascontiguousarray(normals.records))

    def _noise(self, site: str, round: int, kind: Kind) -> NoiseSource:
        return make_noise(self._run, site, round, kind)

    def _presence(self, site: str, phase: int) -> Presence:
        return self._availability.presence(self._run.seed, site, phase)

    def _trained(self, site: str, before: int) -> int:
        """How many training phases before a phase a client took part in."""
        return self._paid(site, before - 1).count("train")

    def _paid(self, site: str, last: int) -> tuple[Kind, ...]:
        """The kinds of the phases up to ``last`` that a client took part in."""
        found = [one for one in self._phases if one.number <= last]
        if self._availability.dropout:
            found = [one for one in found if self._presence(site, one.number) != "away"]
        return tuple(one.kind for one in found)

    def _epsilon(self, site: str, phase: int, records: int) -> float | None:
        """Epsilon of a client's records once a phase is paid for; None without privacy."""
        if not self._plan.private:
            return None
        delta = self._policy.effective_delta(records)
        counts = tuple(sorted(Counter(self._paid(site, phase)).items()))
        return _composed(self._plan, counts, delta)

    def _refusal(self, records: int) -> FedlatentError | None:
        """The policy's objection to the run, which depends on the number of records alone."""
        if records not in self._refusals:
            self._refusals[records] = None
            try:
                permit(self._run, self._policy, self._schema, records)
            except FedlatentError as error:
                self._refusals[records] = error
        return self._refusals[records]

    def _refuse(self, header: RequestHeader, one: _Asked, error: FedlatentError) -> Message:
        """A no in the words of the release door."""
        stated = {"status": "refused", "code": error.code, "text": str(error)[:500]}
        reply = ReplyHeader.to(header, one.site, **stated)
        return Message(LocalRecords(reply, {}), reply_to=one.message)

    def _reply(self, header: RequestHeader, one: _Asked, records: int, arrays: Arrays) -> Message:
        private, event = self._plan.private, self._plan.event(header.kind)
        reply = ReplyHeader.to(
            header,
            one.site,
            status="ok",
            records=records,
            epsilon=self._epsilon(one.site, header.round, records),
            delta=self._policy.effective_delta(records) if private else None,
            noise_multiplier=event.noise_multiplier if event else 0.0,
            sample_rate=event.sample_rate if event else 1.0,
            steps=event.steps if event else 1,
            rng=self._plan.rng,
        )
        return Message(LocalRecords(reply, arrays), reply_to=one.message)


@functools.lru_cache(maxsize=4096)
def _composed(plan: PrivacyPlan, counts: tuple[tuple[Kind, int], ...], delta: float) -> float:
    """Epsilon of so many phases of each kind; many clients have paid for the same."""
    paid = [plan.required(kind) for kind, count in counts for _ in range(count)]
    return epsilon_of(paid, delta)


def _plan_of(run: RunConfig) -> PrivacyPlan:
    try:
        return PrivacyPlan.from_config(run)
    except ValueError as error:
        raise ConfigError(f"{run.name}: {error}") from None


def _model_of(run: RunConfig) -> VAE:
    try:
        return run_model(run)
    except ProtocolError as error:
        raise ConfigError(f"{run.name}: {error}") from None


def _own_parts(trainer: StackedTrainer, *, whole: bool) -> list[slice]:
    """Which parts of a client's row stay with it between rounds: all but a shared encoder."""
    parts: list[slice] = []
    start = 0
    for name, shape in trainer.shapes.items():
        end = start + shape.numel()
        if whole or not name.startswith(ENCODER_PREFIX):
            if parts and parts[-1].stop == start:
                parts[-1] = slice(parts[-1].start, end)
            else:
                parts.append(slice(start, end))
        start = end
    return parts
