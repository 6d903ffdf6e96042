"""The seam that every model family implements, and the loading of what clients share.

Shape suffixes: B records, k latent dimensions, `*shape` the shape of one record.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedlatent.shared.errors import ConfigError, ProtocolError
from fedlatent.shared.models.functional import gaussian_log_density
from fedlatent.shared.models.priors import Prior, StandardNormal

ENCODER_PREFIX = "encoder."
LOGVAR_MIN, LOGVAR_MAX = -8.0, 4.0


class Terms(NamedTuple):
    """The two terms of a record's bound, both `[B]` in nats and never summed over the batch."""

    distortion: Tensor
    rate: Tensor


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph that a family exports beside encoder, decoder and scorer.

    Attributes:
        module: What is exported; float32 tensors in and out, or int64 ones for tokens.
        inputs: Examples by name, each with a batch of 2 first.
        outputs: Names, in the order of the module's results.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]


class VAE(nn.Module, ABC):
    """A latent-variable model made of an `encoder` and a `decoder`.

    The attribute names carry meaning: state-dict keys under `encoder.` are what sites share, all
    others stay at the site. A model draws no random number: noise is the argument `eps`. A model
    has no buffers, for a buffer would carry raw data past the clipping. Every layer sees the
    records as its first axis and nothing folded into it, for Opacus counts that axis as records.

    Attributes:
        encoder: The shared part.
        decoder: The private part.
        latent_dim: Number k of latent dimensions that `encode` gives and summaries look at.
        input_shape: Shape of one record.
        prior: What the rate is measured against: a value that is no part of the state, or a
            module that is trained with the model.
        sampled: Whether `forward` gives the rate as log q(z|x) - log p(z) at its draw, from which
            the importance-weighted bound is made, and not in closed form.
        progress: Share of the training that is done, for schedules; 1 outside of training.
    """

    encoder: nn.Module
    decoder: nn.Module
    latent_dim: int
    input_shape: tuple[int, ...]
    prior: Prior
    sampled: bool = False
    progress: float = 1.0

    def __init__(self) -> None:
        """Start with N(0, I) as prior; a module takes its place where one is assigned."""
        super().__init__()
        self.prior = StandardNormal()

    @property
    def noise_dim(self) -> int:
        """Standard normal numbers that `forward` takes for one record."""
        return self.latent_dim

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map records `[B, *shape]` to posterior mean and log variance, both `[B, k]`."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Map latents `[B, k]` to the parameters of the likelihood."""

    @abstractmethod
    def reconstruct(self, z: Tensor) -> Tensor:
        """Map latents `[B, k]` to the mean record `[B, *shape]` in data space."""

    @abstractmethod
    def distortion(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Negative log likelihood `[B]` in nats of `x` under the output of `decode`."""

    @abstractmethod
    def reconstruction_error(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Anomaly score `[B]`, never negative, of `x` under the output of `decode`."""

    @abstractmethod
    def forward(self, x: Tensor, eps: Tensor) -> Terms:
        """Terms of records `[B, *shape]` with standard normal noise `eps` `[B, noise_dim]`."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """New records `[count, *shape]`: latents of the prior, decoded to their mean record."""
        eps = torch.randn(count, self.latent_dim, generator=generator)
        return self.reconstruct(self.prior.sample(eps, torch.rand(count, generator=generator)))

    def graphs(self) -> dict[str, Graph]:
        """What else is exported, by file name without ending; most families have nothing."""
        return {}

    def rate(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """Rate `[B]` of the posterior N(mu, diag exp(logvar)) `[B, k]` with the draw `z`."""
        if self.sampled:
            return gaussian_log_density(z, mu, logvar) - self.prior.log_prob(z)
        return self.prior.rate(mu, logvar, z)


def use_prior(model: VAE, prior: Prior | None) -> None:
    """Measure the rate of `model` against a broadcast prior; None leaves it with its own.

    Raises:
        ConfigError: The model trains a prior of its own.
    """
    if prior is None:
        return
    if isinstance(model.prior, nn.Module):
        raise ConfigError(
            f"Expected a model without a prior of its own under a broadcast one, got "
            f"{type(model.prior).__name__}; set summaries.prior to 'none'."
        )
    model.prior = prior


def encoder_state(model: VAE) -> dict[str, Tensor]:
    """Return copies of the tensors under `encoder.`, keyed by their full state-dict name."""
    return {
        key: value.detach().clone()
        for key, value in model.state_dict().items()
        if key.startswith(ENCODER_PREFIX)
    }


def load_encoder(model: VAE, arrays: Mapping[str, Tensor]) -> None:
    """Write received encoder tensors into `model`; the decoder is not touched.

    Raises:
        ProtocolError: The keys, a shape or a dtype differ, or a value is not finite. The model is
            then unchanged.
    """
    load_state(model, arrays, prefix=ENCODER_PREFIX)


def load_state(model: VAE, arrays: Mapping[str, Tensor], prefix: str = "") -> None:
    """Write all tensors whose state-dict name starts with `prefix`, exactly those.

    Raises:
        ProtocolError: The keys, a shape or a dtype differ, or a value is not finite. The model is
            then unchanged.
    """
    own = {key: value for key, value in model.state_dict().items() if key.startswith(prefix)}
    missing, extra = (
        sorted(own.keys() - arrays.keys()),
        sorted(arrays.keys() - own.keys()),
    )
    if missing or extra:
        raise ProtocolError(
            f"Expected the {len(own)} tensors of this model, got {len(missing)} missing "
            f"{missing[:3]} and {len(extra)} unknown {extra[:3]}; "
            "build the model from the same configuration on both sides."
        )
    for key, value in own.items():
        _check_tensor(key, arrays[key], value)
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(arrays[key])


def _check_tensor(key: str, got: Tensor, own: Tensor) -> None:
    if got.shape != own.shape:
        raise ProtocolError(
            f"Expected {key} of shape {tuple(own.shape)}, got {tuple(got.shape)}; "
            "build the model from the same configuration on both sides."
        )
    if not got.is_floating_point():
        raise ProtocolError(f"Expected {key} as floating point, got {got.dtype}; send float32.")
    if not bool(torch.isfinite(got).all()):
        raise ProtocolError(
            f"Expected finite values in {key}, got NaN or inf; discard this update."
        )
