"""How a decoder's output describes a record, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


class LikelihoodVAE(VAE):
    """A model whose decoder gives the parameters of one of `LIKELIHOODS` for every value.

    Attributes:
        config: Has the fields `likelihood`, a name, and `variance`.
    """

    config: Any

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
