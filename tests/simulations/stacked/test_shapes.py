"""Noisy steps of every layer kind over drawn shapes: the stacked trainer against Opacus."""

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedlatent.client.trainer import train_round
from fedlatent.shared.models import VAE, GaussianConfig, GaussianVAE
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.simulations.stacked.engine import ClientWork, StackedTrainer
from tests.client.support import tiny_run

Layers = Callable[[], tuple[tuple[int, ...], list[nn.Module]]]


class Extended(GaussianVAE):
    """A model whose encoder begins with layers of one kind, on records of their shape."""

    def __init__(self, shape: tuple[int, ...], layers: list[nn.Module]) -> None:
        config = GaussianConfig(hidden=(3,), latent_dim=2)
        super().__init__(config, shape, torch.Generator().manual_seed(0))
        width = nn.Sequential(*layers, nn.Flatten())(torch.zeros(1, *shape)).shape[1]
        self.encoder = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(width, 3), nn.Tanh(), nn.Linear(3, 4)
        )


class Words(nn.Module):
    """An embedding of the records' numbers cut to whole ones."""

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(entries, width)
        self.top = entries - 1

    def forward(self, x: Tensor) -> Tensor:
        """Look up every number."""
        found: Tensor = self.table((x.detach() * self.top).round().long())
        return found


small = st.integers(1, 3)


@st.composite
def dense(draw: st.DrawFn) -> tuple[tuple[int, ...], list[nn.Module]]:
    """A dense layer over any number of positions."""
    shape = draw(st.sampled_from([(4,), (3, 4)]))
    return shape, [nn.Linear(4, draw(small), bias=draw(st.booleans()))]


@st.composite
def convolution(draw: st.DrawFn) -> tuple[tuple[int, ...], list[nn.Module]]:
    """A convolution, plain or transposed, of one or two dimensions."""
    dims, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kinds = {
        (1, False): nn.Conv1d,
        (2, False): nn.Conv2d,
        (1, True): nn.ConvTranspose1d,
        (2, True): nn.ConvTranspose2d,
    }
    transposed, stride = draw(st.booleans()), draw(small)
    kernel = draw(st.integers(1, 3))
    options: dict[str, int] = {
        "stride": stride,
        "padding": draw(st.integers(0, kernel - 1)),
        "groups": groups,
    }
    if transposed:
        options["output_padding"] = draw(st.integers(0, stride - 1))
    else:
        options["dilation"] = draw(st.integers(1, 2))
    sizes = tuple(draw(st.integers(5, 7)) for _ in range(dims))
    channels, outputs = groups * draw(small), groups * draw(small)
    kind = kinds[dims, transposed]
    layer = kind(channels, outputs, kernel, bias=draw(st.booleans()), **options)  # type: ignore[arg-type]
    return (channels, *sizes), [layer]


@st.composite
def norm(draw: st.DrawFn) -> tuple[tuple[int, ...], list[nn.Module]]:
    """A group, layer or root mean square norm."""
    groups, size = draw(st.integers(1, 2)), draw(st.integers(2, 4))
    channels = 2 * groups
    layer = draw(
        st.sampled_from([nn.GroupNorm(groups, channels), nn.LayerNorm(size), nn.RMSNorm(size)])
    )
    return (channels, size), [layer]


@st.composite
def embedding(draw: st.DrawFn) -> tuple[tuple[int, ...], list[nn.Module]]:
    """A table whose entries a record looks up several times."""
    return (draw(st.integers(1, 6)),), [Words(draw(st.integers(2, 4)), draw(small))]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    made=st.one_of(dense(), convolution(), norm(), embedding()),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    rate=st.sampled_from([0.05, 0.5, 1.0]),
)
def test_noisy_steps_equal_those_of_opacus(
    made: tuple[tuple[int, ...], list[nn.Module]], sizes: list[int], rate: float
) -> None:
    """Two clipped noisy steps agree to 1e-5 relative, whatever the shapes; empty samples too."""
    shape, layers = made
    run = tiny_run(
        data={"name": "tiny", "shape": list(shape), "lower": 0.0, "upper": 1.0},
        privacy={"sample_rate": rate},
        training={"rounds": 1, "steps_per_round": 2, "optimizer": "sgd", "learning_rate": 0.1},
    )
    plan = PrivacyPlan.from_config(run)
    model: VAE = Extended(shape, layers)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    records = [torch.rand(size, *shape, generator=generator) for size in sizes]
    trainer = StackedTrainer(model, plan, run.training)
    work = [
        ClientWork(state=first, records=own, noise=SimulationNoise(i), optimizer={})
        for i, own in enumerate(records)
    ]
    for client, got in enumerate(trainer.train(work)):
        model.load_state_dict(first)
        expected = train_round(
            model, records[client], plan, run.training, SimulationNoise(client), {}
        )
        for name, value in expected.state.items():
            moved = np.linalg.norm(value - first[name])
            assert np.linalg.norm(got.state[name] - value) <= 1e-5 * moved + 1e-7
