"""How a decoder's output describes a record, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from shared.models import functional


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
