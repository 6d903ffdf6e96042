"""Where the places of a convolution's kernel lie: patches of a record, and their sum back."""

import functools
import math
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A convolution or transposed convolution; one dimension is the second of two.

    Attributes:
        dims: spatial dimensions, 1 or 2.
        groups: of channels.
        kernel_size, stride, padding, dilation, output_padding: as in PyTorch, for two dimensions.
    """

    dims: int
    groups: int
    kernel_size: _Pair
    stride: _Pair
    padding: _Pair
    dilation: _Pair
    output_padding: _Pair

    @classmethod
    def of(cls, layer: nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d) -> Self:
        """The geometry of a layer with zero padding."""
        return cls(
            dims=len(layer.kernel_size),
            groups=layer.groups,
            kernel_size=_pair(layer.kernel_size, 1),
            stride=_pair(layer.stride, 1),
            padding=_pair(cast(tuple[int, ...], layer.padding), 0),
            dilation=_pair(layer.dilation, 1),
            output_padding=_pair(layer.output_padding, 0),
        )

    def patches(self, x: Tensor) -> Tensor:
        """What each place of the kernel sees: [N, channels, *size] to [N, G, K, L].

        One look-up of precomputed indices; it costs a third of PyTorch's ``unfold``.
        """
        plane = self._plane(x.shape[2:])
        found: Tensor = _Patches.apply(x, plane, self)  # type: ignore[no-untyped-call]
        return found.view(len(x), self.groups, -1, math.prod(self.output_size(x.shape[2:])))

    def fold(self, columns: Tensor, size: torch.Size) -> Tensor:
        """Sum [N, G, K, L] where the places of the kernel overlap, for inputs of ``size``."""
        plane = self._transposed_size(self._plane(size))
        out: Tensor = _Overlaps.apply(columns, plane, self)  # type: ignore[no-untyped-call]
        return out.squeeze(2) if self.dims == 1 else out

    def kernels(self, weight: Tensor) -> Tensor:
        """[C, outputs, ...] as matrices [C, G, outputs of a group, K]."""
        return weight.reshape(len(weight), self.groups, weight.shape[1] // self.groups, -1)

    def output_size(self, size: torch.Size) -> tuple[int, ...]:
        """Spatial size of a convolution's output."""
        plane = self._plane(size)
        sizes = tuple(
            (plane[i] + 2 * self.padding[i] - self._reach(i)) // self.stride[i] + 1 for i in (0, 1)
        )
        return sizes[-self.dims :]

    def _transposed_size(self, plane: _Pair) -> _Pair:
        first, second = (
            (plane[i] - 1) * self.stride[i]
            - 2 * self.padding[i]
            + self._reach(i)
            + self.output_padding[i]
            for i in (0, 1)
        )
        return first, second

    def _reach(self, axis: int) -> int:
        """Length of input that one kernel covers."""
        return self.dilation[axis] * (self.kernel_size[axis] - 1) + 1

    def _plane(self, size: torch.Size) -> _Pair:
        return _pair(tuple(size), 1)


class _Patches(torch.autograd.Function):
    """[N, channels, *size] to patches [N, channels * K * L]; one transpose of ``_Overlaps``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plane: _Pair, geometry: Geometry) -> Tensor:  # noqa: ANN401
        ctx.shape, ctx.plane, ctx.geometry = x.shape, plane, geometry
        return _look_up(x, plane, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        places = math.prod(ctx.geometry.output_size(ctx.shape[2:]))
        columns = grad.view(len(grad), -1, places)
        return _sum_back(columns, ctx.plane, ctx.geometry).view(ctx.shape), None, None


class _Overlaps(torch.autograd.Function):
    """Columns [N, G, K, L] summed to [N, channels, *plane]; the other transpose."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, plane: _Pair, geometry: Geometry) -> Tensor:  # noqa: ANN401
        ctx.shape, ctx.plane, ctx.geometry = columns.shape, plane, geometry
        return _sum_back(columns.flatten(1, 2), plane, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return _look_up(grad, ctx.plane, ctx.geometry).view(ctx.shape), None, None


def _look_up(x: Tensor, plane: _Pair, geometry: Geometry) -> Tensor:
    flat = F.pad(x.flatten(1), (1, 0))  # place 0 is the padding's zero
    return torch.index_select(flat, 1, _index(geometry, x.shape[1], plane).to(x.device))


def _sum_back(columns: Tensor, plane: _Pair, geometry: Geometry) -> Tensor:
    return F.fold(
        columns,
        plane,
        geometry.kernel_size,
        geometry.dilation,
        geometry.padding,
        geometry.stride,
    )


@functools.lru_cache(maxsize=256)
def _index(geometry: Geometry, channels: int, plane: _Pair) -> Tensor:
    """The place in the flattened record, counted from 1, of each entry of a patch; 0 is padding."""
    places = torch.arange(1, channels * plane[0] * plane[1] + 1, dtype=torch.float64)
    found = F.unfold(
        places.view(1, channels, *plane),
        geometry.kernel_size,
        geometry.dilation,
        geometry.padding,
        geometry.stride,
    )
    return found.flatten().to(torch.int32)


def _pair(values: tuple[int, ...], filler: int) -> _Pair:
    first, last = (filler, *values)[-2:]
    return first, last
