"""Recurrent cells and networks: the cell is torch's, and order in time matters."""

import pytest
import torch
from torch import nn

from fedlatent.shared.models import build
from fedlatent.shared.models.layers import GRUCell, initialise
from fedlatent.shared.models.recurrent import MAX_STEPS, Reader, Writer


def test_cell_is_that_of_torch() -> None:
    """With the same weights the cell computes the step of `nn.GRUCell`."""
    generator = torch.Generator().manual_seed(0)
    own, other = GRUCell(4, 6).double(), nn.GRUCell(4, 6).double()
    initialise(own, "tanh", generator, 1.0)
    with torch.no_grad():
        other.weight_ih.copy_(own.reads.weight)
        other.weight_hh.copy_(own.recurs.weight)
        other.bias_ih.copy_(own.reads.bias)
        other.bias_hh.zero_()
    x, h = torch.randn(3, 4, generator=generator), torch.randn(3, 6, generator=generator)
    torch.testing.assert_close(own(x.double(), h.double()), other(x.double(), h.double()))


@pytest.mark.parametrize("length", [1, 16, 17, 100, 256])
def test_any_length_is_read_and_written(length: int) -> None:
    """Records of any length take at most 16 steps and come back with their own length."""
    reader, writer = Reader((2, length), (5, 4), 6), Writer(3, (5, 4), (2, length))
    assert reader.steps <= MAX_STEPS
    assert reader(torch.zeros(3, 2, length)).shape == (3, 6)
    assert writer(torch.zeros(3, 3)).shape == (3, 2, length)


def test_early_values_are_remembered() -> None:
    """The first and the last value of a long record both move the posterior."""
    model = build("gaussian", {"network": "recurrent", "hidden": [16]}, (160,), 0)
    x = torch.zeros(3, 160)
    x[1, 0], x[2, -1] = 1.0, 1.0
    with torch.no_grad():
        mu = model.encode(x)[0]
    assert (mu[1] - mu[0]).norm() > 1e-5
    assert (mu[2] - mu[0]).norm() > 1e-3
