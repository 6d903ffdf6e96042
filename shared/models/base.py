"""The seam that every model family implements, and the loading of what clients share.

Shape suffixes: B records, k latent dimensions, `*shape` the shape of one record.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shared.errors import ProtocolError
from shared.models.priors import Prior, StandardNormal

ENCODER_PREFIX = "encoder."
LOGVAR_MIN, LOGVAR_MAX = -8.0, 4.0


class Terms(NamedTuple):
    """The two terms of a record's bound, both `[B]` in nats and never summed over the batch."""

    distortion: Tensor
    rate: Tensor


class VAE(nn.Module, ABC):
    """A latent-variable model made of an `encoder` and a `decoder`.

    The attribute names carry meaning: state-dict keys under `encoder.` are what sites share, all
    others stay at the site. A model draws no random number: noise is the argument `eps`. A model
    has no buffers, for a buffer would carry raw data past the clipping.

    Attributes:
        encoder: The shared part.
        decoder: The private part.
        latent_dim: Number k of latent dimensions.
        input_shape: Shape of one record.
        prior: What the rate is measured against; a value, no part of the state.
    """

    encoder: nn.Module
    decoder: nn.Module
    latent_dim: int
    input_shape: tuple[int, ...]
    prior: Prior = StandardNormal()

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
        """Terms of records `[B, *shape]` with standard normal noise `eps` `[B, k]`."""


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
