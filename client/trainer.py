"""Local DP-SGD of the whole model: Poisson sampling, per-record clipping, our own noise.

Opacus gives the norm of each record's gradient by ghost clipping (Li et al. 2022, "Large language
models can be strong differentially private learners", section 4), or through per-record gradients
for layers without a ghost rule. Sampler, noise and accounting entry all come from one
``PrivacyPlan``. The decoder is inside: training it without noise would void the guarantee of the
encoder, whose gradients pass through it.
"""

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor

from shared.config import RunConfig, TrainingSection
from shared.errors import ReleaseRefused
from shared.models import VAE
from shared.models.objective import record_loss
from shared.privacy.noise import NoiseSource
from shared.privacy.plan import PrivacyPlan

#: Records per forward pass; a larger Poisson sample is processed in parts of this size.
CHUNK = 1024

#: Field of the averages of weights among an optimiser's tensors.
EMA = "ema"

_ADAM_BETAS = (0.9, 0.99)
#: Added to a norm before the clip is divided by it.
NORM_FLOOR = 1e-6


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
    training: TrainingSection,
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
    with gradient_sums(model, plan, training) as sums:
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


def learning_rate(training: TrainingSection, plan: PrivacyPlan, step: int) -> float:
    """The learning rate of a step, counted from 0 over the whole run."""
    if training.schedule == "constant":
        return training.learning_rate
    return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress_of(plan, step)))


def progress_of(plan: PrivacyPlan, step: int) -> float:
    """Share of the run that is done before a step, counted from 0 over the whole run."""
    return min(step / max(plan.rounds * plan.steps_per_round, 1), 1.0)


