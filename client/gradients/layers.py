"""Layers that hold the weights of C clients and remember what per-record gradients need.

The batch of the model is that of all clients, one client after the other; what lies between these
layers treats records one by one, so it needs no change. A layer may be called several times in a
pass, on any whole number of rows for each record. Each weight enters through a product, whose
per-record gradient is a product too, of what went in and of the gradient of what came out
(Goodfellow 2015, "Efficient per-example gradient computations"; Li et al. 2022, section 4).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlatent.client.gradients.geometry import Geometry
from fedlatent.client.gradients.parts import (
    RecordGradients,
    Table,
    Whole,
    convolution,
    dense,
    summed,
)
from fedlatent.client.gradients.segments import Segments, multiply_columns, multiply_rows

_Conv = nn.Conv1d | nn.Conv2d
_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d
_Recurrent = nn.GRUCell | nn.LSTMCell | nn.RNNCell


@dataclass
class _Pass:
    """What a layer holds during one pass; one object, since modules are slow to assign to."""

    parameters: Mapping[str, Tensor]
    segments: Segments
    draws: int
    tape: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    @property
    def records(self) -> int:
        """Records of all clients."""
        return sum(self.segments.sizes) // self.draws


class StackedLayer(nn.Module, ABC):
    """A layer over the records of all clients that keeps a tape of its pass."""

    def __init__(self) -> None:
        """Start without weights."""
        super().__init__()
        self._pass = _Pass({}, Segments((), even=False), 1)

    def load(self, parameters: Mapping[str, Tensor], segments: Segments, draws: int) -> None:
        """Take the clients' parameters [C, *shape] and begin a new pass.

        Args:
            parameters: by name.
            segments: rows of each client.
            draws: rows of each record.
        """
        self._pass = _Pass(parameters, segments, draws)

    @property
    def tape(self) -> list[Tensor]:
        """The tensors whose gradients ``gradients`` needs, in the order of the calls."""
        return self._pass.tape

    @abstractmethod
    def gradients(self, tape: Sequence[Tensor]) -> dict[str, RecordGradients]:
        """Per-record gradients by parameter, from the loss's gradients of each taped tensor."""

    def held(self) -> int:
        """Numbers that the last pass keeps: taped and remembered ones."""
        return sum(value.numel() for value in [*self._pass.tape, *self._pass.kept])

    def _own(self, name: str) -> Tensor | None:
        return self._pass.parameters.get(name)

    def _needed(self, name: str) -> Tensor:
        return self._pass.parameters[name]

    def _record(self, value: Tensor) -> Tensor:
        """Put ``value`` on the tape; it is a leaf where nothing before it needs a gradient."""
        if not value.requires_grad:
            value.requires_grad_()
        self._pass.tape.append(value)
        return value

    def _rows_of(self, x: Tensor) -> Segments:
        """The segments of a tensor that holds one or more rows for each row of the batch."""
        return self._pass.segments.times(len(x) // max(sum(self._pass.segments.sizes), 1))

    def _by_record(self, value: Tensor) -> Tensor:
        """[rows, ..., width] as [N, L, width]: all that belongs to a record side by side."""
        records = self._pass.records
        return value.reshape(records, -1, value.shape[-1])

    def _per_channel(self, value: Tensor) -> Tensor:
        """[rows, channels, ...] summed to [N, channels] over the rows and places of a record."""
        records = self._pass.records
        return value.reshape(records, -1, value.shape[1], value[0, 0].numel()).sum((1, 3))


class StackedLinear(StackedLayer):
    """``nn.Linear``; any axes between batch and features."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, *, inputs] to [rows, *, outputs]."""
        flat = x.reshape(-1, x.shape[-1])
        out = multiply_rows(flat, self._needed("weight"), self._own("bias"), self._rows_of(flat))
        self._pass.kept.append(self._by_record(flat.detach()))
        return self._record(out).view(*x.shape[:-1], -1)

    def gradients(self, tape: Sequence[Tensor]) -> dict[str, RecordGradients]:
        """From the gradients of the outputs."""
        left = _joined([self._by_record(grad) for grad in tape])
        found: dict[str, RecordGradients] = {"weight": dense(left, _joined(self._pass.kept))}
        if self._own("bias") is not None:
            found["bias"] = Whole(summed(left, 1))
        return found


class StackedRecurrent(StackedLayer):
    """``nn.GRUCell``, ``nn.LSTMCell`` and ``nn.RNNCell``: two products and the gates."""

    def __init__(self, layer: _Recurrent) -> None:
        """Take the kind and the width of ``layer``."""
        super().__init__()
        self._width = layer.hidden_size
        self._memory = isinstance(layer, nn.LSTMCell)
        self._gates: Callable[..., Any] = _lstm if self._memory else _gru
        if isinstance(layer, nn.RNNCell):
            self._gates = _tanh if layer.nonlinearity == "tanh" else _relu

    def forward(self, x: Tensor, state: Any = None) -> Any:  # noqa: ANN401
        """One step of [rows, inputs] from a hidden state, zero where there is none."""
        if state is None:
            zeros = x.new_zeros(len(x), self._width)
            state = (zeros, zeros) if self._memory else zeros
        hidden = state[0] if isinstance(state, tuple) else state
        own = self._rows_of(x)
        taken = []
        for value, kind in ((x, "ih"), (hidden, "hh")):
            weight, bias = self._needed(f"weight_{kind}"), self._own(f"bias_{kind}")
            taken.append(self._record(multiply_rows(value, weight, bias, own)))
            self._pass.kept.append(self._by_record(value.detach()))
        return self._gates(taken[0], taken[1], state)

    def gradients(self, tape: Sequence[Tensor]) -> dict[str, RecordGradients]:
        """From the gradients of both products of every step."""
        found: dict[str, RecordGradients] = {}
        for offset, kind in enumerate(("ih", "hh")):
            left = _joined([self._by_record(grad) for grad in tape[offset::2]])
            found[f"weight_{kind}"] = dense(left, _joined(self._pass.kept[offset::2]))
            if self._own(f"bias_{kind}") is not None:
                found[f"bias_{kind}"] = Whole(summed(left, 1))
        return found


class StackedConv(StackedLayer):
    """``nn.Conv1d`` or ``nn.Conv2d``, as a product with the patches of the records."""

    def __init__(self, layer: _Conv) -> None:
        """Take the geometry of ``layer``."""
        super().__init__()
        self._geometry = Geometry.of(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, channels, *size] to [rows, outputs, *size]."""
        geometry = self._geometry
        size = geometry.output_size(x.shape[2:])
        patches = geometry.patches(x)
        kernels = geometry.kernels(self._needed("weight"))
        out = multiply_columns(patches, kernels, self._rows_of(x))
        self._pass.kept.append(patches.detach())
        out = self._record(out).flatten(1, 2)
        bias = self._own("bias")
        if bias is not None:
            out = _add_to_channels(out, bias, self._rows_of(x))
        return out.view(len(x), -1, *size)

    def gradients(self, tape: Sequence[Tensor]) -> dict[str, RecordGradients]:
        """From the gradients of the outputs before the bias."""
        records = self._pass.records
        left = _joined([_side_by_side(grad, records) for grad in tape], 3)
        right = _joined([_side_by_side(kept, records) for kept in self._pass.kept], 3)
        found: dict[str, RecordGradients] = {"weight": convolution(left, right)}
        if self._own("bias") is not None:
            found["bias"] = Whole(left.sum(3).flatten(1))
        return found


class StackedTransposed(StackedLayer):
    """``nn.ConvTranspose1d`` or ``2d``, as a product and the sum of its overlapping columns."""

    def __init__(self, layer: _Transposed) -> None:
        """Take the geometry of ``layer``."""
        super().__init__()
        self._geometry = Geometry.of(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, channels, *size] to [rows, outputs, *size]."""
        geometry, own = self._geometry, self._rows_of(x)
        values = x.reshape(len(x), geometry.groups, x.shape[1] // geometry.groups, -1)
        kernels = geometry.kernels(self._needed("weight")).mT
        columns = multiply_columns(values, kernels, own)
        self._pass.kept.append(values.detach())
        out = geometry.fold(self._record(columns), x.shape[2:])
        bias = self._own("bias")
        if bias is not None:
            out = self._record(_add_to_channels(out.flatten(2), bias, own).view(out.shape))
        return out

    def gradients(self, tape: Sequence[Tensor]) -> dict[str, RecordGradients]:
        """From the gradients of the columns and, for a bias, of the output."""
        records = self._pass.records
        step = 1 if self._own("bias") is None else 2
        right = _joined([_side_by_side(grad, records) for grad in tape[::step]], 3)
        left = _joined([_side_by_side(kept, records) for kept in self._pass.kept], 3)
        found: dict[str, RecordGradients] = {"weight": convolution(left, right)}
        if step == 2:
            found["bias"] = Whole(_summed([self._per_channel(grad) for grad in tape[1::2]]))
        return found


class StackedNorm(StackedLayer):
    """``nn.GroupNorm``, ``nn.LayerNorm`` and ``nn.RMSNorm``: a scale and a shift of their own."""

    def __init__(self, layer: nn.Module) -> None:
        """Take ``layer``'s normalisation, without its scale and shift."""
        super().__init__()
        self._channels = isinstance(layer, nn.GroupNorm)
        self._shape: tuple[int, ...] = ()
        if isinstance(layer, nn.GroupNorm):
            groups, eps = layer.num_groups, layer.eps
            self._normalise: Callable[[Tensor], Tensor] = lambda x: F.group_norm(x, groups, eps=eps)
        elif isinstance(layer, nn.LayerNorm):
            self._shape, own = tuple(layer.normalized_shape), layer.eps
            self._normalise = lambda x: F.layer_norm(x, self._shape, eps=own)
        else:
            rms = cast(nn.RMSNorm, layer)
            self._shape, least = tuple(rms.normalized_shape), rms.eps
            self._normalise = lambda x: F.rms_norm(x, self._shape, eps=least)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [rows, ...], then scale and shift by each client's parameters."""
        plain = self._normalise(x)
        self._pass.kept.append(plain.detach())
        scaled = plain * self._spread("weight", x)
        if self._own("bias") is not None:
            scaled = scaled + self._spread("bias", x)
        return self._record(scaled)

    def gradients(self, tape: Sequence[Tensor]) -> dict[str, RecordGradients]:
        """From the gradients of the outputs."""
        pairs = list(zip(tape, self._pass.kept, strict=True))
        scales = _summed([self._reduce(grad * plain) for grad, plain in pairs])
        found: dict[str, RecordGradients] = {"weight": Whole(scales)}
        if self._own("bias") is not None:
            found["bias"] = Whole(_summed([self._reduce(grad) for grad, _ in pairs]))
        return found

    def _spread(self, name: str, x: Tensor) -> Tensor:
        """A parameter [C, *shape] for each row, in a shape that fits ``x``."""
        sizes = torch.tensor(self._rows_of(x).sizes, device=x.device)
        each = self._needed(name).repeat_interleave(sizes, 0, output_size=len(x))
        if self._channels:
            return each.view(len(x), -1, *[1] * (x.dim() - 2))
        return each.view(len(x), *[1] * (x.dim() - 1 - len(self._shape)), *self._shape)

    def _reduce(self, value: Tensor) -> Tensor:
        if self._channels:
            return self._per_channel(value)
        records = self._pass.records
        return value.reshape(records, -1, *self._shape).sum(1)


class StackedEmbedding(StackedLayer):
    """``nn.Embedding`` without a padding entry."""

    def forward(self, index: Tensor) -> Tensor:
        """Look up [rows, *]: [rows, *, width]."""
        table, own = self._needed("weight"), self._rows_of(index)
        parts = zip(table, own.split(index), strict=True)
        found = torch.cat([F.embedding(part, entries) for entries, part in parts])
        self._pass.kept.append(index.reshape(self._pass.records, -1))
        return self._record(found)

    def gradients(self, tape: Sequence[Tensor]) -> dict[str, RecordGradients]:
        """From the gradients of what was looked up."""
        left = _joined([self._by_record(grad) for grad in tape])
        return {"weight": Table(_joined(self._pass.kept), left)}


def stack_layers(model: nn.Module) -> tuple[nn.Module, dict[str, StackedLayer]] | None:
    """A copy of ``model`` whose layers take the weights of many clients, with these by name.

    None when a parameter belongs to another kind of layer, or to two, or when an activation
    overwrites what a layer's tape holds.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if len(names) != len(list(model.parameters())):
        return None
    if any(getattr(module, "inplace", False) for module in model.modules()):
        return None
    layers: dict[str, StackedLayer] = {}
    # Weights are replaced, so the copy can share those of the model.
    stacked = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        layer = _stacked(module)
        if layer is None:
            return None
        stacked.set_submodule(name, layer)
        layers[name] = layer
    return stacked, layers


def _stacked(module: nn.Module) -> StackedLayer | None:
    """The stacked form of one layer, or None; subclasses may do anything, so they have none."""
    kind = type(module)
    if kind is nn.Linear:
        return StackedLinear()
    if kind in (nn.Conv1d, nn.Conv2d):
        conv = cast(_Conv, module)
        plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        return StackedConv(conv) if plain else None
    if kind in (nn.ConvTranspose1d, nn.ConvTranspose2d):
        transposed = cast(_Transposed, module)
        extra = zip(transposed.output_padding, transposed.stride, strict=True)
        return StackedTransposed(transposed) if all(o < s for o, s in extra) else None
    if kind in (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm):
        return StackedNorm(module)
    if kind in (nn.GRUCell, nn.LSTMCell, nn.RNNCell):
        return StackedRecurrent(cast(_Recurrent, module))
    if kind is nn.Embedding:
        table = cast(nn.Embedding, module)
        odd = table.padding_idx is not None or table.max_norm is not None
        return None if odd or table.scale_grad_by_freq or table.sparse else StackedEmbedding()
    return None


def _joined(parts: Sequence[Tensor], axis: int = 1) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


def _summed(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(0)


def _side_by_side(value: Tensor, records: int) -> Tensor:
    """[rows, G, A, L] as [N, G, A, rows per record * L]."""
    if len(value) == records:
        return value
    several = value.view(records, -1, *value.shape[1:])
    return several.permute(0, 2, 3, 1, 4).flatten(3)


def _add_to_channels(out: Tensor, bias: Tensor, segments: Segments) -> Tensor:
    """Add each client's ``bias`` [C, channels] to its rows of ``out`` [rows, channels, L]."""
    sizes = torch.tensor(segments.sizes, device=out.device)
    return out + bias.repeat_interleave(sizes, 0, output_size=len(out))[:, :, None]


def _gru(entered: Tensor, kept: Tensor, hidden: Any) -> Any:  # noqa: ANN401
    reset_i, update_i, new_i = entered.chunk(3, 1)
    reset_h, update_h, new_h = kept.chunk(3, 1)
    update = torch.sigmoid(update_i + update_h)
    new = torch.tanh(new_i + torch.sigmoid(reset_i + reset_h) * new_h)
    return new + update * (hidden - new)


def _lstm(entered: Tensor, kept: Tensor, state: Any) -> Any:  # noqa: ANN401
    into, forget, cell, out = (entered + kept).chunk(4, 1)
    memory = torch.sigmoid(forget) * state[1] + torch.sigmoid(into) * torch.tanh(cell)
    return torch.sigmoid(out) * torch.tanh(memory), memory


def _tanh(entered: Tensor, kept: Tensor, hidden: Any) -> Any:  # noqa: ANN401
    return torch.tanh(entered + kept)


def _relu(entered: Tensor, kept: Tensor, hidden: Any) -> Any:  # noqa: ANN401
    return torch.relu(entered + kept)
