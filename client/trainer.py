"""Local DP-SGD of the whole model: Poisson sampling, per-record clipping, our own noise.

Each record's gradient is clipped by the norm of the very numbers that are summed: by the rules of
``fedlatent.client.gradients`` where all layers have one, else as rows of Opacus's
``GradSampleModule``. Sampler, noise and accounting entry all come from one ``PrivacyPlan``. The
decoder is inside: training it without noise would void the guarantee of the encoder, whose
gradients pass through it.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor

from fedlatent.client.gradients.parts import Whole
from fedlatent.client.gradients.segments import Segments
from fedlatent.client.gradients.sums import Batch, StackedGradients, clip_factors, steady
from fedlatent.shared.config import RunConfig, Training
from fedlatent.shared.errors import ReleaseRefused
from fedlatent.shared.models import VAE
from fedlatent.shared.models.objective import record_loss
from fedlatent.shared.privacy.noise import NoiseSource
from fedlatent.shared.privacy.plan import PrivacyPlan

#: Records per forward pass; a larger Poisson sample is processed in parts of this size.
CHUNK = 1024

#: Field of the averages of weights among an optimiser's tensors.
EMA = "ema"

_ADAM_BETAS = (0.9, 0.99)
_ROW_FLOATS = 2**26  # of whole per-record gradients in memory at a time


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What one round of local training leaves behind.

    Attributes:
        state: every tensor of the model, by state-dict name.
        optimizer: the optimiser's tensors, as ``<parameter>/<field>``.
    """

    state: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def train_round(
    model: VAE,
    records: Tensor,
    plan: PrivacyPlan,
    training: Training,
    noise: NoiseSource,
    optimizer_state: Mapping[str, Tensor],
    *,
    trained: int = 0,
    pull: "Pull | None" = None,
) -> TrainResult:
    """Run ``plan.steps_per_round`` noisy steps on ``model``, in place.

    Every step samples each record with probability q, sums the clipped gradients, adds noise and
    divides by the public constant q * N. An empty sample is a step of pure noise. A plan that is
    not private takes the same steps without clipping and noise.

    Args:
        model: the model, with the received encoder and the local decoder loaded.
        records: preprocessed float32 records [N, *shape].
        plan: sampler and noise.
        training: optimiser, learning rate and objective.
        noise: source of the samples, of the latent draws and of the noise.
        optimizer_state: what the previous round returned, or nothing.
        trained: rounds of the run before this one, for the schedule of the learning rate.
        pull: towards the received weights, or None.

    Raises:
        ReleaseRefused: training changed a buffer, through which raw data would pass un-noised.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(parameters, training)
    _restore(optimizer, parameters, optimizer_state)
    model.train()
    first = trained * plan.steps_per_round
    with steady(), gradient_sums(model, plan, training) as sums:
        for step in range(first, first + plan.steps_per_round):
            model.progress = progress_of(plan, step)
            rate = learning_rate(training, plan, step)
            optimizer.param_groups[0]["lr"] = rate
            chosen = torch.from_numpy(plan.sample(len(records), noise))
            total = sums(records, chosen, noise)
            total += torch.from_numpy(plan.gradient_noise(len(total), noise))
            total /= plan.sample_rate * len(records)
            _assign(parameters, total)
            optimizer.step()
            if pull is not None:
                pull(parameters, rate)
    model.eval()
    model.progress = 1.0
    for name, value in model.named_buffers():
        if not torch.equal(value, buffers[name]):
            raise ReleaseRefused(
                f"Expected buffers that training leaves alone, got a change in {name!r}; "
                "a buffer carries raw data past the noise, so use another layer."
            )
    return TrainResult(
        state={key: value.detach().clone() for key, value in model.state_dict().items()},
        optimizer=_saved(optimizer, parameters) | averaged(training, parameters, optimizer_state),
    )


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Pulls weights towards those that were received, beside the optimiser.

    After each step w <- w - rate * strength * (w - anchor): the proximal term of FedProx (Li et al.
    2020) and of mean-regularised personal models (MR-MTL; Liu et al. 2022), decoupled from the
    optimiser as weight decay is in AdamW, so that the noise in Adam's normaliser does not drown
    it. It depends on released weights alone, so it needs no clipping.

    Attributes:
        anchor: received weights by name.
        strength: lambda.
    """

    anchor: Mapping[str, Tensor]
    strength: float

    @classmethod
    def of(cls, run: RunConfig, received: Mapping[str, Tensor]) -> "Pull | None":
        """The pull of a run's strategy; None where it has none."""
        if run.strategy.name == "fedavg" or not run.strategy.proximal:
            return None
        return cls(anchor=received, strength=run.strategy.proximal)

    def __call__(self, parameters: Mapping[str, Tensor], rate: float) -> None:
        """Move ``parameters`` in place."""
        share = pull_share(rate, self.strength)
        with torch.no_grad():
            for name, value in self.anchor.items():
                parameters[name].lerp_(value, share)


