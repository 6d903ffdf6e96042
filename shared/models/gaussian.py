"""The Gaussian-latent family: autoencoder, VAE and beta-VAE in one class."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlatent.shared.models.base import LOGVAR_MAX, LOGVAR_MIN, Terms
from fedlatent.shared.models.likelihoods import LikelihoodVAE
from fedlatent.shared.models.networks import (
    NetworkOptions,
    choice,
    encoder_and_decoder,
    switch,
    whole,
)
from fedlatent.shared.models.trained_priors import (
    PRIORS,
    Components,
    MixtureOfGaussians,
    VampPrior,
    check_prior,
)

PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"hidden": (64,), "latent_dim": 8},
    "small": {"hidden": (256,), "latent_dim": 16},
    "base": {"hidden": (512, 256), "latent_dim": 32},
}


@dataclass(frozen=True, kw_only=True)
class GaussianConfig(NetworkOptions):
    """What a `GaussianVAE` is made of, beside its networks.

    Attributes:
        latent_dim: Number of latent dimensions.
        stochastic: False makes a plain autoencoder: the latent is the mean and the rate is 0.
        prior: "standard" for N(0, I); "mixture" of learned Gaussians; "vamp" for the posteriors of
            learned pseudo-inputs, with network "mlp".
        components: Of a prior that is learned.
    """

    latent_dim: int = whole(8)
    stochastic: bool = switch(default=True)
    prior: str = choice("standard", PRIORS)
    components: int = whole(10)

    def __post_init__(self) -> None:
        """Check every field, and that they go together.

        Raises:
            ConfigError: A field has the wrong type or lies outside its range.
        """
        super().__post_init__()
        check_prior(self.prior, self.network, stochastic=self.stochastic)


class GaussianVAE(LikelihoodVAE[GaussianConfig]):
    """Diagonal Gaussian posterior, standard normal prior (Kingma and Welling, 2014)."""

    def _build(self, generator: torch.Generator) -> None:
        config, input_shape = self.config, self.input_shape
        self.encoder, self.decoder = encoder_and_decoder(
            config, input_shape, generator, outputs=2 * self.latent_dim, inputs=self.latent_dim
        )
        if config.prior == "mixture":
            self.prior = MixtureOfGaussians(config.components, config.latent_dim, generator)
        if config.prior == "vamp":
            self.prior = VampPrior(config.components, input_shape, self.encode, generator)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log variance, `[B, k]` each; of `[B, K, *shape]` under "mlp", too.

        A plain autoencoder has a point posterior: its log variance is the lower bound.
        """
        mu_Bk, logvar_Bk = self.encoder(x).chunk(2, -1)
        if not self.config.stochastic:
            return mu_Bk, torch.full_like(mu_Bk, LOGVAR_MIN)
        return mu_Bk, logvar_Bk.clamp(LOGVAR_MIN, LOGVAR_MAX)

    def forward(self, x: Tensor, eps: Tensor) -> Terms:
        """Distortion and rate `[B]` of records `[B, *shape]` with noise `eps` `[B, k]`."""
        prior = self.prior
        if isinstance(prior, VampPrior) and torch.is_grad_enabled():
            mu_Bk, logvar_Bk, prior = prior.split(*self.encode(prior.beside(x)))
        else:
            mu_Bk, logvar_Bk = self.encode(x)
        if not self.config.stochastic:
            distortion_B = self.distortion(x, self.decode(mu_Bk))
            return Terms(distortion_B, torch.zeros_like(distortion_B))
        z_Bk = mu_Bk + (0.5 * logvar_Bk).exp() * eps
        rate = prior.rate if isinstance(prior, Components) else self.rate
        return Terms(self.distortion(x, self.decode(z_Bk)), rate(mu_Bk, logvar_Bk, z_Bk))
