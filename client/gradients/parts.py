"""Gradients of one parameter for every record, kept in the form that is cheapest to sum.

What bounds a record is what sums it: a bound is taken of the very numbers that ``add_up`` adds,
in float64. Where a gradient is a sum over positions that is never formed by itself, its norm is an
estimate, in which large terms may cancel and which rounding may even make negative; there the
bound is the estimate plus what rounding can have hidden, of the estimate and of the sum.

A record may be drawn ``draws`` times and reach a layer several times (positions, time steps,
draws): its gradient is the sum over all of these. Axes: N records of all clients, one client after
the other; G groups, L positions, O outputs and K inputs of a group's product.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fedlatent.client.gradients.segments import Segments

_EXACT = torch.finfo(torch.float64).eps


class RecordGradients(ABC):
    """The gradients of one parameter for all records."""

    @abstractmethod
    def bounds(self, dtype: torch.dtype) -> Tensor:
        """Upper bounds of the L2 norm of what each record adds, float64 [N].

        Not finite for a record whose gradient is not. ``dtype`` is that of the sums.
        """

    @abstractmethod
    def add_up(self, scale: Tensor, kept: Tensor | None, segments: Segments, place: Tensor) -> None:
        """Add each client's sum of ``scale`` [N] times the gradient to ``place`` [C, *shape].

        Records that are not ``kept`` (bool [N]; None keeps all) add nothing, whatever their
        gradient. Sums are taken in the type of ``place``.
        """


class Whole(RecordGradients):
    """Gradients as they are, [N, ...]: biases, scales of norms, small products."""

    def __init__(self, each: Tensor) -> None:
        """Take the gradients [N, *shape]."""
        self.each = each.flatten(1)

    def bounds(self, dtype: torch.dtype) -> Tensor:
        """L2 norm [N] of each record's gradient, from its entries; here it is exact."""
        return _norms(self.each, 1)

    def add_up(self, scale: Tensor, kept: Tensor | None, segments: Segments, place: Tensor) -> None:
        """One product of a row with a matrix for each client."""
        flat = place.view(len(place), -1)
        each, factors = _kept(self.each, kept).to(place.dtype), scale.to(place.dtype)
        if segments.even:
            flat += torch.bmm(segments.stack(factors)[:, None], segments.stack(each))[:, 0]
            return
        for own, factor, part in zip(
            flat, segments.split(factors), segments.split(each), strict=True
        ):
            own.addmv_(part.mT, factor)


class Rows(RecordGradients):
    """``sum_L left right^T`` of a dense layer: left [N, L, O], right [N, L, K]."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        """Take both factors."""
        self.left = left
        self.right = right

    def bounds(self, dtype: torch.dtype) -> Tensor:
        """Goodfellow 2015 for one position, where it is exact; Li et al. 2022 for several."""
        return product_bounds(self.left[:, None], self.right[:, None], dtype)

    def add_up(self, scale: Tensor, kept: Tensor | None, segments: Segments, place: Tensor) -> None:
        """Records and positions are rows of one product."""
        rows = segments.times(self.left.shape[1])
        left = _scaled(self.left, scale, kept, place.dtype).flatten(0, 1)
        right = _kept(self.right, kept).to(place.dtype).flatten(0, 1)
        if segments.even:
            place += torch.bmm(rows.stack(left).mT, rows.stack(right))
            return
        for own, a, b in zip(place, rows.split(left), rows.split(right), strict=True):
            own.addmm_(a.mT, b)


class Grams(RecordGradients):
    """``sum_L left right^T`` per group of a convolution too wide to form for each record.

    left [N, G, O, L], right [N, G, K, L].
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        """Take both factors."""
        self.left = left
        self.right = right

    def bounds(self, dtype: torch.dtype) -> Tensor:
        """From the products of positions with each other."""
        return product_bounds(self.left.mT, self.right.mT, dtype)

    def add_up(self, scale: Tensor, kept: Tensor | None, segments: Segments, place: Tensor) -> None:
        """Positions of all records side by side, for each client."""
        scaled = _scaled(self.left, scale, kept, place.dtype)
        right = _kept(self.right, kept).to(place.dtype)
        for own, a, b in zip(place, segments.split(scaled), segments.split(right), strict=True):
            whole = own.view(a.shape[1], a.shape[2], b.shape[2])
            left = a.permute(1, 2, 0, 3).flatten(2)
            whole += torch.matmul(left, b.permute(1, 0, 3, 2).flatten(1, 2))


