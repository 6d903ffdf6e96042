"""The Gaussian-latent family: autoencoder, VAE and beta-VAE in one class."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import ConfigError
from shared.models import functional
from shared.models.base import LOGVAR_MAX, LOGVAR_MIN, VAE, Terms
from shared.models.layers import (
    ACTIVATIONS,
    conv_decoder,
    conv_encoder,
    initialise,
    mlp,
)
from shared.models.recurrent import Reader, Writer
from shared.models.trained_priors import (
    PRIORS,
    Components,
    MixtureOfGaussians,
    VampPrior,
    check_prior,
)

NETWORKS = {"mlp": None, "conv1d": 1, "conv2d": 2}  # spatial dimensions
RECURRENT = "recurrent"  # of this family only
MAX_WIDTH = 8192
#: Gains of the last layers. Under noise the first weights stay visible to the end: latents must
#: start on the scale of the prior, or noise drowns them, and outputs near zero, or the decoder's
#: first draw stays in every reconstruction (measured on MIT-BIH at epsilon 4).
ENCODER_GAIN, DECODER_GAIN = 1.0, 0.1
MAX_DEPTH = 16
PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"hidden": (64,), "latent_dim": 8},
    "small": {"hidden": (256,), "latent_dim": 16},
    "base": {"hidden": (512, 256), "latent_dim": 32},
}


@dataclass(frozen=True, kw_only=True)
class GaussianConfig:
    """What a `GaussianVAE` is made of.

    Attributes:
        network: "mlp", "conv1d", "conv2d", or "recurrent" over time.
        latent_dim: Number of latent dimensions.
        hidden: Widths of the hidden layers, channels of the strided convolutions, or widths of the
            recurrent cells, from the data to the latent; the decoder mirrors them.
        activation: "tanh", "relu", "gelu" or "silu".
        likelihood: "gaussian" for real values, "bernoulli" for values in [0, 1], "discretised"
            for values in [0, 1] on 256 levels.
        variance: Of the Gaussian likelihood, in squared data units.
        stochastic: False makes a plain autoencoder: the latent is the mean and the rate is 0.
        prior: "standard" for N(0, I); "mixture" of learned Gaussians; "vamp" for the posteriors of
            learned pseudo-inputs, with network "mlp".
        components: Of a prior that is learned.
    """

    network: str = "mlp"
    latent_dim: int = 8
    hidden: tuple[int, ...] = (64,)
    activation: str = "tanh"
    likelihood: str = "gaussian"
    variance: float = 0.05
    stochastic: bool = True
    prior: str = "standard"
    components: int = 10

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: A field has the wrong type or lies outside its range.
        """
        _check_choice("network", self.network, {**NETWORKS, RECURRENT: 1})
        _check_choice("activation", self.activation, ACTIVATIONS)
        _check_choice("likelihood", self.likelihood, LIKELIHOODS)
        _check_choice("prior", self.prior, PRIORS)
        _check_width("latent_dim", self.latent_dim)
        _check_width("components", self.components)
        if not isinstance(self.hidden, tuple) or not 1 <= len(self.hidden) <= MAX_DEPTH:
            raise ConfigError(
                f"Expected hidden as a list of 1 to {MAX_DEPTH} widths, got {self.hidden!r}; "
                "give for example [64]."
            )
        for width in self.hidden:
            _check_width("hidden", width)
        number = isinstance(self.variance, int | float) and not isinstance(self.variance, bool)
        if not number or not (math.isfinite(self.variance) and self.variance > 0):
            raise ConfigError(
                f"Expected variance as a positive number, got {self.variance!r}; "
                "give for example 0.05."
            )
        if not isinstance(self.stochastic, bool):
            raise ConfigError(
                f"Expected stochastic as true or false, got {self.stochastic!r}; choose one."
            )
        check_prior(self.prior, self.network, stochastic=self.stochastic)


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


