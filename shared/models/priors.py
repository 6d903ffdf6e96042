"""What the rate of a record is measured against, and what new latents are drawn from.

The priors here are values of plain tensors, never parameters or buffers: they are broadcast, not
trained. Priors that are trained with a model are modules beside their families. Their covariances
are inverted in double precision, where every one that a node accepts has an inverse.
Shape suffixes: B records, k latent dimensions, K components.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedlatent.shared.models import functional
from fedlatent.shared.privacy.mixture import LatentMixture
from fedlatent.shared.privacy.summaries import LatentDensity


class Prior(Protocol):
    """A density of latents."""

    def rate(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """Divergence [B] in nats of N(mu, diag exp(logvar)) [B, k] from the prior.

        Exact where there is a closed form; else its unbiased estimate at the draw ``z`` [B, k].
        """
        ...

    def log_prob(self, z: Tensor) -> Tensor:
        """Logarithm of the density [B] in nats at latents [B, k]."""
        ...

    def sample(self, eps: Tensor, u: Tensor) -> Tensor:
        """Latents [N, k] from standard normal ``eps`` [N, k] and uniform ``u`` [N]."""
        ...


@dataclass(frozen=True)
class StandardNormal:
    """The standard normal prior N(0, I) of latents."""

    def rate(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """Divergence `[B]` in nats of N(mu, diag exp(logvar)) from it, in closed form."""
        return functional.kl_standard_normal(mu, logvar)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density `[B]` in nats of latents `[B, k]` under N(0, I)."""
        return -0.5 * (z.square() + math.log(2.0 * math.pi)).sum(1)

    def sample(self, eps: Tensor, u: Tensor) -> Tensor:
        """The noise itself, `[N, k]`, which already is of N(0, I)."""
        return eps


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianPrior:
    """One Gaussian, as ``LatentDensity`` has it.

    Attributes:
        mean: [k].
        covariance: [k, k], positive definite.
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, density: LatentDensity) -> "GaussianPrior":
        """The density of all clients' latents."""
        return cls(mean=_float(density.mean), covariance=_float(density.covariance))

    def rate(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """Divergence `[B]` in nats of N(mu, diag exp(logvar)) from it, in closed form."""
        mean, precision = self.mean.to(mu), torch.linalg.inv(self.covariance).to(mu)
        offset = mu - mean
        square = ((offset @ precision) * offset).sum(1)
        trace = (logvar.exp() * precision.diagonal()).sum(1)
        constant = torch.linalg.slogdet(self.covariance)[1].to(mu) - len(mean)
        rate: Tensor = 0.5 * (square + trace + constant - logvar.sum(1))
        return rate

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density `[B]` in nats of latents `[B, k]` under the Gaussian."""
        return _log_parts(z, self.mean[None], self.covariance[None])[:, 0]

    def sample(self, eps: Tensor, u: Tensor) -> Tensor:
        """Mean plus correlated noise."""
        factor = torch.linalg.cholesky(self.covariance.to(eps))
        drawn: Tensor = self.mean.to(eps) + eps @ factor.T
        return drawn


@dataclass(frozen=True, kw_only=True, eq=False)
class MixturePrior:
    """A mixture of Gaussians, as ``LatentMixture`` has it.

    Attributes:
        weights: [K], with a sum of 1.
        means: [K, k].
        covariances: [K, k, k], positive definite.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def of(cls, mixture: LatentMixture) -> "MixturePrior":
        """The prior of a mixture that the clients have released."""
        return cls(
            weights=_float(mixture.weights),
            means=_float(mixture.means),
            covariances=_float(mixture.covariances),
        )

    def rate(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """Log q(z | x) - log p(z) at the draw: one sample, so it may be negative."""
        return functional.gaussian_log_density(z, mu, logvar) - self.log_prob(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density `[B]` in nats of latents `[B, k]` under the mixture."""
        parts = _log_parts(z, self.means, self.covariances)
        return torch.logsumexp(parts + self.weights.to(z).log(), 1)

    def sample(self, eps: Tensor, u: Tensor) -> Tensor:
        """``u`` chooses the component."""
        edges = torch.cumsum(self.weights.to(u), 0)
        index = torch.searchsorted(edges, u).clamp(max=len(edges) - 1)
        factors = torch.linalg.cholesky(self.covariances.to(eps))[index]
        return self.means.to(eps)[index] + torch.einsum("nij,nj->ni", factors, eps)


def _log_parts(z: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """Logarithm of the density of each Gaussian at latents [B, k]: [B, K]."""
    precisions = torch.linalg.inv(covariances).to(z)
    offset = z[:, None, :] - means.to(z)
    square = torch.einsum("bKi,Kij,bKj->bK", offset, precisions, offset)
    constant = torch.linalg.slogdet(covariances)[1].to(z) + z.shape[1] * math.log(2.0 * math.pi)
    parts: Tensor = -0.5 * (square + constant)
    return parts


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float64)).clone()
