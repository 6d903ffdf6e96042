"""One tiny model per family, network and likelihood, for the contract test and others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from shared.models import VAE, build

Values = Callable[[torch.Size, torch.Generator], torch.Tensor]


def levels(size: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Values in [0, 1] on 256 levels, fit for most likelihoods."""
    return torch.randint(0, 256, size, generator=generator).double() / 255.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """Arguments of `build`, and what its records look like.

    Attributes:
        family: A key of `FAMILIES`.
        options: Of the family.
        shape: Of one record.
        values: Draws records `[count, *shape]`.
        variational: Whether there is a posterior; without one the rate is no divergence.
        exact: Whether the rate is a closed form that is never negative.
        exported: Whether the slow export checks take this case; one or two of each family.
        quantised: Whether `encode` rounds to codes, so that a rounding error can move a whole step.
        gradients: Parameters that get none from some inputs, by the beginning of their name.
        upper: Largest value of a record; the least is 0.
    """

    family: str
    options: Mapping[str, object]
    shape: tuple[int, ...]
    values: Values = levels
    variational: bool = True
    exact: bool = True
    exported: bool = False
    quantised: bool = False
    gradients: tuple[str, ...] = ()
    upper: float = 1.0

    def model(self, seed: int = 0) -> VAE:
        """Build the model in float64."""
        return build(self.family, self.options, self.shape, seed).double()


def _gaussian(shape: tuple[int, ...], **options: object) -> Case:
    return Case(family="gaussian", options={"latent_dim": 3, **options}, shape=shape)


CASES = {
    "mlp": _gaussian((12,), hidden=[7, 5]),
    "mlp-2d": _gaussian((4, 3), hidden=[7], activation="silu", likelihood="bernoulli"),
    "mlp-discretised": _gaussian((12,), hidden=[7], likelihood="discretised"),
    "mlp-autoencoder": Case(
        family="gaussian",
        options={"latent_dim": 3, "hidden": [7], "stochastic": False},
        shape=(12,),
        variational=False,
    ),
    "conv1d": _gaussian((13,), network="conv1d", hidden=[2, 3]),
    "conv1d-channels": _gaussian((2, 9), network="conv1d", hidden=[3], activation="relu"),
    "conv2d": Case(
        family="gaussian",
        options={
            "latent_dim": 3,
            "network": "conv2d",
            "hidden": [2, 3],
            "likelihood": "discretised",
        },
        shape=(8, 7),
        exported=True,
    ),
    "conv2d-channels": _gaussian((2, 5, 6), network="conv2d", hidden=[3], activation="gelu"),
}


def records(case: Case, count: int, seed: int = 1) -> torch.Tensor:
    """Records `[count, *shape]` in float64."""
    generator = torch.Generator().manual_seed(seed)
    return case.values(torch.Size((count, *case.shape)), generator).double()


def noise(case: Case, count: int, seed: int = 2) -> torch.Tensor:
    """Standard normal noise `[count, noise_dim]` float64."""
    generator = torch.Generator().manual_seed(seed)
    size = (count, case.model().noise_dim)
    return torch.randn(size, generator=generator, dtype=torch.float64)
