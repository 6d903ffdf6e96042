"""How a decoder's output describes a record, by name."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from fedlatent.shared.models import functional
from fedlatent.shared.models.base import VAE


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """How a decoder's output `[B, parameters, *shape]` describes a record."""

    parameters: int
    nll: Callable[[Tensor, Tensor, float], Tensor]
    mean: Callable[[Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]


def _discretised(x: Tensor, out: Tensor) -> Tensor:
    """Mean within (0, 1); the scale starts near 0.14, of the order of such data's deviation."""
    return functional.discretised_logistic_nll(x, out[:, 0].sigmoid(), out[:, 1] - 2.0)


LIKELIHOODS: dict[str, Likelihood] = {
    "gaussian": Likelihood(
        parameters=1,
        nll=lambda x, out, variance: functional.gaussian_nll(x, out[:, 0], variance),
        mean=lambda out: out[:, 0],
        error=lambda x, out: functional.squared_error(x, out[:, 0]),
    ),
    "bernoulli": Likelihood(
        parameters=1,
        nll=lambda x, out, _: functional.bernoulli_nll(x, out[:, 0]),
        mean=lambda out: out[:, 0].sigmoid(),
        error=lambda x, out: functional.bernoulli_nll(x, out[:, 0]),
    ),
    "discretised": Likelihood(
        parameters=2,
        nll=lambda x, out, _: _discretised(x, out),
        mean=lambda out: out[:, 0].sigmoid(),
        error=_discretised,
    ),
}


class LikelihoodOptions(Protocol):
    """What every `LikelihoodVAE` reads of its options, whatever else they hold."""

    @property
    def likelihood(self) -> str:
        """A key of `LIKELIHOODS`."""

    @property
    def variance(self) -> float:
        """Of the Gaussian likelihood, in squared data units."""

    @property
    def latent_dim(self) -> int:
        """Number of latent dimensions."""


Config = TypeVar("Config", bound=LikelihoodOptions)


class LikelihoodVAE(VAE, Generic[Config]):
    """A model whose decoder gives the parameters of one of `LIKELIHOODS` for every value.

    A family says in `_build` what it is made of.

    Attributes:
        config: The architecture.
    """

    def __init__(
        self, config: Config, input_shape: tuple[int, ...], generator: torch.Generator
    ) -> None:
        """Build the layers and draw their weights.

        Args:
            config: The architecture.
            input_shape: Shape of one record: any for "mlp", `(L,)` or `(C, L)` for "conv1d"
                and "recurrent", `(H, W)` or `(C, H, W)` for "conv2d".
            generator: Where initial weights come from.

        Raises:
            ConfigError: The network does not fit the shape.
        """
        super().__init__()
        self.config = config
        self.latent_dim = config.latent_dim
        self.input_shape = input_shape
        self._build(generator)

    @abstractmethod
    def _build(self, generator: torch.Generator) -> None:
        """Make `encoder`, `decoder` and what else the family has, with weights of `generator`."""

    @property
    def likelihood(self) -> Likelihood:
        """How the decoder's output describes a record."""
        return LIKELIHOODS[self.config.likelihood]

    def decode(self, z: Tensor) -> Tensor:
        """Likelihood parameters `[B, parameters, *shape]`."""
        return self.shaped(self.decoder(z))

    def shaped(self, out: Tensor) -> Tensor:
        """The decoder's output as `[B, parameters, *shape]`."""
        return out.reshape(-1, self.likelihood.parameters, *self.input_shape)

    def reconstruct(self, z: Tensor) -> Tensor:
        """Mean record `[B, *shape]` in data space."""
        return self.likelihood.mean(self.decode(z))

    def distortion(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Negative log likelihood `[B]` in nats."""
        return self.likelihood.nll(x, decoded, self.config.variance)

    def reconstruction_error(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Sum of squared errors for real values, negative log mass for values in [0, 1]."""
        return self.likelihood.error(x, decoded)
