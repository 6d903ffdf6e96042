"""Latent diffusion: an autoencoder with little noise, and a diffusion model of its latents.

Shape suffixes: B records, N new latents, M noise levels of a record, k latent dimensions,
`*shape` the shape of one record, `...` any axes.
"""

import math
from dataclasses import dataclass
from typing import NoReturn, cast

import torch
from torch import Tensor, nn

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import functional
from fedlatent.shared.models.base import LOGVAR_MAX, LOGVAR_MIN, Graph, Terms
from fedlatent.shared.models.layers import initialise
from fedlatent.shared.models.likelihoods import LikelihoodVAE
from fedlatent.shared.models.networks import (
    NetworkOptions,
    encoder_and_decoder,
    positive,
    whole,
)

PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"hidden": (64,), "latent_dim": 8, "width": 64, "blocks": 1},
    "small": {"hidden": (256,), "latent_dim": 16, "width": 128, "blocks": 2},
    "base": {"hidden": (512, 256), "latent_dim": 32, "width": 256, "blocks": 3},
}

_FREQUENCIES = (1.0, 2.0, 4.0, 8.0)  # of the time features, in half periods
_EARLIEST = 1e-3  # times lie between this and 1 minus this
_LAST_GAIN = 0.1  # of every last layer: predictions start near 0


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(NetworkOptions):
    """What a `LatentDiffusion` is made of, beside the networks of its first stage.

    Attributes:
        latent_dim: Number of latent dimensions.
        kl_weight: Of the divergence of the posterior from N(0, I), which bounds latents.
        diffusion_weight: Of the denoiser's error in the rate. Under privacy it sets the denoiser's
            share of a clipped gradient; else Adam makes it nearly irrelevant.
        scale: What latents are divided by for the diffusion model, which is at its best where
            they have a variance near 1. A public constant, for their own deviation is of the
            data; near 2 under a `kl_weight` of 0.05.
        width: Of the denoiser's hidden layers.
        blocks: Residual blocks of the denoiser.
        levels: Noise levels at which each latent is denoised in one step; their mean is the
            record's loss, so that privacy pays once for all of them (Dockhorn et al., 2023,
            "Differentially Private Diffusion Models": noise multiplicity).
        steps: Of sampling.
    """

    latent_dim: int = whole(8)
    kl_weight: float = positive(0.05)
    diffusion_weight: float = positive(1.0)
    scale: float = positive(2.0)
    width: int = whole(128)
    blocks: int = whole(2, 0, 64)
    levels: int = whole(4, 1, 256)
    steps: int = whole(30, 1, 1000)


