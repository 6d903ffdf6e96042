"""Priors that are trained with a model: modules, whose state keys begin with `prior.`.

Their parameters live in embeddings that are looked up at constant indices, once for each record,
so that Opacus sees the batch as the first axis.
Shape suffixes: B records, k latent dimensions, K components, R rows (B, or 1 for all records),
`*shape` the shape of one record.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedlatent.shared.models import functional
from fedlatent.shared.models.base import LOGVAR_MAX, LOGVAR_MIN
from fedlatent.shared.models.networks import wrong_option

#: Of the option `prior` of families that may train one.
PRIORS = ("standard", "mixture", "vamp")
Posterior = Callable[[Tensor], tuple[Tensor, Tensor]]

#: Pseudo-inputs start here, as in data within [0, 1]; from no record.
_PSEUDO_MEAN, _PSEUDO_DEVIATION = 0.3, 0.3


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """A mixture of diagonal Gaussians, for each record or one row for all.

    Attributes:
        means_RKk: [R, K, k].
        logvars_RKk: [R, K, k].
        logits_RK: Logarithms of the weights up to a constant, [R, K].
    """

    means_RKk: Tensor
    logvars_RKk: Tensor
    logits_RK: Tensor

    def rate(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """Log q(z | x) - log p(z) `[B]` at the draw: one sample, so it may be negative."""
        return functional.gaussian_log_density(z, mu, logvar) - self.log_prob(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Logarithm of the density `[B]` at latents `[B, k]`."""
        square_BKk = (z[:, None] - self.means_RKk).square() * (-self.logvars_RKk).exp()
        parts_BK = -0.5 * (square_BKk + self.logvars_RKk + math.log(2.0 * math.pi)).sum(-1)
        return torch.logsumexp(parts_BK + torch.log_softmax(self.logits_RK, -1), -1)

    def sample(self, eps: Tensor, u: Tensor) -> Tensor:
        """Latents `[N, k]` out of the first row; ``u`` `[N]` chooses the component."""
        edges_K = torch.cumsum(self.logits_RK[0].softmax(-1), 0).to(u)
        index_N = torch.searchsorted(edges_K, u).clamp(max=len(edges_K) - 1)
        deviations_Nk = (0.5 * self.logvars_RKk[0, index_N]).exp()
        return self.means_RKk[0, index_N] + deviations_Nk * eps


