"""The work that every system does, in plain PyTorch: its sizes, its records and its model.

Peers run this file in environments of their own, where nothing of ours is installed, so it
imports PyTorch alone. Its model has the layers and names of our Gaussian family: one state dict
fits both, and a test holds their losses equal.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Trains every client of a task once, from the same first weights.
Round = Callable[[], None]

#: Records that all clients draw from, so that ten thousand clients fit into little memory.
POOL = 4096
_PATTERNS = 16
_ON, _FLIPPED = 0.3, 0.05  # share of set bits in a pattern, and of bits that a record flips


@dataclass(frozen=True, kw_only=True)
class Task:
    """One round of training: every client takes one pass of SGD over its records.

    Attributes:
        network: of the model.
        shape: of one record; values are 0 or 1.
        hidden: widths of the hidden layers, or channels of the convolutions.
        latent: latent dimensions.
        clients: clients of a round.
        records: records of a client.
        batch: records of a step; divides ``records``.
        rate: learning rate.
        device: of the training.
    """

    network: Literal["mlp", "conv2d"] = "mlp"
    shape: tuple[int, ...] = (784,)
    hidden: tuple[int, ...] = (256,)
    latent: int = 32
    clients: int = 100
    records: int = 64
    batch: int = 32
    rate: float = 1e-3
    device: str = "cpu"

    @property
    def steps(self) -> int:
        """Steps of a client in a round."""
        return self.records // self.batch

    def sized(self, clients: int) -> Self:
        """The same work with another number of clients."""
        return replace(self, clients=clients)

    def to_json(self) -> str:
        """Text for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote."""
        value: dict[str, Any] = json.loads(text)
        return cls(**value | {name: tuple(value[name]) for name in ("shape", "hidden")})


#: 426 thousand parameters.
MLP = Task()
#: 28x28 images through two strided convolutions and back.
CONV = Task(network="conv2d", shape=(1, 28, 28), hidden=(16, 32), latent=16)


class Pool:
    """Binary records that look alike in sixteen ways; every client has a window of them."""

    def __init__(self, task: Task) -> None:
        """Draw the records from a fixed seed."""
        self._task = task
        draw = torch.Generator().manual_seed(0)
        size = max(POOL, task.records)
        patterns = torch.rand(_PATTERNS, *task.shape, generator=draw) < _ON
        chosen = torch.randint(_PATTERNS, (size,), generator=draw)
        flipped = torch.rand(size, *task.shape, generator=draw) < _FLIPPED
        self.records = (patterns[chosen] ^ flipped).float()

    def of(self, client: int) -> Tensor:
        """Records [N, *shape] of one client on the CPU; a view of the pool."""
        windows = len(self.records) // self._task.records
        start = (client % windows) * self._task.records
        return self.records[start : start + self._task.records]

    def cohort(self) -> list[Tensor]:
        """Records of all clients of the task."""
        return [self.of(client) for client in range(self._task.clients)]


class PlainVAE(nn.Module):
    """The model as one would write it without any framework."""

    def __init__(self, task: Task) -> None:
        """Build the layers with PyTorch's own first weights."""
        super().__init__()
        self.latent = task.latent
        make = _mlp if task.network == "mlp" else _conv
        encoder, decoder = make(task)
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder)

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        """Negative evidence lower bound [B] in nats of records x with noise eps [B, latent]."""
        mu, logvar = self.encoder(x).chunk(2, 1)
        logits = self.decoder(mu + torch.exp(0.5 * logvar) * eps)
        bits = F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="none").sum(1)
        rate: Tensor = 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar).sum(1)
        return bits + rate

    def loss(self, x: Tensor) -> Tensor:
        """Mean over a batch, noise drawn from PyTorch's global generator."""
        mean: Tensor = self(x, torch.randn(len(x), self.latent, device=x.device)).mean()
        return mean


def count_parameters(model: nn.Module) -> int:
    """Numbers that the model trains."""
    return sum(p.numel() for p in model.parameters())


def copies(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model, apart from it."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def plain_loop(task: Task) -> Round:
    """The bare loop: one client after another, without privacy."""
    cohort = [records.to(task.device) for records in Pool(task).cohort()]
    model = PlainVAE(task).to(task.device)
    first = copies(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.rate)

    def one_round() -> None:
        for records in cohort:
            model.load_state_dict(first)
            for x in torch.split(records, task.batch):
                optimizer.zero_grad()
                torch.autograd.backward(model.loss(x))
                optimizer.step()
        torch.get_device_module(task.device).synchronize()

    return one_round


def _widths(task: Task) -> list[int]:
    return [math.prod(task.shape), *task.hidden]


def _dense(widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]


def _mlp(task: Task) -> tuple[list[nn.Module], list[nn.Module]]:
    widths = _widths(task)
    encoder = [nn.Flatten(), *_dense([*widths, 2 * task.latent])]
    return encoder, _dense([task.latent, *reversed(widths)])


def _conv(task: Task) -> tuple[list[nn.Module], list[nn.Module]]:
    channels, side = [task.shape[0], *task.hidden], task.shape[1]
    encoder: list[nn.Module] = []
    sides = [side]
    for inputs, outputs in pairwise(channels):
        encoder += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
        sides.append((sides[-1] + 1) // 2)
    flat = channels[-1] * sides[-1] ** 2
    encoder += [nn.Flatten(), nn.Linear(flat, 2 * task.latent)]
    start = (channels[-1], sides[-1], sides[-1])
    decoder: list[nn.Module] = [nn.Linear(task.latent, flat), nn.Unflatten(1, start)]
    for level in range(len(task.hidden), 0, -1):
        extra = sides[level - 1] - (2 * sides[level] - 1)
        decoder += [
            nn.ReLU(),
            nn.ConvTranspose2d(
                channels[level],
                channels[level - 1],
                3,
                stride=2,
                padding=1,
                output_padding=extra,
            ),
        ]
    return encoder, [*decoder, nn.Flatten()]