class DiffusionPrior(nn.Module):
    """A diffusion model of latents, whose density has no closed form.

    With z a latent divided by the scale and e from N(0, I), the latent at time t in [0, 1] is
    z_t = cos(pi t / 2) z + sin(pi t / 2) e (Nichol and Dhariwal, 2021, "Improved Denoising
    Diffusion Probabilistic Models", section 3.2, in continuous time). The network predicts
    v = cos(pi t / 2) e - sin(pi t / 2) z
    (Salimans and Ho, 2022, "Progressive Distillation for Fast Sampling", section 4).

    Args:
        config: Width, blocks and steps.
        generator: Where initial weights come from.
    """

    def __init__(self, config: DiffusionConfig, generator: torch.Generator) -> None:
        """Build the layers and draw their weights."""
        super().__init__()
        self.steps, self.scale = config.steps, config.scale
        width, size = config.width, config.latent_dim
        with torch.device("meta"):
            self.enter = nn.Linear(size + 2 * len(_FREQUENCIES), width)
            self.blocks = nn.ModuleList(_block(width) for _ in range(config.blocks))
            self.leave = nn.Sequential(nn.SiLU(), nn.Linear(width, size))
        self.to_empty(device="cpu")
        initialise(self.enter, "silu", generator, 1.0)
        for part in (*self.blocks, self.leave):
            initialise(part, "silu", generator, _LAST_GAIN)

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        """Predict v `[..., k]` from noisy latents `[..., k]` at times `[...]`."""
        angles = math.pi * t[..., None] * t.new_tensor(_FREQUENCIES)
        hidden = self.enter(torch.cat([noisy, angles.sin(), angles.cos()], -1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        predicted: Tensor = self.leave(hidden)
        return predicted

    def loss(self, z_Bk: Tensor, noise_BMk: Tensor, t_BM: Tensor) -> Tensor:
        """Squared error of v, summed over a latent's dimensions, its mean over levels `[B]`."""
        signal, noise = _schedule(t_BM[..., None])
        z_B1k = z_Bk[:, None] / self.scale
        predicted_BMk = self(signal * z_B1k + noise * noise_BMk, t_BM)
        wanted_BMk = signal * noise_BMk - noise * z_B1k
        error_BM: Tensor = (predicted_BMk - wanted_BMk).square().sum(-1)
        return error_BM.mean(-1)

    def denoised(self, noisy: Tensor, t: Tensor) -> Tensor:
        """Estimate of the latents `[..., k]` without noise, divided by the scale like `noisy`."""
        signal, noise = _schedule(t[..., None])
        clean: Tensor = signal * noisy - noise * self(noisy, t)
        return clean

    def sample(self, eps: Tensor, u: Tensor) -> Tensor:
        """Latents `[N, k]` that follow from ``eps`` alone, without fresh noise on the way.

        DDIM: Song et al., 2021, "Denoising Diffusion Implicit Models", equation 12 with sigma 0,
        at equidistant times.
        """
        z_Nk = eps
        for step in range(self.steps, 0, -1):
            now = torch.full_like(eps[:, 0], step / self.steps)
            later = torch.full_like(eps[:, 0], (step - 1) / self.steps)
            (signal, noise), (next_signal, next_noise) = map(
                _schedule, (now[:, None], later[:, None])
            )
            v_Nk = self(z_Nk, now)
            clean_Nk, noise_Nk = signal * z_Nk - noise * v_Nk, noise * z_Nk + signal * v_Nk
            z_Nk = next_signal * clean_Nk + next_noise * noise_Nk
        return self.scale * z_Nk

    def log_prob(self, z: Tensor) -> NoReturn:
        """Refused.

        Raises:
            ConfigError: Always.
        """
        raise _no_density()

    def rate(self, mu: Tensor, logvar: Tensor, z: Tensor) -> NoReturn:
        """Refused.

        Raises:
            ConfigError: Always.
        """
        raise _no_density()


class LatentDiffusion(LikelihoodVAE[DiffusionConfig]):
    """A Gaussian first stage and a diffusion model of its latents, trained together.

    Rombach et al., 2022, "High-Resolution Image Synthesis with Latent Diffusion Models". The
    diffusion model sees latents without their gradient, so it never changes what the first stage
    aims at. Under privacy both share the clipping of a record's gradient. The rate is a loss and no
    divergence: the weighted divergence from N(0, I) plus the error of the denoiser.
    """

    def _build(self, generator: torch.Generator) -> None:
        config, input_shape = self.config, self.input_shape
        self.encoder, self.decoder = encoder_and_decoder(
            config, input_shape, generator, outputs=2 * self.latent_dim, inputs=self.latent_dim
        )
        self.prior = DiffusionPrior(config, generator)

    @property
    def denoiser(self) -> DiffusionPrior:
        """The diffusion model of latents."""
        return cast(DiffusionPrior, self.prior)

    @property
    def noise_dim(self) -> int:
        """For the posterior draw, and for each level a latent's noise and a time."""
        return self.latent_dim + self.config.levels * (self.latent_dim + 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log variance, `[B, k]` each."""
        mu_Bk, logvar_Bk = self.encoder(x).chunk(2, 1)
        return mu_Bk, logvar_Bk.clamp(LOGVAR_MIN, LOGVAR_MAX)

    def forward(self, x: Tensor, eps: Tensor) -> Terms:
        """Terms `[B]` of records `[B, *shape]` with standard normal noise `[B, noise_dim]`.

        Raises:
            ConfigError: A likelihood bound was asked for by `sampled`.
        """
        if self.sampled:
            raise _no_density()
        k, levels = self.latent_dim, self.config.levels
        draw_Bk, noise_Bm, time_BM = torch.split(eps, [k, levels * k, levels], 1)
        mu_Bk, logvar_Bk = self.encode(x)
        z_Bk = mu_Bk + (0.5 * logvar_Bk).exp() * draw_Bk
        t_BM = torch.special.ndtr(time_BM).clamp(_EARLIEST, 1.0 - _EARLIEST)
        noise_BMk = noise_Bm.reshape(-1, levels, k)
        rate_B = self.config.kl_weight * functional.kl_standard_normal(mu_Bk, logvar_Bk)
        error_B = self.denoiser.loss(z_Bk.detach(), noise_BMk, t_BM)
        rate_B = rate_B + self.config.diffusion_weight * error_B
        return Terms(self.distortion(x, self.decode(z_Bk)), rate_B)

    def graphs(self) -> dict[str, Graph]:
        """One step of sampling: the estimate of a clean latent from a noisy one and its time."""
        inputs = {"z_t": torch.zeros(2, self.latent_dim), "t": torch.full((2,), 0.5)}
        module = _Denoise(self.denoiser)
        return {"denoise_latent": Graph(module=module, inputs=inputs, outputs=("z_0",))}


class _Denoise(nn.Module):
    """`DiffusionPrior.denoised` as a graph."""

    def __init__(self, prior: DiffusionPrior) -> None:
        """Wrap `prior`."""
        super().__init__()
        self.prior = prior

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        """Latents `[B, k]` from noisy ones `[B, k]` at times `[B]`."""
        return self.prior.denoised(z_t, t)


def _schedule(t: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of signal and noise at times `t`, whose squares sum to 1."""
    angle = 0.5 * math.pi * t
    return angle.cos(), angle.sin()


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))


def _no_density() -> ConfigError:
    return ConfigError(
        "Expected a use without densities of latents, which a diffusion prior does not have, got "
        "a likelihood bound; set objective to 'elbo', or take family 'gaussian' for likelihoods."
    )
