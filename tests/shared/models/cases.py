"""One tiny model per family, network and likelihood, for the contract test and others."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from shared.models import VAE, build


@dataclass(frozen=True, kw_only=True)
class Case:
    """Arguments of `build`, and whether the model has a rate."""

    family: str
    options: Mapping[str, object]
    shape: tuple[int, ...]

    def model(self, seed: int = 0) -> VAE:
        """Build the model in float64."""
        return build(self.family, self.options, self.shape, seed).double()


def _gaussian(shape: tuple[int, ...], **options: object) -> Case:
    return Case(family="gaussian", options={"latent_dim": 3, **options}, shape=shape)


CASES = {
    "mlp": _gaussian((12,), hidden=[7, 5]),
    "mlp-2d": _gaussian((4, 3), hidden=[7], activation="silu", likelihood="bernoulli"),
    "mlp-discretised": _gaussian((12,), hidden=[7], likelihood="discretised"),
    "mlp-autoencoder": _gaussian((12,), hidden=[7], stochastic=False),
    "conv1d": _gaussian((13,), network="conv1d", hidden=[2, 3]),
    "conv1d-channels": _gaussian((2, 9), network="conv1d", hidden=[3], activation="relu"),
    "conv2d": _gaussian((8, 7), network="conv2d", hidden=[2, 3], likelihood="discretised"),
    "conv2d-channels": _gaussian((2, 5, 6), network="conv2d", hidden=[3], activation="gelu"),
}


def records(case: Case, count: int, seed: int = 1) -> torch.Tensor:
    """Values in [0, 1] on 256 levels, fit for every likelihood, `[count, *shape]` float64."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (count, *case.shape), generator=generator)
    return levels.double() / 255.0


def noise(case: Case, count: int, seed: int = 2) -> torch.Tensor:
    """Standard normal noise `[count, k]` float64."""
    generator = torch.Generator().manual_seed(seed)
    size = (count, case.model().latent_dim)
    return torch.randn(size, generator=generator, dtype=torch.float64)
