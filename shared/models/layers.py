"""Network blocks and their initialisation.

Only layers whose per-record gradients are exact under Opacus hooks and `torch.vmap` are used, each
module exactly once per forward pass but the recurrent cell, which is called once per step. No batch
normalisation, no in-place activation, no buffers.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

# The gain keeps the variance of a signal through one layer and the activation.
ACTIVATIONS: dict[str, tuple[type[nn.Module], float]] = {
    "tanh": (nn.Tanh, 5.0 / 3.0),
    "relu": (nn.ReLU, math.sqrt(2.0)),
    "gelu": (nn.GELU, math.sqrt(2.0)),
    "silu": (nn.SiLU, math.sqrt(2.0)),
}
_KERNEL = {1: 5, 2: 3}
_CONV: dict[int, type[nn.Conv1d | nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSED: dict[int, type[nn.ConvTranspose1d | nn.ConvTranspose2d]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
}

_Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


class GRUCell(nn.Module):
    """A gated recurrent unit made of two linear layers (Cho et al., 2014; torch's variant of it).

    With r, u the sigmoids of the reset and update gates, the new state is
    (1 - u) tanh(W x + r V h) + u h. Torch's own cell has no per-record gradient under Opacus.

    Args:
        inputs: Width of what each step reads.
        width: Width d of the state.
    """

    def __init__(self, inputs: int, width: int) -> None:
        """Make the layers; `initialise` draws their weights with a gain of 1."""
        super().__init__()
        self.reads = nn.Linear(inputs, 3 * width)
        self.recurs = nn.Linear(width, 3 * width, bias=False)

    def forward(self, x_Bi: Tensor, h_Bd: Tensor) -> Tensor:
        """The state `[B, d]` after one step that reads `[B, inputs]` in state `[B, d]`."""
        read_r, read_u, read_n = self.reads(x_Bi).chunk(3, 1)
        own_r, own_u, own_n = self.recurs(h_Bd).chunk(3, 1)
        update_Bd = torch.sigmoid(read_u + own_u)
        fresh_Bd = torch.tanh(read_n + torch.sigmoid(read_r + own_r) * own_n)
        return fresh_Bd + update_Bd * (h_Bd - fresh_Bd)


def mlp(widths: Sequence[int], activation: str) -> list[nn.Module]:
    """Linear layers through `widths` (input first, output last), activations in between."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation][0]()]
    return layers[:-1]


def conv_encoder(
    shape: tuple[int, ...], channels: Sequence[int], outputs: int, activation: str
) -> list[nn.Module]:
    """Strided convolutions over `(channels, *size)` and one linear layer to `outputs`.

    Each convolution halves every spatial size, rounding up; one or two spatial dimensions.
    """
    dims, sizes = len(shape) - 1, _sizes(shape[1:], len(channels))
    kernel = _KERNEL[dims]
    layers: list[nn.Module] = []
    for inputs, width in pairwise((shape[0], *channels)):
        conv = _CONV[dims](inputs, width, kernel, stride=2, padding=kernel // 2)
        layers += [conv, ACTIVATIONS[activation][0]()]
    return [
        *layers,
        nn.Flatten(),
        nn.Linear(channels[-1] * math.prod(sizes[-1]), outputs),
    ]


def conv_decoder(
    inputs: int, channels: Sequence[int], shape: tuple[int, ...], activation: str
) -> list[nn.Module]:
    """Mirror of `conv_encoder`: one linear layer, then transposed convolutions to `shape`.

    `channels` are in the encoder's order; odd spatial sizes come back exactly.
    """
    dims, sizes = len(shape) - 1, _sizes(shape[1:], len(channels))
    kernel, start = _KERNEL[dims], (channels[-1], *sizes[-1])
    layers: list[nn.Module] = [
        nn.Linear(inputs, math.prod(start)),
        nn.Unflatten(1, start),
    ]
    widths = (*reversed(channels), shape[0])
    for level, (width, outputs) in enumerate(pairwise(widths), start=1):
        small, large = sizes[-level], sizes[-level - 1]
        extra = tuple(to - (2 * of - 1) for of, to in zip(small, large, strict=True))
        layers.append(ACTIVATIONS[activation][0]())
        layers.append(
            _TRANSPOSED[dims](
                width,
                outputs,
                kernel,
                stride=2,
                padding=kernel // 2,
                output_padding=extra,  # type: ignore[arg-type]
            )
        )
    return layers


def initialise(
    network: nn.Module, activation: str, generator: torch.Generator, head_gain: float
) -> None:
    """Draw every weight of `network` from `generator`; biases are zero.

    Weights are normal with variance gain^2 / fan-in (LeCun et al., 1998, "Efficient BackProp",
    section 4.6; He et al., 2015, for rectifiers); the last layer has a gain of its own, and
    recurrent cells one of 1, which keeps their state from growing with the steps.
    """
    weighted = [module for module in network.modules() if isinstance(module, _WEIGHTED)]
    cells = [module for module in network.modules() if isinstance(module, GRUCell)]
    recurrent = {layer for cell in cells for layer in (cell.reads, cell.recurs)}
    for module in weighted:
        gain = head_gain if module is weighted[-1] else ACTIVATIONS[activation][1]
        if module in recurrent:
            gain = 1.0
        with torch.no_grad():
            module.weight.normal_(0.0, gain / math.sqrt(_fan_in(module)), generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _fan_in(module: _Weighted) -> float:
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        return module.weight[:, 0].numel() / math.prod(module.stride)
    return module.weight[0].numel()


def _sizes(size: tuple[int, ...], halvings: int) -> list[tuple[int, ...]]:
    sizes = [size]
    for _ in range(halvings):
        sizes.append(tuple((length + 1) // 2 for length in sizes[-1]))
    return sizes