class Table(RecordGradients):
    """Rows of an embedding: ``left`` [N, L, K] belongs to the entries ``index`` [N, L]."""

    def __init__(self, index: Tensor, left: Tensor) -> None:
        """Take the entries and the gradients of what was looked up."""
        self.index = index
        self.left = left

    def bounds(self, dtype: torch.dtype) -> Tensor:
        """Positions that looked up the same entry add before the square."""
        left = self.left.double()
        same = (self.index[:, :, None] == self.index[:, None]).double()
        square = (same * torch.bmm(left, left.mT)).sum((1, 2))
        sizes = _norms(self.left, 2).sum(1)
        positions, width = self.left.shape[1], self.left.shape[2]
        return _with_rounding(square, sizes, positions**2 + width, positions, dtype)

    def add_up(self, scale: Tensor, kept: Tensor | None, segments: Segments, place: Tensor) -> None:
        """Scatter the scaled rows into each client's table."""
        rows = segments.times(self.left.shape[1])
        left = _scaled(self.left, scale, kept, place.dtype).flatten(0, 1)
        for own, where, what in zip(
            place, rows.split(self.index.flatten()), rows.split(left), strict=True
        ):
            own.index_add_(0, where, what)


def dense(left: Tensor, right: Tensor) -> RecordGradients:
    """Per-record gradients of a dense layer: left [N, L, O], right [N, L, K].

    They are formed where several positions meet in a gradient smaller than themselves.
    """
    positions, outputs, inputs = left.shape[1], left.shape[2], right.shape[2]
    if positions == 1 or _wide(positions, outputs, inputs):
        return Rows(left, right)
    return Whole(torch.matmul(left.mT, right))


def convolution(left: Tensor, right: Tensor) -> RecordGradients:
    """Per-record gradients [N, G, O, K] of left [N, G, O, L] and right [N, G, K, L].

    They are formed where that is no more work than their norms alone.
    """
    if _wide(left.shape[3], left.shape[2], right.shape[2]):
        return Grams(left, right)
    return Whole(torch.matmul(left, right.mT))


def _wide(positions: int, outputs: int, inputs: int) -> bool:
    """Whether products of positions with each other are less work than the gradient itself."""
    return positions * (outputs + inputs) < outputs * inputs


def summed(value: Tensor, axis: int) -> Tensor:
    """The sum over one axis, which is free where its size is one."""
    return value.squeeze(axis) if value.shape[axis] == 1 else value.sum(axis)


def product_bounds(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Upper bounds of the Frobenius norms of ``left^T right``, all groups together, float64 [N].

    Args:
        left: [N, G, L, O].
        right: [N, G, L, K].
        dtype: in which ``left^T right`` is summed over positions and records.
    """
    positions = left.shape[2]
    sizes = _norms(left, 3) * _norms(right, 3)
    if positions == 1:
        return _norms(sizes.flatten(1), 1)
    first, second = left.double(), right.double()
    gram = torch.matmul(first, first.mT) * torch.matmul(second, second.mT)
    square = gram.sum((1, 2, 3))
    whole = _norms(sizes.sum(2), 1)
    terms, width = left.shape[1] * positions**2, left.shape[3] + right.shape[3]
    return _with_rounding(square, whole, terms + width, positions, dtype)


def _with_rounding(
    square: Tensor, sizes: Tensor, steps: int, positions: int, dtype: torch.dtype
) -> Tensor:
    """Norms that are no less than those of the sums, from estimates of their squares.

    The square is a float64 sum of G L^2 products of dot products; each is at most the product of
    the sizes of two terms, so that its rounding stays below (G L^2 + width) eps ``sizes``^2 (Higham
    2002, section 3.1). The sum over L terms that enters the noise has a rounding of its own, below
    L eps' ``sizes`` with the eps' of its type. Both are added, so that terms that cancel are
    measured by what is left of them in floating point.

    Args:
        square: estimates, float64 [N].
        sizes: sums of the terms' norms, float64 [N].
        steps: G L^2 and the numbers of a term.
        positions: L.
        dtype: of the sums.
    """
    hidden = (steps + 4) * _EXACT
    rounding = (positions + 4) * torch.finfo(dtype).eps
    return (square + 2.0 * hidden * sizes.square()).sqrt() + rounding * sizes


def _norms(value: Tensor, axis: int) -> Tensor:
    """L2 norms over one axis, float64."""
    found: Tensor = torch.linalg.vector_norm(value, dim=axis, dtype=torch.float64)
    return found


def _kept(value: Tensor, kept: Tensor | None) -> Tensor:
    """``value`` [N, ...] with zeros where a record is not kept."""
    if kept is None:
        return value
    return torch.where(kept.view(-1, *[1] * (value.dim() - 1)), value, 0.0)


def _scaled(value: Tensor, scale: Tensor, kept: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``value`` [N, ...] times ``scale`` [N] as ``dtype``, zeros where a record is not kept."""
    factor = scale.to(dtype).view(-1, *[1] * (value.dim() - 1))
    return _kept(value.to(dtype) * factor, kept)
