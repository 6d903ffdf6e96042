"""VAEs with categorical latents, relaxed in training.

Shape suffixes: B records, G groups, K categories, k = G * K latent dimensions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlatent.shared.models.base import LOGVAR_MAX, LOGVAR_MIN, Terms
from fedlatent.shared.models.likelihoods import LikelihoodVAE
from fedlatent.shared.models.networks import (
    NetworkOptions,
    encoder_and_decoder,
    positive,
    whole,
)

PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"hidden": (64,), "groups": 4, "categories": 4},
    "small": {"hidden": (256,), "groups": 8, "categories": 4},
    "base": {"hidden": (512, 256), "groups": 16, "categories": 4},
}


@dataclass(frozen=True, kw_only=True)
class GumbelConfig(NetworkOptions):
    """What a `GumbelVAE` is made of, beside its networks.

    Attributes:
        groups: Categorical variables of a record.
        categories: Values of each.
        tau_start: Temperature of the relaxation at the start of the training.
        tau_end: Temperature at its end.
    """

    groups: int = whole(8, 1, 1024)
    categories: int = whole(4, 2, 1024)
    tau_start: float = positive(1.0)
    tau_end: float = positive(0.5)

    @property
    def latent_dim(self) -> int:
        """One dimension for each category of each group."""
        return self.groups * self.categories


class GumbelVAE(LikelihoodVAE[GumbelConfig]):
    """Categorical posterior and uniform prior, with Gumbel-Softmax draws.

    Jang et al., 2017, "Categorical Reparameterization with Gumbel-Softmax"; Maddison et al., 2017,
    "The Concrete Distribution". Training decodes relaxed draws, so its loss is no bound; in
    evaluation and under `sampled` draws are hard and it is one. Latent coordinates are
    (p - 1/K) sqrt(K) for probabilities p: of mean 0 and variance near 1 where p is one-hot and
    uniform. The rate is always against uniform categories, a broadcast prior only serves `draw`.
    """

    def _build(self, generator: torch.Generator) -> None:
        config, input_shape = self.config, self.input_shape
        self.encoder, self.decoder = encoder_and_decoder(
            config, input_shape, generator, outputs=self.latent_dim, inputs=self.latent_dim
        )

    @property
    def temperature(self) -> float:
        """From `tau_start` to `tau_end`, geometrically, by the share of training done."""
        ratio = self.config.tau_end / self.config.tau_start
        return float(self.config.tau_start * ratio**self.progress)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance `[B, k]` of one-hot draws in latent coordinates."""
        p_BGK = self._logits(x).softmax(-1)
        spread_BGK = self.config.categories * p_BGK * (1.0 - p_BGK)
        logvar_BGK = spread_BGK.clamp(min=math.exp(LOGVAR_MIN)).log().clamp(max=LOGVAR_MAX)
        return self._coordinates(p_BGK), logvar_BGK.flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        """Likelihood parameters `[B, parameters, *shape]` of the largest category of each group."""
        z_BGK = self._grouped(z)
        return self._decoded(_hard(z_BGK, z_BGK / math.sqrt(self.config.categories)))

    def forward(self, x: Tensor, eps: Tensor) -> Terms:
        """Terms `[B]` of records `[B, *shape]` with standard normal noise `[B, k]`.

        Under `sampled` the draw c is hard and the rate is log q(c|x) - log p(c), else the rate is
        the divergence of the posterior from uniform categories.
        """
        logits_BGK = self._logits(x)
        noisy_BGK = logits_BGK + self._grouped(_gumbel(eps))
        choice_BGK = (noisy_BGK / self.temperature).softmax(-1)
        log_q_BGK = logits_BGK.log_softmax(-1)
        excess_BGK = log_q_BGK + math.log(self.config.categories)
        if self.sampled or not self.training:
            # Straight through, for the gradient (Jang et al., section 2.2).
            choice_BGK = _hard(noisy_BGK, choice_BGK)
        # Not the exponential of log_q, which takes far longer over probabilities below 1e-38.
        weights_BGK = choice_BGK.detach() if self.sampled else logits_BGK.softmax(-1)
        rate_B = (weights_BGK * excess_BGK).flatten(1).sum(1)
        if not self.sampled:
            rate_B = rate_B.clamp(min=0.0)  # rounding
        return Terms(self.distortion(x, self._decoded(choice_BGK)), rate_B)

    def _logits(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(x)
        return self._grouped(out)

    def _grouped(self, z: Tensor) -> Tensor:
        return z.reshape(-1, self.config.groups, self.config.categories)

    def _coordinates(self, p_BGK: Tensor) -> Tensor:
        count = self.config.categories
        return ((p_BGK - 1.0 / count) * math.sqrt(count)).flatten(1)

    def _decoded(self, choice_BGK: Tensor) -> Tensor:
        return self.shaped(self.decoder(self._coordinates(choice_BGK)))


def _gumbel(eps: Tensor) -> Tensor:
    """Standard Gumbel numbers -log(-log u) with u the normal distribution function of `eps`."""
    half = math.sqrt(0.5)
    below, above = 0.5 * torch.erfc(-half * eps), 0.5 * torch.erfc(half * eps)
    # The smaller of u and 1 - u keeps its digits in both tails.
    exponential = torch.where(eps > 0, -torch.log1p(-above), -below.log())
    return -exponential.clamp(min=torch.finfo(eps.dtype).tiny).log()


def _hard(scores_BGK: Tensor, soft_BGK: Tensor) -> Tensor:
    """One-hot vectors of the largest scores, with the gradient of `soft_BGK`."""
    categories = torch.arange(scores_BGK.shape[-1], device=scores_BGK.device)
    hot_BGK = (scores_BGK.argmax(-1)[..., None] == categories).to(soft_BGK.dtype)
    return hot_BGK + (soft_BGK - soft_BGK.detach())
