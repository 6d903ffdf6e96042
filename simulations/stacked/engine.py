"""Local training of many clients as one program, equal to ``client.trainer`` within float error.

Every client draws its samples, latent draws and noise from its own source, in the order in which
``fedlatent.client.trainer.train_round`` draws them, so nothing depends on which clients share a
chunk, but for rounding. The weights of a chunk are the rows of one matrix, and one optimiser steps
them all.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedlatent.client.gradients.segments import Segments
from fedlatent.client.gradients.sums import Batch, StackedGradients, steady, views
from fedlatent.client.trainer import (
    CHUNK,
    EMA,
    Pull,
    TrainResult,
    learning_rate,
    make_optimizer,
    progress_of,
    pull_share,
)
from fedlatent.shared.config import Training
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import VAE
from fedlatent.shared.models.priors import Prior
from fedlatent.shared.privacy.noise import NoiseSource
from fedlatent.shared.privacy.plan import PrivacyPlan

#: Bytes that the clients of one chunk may take together on a CPU: enough clients to share the cost
#: of a call, few enough to stay near the caches (for 427k parameters 8 to 12 clients; with 2 or 30
#: a client costs a fifth more).
CPU_MEMORY = 2**27
#: Share of an accelerator's free memory that one chunk may take.
FREE_SHARE = 0.5
#: Clients of a chunk at most.
MAX_CLIENTS = 1024
#: Parameters below which the samples of a chunk are padded to one size even on a CPU.
SMALL = 2**13

_FLOAT_BYTES = 4
_ROW_COPIES = 6  # weights, sums, one temporary, gradient and two moments of Adam
_DEVIATIONS = 6.0  # of the size of a Poisson sample


@dataclass(frozen=True, kw_only=True)
class ClientWork:
    """One client's round: the arguments of ``client.trainer.train_round`` that are its own.

    Attributes:
        state: every tensor of the model, by state-dict name.
        records: preprocessed float32 records [N, *shape].
        noise: source of the samples, of the latent draws and of the noise.
        optimizer: what the previous round returned, or nothing.
    """

    state: Mapping[str, Tensor]
    records: Tensor
    noise: NoiseSource
    optimizer: Mapping[str, Tensor]


@dataclass(kw_only=True)
class Chunk:
    """Clients that are trained together.

    Attributes:
        weights: [C, P], a client's parameters in a row; training changes them.
        records: of each client [N, *shape].
        noises: of each client.
        steps: optimiser steps taken before; one number for the whole chunk.
        moments: the optimiser's tensors [C, P] by field; training replaces them.
        pull: towards the weights that all of them received, or None.
        losses: mean loss of a client's training records in nats [C]; training fills it in, NaN
            where no record was drawn.
    """

    weights: Tensor
    records: Sequence[Tensor]
    noises: Sequence[NoiseSource]
    steps: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict)
    pull: Pull | None = None
    losses: Tensor = field(default_factory=lambda: torch.empty(0))


class StackedTrainer:
    """Trains the clients of one run, many at once."""

    def __init__(
        self,
        model: VAE,
        plan: PrivacyPlan,
        training: Training,
        *,
        device: str = "cpu",
        memory: int | None = None,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        """Prepare for a run.

        Args:
            model: gives layers and names; its weights do not matter.
            plan: sampler and noise.
            training: optimiser, learning rate and objective.
            device: where to compute: "cpu", "cuda", "cuda:1", "mps".
            memory: bytes that the clients of one chunk may take together; by default chosen
                from the device's free memory.
            max_clients: clients of a chunk at most.

        Raises:
            ConfigError: the model has buffers, tied or frozen parameters, or the device is absent.
        """
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        if set(names) != set(model.state_dict()):
            raise ConfigError(
                "Expected a model whose tensors are all trained parameters of one name, got "
                "buffers, tied or frozen ones; simulate it with the engine 'nodes'."
            )
        self.device = checked_device(device)
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.size = sum(shape.numel() for shape in self.shapes.values())
        self._noise_dim = model.noise_dim
        self._plan = plan
        self._training = training
        self._sums = StackedGradients(model.train(), plan.clip if plan.private else None, training)
        self._even = self.device.type != "cpu" or self.size < SMALL
        self._memory = memory or _free_memory(self.device)
        self._max_clients = max_clients
        self._direct = training.optimizer == "sgd" and training.momentum == 0.0

    def chunks(self, records: Sequence[int]) -> Iterator[range]:
        """Which neighbouring clients to train together, given their numbers of records."""
        start, most = 0, 0
        for place, count in enumerate(records):
            most = max(most, count)
            if place > start and not self.fits(place - start + 1, most):
                yield range(start, place)
                start, most = place, count
        if start < len(records):
            yield range(start, len(records))

    def fits(self, clients: int, records: int) -> bool:
        """Whether so many clients of at most so many records each go together."""
        return clients <= self._max_clients and clients * self._bytes(records) <= self._memory

    def set_prior(self, prior: Prior | None) -> None:
        """Measure the rate of all clients against ``prior`` from now on; None leaves it."""
        self._sums.set_prior(prior)

    def train(
        self, work: Sequence[ClientWork], *, trained: int = 0, pull: Pull | None = None
    ) -> Iterator[TrainResult]:
        """Run ``plan.steps_per_round`` steps of every client; results in the order of ``work``.

        They come chunk by chunk; one that is kept keeps the memory of its chunk. ``trained`` and
        ``pull`` are those of ``fedlatent.client.trainer.train_round``.
        """
        for together in self.chunks([len(one.records) for one in work]):
            # One optimiser counts the steps of a chunk, so clients that differ are kept apart.
            for group in _runs([_steps(work[i].optimizer) for i in together]):
                members = [work[together[i]] for i in group]
                weights = torch.empty(len(members), self.size)
                # Clients that begin a run share one state, which is then read once.
                starts = {id(one.state): self.row(one.state) for one in members}
                for row, one in zip(weights, members, strict=True):
                    row.copy_(starts[id(one.state)])
                chunk = Chunk(
                    weights=weights,
                    records=[one.records for one in members],
                    noises=[one.noise for one in members],
                    steps=_steps(members[0].optimizer),
                    moments=self._moments(members),
                    pull=pull,
                )
                self.train_chunk(chunk, trained)
                for place in range(len(members)):
                    yield self._result(chunk, place)

    @steady()
    def train_chunk(self, chunk: Chunk, trained: int) -> None:
        """Run ``plan.steps_per_round`` steps of the clients of one chunk, in place.

        Args:
            chunk: the clients.
            trained: rounds of the run before this one, for the schedule of the learning rate.
        """
        averages = chunk.moments.pop(EMA, None)
        weights = torch.nn.Parameter(chunk.weights.to(self.device))
        optimizer = None
        if not self._direct:
            optimizer = make_optimizer({"rows": weights}, self._training)
            _restore(optimizer, weights, chunk)
        records = torch.cat([one.to(self.device) for one in chunk.records])
        losses = torch.zeros(2, len(chunk.records), device=self.device)
        rows, first = weights.detach(), trained * self._plan.steps_per_round
        anchor = self._anchor(chunk.pull)
        for step in range(first, first + self._plan.steps_per_round):
            self._sums.set_progress(progress_of(self._plan, step))
            rate = learning_rate(self._training, self._plan, step)
            if optimizer is None:  # a step of plain SGD is a sum, which needs no gradient
                self._add_gradients(rows, chunk, records, rows, -rate, losses)
            else:
                weights.grad = torch.zeros_like(rows)
                self._add_gradients(rows, chunk, records, weights.grad, 1.0, losses)
                optimizer.param_groups[0]["lr"] = rate
                optimizer.step()
            if chunk.pull is not None:
                share = pull_share(rate, chunk.pull.strength)
                for part, target in anchor:
                    rows[:, part].lerp_(target, share)
        chunk.steps += self._plan.steps_per_round
        chunk.weights = weights.detach().cpu()
        chunk.losses = (losses[0] / losses[1]).cpu()
        if optimizer is not None:
            chunk.moments = {
                name: value.cpu()
                for name, value in optimizer.state[weights].items()
                if isinstance(value, Tensor) and value.shape == weights.shape
            }
        if self._training.ema:
            rows = chunk.weights
            chunk.moments[EMA] = (
                rows.clone() if averages is None else torch.lerp(rows, averages, self._training.ema)
            )

    def _anchor(self, pull: Pull | None) -> list[tuple[slice, Tensor]]:
        """The received weights by their place in a row."""
        made, start = [], 0
        for name, shape in self.shapes.items():
            part = slice(start, start + shape.numel())
            if pull is not None and name in pull.anchor:
                made.append((part, pull.anchor[name].reshape(-1).to(self.device)))
            start = part.stop
        return made

    def cut(self, row: Tensor) -> dict[str, Tensor]:
        """The parameters that a row [P] holds, by name, as views of it."""
        return {name: value[0] for name, value in views(row[None], self.shapes).items()}

    def _add_gradients(
        self,
        weights: Tensor,
        chunk: Chunk,
        records: Tensor,
        total: Tensor,
        rate: float,
        losses: Tensor,
    ) -> None:
        """Add ``rate`` times one noisy mean gradient of every client to ``total`` [C, P]."""
        plan, width = self._plan, self._training.multiplicity * self._noise_dim
        counts = [len(one) for one in chunk.records]
        samples = [
            plan.sample(count, noise) for count, noise in zip(counts, chunk.noises, strict=True)
        ]
        eps = [
            noise.normal(len(sample) * width).astype(np.float32)
            for sample, noise in zip(samples, chunk.noises, strict=True)
        ]
        factors = [rate / (plan.sample_rate * count) for count in counts]
        starts = np.cumsum([0, *counts[:-1]])
        # The parts of a large sample see the same weights, which must not change between them.
        into = total.clone() if total is weights and max(map(len, samples)) > CHUNK else total
        for begin in range(0, max(map(len, samples)), CHUNK):
            part = slice(begin, begin + CHUNK)
            draws = [one[begin * width : (begin + CHUNK) * width] for one in eps]
            batch = self._batch(records, [s[part] for s in samples], starts, draws)
            loss = self._sums(weights, batch, torch.tensor(factors, device=self.device), into)
            _add_losses(losses, loss, batch)
        if into is not total:
            total.copy_(into)
        if plan.private:
            deviation = plan.noise_multiplier * plan.clip
            for place, factor, noise in zip(total, factors, chunk.noises, strict=True):
                self._add_noise(place, deviation * factor, noise)

    def _batch(
        self,
        records: Tensor,
        samples: Sequence[np.ndarray],
        starts: np.ndarray,
        eps: Sequence[np.ndarray],
    ) -> Batch:
        """The chosen records and their latent draws; padded to one size where that is faster."""
        draws, sizes = self._training.multiplicity, [len(sample) for sample in samples]
        if not self._even:
            index = np.concatenate([s + start for s, start in zip(samples, starts, strict=True)])
            return Batch(
                x=records.index_select(0, torch.from_numpy(index)),
                eps=torch.from_numpy(np.concatenate(eps)).view(-1, draws, self._noise_dim),
                segments=Segments(tuple(sizes), even=False),
            )
        longest = max(sizes)
        places = np.zeros((len(sizes), longest), dtype=np.int64)
        latents = np.zeros((len(sizes), longest, draws * self._noise_dim), dtype=np.float32)
        mask = np.arange(longest) < np.asarray(sizes)[:, None]
        for row, (sample, start, values) in enumerate(zip(samples, starts, eps, strict=True)):
            places[row, : len(sample)] = sample + start
            latents[row, : len(sample)] = values.reshape(-1, latents.shape[2])
        chosen = records.index_select(0, torch.from_numpy(places.ravel()).to(self.device))
        return Batch(
            x=chosen,
            eps=torch.from_numpy(latents).to(self.device).view(-1, draws, self._noise_dim),
            segments=Segments((longest,) * len(sizes), even=True),
            mask=torch.from_numpy(mask.ravel()).to(self.device),
        )

    def _add_noise(self, place: Tensor, scale: float, noise: NoiseSource) -> None:
        """Add noise of deviation ``scale``; an accelerator draws it itself, from a seed."""
        if self.device.type == "cpu":
            noise.add_normal(place.numpy(), scale)
            return
        generator = torch.Generator(self.device)
        generator.manual_seed(int(noise.uniform(1)[0] * 2**53))
        drawn = torch.empty_like(place).normal_(generator=generator)
        place.add_(drawn, alpha=scale)

    def _bytes(self, records: int) -> float:
        """Memory that a client of so many records takes."""
        expected = records * self._plan.sample_rate
        sample = min(expected + _DEVIATIONS * math.sqrt(expected) + 1.0, records, CHUNK)
        kept = sample * self._sums.record_floats + _ROW_COPIES * self.size
        return _FLOAT_BYTES * kept

    def row(self, state: Mapping[str, Tensor]) -> Tensor:
        """Parameters by name as one row [P]; ``cut`` takes it apart."""
        return torch.cat([state[name].reshape(-1) for name in self.shapes])

    def _moments(self, members: Sequence[ClientWork]) -> dict[str, Tensor]:
        fields = {key.rsplit("/", 1)[1] for key in members[0].optimizer} - {"step"}
        return {
            name: torch.stack(
                [
                    self.row({key: one.optimizer[f"{key}/{name}"] for key in self.shapes})
                    for one in members
                ]
            )
            for name in fields
        }

    def _result(self, chunk: Chunk, place: int) -> TrainResult:
        kept = {
            f"{name}/{moment}": part
            for moment, value in chunk.moments.items()
            for name, part in self.cut(value[place]).items()
        }
        if "exp_avg" in chunk.moments:
            kept |= {f"{name}/step": torch.tensor(float(chunk.steps)) for name in self.shapes}
        return TrainResult(state=self.cut(chunk.weights[place]), optimizer=kept)


def checked_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: PyTorch does not know it, or this machine lacks it.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"Expected a device of this machine such as cpu or cuda, got {name!r} "
            f"({str(error).splitlines()[0][:120]}); choose another device."
        ) from None
    if device.type == "meta":
        raise ConfigError("Expected a device that computes, got 'meta'; choose another device.")
    return device


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(FREE_SHARE * torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(FREE_SHARE * torch.mps.recommended_max_memory())
    return CPU_MEMORY


def _steps(optimizer: Mapping[str, Tensor]) -> int:
    """Steps that an optimiser has counted; 0 for one that does not count."""
    counts = [int(value) for key, value in optimizer.items() if key.endswith("/step")]
    # A momentum buffer without a count says that there was a step.
    return counts[0] if counts else int(bool(optimizer))


def _runs(values: Sequence[int]) -> Iterator[range]:
    """Maximal ranges of equal neighbours."""
    start = 0
    for place in range(1, len(values) + 1):
        if place == len(values) or values[place] != values[start]:
            yield range(start, place)
            start = place


def _restore(optimizer: torch.optim.Optimizer, weights: torch.nn.Parameter, chunk: Chunk) -> None:
    for name, value in chunk.moments.items():
        optimizer.state[weights][name] = value.to(weights.device)
    if "exp_avg" in chunk.moments:
        optimizer.state[weights]["step"] = torch.tensor(float(chunk.steps))


def _add_losses(losses: Tensor, loss: Tensor, batch: Batch) -> None:
    """Add sums and numbers of losses to ``losses`` [2, C]; a record that overflows has none."""
    count = len(batch.segments.sizes)
    sizes = torch.tensor(batch.segments.sizes, device=loss.device)
    owner = torch.arange(count, device=loss.device).repeat_interleave(sizes, output_size=len(loss))
    counted = torch.isfinite(loss) if batch.mask is None else torch.isfinite(loss) & batch.mask
    losses[0].index_add_(0, owner, torch.where(counted, loss, 0.0))
    losses[1].index_add_(0, owner, counted.to(loss.dtype))
