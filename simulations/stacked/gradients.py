"""Sums of per-record gradients of many clients at once, clipped exactly.

Models made of the layers of ``simulations.stacked.layers`` take one backward pass, which gives the
norms and the clipped sums; a trial at the start holds them against gradients of records taken one
by one. Any other model takes per-record gradients by nested ``vmap``: correct for everything that
``torch.func`` can differentiate, slower, and with whole gradients of all records in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from client.trainer import NORM_FLOOR
from shared.config import TrainingSection
from shared.models import VAE, Terms
from shared.models.base import use_prior
from shared.models.objective import record_loss
from shared.models.priors import Prior
from simulations.stacked.layers import StackedLayer, stack_layers
from simulations.stacked.segments import Segments

_TRIAL_SIZES, _TRIAL_DRAWS = (2, 1), 2
_TRIAL_TOLERANCE = 1e-3  # relative; a wrong rule is off by far more, rounding by far less


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Records of C clients, one client after the other.

    Attributes:
        x: records [N, *shape].
        eps: latent draws [N, K, n]: K for each record, of n = noise_dim numbers.
        segments: records of each client.
        mask: bool [N], False where a place is padding; None when there is none.
    """

    x: Tensor
    eps: Tensor
    segments: Segments
    mask: Tensor | None = None