class GaussianVAE(VAE):
    """Diagonal Gaussian posterior, standard normal prior (Kingma and Welling, 2014).

    Args:
        config: The architecture.
        input_shape: Shape of one record: any for "mlp", `(L,)` or `(C, L)` for "conv1d"
            and "recurrent", `(H, W)` or `(C, H, W)` for "conv2d".
        generator: Where initial weights come from.

    Raises:
        ConfigError: The network does not fit the shape.
    """

    def __init__(
        self,
        config: GaussianConfig,
        input_shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> None:
        """Build the layers and draw their weights."""
        super().__init__()
        self.config = config
        self.latent_dim = config.latent_dim
        self.input_shape = input_shape
        # On "meta" the layers draw nothing from torch's global generator.
        with torch.device("meta"):
            self.encoder = nn.Sequential(*self._encoder_layers())
            self.decoder = nn.Sequential(*self._decoder_layers())
        self.to_empty(device="cpu")
        initialise(self.encoder, config.activation, generator, ENCODER_GAIN)
        initialise(self.decoder, config.activation, generator, DECODER_GAIN)
        if config.prior == "mixture":
            self.prior = MixtureOfGaussians(config.components, config.latent_dim, generator)
        if config.prior == "vamp":
            self.prior = VampPrior(config.components, input_shape, self.encode, generator)

    @property
    def likelihood(self) -> Likelihood:
        """How the decoder's output describes a record."""
        return LIKELIHOODS[self.config.likelihood]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log variance, `[B, k]` each; of `[B, K, *shape]` under "mlp", too.

        A plain autoencoder has a point posterior: its log variance is the lower bound.
        """
        mu_Bk, logvar_Bk = self.encoder(x).chunk(2, -1)
        if not self.config.stochastic:
            return mu_Bk, torch.full_like(mu_Bk, LOGVAR_MIN)
        return mu_Bk, logvar_Bk.clamp(LOGVAR_MIN, LOGVAR_MAX)

    def decode(self, z: Tensor) -> Tensor:
        """Likelihood parameters `[B, parameters, *shape]`."""
        out: Tensor = self.decoder(z)
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

    def _encoder_layers(self) -> list[nn.Module]:
        config, outputs = self.config, 2 * self.config.latent_dim
        if config.network == "mlp":
            widths = (math.prod(self.input_shape), *config.hidden, outputs)
            return [nn.Flatten(-len(self.input_shape)), *mlp(widths, config.activation)]
        shape = self._channels_first()
        adapt = [nn.Unflatten(1, (1, shape[1]))] if len(shape) > len(self.input_shape) else []
        if config.network == RECURRENT:
            return [*adapt, Reader(shape, config.hidden, outputs)]
        return [*adapt, *conv_encoder(shape, config.hidden, outputs, config.activation)]

    def _decoder_layers(self) -> list[nn.Module]:
        config, parameters = self.config, self.likelihood.parameters
        if config.network == "mlp":
            outputs = parameters * math.prod(self.input_shape)
            return mlp(
                (config.latent_dim, *reversed(config.hidden), outputs),
                config.activation,
            )
        channels, *size = self._channels_first()
        shape = (parameters * channels, *size)
        if config.network == RECURRENT:
            return [Writer(config.latent_dim, config.hidden, shape), nn.Flatten()]
        layers = conv_decoder(config.latent_dim, config.hidden, shape, config.activation)
        return [*layers, nn.Flatten()]

    def _channels_first(self) -> tuple[int, ...]:
        dims = {**NETWORKS, RECURRENT: 1}[self.config.network]
        if dims == len(self.input_shape):
            return (1, *self.input_shape)
        if dims is not None and dims + 1 == len(self.input_shape):
            return self.input_shape
        raise ConfigError(
            f"Expected records of {dims} dimensions (or {dims} after a channel) for network "
            f"{self.config.network!r}, got shape {self.input_shape}; choose another network."
        )


def _check_choice(name: str, value: Any, allowed: Collection[str]) -> None:  # noqa: ANN401
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(
            f"Expected {name} as one of {sorted(allowed)}, got {value!r}; choose one."
        )


def _check_width(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_WIDTH:
        raise ConfigError(
            f"Expected {name} between 1 and {MAX_WIDTH}, got {value!r}; give a whole number."
        )
