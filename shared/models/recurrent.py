"""Recurrent networks over time: a reader that ends in one vector, a writer that starts from one.

Steps are windows of neighbouring values, so that a record of any length takes at most `MAX_STEPS`
of them. Shape suffixes: B records, S steps, C channels, W values of a window, d width of a state.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedlatent.shared.models.layers import GRUCell

MAX_STEPS = 16


class Reader(nn.Module):
    """Recurrent cells over the windows of a record, then one linear layer.

    Args:
        shape: `(C, length)` of a record.
        widths: Of the cells, each of which reads the states of the one before.
        outputs: Width of the result.
    """

    def __init__(self, shape: tuple[int, ...], widths: Sequence[int], outputs: int) -> None:
        """Make the layers."""
        super().__init__()
        channels, length = shape
        self.window, self.steps = _windows(length)
        self.cells = _cells(channels * self.window, widths)
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Map `[B, C, length]`, filled up with zeros to whole windows, to `[B, outputs]`."""
        batch, channels, length = x_BCL.shape
        missing = self.window * self.steps - length
        if missing:
            x_BCL = torch.cat([x_BCL, x_BCL.new_zeros(batch, channels, missing)], 2)
        x_BCSW = x_BCL.reshape(-1, channels, self.steps, self.window)
        inputs = [x_BCSW[:, :, step].flatten(1) for step in range(self.steps)]
        for cell in self.cells:
            inputs = _states(cell, inputs, _zeros(cell, x_BCL))
        out: Tensor = self.head(inputs[-1])
        return out


class Writer(nn.Module):
    """Mirror of `Reader`: the latent starts the first cell and is read at every step.

    Args:
        inputs: Width of the latent.
        widths: Of the cells in the reader's order.
        shape: `(channels, length)` of what is written.
    """

    def __init__(self, inputs: int, widths: Sequence[int], shape: tuple[int, ...]) -> None:
        """Make the layers."""
        super().__init__()
        self.channels, self.length = shape
        self.window, self.steps = _windows(self.length)
        backwards = tuple(reversed(widths))
        self.start = nn.Linear(inputs, backwards[0])
        self.cells = _cells(inputs, backwards)
        self.head = nn.Linear(backwards[-1], self.channels * self.window)

    def forward(self, z_Bk: Tensor) -> Tensor:
        """Map `[B, inputs]` to `[B, channels, length]`."""
        states = [z_Bk] * self.steps
        for number, cell in enumerate(self.cells):
            first = torch.tanh(self.start(z_Bk)) if number == 0 else _zeros(cell, z_Bk)
            states = _states(cell, states, first)
        out_BSo: Tensor = self.head(torch.stack(states, 1))
        out_BSCW = out_BSo.reshape(-1, self.steps, self.channels, self.window)
        return out_BSCW.transpose(1, 2).flatten(2)[..., : self.length]


def _windows(length: int) -> tuple[int, int]:
    """Values of a window and number of windows."""
    window = math.ceil(length / MAX_STEPS)
    return window, math.ceil(length / window)


def _cells(inputs: int, widths: Sequence[int]) -> nn.ModuleList:
    before = (inputs, *widths[:-1])
    return nn.ModuleList(GRUCell(i, o) for i, o in zip(before, widths, strict=True))


def _zeros(cell: nn.Module, like_B: Tensor) -> Tensor:
    width: int = cell.recurs.in_features  # type: ignore[union-attr, assignment]
    return like_B.new_zeros(len(like_B), width)


def _states(cell: nn.Module, inputs: Sequence[Tensor], state_Bd: Tensor) -> list[Tensor]:
    states = []
    for step in inputs:
        state_Bd = cell(step, state_Bd)
        states.append(state_Bd)
    return states
