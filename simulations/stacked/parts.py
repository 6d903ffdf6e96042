"""Gradients of one parameter for every record, kept in the form that is cheapest to sum.

A record may be drawn ``draws`` times and reach a layer several times (positions, time steps,
draws): its gradient is the sum over all of these. Axes: N records of all clients, one client after
the other; G groups, L positions, O outputs and K inputs of a group's product.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from simulations.stacked.segments import Segments


class RecordGradients(ABC):
    """The gradients of one parameter for all records."""

    @abstractmethod
    def square_norms(self) -> Tensor:
        """Squared L2 norm of each record's gradient, [N]."""

    @abstractmethod
    def drop(self, records: Tensor) -> None:
        """Make the gradients of some records zero, whatever they were; ``records`` bool [N]."""

    @abstractmethod
    def add_up(self, scale: Tensor, segments: Segments, place: Tensor) -> None:
        """Add each client's sum of ``scale`` [N] times the gradient to ``place`` [C, *shape]."""


class Whole(RecordGradients):
    """Gradients as they are, [N, ...]: biases, scales of norms, small products."""

    def __init__(self, each: Tensor) -> None:
        """Take the gradients [N, *shape]."""
        self.each = each.flatten(1)

    def square_norms(self) -> Tensor:
        """From the entries."""
        norms: Tensor = torch.linalg.vector_norm(self.each, dim=1)
        return norms.square()

    def drop(self, records: Tensor) -> None:
        """Fill with zeros."""
        self.each = self.each.masked_fill(records[:, None], 0.0)

    def add_up(self, scale: Tensor, segments: Segments, place: Tensor) -> None:
        """One product of a row with a matrix for each client."""
        flat = place.view(len(place), -1)
        if segments.even:
            sums = torch.bmm(segments.stack(scale)[:, None], segments.stack(self.each))
            flat += sums[:, 0]
            return
        parts = zip(flat, segments.split(scale), segments.split(self.each), strict=True)
        for own, factor, each in parts:
            own.addmv_(each.mT, factor)


class Rows(RecordGradients):
    """``sum_L left right^T`` of a dense layer: left [N, L, O], right [N, L, K]."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        """Take both factors."""
        self.left = left
        self.right = right

    def square_norms(self) -> Tensor:
        """Goodfellow 2015 for one position; Li et al. 2022, section 4, for several."""
        return product_norms(self.left[:, None], self.right[:, None])

    def drop(self, records: Tensor) -> None:
        """Fill both with zeros."""
        self.left = self.left.masked_fill(records[:, None, None], 0.0)
        self.right = self.right.masked_fill(records[:, None, None], 0.0)

    def add_up(self, scale: Tensor, segments: Segments, place: Tensor) -> None:
        """Records and positions are rows of one product."""
        rows = segments.times(self.left.shape[1])
        left = (self.left * scale[:, None, None]).flatten(0, 1)
        right = self.right.flatten(0, 1)
        if segments.even:
            place += torch.bmm(rows.stack(left).mT, rows.stack(right))
            return
        parts = zip(place, rows.split(left), rows.split(right), strict=True)
        for own, a, b in parts:
            own.addmm_(a.mT, b)


class Grams(RecordGradients):
    """``sum_L left right^T`` per group of a convolution too wide to form for each record.

    left [N, G, O, L], right [N, G, K, L].
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        """Take both factors."""
        self.left = left
        self.right = right

    def square_norms(self) -> Tensor:
        """From the products of positions with each other."""
        return product_norms(self.left.mT, self.right.mT)

    def drop(self, records: Tensor) -> None:
        """Fill both with zeros."""
        cut = records[:, None, None, None]
        self.left = self.left.masked_fill(cut, 0.0)
        self.right = self.right.masked_fill(cut, 0.0)

    def add_up(self, scale: Tensor, segments: Segments, place: Tensor) -> None:
        """Positions of all records side by side, for each client."""
        scaled = self.left * scale[:, None, None, None]
        for own, a, b in zip(
            place, segments.split(scaled), segments.split(self.right), strict=True
        ):
            whole = own.view(a.shape[1], a.shape[2], b.shape[2])
            left = a.permute(1, 2, 0, 3).flatten(2)
            whole += torch.matmul(left, b.permute(1, 0, 3, 2).flatten(1, 2))


class Table(RecordGradients):
    """Rows of an embedding: ``left`` [N, L, K] belongs to the entries ``index`` [N, L]."""

    def __init__(self, index: Tensor, left: Tensor) -> None:
        """Take the entries and the gradients of what was looked up."""
        self.index = index
        self.left = left

    def square_norms(self) -> Tensor:
        """Positions that looked up the same entry add before the square."""
        same = (self.index[:, :, None] == self.index[:, None]).to(self.left.dtype)
        return (same * torch.bmm(self.left, self.left.mT)).sum((1, 2)).clamp(min=0.0)

    def drop(self, records: Tensor) -> None:
        """Fill the gradients with zeros."""
        self.left = self.left.masked_fill(records[:, None, None], 0.0)

    def add_up(self, scale: Tensor, segments: Segments, place: Tensor) -> None:
        """Scatter the scaled rows into each client's table."""
        rows = segments.times(self.left.shape[1])
        left, index = (self.left * scale[:, None, None]).flatten(0, 1), self.index.flatten()
        for own, where, what in zip(place, rows.split(index), rows.split(left), strict=True):
            own.index_add_(0, where, what)


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


def product_norms(left: Tensor, right: Tensor) -> Tensor:
    """Squared Frobenius norms of ``left^T right`` summed over groups, the cheapest way.

    Args:
        left: [N, G, L, O].
        right: [N, G, L, K].
    """
    positions, outputs, inputs = left.shape[2], left.shape[3], right.shape[3]
    if positions == 1:
        norms: Tensor = torch.linalg.vector_norm(left, dim=3) * torch.linalg.vector_norm(
            right, dim=3
        )
        return norms.square().sum((1, 2))
    if _wide(positions, outputs, inputs):
        gram = torch.matmul(left, left.mT) * torch.matmul(right, right.mT)
        return gram.sum((1, 2, 3)).clamp(min=0.0)  # rounding can make it negative
    whole: Tensor = torch.matmul(left.mT, right)
    return whole.square().sum((1, 2, 3))
