"""Stacked sums of clipped gradients are those of the trainer, client by client."""

import dataclasses
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from fedlatent.client.gradients.segments import Segments
from fedlatent.client.gradients.sums import Batch, StackedGradients
from fedlatent.client.trainer import gradient_sums
from fedlatent.shared.models import VAE, GaussianConfig, GaussianVAE, build
from fedlatent.shared.models.objective import elbo
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from tests.client.support import tiny_run

RUN = tiny_run()
PLAN = PrivacyPlan.from_config(RUN)
SIZES = (5, 0, 9, 1)
CLIPS = [0.5, 1e4, None]


class WithLayers(GaussianVAE):
    """A model whose encoder ends in further layers, which map [B, 4] to [B, 4]."""

    def __init__(self, seed: int, make: Callable[[], list[nn.Module]]) -> None:
        config = GaussianConfig(hidden=(6,), latent_dim=2)
        super().__init__(config, (12,), torch.Generator().manual_seed(seed))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(*self.encoder.children(), *make())
        with torch.no_grad():
            for p in self.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))


class Twice(nn.Module):
    """A layer called twice per pass: its gradient is the sum of two terms."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to its own result."""
        result: Tensor = self.inner(torch.tanh(self.inner(x)))
        return result


class Steps(nn.Module):
    """A recurrent cell over the four numbers of a record, one after the other."""

    def __init__(self, cell: nn.GRUCell | nn.LSTMCell | nn.RNNCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        """The last hidden state."""
        state = None
        for step in x.split(1, 1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else cast(Tensor, state)


class LookUp(nn.Module):
    """An embedding of the signs of four numbers, which share its entries."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Their mean embedding beside the numbers, which keep their gradient."""
        index = (x.detach() > 0).long() + 2 * (x.detach() > 0.5).long()
        mean: Tensor = self.table(index).mean(1)
        return mean * torch.tanh(x)


class Own(nn.Module):
    """A layer that nobody knows: a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        """Scale."""
        return x * self.scale


class Mixing(nn.Module):
    """Folds rows into the batch with the wrong axis first, which no rule can see."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Pairs of a record, those of all records' first half before the second."""
        folded: Tensor = self.inner(x.view(-1, 2, 2).transpose(0, 1).reshape(-1, 2))
        return folded.view(2, -1, 2).transpose(0, 1).reshape(-1, 4)


class Strided(GaussianVAE):
    """Convolutions with groups, dilation and without bias, in one and in two dimensions."""

    def __init__(self, seed: int, dims: int) -> None:
        config = GaussianConfig(hidden=(6,), latent_dim=2)
        shape = (2, 13) if dims == 1 else (2, 9, 7)
        super().__init__(config, shape, torch.Generator().manual_seed(seed))
        conv, back = (
            (nn.Conv1d, nn.ConvTranspose1d) if dims == 1 else (nn.Conv2d, nn.ConvTranspose2d)
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(
                conv(2, 4, 3, dilation=2, padding=1, groups=2, bias=False),
                nn.Tanh(),
                back(4, 6, 3, stride=2, output_padding=1, groups=2),
                nn.Tanh(),
                back(6, 2, 2, bias=False),
                nn.AdaptiveAvgPool1d(6) if dims == 1 else nn.AdaptiveAvgPool2d((2, 3)),
                nn.Flatten(2),
                nn.Linear(6, 5),
                nn.Flatten(),
                nn.Linear(10, 4),
            )


def zoo(network: str, shape: tuple[int, ...], *hidden: int) -> list[VAE]:
    """One model for each client, with different weights."""
    options = {"network": network, "hidden": list(hidden), "latent_dim": 2}
    return [build("gaussian", options, shape, seed) for seed in range(len(SIZES))]


def extended(make: Callable[[], list[nn.Module]]) -> list[VAE]:
    """One model for each client, with further layers."""
    return [WithLayers(seed, make) for seed in range(len(SIZES))]


MODELS: dict[str, list[VAE]] = {
    "mlp": zoo("mlp", (12,), 6),
    "conv1d": zoo("conv1d", (12,), 3, 4),
    "conv2d": zoo("conv2d", (1, 4, 3), 3),
    "strided1d": [Strided(seed, 1) for seed in range(len(SIZES))],
    "strided2d": [Strided(seed, 2) for seed in range(len(SIZES))],
    "norms": extended(
        lambda: [
            nn.GroupNorm(2, 4),
            nn.LayerNorm(4),
            nn.RMSNorm(4),
            nn.Unflatten(1, (2, 2)),
            nn.GroupNorm(1, 2),
            nn.LayerNorm(2),
            nn.LayerNorm((2, 2)),
            nn.Flatten(),
        ]
    ),
    "unbiased norm": extended(lambda: [nn.LayerNorm(4, bias=False)]),
    "twice": extended(lambda: [Twice()]),
    "gru": extended(lambda: [Steps(nn.GRUCell(1, 4))]),
    "lstm": extended(lambda: [Steps(nn.LSTMCell(1, 4, bias=False))]),
    "rnn": extended(lambda: [Steps(nn.RNNCell(1, 4))]),
    "rectified rnn": extended(lambda: [Steps(nn.RNNCell(1, 4, nonlinearity="relu"))]),
    "embedding": extended(lambda: [LookUp()]),
    "own": extended(lambda: [Own()]),
    "mixing": extended(lambda: [Mixing()]),
}
BY_VMAP = {"own", "mixing"}
NOT_FOR_OPACUS = {"unbiased norm", "gru", "lstm", "rnn", "rectified rnn", "own", "mixing", "twice"}


def work(models: list[VAE], draws: int = 1, *, even: bool = False) -> tuple[Tensor, Batch]:
    """The stacked weights and a batch of unequal samples, padded when ``even``."""
    generator = torch.Generator().manual_seed(5)
    shape, most = models[0].input_shape, max(SIZES)
    pieces, latents, masks = [], [], []
    for client, size in enumerate(SIZES):
        padding = most - size if even else 0
        own = SimulationNoise(client).normal(2 * draws * size)
        x = torch.rand(size, *shape, generator=generator)
        eps = torch.from_numpy(own).float().view(size, draws, 2)
        pieces.append(torch.cat([x, torch.zeros(padding, *shape)]))
        latents.append(torch.cat([eps, torch.zeros(padding, draws, 2)]))
        masks.append(torch.arange(size + padding) < size)
    weights = torch.stack(
        [torch.cat([p.detach().reshape(-1) for p in model.parameters()]) for model in models]
    )
    sizes = (most,) * len(SIZES) if even else SIZES
    return weights, Batch(
        x=torch.cat(pieces),
        eps=torch.cat(latents),
        segments=Segments(sizes, even=even),
        mask=torch.cat(masks) if even else None,
    )


def sums_of(sums: StackedGradients, weights: Tensor, batch: Batch, factor: float = 1.0) -> Tensor:
    """The sums of all clients, from zero, as float64."""
    total = torch.zeros_like(weights)
    sums(weights, batch, torch.full((len(weights),), factor), total)
    return total.double()


def close(got: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the norm, or zero where nothing is expected."""
    assert float((got - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("even", [False, True], ids=["ragged", "padded"])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", sorted(MODELS.keys() - NOT_FOR_OPACUS))
def test_sums_equal_those_of_the_trainer(name: str, clip: float | None, even: bool) -> None:
    """For each client the stacked sum is Opacus's, empty samples and single records too."""
    models = MODELS[name]
    weights, batch = work(models, even=even)
    got = sums_of(StackedGradients(models[0], clip, RUN.training), weights, batch)
    plan = dataclasses.replace(PLAN, private=clip is not None, clip=clip or 1.0)
    pieces = work(models)[1]
    for client, (model, records) in enumerate(
        zip(models, pieces.segments.split(pieces.x), strict=True)
    ):
        with gradient_sums(model.train(), plan, RUN.training) as sums:
            everyone = torch.arange(SIZES[client])
            close(got[client], sums(records, everyone, SimulationNoise(client)))


@pytest.mark.parametrize("even", [False, True], ids=["ragged", "padded"])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_sums_equal_records_taken_one_by_one(name: str, draws: int, even: bool) -> None:
    """Clipping is exact: each record's mean gradient over its draws, alone and clipped, in sum."""
    models = MODELS[name]
    weights, batch = work(models, draws, even=even)
    training = tiny_run(training={"multiplicity": draws}).training
    got = sums_of(StackedGradients(models[0], 0.5, training), weights, batch, 0.25)
    pieces = work(models, draws)[1]
    parts = zip(
        models, pieces.segments.split(pieces.x), pieces.segments.split(pieces.eps), strict=True
    )
    for client, (model, records, latents) in enumerate(parts):
        total = torch.zeros(weights.shape[1], dtype=torch.float64)
        for record, eps in zip(records, latents, strict=True):
            loss = elbo(model(record.expand(draws, *record.shape), eps)).mean()
            grads = torch.autograd.grad(loss, list(model.parameters()))
            flat = torch.cat([grad.reshape(-1) for grad in grads]).double()
            total += flat * min(1.0, 0.5 / (float(flat.norm()) + 1e-6))
        close(got[client], 0.25 * total)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_layers_decide_the_path(name: str) -> None:
    """Known layers take one backward pass; unknown ones and mixed records the vmap."""
    found = StackedGradients(MODELS[name][0], 1.0, RUN.training)
    assert found.by_layer == (name not in BY_VMAP)


@pytest.mark.parametrize("weight", [1e30, 1e19])
@pytest.mark.parametrize("vmapped", [False, True])
def test_record_that_overflows_leaves_no_trace(weight: float, vmapped: bool) -> None:
    """Weights for which one record overflows give the sum of the other records, not NaN."""
    options = {"hidden": [6], "latent_dim": 2, "activation": "relu"}
    model = build("gaussian", options, (12,), 0)
    if vmapped:
        model.decoder = nn.Sequential(*model.decoder.children(), nn.LayerNorm(12))
    with torch.no_grad():
        next(model.encoder.parameters())[0, 0] = weight
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])[None]
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 0.0
    x[5, 0] = 3e10
    eps = torch.full((9, 1, 2), 0.3)
    others = torch.arange(9) != 5
    sums = StackedGradients(model, 0.5, RUN.training)
    segments = Segments((9,), even=False)
    with_it = sums_of(sums, weights, Batch(x=x, eps=eps, segments=segments))
    without = sums_of(sums, weights, Batch(x=x, eps=eps, segments=segments, mask=others))
    assert bool(torch.isfinite(with_it).all())
    assert bool(with_it.any())
    assert float((with_it - without).norm()) <= 0.5 * (1 + 1e-5)
