"""The deep hierarchical family: groups of latents from coarse to fine, each under a learned prior.

A bottom-up network reads the record; a top-down network starts at the top group and draws the
other groups one after another, each given all above it (Sonderby et al., 2016, "Ladder Variational
Autoencoders"; Child, 2021, "Very Deep VAEs Generalize Autoregressive Models").

Shape suffixes: B records, k dimensions of the top group, `*shape` the shape of one record.
"""

import torch
from torch import Tensor

from fedlatent.shared.models.base import Terms
from fedlatent.shared.models.layers import initialise
from fedlatent.shared.models.likelihoods import LikelihoodVAE
from fedlatent.shared.models.networks import (
    DECODER_GAIN,
    ENCODER_GAIN,
    wrong_option,
)
from fedlatent.shared.models.topdown import BottomUp, HierarchicalConfig, Plan, TopDown

PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"latent_dim": 8, "groups": (2,), "blocks": (1,), "width": 32, "bottleneck": 16},
    "small": {"latent_dim": 16, "groups": (3,), "blocks": (2,), "width": 128, "bottleneck": 64},
    "base": {"latent_dim": 32, "groups": (5,), "blocks": (4,), "width": 256, "bottleneck": 128},
    "image": {
        "network": "conv2d",
        "latent_dim": 32,
        "groups": (4, 1),
        "blocks": (2, 1),
        "width": 32,
        "bottleneck": 16,
        "z_channels": 4,
        "patch": 2,
        "likelihood": "bernoulli",
    },
    "deep": {
        "network": "conv2d",
        "latent_dim": 32,
        "groups": (4, 8, 14, 6),
        "blocks": (4, 6, 10, 4),
        "width": 24,
        "bottleneck": 8,
        "z_channels": 4,
        "patch": 2,
        "likelihood": "bernoulli",
    },
}


class HierarchicalVAE(LikelihoodVAE[HierarchicalConfig]):
    """Groups of latents from coarse to fine under learned priors.

    `encode` gives the top group, a vector, whose posterior needs the shared weights alone. `decode`
    puts all other groups at the mean of their priors, so what it gives is coarse: it shows what the
    top group knows. `reconstruct_fully` takes the posterior means of all groups.
    """

    encoder: BottomUp
    decoder: TopDown

    def _build(self, generator: torch.Generator) -> None:
        config, input_shape = self.config, self.input_shape
        plan = Plan(config, _channels_first(config, input_shape))
        # On "meta" the layers draw nothing from torch's global generator.
        with torch.device("meta"):
            self.encoder = BottomUp(plan)
            self.decoder = TopDown(plan, self.likelihood.parameters)
        self.to_empty(device="cpu")
        initialise(self.encoder, "gelu", generator, ENCODER_GAIN)
        initialise(self.decoder, "gelu", generator, DECODER_GAIN)
        self.encoder.damp()
        self.decoder.damp()

    @property
    def noise_dim(self) -> int:
        """Numbers of all groups together, the top group first."""
        return self.latent_dim + self.decoder.latents

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log variance of the top group, `[B, k]` each."""
        top, _ = self.encoder(x)
        return top.mean, top.logvar

    def decode(self, z: Tensor) -> Tensor:
        """Likelihood parameters `[B, parameters, *shape]`, other groups at their prior means."""
        return self.shaped(self.decoder(z)[0])

    def reconstruct_fully(self, x: Tensor) -> Tensor:
        """Mean record `[B, *shape]` of records, all groups at their posterior means."""
        top, features = self.encoder(x)
        return self.likelihood.mean(self.shaped(self.decoder(top.mean, features)[0]))

    def forward(self, x: Tensor, eps: Tensor) -> Terms:
        """Terms of records `[B, *shape]` with noise `[B, noise_dim]`; the rate is of all groups."""
        top, features = self.encoder(x)
        z = top.at(eps[:, : self.latent_dim])
        out, groups = self.decoder(z, features, eps[:, self.latent_dim :])
        rate = self.rate(top.mean, top.logvar, z)
        for drawn, posterior, prior in groups:
            if self.sampled:
                rate = rate + posterior.log_prob(drawn) - prior.log_prob(drawn)
            else:
                rate = rate + posterior.divergence(prior)
        return Terms(self.distortion(x, self.shaped(out)), rate)

    def draw(self, count: int, generator: torch.Generator, *, temperature: float = 1.0) -> Tensor:
        """New mean records `[count, *shape]`, each group drawn given those above it.

        Args:
            count: How many.
            generator: Of the noise.
            temperature: Factor of all deviations; below 1 records are more typical.
        """
        eps = temperature * torch.randn(count, self.noise_dim, generator=generator)
        u = torch.rand(count, generator=generator)
        z = self.prior.sample(eps[:, : self.latent_dim], u)
        out, _ = self.decoder(z, None, eps[:, self.latent_dim :])
        return self.likelihood.mean(self.shaped(out))


def _channels_first(config: HierarchicalConfig, shape: tuple[int, ...]) -> tuple[int, ...]:
    if config.network == "mlp" or len(shape) == 3:
        return shape
    if len(shape) == 2:
        return (1, *shape)
    raise wrong_option(
        "network",
        f"Expected images (H, W) or (C, H, W) for network 'conv2d', got shape {shape}; "
        "choose network 'mlp'.",
    )