class StackedGradients:
    """What ``client.trainer.GradientSums`` computes for one client, for C clients at once.

    Attributes:
        by_layer: whether one backward pass suffices; otherwise nested vmap is used.
        record_floats: numbers kept per record in one pass, for a choice of the chunk size.
    """

    def __init__(self, model: VAE, clip: float | None, training: TrainingSection) -> None:
        """Prepare for the clients of one run.

        Args:
            model: gives the layers; its weights do not matter.
            clip: L2 bound of one record's gradient, or None for plain sums.
            training: the objective.
        """
        self._clip = clip
        self._training = training
        self._progress = 1.0
        model.sampled = training.objective == "iwae"
        self._shapes = {name: p.shape for name, p in model.named_parameters()}
        self._plain: nn.Module = model
        self._model: nn.Module = model
        self._layers: dict[str, StackedLayer] = {}
        size = sum(shape.numel() for shape in self._shapes.values())
        stacked = stack_layers(model)
        self.by_layer = stacked is not None
        if stacked is not None:
            self._model, self._layers = stacked
            self.by_layer = self._agrees(model)
        kept = self._kept() if self.by_layer else size
        self.record_floats = 2 * kept * training.multiplicity

    def set_prior(self, prior: Prior | None) -> None:
        """Measure the rate against ``prior`` from now on; None leaves it as it is."""
        for model in self._both():
            use_prior(model, prior)

    def set_progress(self, progress: float) -> None:
        """Tell the schedules which share of the training is done."""
        self._progress = progress
        for model in self._both():
            model.progress = progress

    def _both(self) -> list[VAE]:
        """The model as it is, and with stacked layers."""
        return [model for model in (self._plain, self._model) if isinstance(model, VAE)]

    def __call__(self, weights: Tensor, batch: Batch, factors: Tensor, total: Tensor) -> Tensor:
        """Add each client's sum to ``total``; return the loss of each record [N] in nats.

        Args:
            weights: [C, P], all parameters of a client in a row.
            batch: the records.
            factors: of each client's sum [C].
            total: the sums are added to it [C, P]; it may be ``weights``.
        """
        compute = self._through_layers if self.by_layer else self._through_vmap
        return compute(weights, batch, factors, total)

    def _through_layers(
        self, weights: Tensor, batch: Batch, factors: Tensor, total: Tensor
    ) -> Tensor:
        draws = batch.eps.shape[1]
        self._load(weights, batch.segments.times(draws), draws)
        x = batch.x if draws == 1 else batch.x.repeat_interleave(draws, 0)
        loss = self._loss(self._model(x, batch.eps.flatten(0, 1)), draws)
        tapes = [layer.tape for layer in self._layers.values()]
        found = iter(torch.autograd.grad(loss.sum(), [value for tape in tapes for value in tape]))
        loss = loss.detach()
        with torch.no_grad():
            parts = {
                f"{name}.{own}": part
                for name, layer in self._layers.items()
                for own, part in layer.gradients([next(found) for _ in layer.tape]).items()
            }
            square = None
            if self._clip is not None:
                square = torch.stack([part.square_norms() for part in parts.values()]).sum(0)
            scale, lost = self._scale(square, loss, batch, factors)
            if lost is not None:
                for part in parts.values():
                    part.drop(lost)
            places = views(total, self._shapes)
            for name, part in parts.items():
                part.add_up(scale, batch.segments, places[name])
        return loss

    def _through_vmap(
        self, weights: Tensor, batch: Batch, factors: Tensor, total: Tensor
    ) -> Tensor:
        draws = batch.eps.shape[1]

        def loss(parameters: dict[str, Tensor], x: Tensor, eps: Tensor) -> Tensor:
            terms = functional_call(self._plain, parameters, (x.expand(draws, *x.shape), eps))
            return self._loss(terms, draws)[0]

        of_records = vmap(grad_and_value(loss), in_dims=(None, 0, 0))
        own = views(weights, self._shapes)
        grads, losses = [], []
        pieces = zip(batch.segments.split(batch.x), batch.segments.split(batch.eps), strict=True)
        for i, (x, eps) in enumerate(pieces):
            if len(x):
                found, values = of_records({name: own[name][i] for name in own}, x, eps)
                grads.append(torch.cat([found[name].flatten(1) for name in self._shapes], 1))
                losses.append(values)
        each, loss_of = torch.cat(grads), torch.cat(losses)
        square = each.square().sum(1) if self._clip is not None else None
        scale, lost = self._scale(square, loss_of, batch, factors)
        if lost is not None:
            each = each.masked_fill(lost[:, None], 0.0)
        parts = zip(total, batch.segments.split(scale), batch.segments.split(each), strict=True)
        for place, factor, part in parts:
            place.addmv_(part.T, factor)
        return loss_of

    def _scale(
        self, square: Tensor | None, loss: Tensor, batch: Batch, factors: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Factor of each record's gradient, and the records whose gradient must be made zero.

        With clipping, a record whose loss or gradient overflows is left out, as
        ``client.trainer`` explains; without, it is the run's own failure and stays visible.
        """
        sizes = torch.tensor(batch.segments.sizes, device=loss.device)
        scale = factors.repeat_interleave(sizes, output_size=len(loss))
        bad = torch.zeros_like(loss, dtype=torch.bool) if batch.mask is None else ~batch.mask
        if square is not None and self._clip is not None:
            norms = square.sqrt()
            scale = scale * (self._clip / (norms + NORM_FLOOR)).clamp(max=1.0)
            whole = torch.isfinite(norms) & torch.isfinite(loss)
            bad = bad | ~whole
        elif batch.mask is None:
            return scale, None
        if not bool(bad.any()):
            return scale, None
        return torch.where(bad, 0.0, scale), bad

    def _load(self, weights: Tensor, segments: Segments, draws: int) -> None:
        own: dict[str, dict[str, Tensor]] = {name: {} for name in self._layers}
        for key, value in views(weights, self._shapes).items():
            layer, _, parameter = key.rpartition(".")
            own[layer][parameter] = value
        for name, stacked in self._layers.items():
            stacked.load(own[name], segments, draws)

    def _loss(self, terms: tuple[Tensor, Tensor], draws: int) -> Tensor:
        """Loss of each record [N]."""
        return record_loss(Terms(*terms), self._training, self._progress, draws)

    def _kept(self) -> int:
        """Numbers that the layers held in the trial for one draw of one record."""
        records = sum(_TRIAL_SIZES) * _TRIAL_DRAWS
        return sum(layer.held() for layer in self._layers.values()) // records

    def _agrees(self, model: VAE) -> bool:
        """Whether the sums of a few random records equal those of records taken one by one."""
        generator = torch.Generator().manual_seed(0)
        size = sum(shape.numel() for shape in self._shapes.values())
        weights = torch.randn(len(_TRIAL_SIZES), size, generator=generator) * 0.1
        segments = Segments(_TRIAL_SIZES, even=False)
        records, draws = sum(_TRIAL_SIZES), _TRIAL_DRAWS
        x = torch.rand(records, *model.input_shape, generator=generator)
        eps = torch.randn(records, draws, model.noise_dim, generator=generator)
        batch = Batch(x=x, eps=eps, segments=segments)
        got = torch.zeros_like(weights)
        try:
            self._through_layers(weights, batch, torch.ones(len(_TRIAL_SIZES)), got)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return False
        expected = torch.zeros_like(weights)
        owners = [c for c, count in enumerate(_TRIAL_SIZES) for _ in range(count)]
        for record, owner in enumerate(owners):
            expected[owner] += self._one(weights[owner], x[record], eps[record])
        return bool((got - expected).norm() <= _TRIAL_TOLERANCE * expected.norm())

    def _one(self, row: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """The clipped gradient [P] of one record under one client's weights, by plain autograd."""
        own = {
            name: value[0].detach().requires_grad_()
            for name, value in views(row[None], self._shapes).items()
        }
        terms = functional_call(self._plain, own, (x.expand(len(eps), *x.shape), eps))
        grads = torch.autograd.grad(self._loss(terms, len(eps)).sum(), list(own.values()))
        flat = torch.cat([grad.flatten() for grad in grads])
        if self._clip is None:
            return flat
        clipped: Tensor = flat * (self._clip / (flat.norm() + NORM_FLOOR)).clamp(max=1.0)
        return clipped


def views(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Parameters [C, *shape] as views of rows [C, P]."""
    parts = torch.split(flat, [shape.numel() for shape in shapes.values()], 1)
    return {
        name: part.view(len(flat), *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
