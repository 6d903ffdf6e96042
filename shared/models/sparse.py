"""The sparse family: easy records leave the encoder early, hard ones take its deep trunk.

A small stem reads every record. From it come a cheap posterior and a gate, the probability that
the record is hard. The deep trunk gives another posterior of the same latents. Early exits are
those of Teerapittayanon et al., 2016, "BranchyNet"; here the gate is trained, on what the trunk
gains in nats against what it costs.

Shape suffixes: B records, k latent dimensions, `*shape` the shape of one record.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedlatent.shared.models.base import LOGVAR_MAX, LOGVAR_MIN, Terms
from fedlatent.shared.models.layers import ACTIVATIONS, initialise, mlp
from fedlatent.shared.models.likelihoods import LikelihoodVAE
from fedlatent.shared.models.networks import (
    DECODER_GAIN,
    ENCODER_GAIN,
    NetworkOptions,
    decoder_layers,
    encoder_layers,
    positive,
    whole,
    wrong_option,
)

PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"stem": 8, "hidden": (128, 64), "latent_dim": 8},
    "small": {"stem": 16, "hidden": (256, 256), "latent_dim": 8},
    "base": {"stem": 16, "hidden": (512, 512, 256), "latent_dim": 16},
}
#: Share of the loss in which both exits count alike, so that each learns from every record.
_BOTH = 0.5


@dataclass(frozen=True, kw_only=True)
class SparseConfig(NetworkOptions):
    """What a `SparseVAE` is made of; the network is that of the trunk and of the decoder.

    Attributes:
        latent_dim: Number of latent dimensions.
        stem: Width of the layer that gate and cheap exit read.
        cost: What one use of the trunk must gain, in nats.
        threshold: Probability of the gate above which a record is hard.
    """

    latent_dim: int = whole(8)
    stem: int = whole(16)
    cost: float = positive(1.0)
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Check every field, and that they go together.

        Raises:
            ConfigError: A field has the wrong type or lies outside its range.
        """
        super().__post_init__()
        if not isinstance(self.threshold, float) or not 0.0 <= self.threshold <= 1.0:
            raise wrong_option(
                "threshold",
                f"Expected threshold between 0.0 and 1.0, got {self.threshold!r}; "
                "0.0 always takes the trunk and 1.0 never.",
            )


class _Reading(NamedTuple):
    """What the stem makes of records: posterior of the cheap exit, and logit of the gate."""

    cheap: Tensor
    logit: Tensor


class _Exits(nn.Module):
    """The stem with both exits and the gate."""

    def __init__(self, config: SparseConfig, shape: tuple[int, ...]) -> None:
        """Build the layers."""
        super().__init__()
        size, width, outputs = math.prod(shape), config.stem, 2 * config.latent_dim
        activation = ACTIVATIONS[config.activation][0]
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(size, width), activation())
        self.trunk = nn.Sequential(*encoder_layers(config, shape, outputs))
        # What is hard lies outside of a region, which no linear gate can tell.
        self.gate = nn.Sequential(*mlp((width, width, 1), config.activation))
        self.cheap = nn.Linear(width, outputs)

    def read(self, x: Tensor) -> _Reading:
        """The cheap part, which every record takes."""
        features = self.stem(x)
        return _Reading(self.cheap(features), self.gate(features))


class SparseVAE(LikelihoodVAE[SparseConfig]):
    """An encoder of two exits, a diagonal Gaussian posterior, a standard normal prior.

    `encode` takes the exit that the gate chooses. Training computes both exits of every record;
    an exported encoder runs the trunk only for batches with a hard record, so that single records,
    as at the edge, really skip it.

    Attributes:
        threshold: Of the gate, from the configuration; it may be moved after training.
    """

    encoder: _Exits

    def _build(self, generator: torch.Generator) -> None:
        config, input_shape = self.config, self.input_shape
        self.threshold = config.threshold
        # On "meta" the layers draw nothing from torch's global generator.
        with torch.device("meta"):
            self.encoder = _Exits(config, input_shape)
            self.decoder = nn.Sequential(*decoder_layers(config, config.latent_dim, input_shape))
        self.to_empty(device="cpu")
        for part in self.encoder.children():
            initialise(part, config.activation, generator, ENCODER_GAIN)
        initialise(self.decoder, config.activation, generator, DECODER_GAIN)

    def gate(self, x: Tensor) -> Tensor:
        """Probability `[B]` that a record is hard."""
        return self.encoder.read(x).logit[:, 0].sigmoid()

    def exits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior means of the cheap exit and of the trunk, `[B, k]` each, for all records."""
        return self.encoder.read(x).cheap.chunk(2, 1)[0], self.encoder.trunk(x).chunk(2, 1)[0]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log variance, `[B, k]` each, of the exit that the gate chooses."""
        reading = self.encoder.read(x)
        hard_B1 = reading.logit.sigmoid() > self.threshold
        if torch.compiler.is_exporting():
            # Becomes an ONNX If. Vmap knows no such thing: there both exits are computed.
            both = torch.cond(hard_B1.any(), self._some, _none, (x, reading.cheap, hard_B1))
        else:
            both = self._some(x, reading.cheap, hard_B1)
        return _posterior(both)

    def forward(self, x: Tensor, eps: Tensor) -> Terms:
        """Terms of records `[B, *shape]` with noise `[B, k]`, mixed from both exits.

        With p the gate, the loss is p deep + (1 - p) cheap + p cost, averaged with that of both
        exits alike. A mixture of logarithms is below the logarithm of the mixture, and the cost
        is not negative, so that distortion + rate is a bound of the likelihood in any case.
        """
        reading = self.encoder.read(x)
        hard_B = reading.logit[:, 0].sigmoid()
        cheap, deep = self._terms(x, reading.cheap, eps), self._terms(x, self.encoder.trunk(x), eps)
        weight_B = 0.5 * _BOTH + (1.0 - _BOTH) * hard_B
        mixed = (torch.lerp(a, b, weight_B) for a, b in zip(cheap, deep, strict=True))
        distortion_B, rate_B = mixed
        return Terms(distortion_B + (1.0 - _BOTH) * self.config.cost * hard_B, rate_B)

    def _terms(self, x: Tensor, both: Tensor, eps: Tensor) -> Terms:
        mu_Bk, logvar_Bk = _posterior(both)
        z_Bk = mu_Bk + (0.5 * logvar_Bk).exp() * eps
        return Terms(self.distortion(x, self.decode(z_Bk)), self.rate(mu_Bk, logvar_Bk, z_Bk))

    def _some(self, x: Tensor, cheap: Tensor, hard: Tensor) -> Tensor:
        """The trunk for hard records, the cheap exit for others."""
        return torch.where(hard, self.encoder.trunk(x), cheap)


def _none(x: Tensor, cheap: Tensor, hard: Tensor) -> Tensor:
    """The cheap exit; a copy, for a branch may not return what it was given."""
    return cheap.clone()


def _posterior(both: Tensor) -> tuple[Tensor, Tensor]:
    mu_Bk, logvar_Bk = both.chunk(2, 1)
    return mu_Bk, logvar_Bk.clamp(LOGVAR_MIN, LOGVAR_MAX)


def trunk_share(model: SparseVAE) -> float:
    """Which share of the encoder's multiply-adds an easy record skips."""
    record = next(model.parameters()).new_zeros(1, *model.input_shape)
    with torch.no_grad():
        with FlopCounterMode(display=False) as whole:
            model.encode(record)
        with FlopCounterMode(display=False) as trunk:
            model.encoder.trunk(record)
    return float(trunk.get_total_flops() / whole.get_total_flops())
