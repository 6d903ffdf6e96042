"""Sums of per-record gradients of one client or many, clipped exactly: for nodes and simulations.

Models made of the layers of ``fedlatent.client.gradients.layers`` take one backward pass, whose
activations and gradients give both the norms and the clipped sums; a trial at the start holds them
against gradients of records taken one by one. Any other model takes per-record gradients by nested
``vmap``: correct for everything that ``torch.func`` can differentiate, slower, and with whole
gradients of all records in memory.

A record whose loss or gradient overflows weighs nothing, in the same pass. A server can choose
weights for which one record overflows and others do not; letting that show, as a failed release,
as NaN or as more work, would be an un-noised answer about that record.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fedlatent.client.gradients.layers import StackedLayer, stack_layers
from fedlatent.client.gradients.parts import Whole
from fedlatent.client.gradients.segments import Segments
from fedlatent.shared.config import Training
from fedlatent.shared.models import FAMILIES, VAE, Terms
from fedlatent.shared.models.base import use_prior
from fedlatent.shared.models.objective import record_loss
from fedlatent.shared.models.priors import Prior

#: Added to a norm before the clip is divided by it.
NORM_FLOOR = 1e-6

_TRIAL_SIZES, _TRIAL_DRAWS = (2, 1), 2
_TRIALS: dict[str, int | None] = {}
_SHARE = 2**15  # numbers of which PyTorch gives each thread its part
_TRIAL_TOLERANCE = 1e-3  # relative; a wrong rule is off by far more, rounding by far less


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Records of C clients, one client after the other.

    Attributes:
        x: records [N, *shape].
        eps: latent draws [N, K, n]: K for each record, of n = noise_dim numbers.
        segments: records of each client.
        mask: bool [N], False for a null record, which adds nothing: padding, or a record that a
            neighbouring data set does not have. None when there is none.
    """

    x: Tensor
    eps: Tensor
    segments: Segments
    mask: Tensor | None = None


class StackedGradients:
    """Sums of the clipped gradients of C clients' records.

    Attributes:
        by_layer: whether one backward pass suffices; otherwise nested vmap is used.
        record_floats: numbers kept per record in one pass, for a choice of the chunk size.
    """

    def __init__(self, model: VAE, clip: float | None, training: Training) -> None:
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
        kept = None
        if stacked is not None:
            self._model, self._layers = stacked
            kept = self._tried(model)
        self.by_layer = kept is not None
        self.record_floats = 2 * (size if kept is None else kept) * training.multiplicity

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
            norms = None
            if self._clip is not None:
                each = [part.bounds(total.dtype) for part in parts.values()]
                norms = torch.linalg.vector_norm(torch.stack(each), dim=0)
            scale, kept = self._scale(norms, loss, batch, factors)
            places = views(total, self._shapes)
            for name, part in parts.items():
                part.add_up(scale, kept, batch.segments, places[name])
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
        norms = None
        if self._clip is not None:
            norms = torch.linalg.vector_norm(each, dim=1, dtype=torch.float64)
        scale, kept = self._scale(norms, loss_of, batch, factors)
        Whole(each).add_up(scale, kept, batch.segments, total)
        return loss_of

    def _scale(
        self, norms: Tensor | None, loss: Tensor, batch: Batch, factors: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Factor of each record's gradient, float64 [N], and which records count; None for all.

        With clipping, a record whose loss or gradient overflows does not count; without, it is
        the run's own failure and stays visible.
        """
        sizes = torch.tensor(batch.segments.sizes, device=loss.device)
        scale = factors.repeat_interleave(sizes, output_size=len(loss))
        if norms is None or self._clip is None:
            return scale, batch.mask
        scale, whole = clip_factors(norms, loss, self._clip, scale)
        return scale, whole if batch.mask is None else whole & batch.mask

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

    def _tried(self, model: VAE) -> int | None:
        """Numbers that the layers hold for one draw of one record; None where a rule is wrong.

        A trial of a family's model is made once in a process: its outcome depends on nothing but
        the configuration. A broadcast prior, new in each round, has no layers.
        """
        families = {family.model for family in FAMILIES.values()}
        key = (
            f"{model!r} {getattr(model, 'config', None)!r} {model.input_shape} "
            f"{type(model.prior).__name__} {self._training.objective} {self._clip is None} "
            f"{next(model.parameters()).dtype}"
        )
        if type(model) not in families or key not in _TRIALS:
            found = None
            if self._agrees(model):
                held = sum(layer.held() for layer in self._layers.values())
                found = held // (sum(_TRIAL_SIZES) * _TRIAL_DRAWS)
            _TRIALS[key] = found
        return _TRIALS[key]

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


def clip_factors(
    norms: Tensor, loss: Tensor, clip: float, factors: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """What each record's gradient is multiplied by, float64 [N], and which are finite, bool [N].

    Args:
        norms: float64 bounds of the gradients' L2 norms [N].
        loss: of each record [N].
        clip: L2 bound C of one record.
        factors: of each record besides [N].
    """
    whole = torch.isfinite(norms) & torch.isfinite(loss)
    scale = factors * (clip / (norms + NORM_FLOOR)).clamp(max=1.0)
    return torch.where(whole, scale, 0.0), whole


@contextlib.contextmanager
def steady() -> Iterator[None]:
    """Subnormal numbers count as zero in what is computed here, as long as it lasts.

    Processors take far longer over them than over others, so that time would tell whether a
    record makes some; and a factor that is one has lost the digits that make clipping exact.
    Each thread has a setting of its own, which it takes over from the thread that starts it. Where
    this thread's helpers were started without, it computes alone.
    """
    before, threads = _flushes(1), torch.get_num_threads()
    torch.set_flush_denormal(True)
    alone = threads > 1 and not _flushes(threads)
    if alone:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if alone:
            torch.set_num_threads(threads)
        torch.set_flush_denormal(before)


def _flushes(threads: int) -> bool:
    """Whether this thread and its helpers, ``threads`` in all, take subnormal numbers for zero."""
    # Made and looked at as bits, since a thread that flushes sees zero in both.
    small = torch.ones(threads * _SHARE, dtype=torch.int32).view(torch.float32)
    return not bool((small * 1.0).view(torch.int32).any())


def views(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Parameters [C, *shape] as views of rows [C, P]."""
    parts = torch.split(flat, [shape.numel() for shape in shapes.values()], 1)
    return {
        name: part.view(len(flat), *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
