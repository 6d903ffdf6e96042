"""Rows that belong to clients, one client after the other, and products with their weights.

On a CPU the rows of each client are multiplied by themselves, so that samples of unequal size cost
what they hold. On an accelerator, and for models so small that a call costs more than its work,
samples are padded to one size and multiplied together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """How many rows each client has.

    Attributes:
        sizes: rows of each client; all alike when ``even``.
        even: whether clients are to be computed by one batched product.
    """

    sizes: tuple[int, ...]
    even: bool

    def times(self, factor: int) -> "Segments":
        """The segments of rows of which each became ``factor`` rows."""
        return Segments(tuple(size * factor for size in self.sizes), self.even)

    def split(self, rows: Tensor) -> Sequence[Tensor]:
        """The rows of each client."""
        return rows.split_with_sizes(self.sizes)

    def stack(self, rows: Tensor) -> Tensor:
        """Even rows as [C, B, ...]."""
        return rows.view(len(self.sizes), self.sizes[0], *rows.shape[1:])


def multiply_rows(rows: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments) -> Tensor:
    """``rows`` [N, K] times the transpose of each client's ``weight`` [C, O, K], plus ``bias``.

    Gradients reach ``rows`` alone.
    """
    if segments.even:
        stack = segments.stack(rows)
        if bias is None:
            return torch.bmm(stack, weight.mT).flatten(0, 1)
        return torch.baddbmm(bias[:, None], stack, weight.mT).flatten(0, 1)
    product: Tensor = _Rows.apply(rows, weight, bias, segments)  # type: ignore[no-untyped-call]
    return product


def multiply_columns(columns: Tensor, weight: Tensor, segments: Segments) -> Tensor:
    """Each client's ``weight`` [C, G, O, K] times its ``columns`` [N, G, K, L]: [N, G, O, L].

    Gradients reach ``columns`` alone.
    """
    if segments.even:
        return torch.matmul(weight[:, None], segments.stack(columns)).flatten(0, 1)
    product: Tensor = _Columns.apply(columns, weight, segments)  # type: ignore[no-untyped-call]
    return product


class _Rows(torch.autograd.Function):
    """``multiply_rows``, client after client."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        rows: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        segments: Segments,
    ) -> Tensor:
        ctx.weight, ctx.segments = weight, segments
        out = rows.new_empty(len(rows), weight.shape[1])
        places, parts = segments.split(out), segments.split(rows)
        if bias is None:
            for place, part, own in zip(places, parts, weight.mT, strict=True):
                torch.mm(part, own, out=place)
        else:
            for place, part, own, add in zip(places, parts, weight.mT, bias, strict=True):
                torch.addmm(add, part, own, out=place)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        back = grad.new_empty(len(grad), ctx.weight.shape[2])
        parts, places = ctx.segments.split(grad), ctx.segments.split(back)
        for place, part, own in zip(places, parts, ctx.weight, strict=True):
            torch.mm(part, own, out=place)
        return back, None, None, None


class _Columns(torch.autograd.Function):
    """``multiply_columns``, client after client."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, weight: Tensor, segments: Segments) -> Tensor:  # noqa: ANN401
        ctx.weight, ctx.segments = weight, segments
        return _each(columns, weight, segments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return _each(grad, ctx.weight.mT, ctx.segments), None, None


def _each(columns: Tensor, weight: Tensor, segments: Segments) -> Tensor:
    out = columns.new_empty(*columns.shape[:2], weight.shape[2], columns.shape[3])
    groups = range(columns.shape[1])
    for place, part, own in zip(segments.split(out), segments.split(columns), weight, strict=True):
        for group in groups:
            matrix = own[group].expand(len(part), *own.shape[1:])
            torch.bmm(matrix, part[:, group], out=place[:, group])
    return out