class MixtureOfGaussians(nn.Module):
    """A mixture of diagonal Gaussians whose weights, means and variances are learned.

    Args:
        components: Number K of Gaussians.
        latent_dim: Number k of latent dimensions.
        generator: Where the first means come from, which are drawn from N(0, I).
    """

    def __init__(self, components: int, latent_dim: int, generator: torch.Generator) -> None:
        """Build the table and draw its means."""
        super().__init__()
        self.latent_dim = latent_dim
        self.count = components
        # One row holds the mean, the log variance and the logit of a component.
        self.table = _table(components, 2 * latent_dim + 1)
        with torch.no_grad():
            self.table.weight.zero_()
            self.table.weight[:, :latent_dim].normal_(generator=generator)

    def rate(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """Log q(z | x) - log p(z) `[B]` at the draw: one sample, so it may be negative."""
        return self.components(len(z)).rate(mu, logvar, z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Logarithm of the density `[B]` at latents `[B, k]`."""
        return self.components(len(z)).log_prob(z)

    def sample(self, eps: Tensor, u: Tensor) -> Tensor:
        """``u`` chooses the component."""
        return self.components(1).sample(eps, u)

    def components(self, rows: int) -> Components:
        """The mixture, repeated for ``rows`` records."""
        rows_RKd = _looked_up(self.table, self.count, rows)
        means, logvars, logits = torch.split(rows_RKd, [self.latent_dim, self.latent_dim, 1], -1)
        return Components(
            means_RKk=means,
            logvars_RKk=logvars.clamp(LOGVAR_MIN, LOGVAR_MAX),
            logits_RK=logits[..., 0],
        )


class VampPrior(nn.Module):
    """The mean of the posteriors of learned pseudo-inputs.

    Tomczak and Welling, 2018, "VAE with a VampPrior", equation 9. Pseudo-inputs never start from
    records, which would put them into the weights without noise.

    Where gradients are wanted, `forward` of the model encodes records and pseudo-inputs in one
    call (`beside`, `split`), so that per-record gradients are exact; `log_prob` and `sample` encode
    the pseudo-inputs once for all records.

    Args:
        components: Number K of pseudo-inputs.
        input_shape: Shape of one record.
        posterior: The model's `encode`, which takes `[B, K, *shape]` too. A bound method: a copy
            of the model has a prior that asks the copy.
        generator: Where the first pseudo-inputs come from.
    """

    def __init__(
        self,
        components: int,
        input_shape: tuple[int, ...],
        posterior: Posterior,
        generator: torch.Generator,
    ) -> None:
        """Build the table and draw the pseudo-inputs."""
        super().__init__()
        self.input_shape = input_shape
        self.posterior = posterior
        self.count = components
        self.inputs = _table(components, math.prod(input_shape))
        with torch.no_grad():
            self.inputs.weight.normal_(_PSEUDO_MEAN, _PSEUDO_DEVIATION, generator=generator)

    def rate(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """Log q(z | x) - log p(z) `[B]` at the draw: one sample, so it may be negative."""
        return self.components().rate(mu, logvar, z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Logarithm of the density `[B]` at latents `[B, k]`."""
        return self.components().log_prob(z)

    def sample(self, eps: Tensor, u: Tensor) -> Tensor:
        """``u`` chooses the pseudo-input."""
        return self.components().sample(eps, u)

    def components(self) -> Components:
        """The posteriors of the pseudo-inputs, one row for all records."""
        return _equal(*self.posterior(self._inputs(1)))

    def beside(self, x: Tensor) -> Tensor:
        """Records `[B, *shape]` with the pseudo-inputs after each: `[B, 1 + K, *shape]`."""
        return torch.cat([x[:, None], self._inputs(len(x))], 1)

    def split(self, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor, Components]:
        """Posteriors `[B, 1 + K, k]` of `beside` as those of records `[B, k]` and the mixture."""
        return mu[:, 0], logvar[:, 0], _equal(mu[:, 1:], logvar[:, 1:])

    def _inputs(self, rows: int) -> Tensor:
        flat_RKd = _looked_up(self.inputs, self.count, rows)
        return flat_RKd.reshape(rows, self.count, *self.input_shape)


def check_prior(prior: str, network: str, *, stochastic: bool) -> None:
    """Refuse combinations that cannot be trained.

    Raises:
        ConfigError: A plain autoencoder has no rate; the VampPrior encodes pseudo-inputs along a
            middle axis, which only "mlp" has.
    """
    if prior != "standard" and not stochastic:
        raise wrong_option(
            "prior",
            f"Expected prior 'standard' for a plain autoencoder, got {prior!r}; "
            "set stochastic to true.",
        )
    if prior == "vamp" and network != "mlp":
        raise wrong_option(
            "network",
            f"Expected network 'mlp' for prior 'vamp', got {network!r}; choose prior 'mixture'.",
        )


def _table(rows: int, width: int) -> nn.Embedding:
    """An embedding that has drawn nothing from torch's generator."""
    with torch.device("meta"):
        table = nn.Embedding(rows, width)
    return table.to_empty(device="cpu")


def _looked_up(table: nn.Embedding, count: int, rows: int) -> Tensor:
    """All K entries of the table for each of R records, `[R, K, width]`."""
    # Opacus views the indices, which must be contiguous for it.
    found: Tensor = table(torch.arange(count).expand(rows, -1).contiguous())
    return found


def _equal(mu_RKk: Tensor, logvar_RKk: Tensor) -> Components:
    """Components of equal weight."""
    return Components(
        means_RKk=mu_RKk, logvars_RKk=logvar_RKk, logits_RK=torch.zeros_like(mu_RKk[..., 0])
    )