def pull_share(rate: float, strength: float) -> float:
    """Which part of the way to the anchor one step goes; the whole way at most."""
    return min(rate * strength, 1.0)


def learning_rate(training: Training, plan: PrivacyPlan, step: int) -> float:
    """The learning rate of a step, counted from 0 over the whole run."""
    if training.schedule == "constant":
        return training.learning_rate
    return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress_of(plan, step)))


def progress_of(plan: PrivacyPlan, step: int) -> float:
    """Share of the run that is done before a step, counted from 0 over the whole run."""
    return min(step / max(plan.rounds * plan.steps_per_round, 1), 1.0)


def averaged(
    training: Training,
    parameters: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Averages of the weights over rounds as ``<parameter>/ema``; empty when a run has none.

    The first round's average is its weights.
    """
    if not training.ema:
        return {}
    return {
        f"{name}/{EMA}": value.detach().clone()
        if f"{name}/{EMA}" not in saved
        else torch.lerp(value.detach(), saved[f"{name}/{EMA}"], training.ema)
        for name, value in parameters.items()
    }


def averages_of(saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averages among an optimiser's tensors, by parameter."""
    end = f"/{EMA}"
    return {key.removesuffix(end): value for key, value in saved.items() if key.endswith(end)}


class GradientSums:
    """Sums of per-record gradients over a sample, clipped when the plan is private."""

    def __init__(self, model: VAE, plan: PrivacyPlan, training: Training) -> None:
        """Attach to ``model``; ``close`` detaches.

        Raises:
            ReleaseRefused: a layer mixes records, so that their gradients cannot be told apart.
        """
        self._model = model
        model.sampled = training.objective == "iwae"
        self._clip = plan.clip
        self._training = training
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._size = sum(p.numel() for p in self._parameters)
        self._layers: StackedGradients | None = None
        self._hooked: GradSampleModule | None = None
        self._together = CHUNK
        if plan.private:
            check_layers(model)
            self._layers = layered(model, plan.clip, training)
            if self._layers is None:
                self._hooked = GradSampleModule(model, loss_reduction="sum")
                width = self._size * training.multiplicity
                self._together = max(min(CHUNK, _ROW_FLOATS // width), 1)

    def __call__(self, records: Tensor, chosen: Tensor, noise: NoiseSource) -> Tensor:
        """Flat float64 sum of the gradients of ``records[chosen]``, zeros for an empty sample."""
        draws, size = self._training.multiplicity, self._model.noise_dim
        flat = noise.normal(len(chosen) * draws * size).astype(np.float32)
        return self.of(records[chosen], torch.from_numpy(flat).view(len(chosen), draws, size))

    def of(self, x: Tensor, eps: Tensor, present: Tensor | None = None) -> Tensor:
        """The same of records [B, *shape] with the draws ``eps`` [B, K, noise_dim].

        Records that are not ``present`` (bool [B]; None means all) are null records, which add
        nothing: what a neighbouring data set has in their place.
        """
        total = torch.zeros(self._size, dtype=torch.float64)
        here = torch.ones(len(x), dtype=torch.bool) if present is None else present
        parts = (torch.split(value, self._together) for value in (x, eps, here))
        for part, draws, there in zip(*parts, strict=True):
            if len(part):
                self._add(part, draws, there, total)
        return total

    def close(self) -> None:
        """Take every hook off the model."""
        self._model.sampled = False
        if self._hooked is not None:
            self._hooked.to_standard_module()

    def _add(self, x: Tensor, eps: Tensor, present: Tensor, total: Tensor) -> None:
        if self._layers is not None:
            self._add_layers(self._layers, x, eps, present, total)
        elif self._hooked is not None:
            self._add_rows(self._hooked, x, eps, present, total)
        else:
            total += _flat(torch.autograd.grad(self._loss(x, eps).sum(), self._parameters))

    def _add_layers(
        self, layers: StackedGradients, x: Tensor, eps: Tensor, present: Tensor, total: Tensor
    ) -> None:
        """One backward pass through layers that say what each record adds to their weights."""
        layers.set_progress(self._model.progress)
        weights = torch.cat([p.detach().reshape(-1) for p in self._parameters])
        segments = Segments((len(x),), even=False)
        batch = Batch(x=x, eps=eps, segments=segments, mask=present)
        layers(weights[None], batch, torch.ones(1, dtype=torch.float64), total[None])

    def _add_rows(
        self, hooked: GradSampleModule, x: Tensor, eps: Tensor, present: Tensor, total: Tensor
    ) -> None:
        """One row of Opacus for each record: the numbers that are measured are those summed."""
        loss = self._loss(x, eps)
        torch.autograd.backward(loss.sum())
        # The loss is one number for all draws, so the sum of their gradients is the record's.
        each = [
            p.grad_sample.view(len(loss), eps.shape[1], -1).sum(1)  # type: ignore[attr-defined]
            for p in self._parameters
        ]
        hooked.zero_grad(set_to_none=True)
        rows = Whole(torch.cat(each, 1))
        scale, whole = clip_factors(rows.bounds(total.dtype), loss.detach(), self._clip)
        rows.add_up(scale, whole & present, Segments((len(x),), even=False), total[None])

    def _loss(self, x: Tensor, eps: Tensor) -> Tensor:
        """Loss of each record [B] with its draws ``eps`` [B, K, noise_dim]."""
        draws = eps.shape[1]
        terms = self._model(x.repeat_interleave(draws, 0), eps.flatten(0, 1))
        return record_loss(terms, self._training, self._model.progress, draws)


@contextlib.contextmanager
def gradient_sums(model: VAE, plan: PrivacyPlan, training: Training) -> Iterator[GradientSums]:
    """A ``GradientSums`` on ``model`` whose hooks are gone afterwards, whatever happens."""
    with warnings.catch_warnings():
        # Records need no gradient, and the hooks read only that of the layer's output.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        sums = GradientSums(model, plan, training)
        try:
            yield sums
        finally:
            sums.close()


def check_layers(model: VAE) -> None:
    """Ask Opacus's validator whether every layer treats records one by one.

    Raises:
        ReleaseRefused: one does not, such as batch normalisation.
    """
    problems = ModuleValidator.validate(model, strict=False)
    if problems:
        raise ReleaseRefused(
            "Expected layers that treat records one by one, got one that does not: "
            f"{problems[0]}; use another layer."
        )


def layered(model: VAE, clip: float, training: Training) -> StackedGradients | None:
    """Gradients by the rules of the model's layers; None where one has no rule that holds."""
    found = StackedGradients(model, clip, training)
    return found if found.by_layer else None


def _flat(grads: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([grad.reshape(-1) for grad in grads]).double()


def _assign(parameters: Mapping[str, torch.nn.Parameter], flat: Tensor) -> None:
    """Cut a flat gradient into the parameters' ``grad``."""
    sizes = [p.numel() for p in parameters.values()]
    for p, part in zip(parameters.values(), torch.split(flat, sizes), strict=True):
        p.grad = part.view_as(p).to(p.dtype)


def make_optimizer(
    parameters: Mapping[str, torch.nn.Parameter], training: Training
) -> torch.optim.Optimizer:
    """The optimiser of a run, without state."""
    if training.optimizer == "adam":
        return torch.optim.Adam(
            list(parameters.values()), lr=training.learning_rate, betas=_ADAM_BETAS
        )
    return torch.optim.SGD(
        list(parameters.values()), lr=training.learning_rate, momentum=training.momentum
    )


def _restore(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    saved: Mapping[str, Tensor],
) -> None:
    for key, value in saved.items():
        name, field = key.rsplit("/", 1)
        if field == EMA:
            continue
        optimizer.state[parameters[name]][field] = value.clone()


def _saved(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, Tensor]:
    return {
        f"{name}/{field}": value.detach().clone()
        for name, p in parameters.items()
        for field, value in optimizer.state[p].items()
        if isinstance(value, Tensor)
    }