def averaged(
    training: TrainingSection,
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

    def __init__(self, model: VAE, plan: PrivacyPlan, training: TrainingSection) -> None:
        """Attach to ``model``; ``close`` detaches."""
        self._model = model
        model.sampled = training.objective == "iwae"
        self._clip = plan.clip
        self._training = training
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._size = sum(p.numel() for p in self._parameters)
        self._hooked = _hooked(model, training) if plan.private else None

    def __call__(self, records: Tensor, chosen: Tensor, noise: NoiseSource) -> Tensor:
        """Flat float64 sum of the gradients of ``records[chosen]``, zeros for an empty sample."""
        draws, size = self._training.multiplicity, self._model.noise_dim
        flat = noise.normal(len(chosen) * draws * size).astype(np.float32)
        return self.of(records[chosen], torch.from_numpy(flat).view(len(chosen), draws, size))

    def of(self, x: Tensor, eps: Tensor) -> Tensor:
        """The same of records [B, *shape] with the draws ``eps`` [B, K, noise_dim]."""
        total = torch.zeros(self._size, dtype=torch.float64)
        compute = self._plain if self._hooked is None else self._clipped
        for part, draws in zip(torch.split(x, CHUNK), torch.split(eps, CHUNK), strict=True):
            if len(part):
                total += compute(part, draws)
        return total

    def _clipped_means(self, hooked: GradSampleModule, loss: Tensor, draws: int) -> Tensor:
        torch.autograd.backward(loss.sum())
        # The loss is one number for all draws, so the sum of their gradients is the record's.
        each = [
            p.grad_sample.view(len(loss), draws, -1).sum(1)  # type: ignore[attr-defined]
            for p in self._parameters
        ]
        hooked.zero_grad(set_to_none=True)
        rows = torch.cat(each, 1)
        norms = rows.norm(dim=1)
        whole = torch.isfinite(norms) & torch.isfinite(loss.detach())
        scale = (self._clip / (norms + NORM_FLOOR)).clamp(max=1.0)[whole]
        total: Tensor = (scale[:, None] * rows[whole]).double().sum(0)
        return total

    def close(self) -> None:
        """Take every hook off the model."""
        self._model.sampled = False
        if self._hooked is not None:
            self._hooked.to_standard_module()

    def _loss(self, x: Tensor, eps: Tensor) -> Tensor:
        """Loss of each record [B] with its draws ``eps`` [B, K, noise_dim]."""
        draws = eps.shape[1]
        terms = self._model(x.repeat_interleave(draws, 0), eps.flatten(0, 1))
        return record_loss(terms, self._training, self._model.progress, draws)

    def _plain(self, x: Tensor, eps: Tensor) -> Tensor:
        return _flat(torch.autograd.grad(self._loss(x, eps).sum(), self._parameters))

    def _clipped(self, x: Tensor, eps: Tensor) -> Tensor:
        """Two backward passes: the first finds the norms, the second sums scaled gradients.

        With several draws of a record, one pass gives the gradient of each draw; their mean is
        the record's gradient, and that is clipped.

        A record whose loss or gradient overflows is left out. A server can choose weights for
        which one record overflows and others do not; letting that show, as a failed release or
        as NaN, would be an un-noised answer about that record.
        """
        hooked = self._hooked
        while hooked is not None and len(x):
            loss = self._loss(x, eps)
            if isinstance(hooked, GradSampleModule):
                return self._clipped_means(hooked, loss, eps.shape[1])
            torch.autograd.grad(loss.sum(), self._parameters, retain_graph=True)
            norms = hooked.get_norm_sample()
            whole = torch.isfinite(norms) & torch.isfinite(loss.detach())
            if bool(whole.all()):
                scale = (self._clip / (norms + NORM_FLOOR)).clamp(max=1.0)
                hooked.disable_hooks()
                grads = torch.autograd.grad((scale * loss).sum(), self._parameters)
                hooked.enable_hooks()
                return _flat(grads)
            x, eps = x[whole], eps[whole]
        return torch.zeros(self._size, dtype=torch.float64)


@contextlib.contextmanager
def gradient_sums(
    model: VAE, plan: PrivacyPlan, training: TrainingSection
) -> Iterator[GradientSums]:
    """A ``GradientSums`` on ``model`` whose hooks are gone afterwards, whatever happens."""
    with warnings.catch_warnings():
        # Records need no gradient, and the hooks read only that of the layer's output.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        sums = GradientSums(model, plan, training)
        try:
            yield sums
        finally:
            sums.close()


def _hooked(
    model: VAE, training: TrainingSection
) -> GradSampleModule | GradSampleModuleFastGradientClipping:
    """Opacus's hooks: ghost norms, or per-record gradients where several must be added first.

    A record has several gradients of one layer where it is drawn several times, and where the
    model calls the layer several times; ghost norms see the last call alone.
    """
    if training.multiplicity > 1 or repeats_layers(model):
        return GradSampleModule(model, loss_reduction="sum")
    return GradSampleModuleFastGradientClipping(model, loss_reduction="sum")


def repeats_layers(model: VAE) -> bool:
    """Whether a forward pass calls a layer with weights more than once."""
    calls: Counter[torch.nn.Module] = Counter()
    owners = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    handles = [m.register_forward_hook(lambda one, *_: calls.update([one])) for m in owners]
    like = next(model.parameters())
    try:  # with gradients, as in training: a model may go another way without
        model(like.new_zeros(1, *model.input_shape), like.new_zeros(1, model.noise_dim))
    finally:
        for handle in handles:
            handle.remove()
    return max(calls.values(), default=0) > 1


def _flat(grads: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([grad.reshape(-1) for grad in grads]).double()


def _assign(parameters: Mapping[str, torch.nn.Parameter], flat: Tensor) -> None:
    """Cut a flat gradient into the parameters' ``grad``."""
    sizes = [p.numel() for p in parameters.values()]
    for p, part in zip(parameters.values(), torch.split(flat, sizes), strict=True):
        p.grad = part.view_as(p).to(p.dtype)


def make_optimizer(
    parameters: Mapping[str, torch.nn.Parameter], training: TrainingSection
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
