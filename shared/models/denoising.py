"""The denoising family: a VAE that reads corrupted records and explains the clean ones.

Shape suffixes: B records, k latent dimensions, n values of a record, `*shape` one record's shape.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedlatent.shared.data.corruption import CORRUPTIONS
from fedlatent.shared.data.frequencies import cosine_basis
from fedlatent.shared.models.base import LOGVAR_MAX, LOGVAR_MIN, Graph, Terms
from fedlatent.shared.models.layers import initialise
from fedlatent.shared.models.likelihoods import LikelihoodVAE
from fedlatent.shared.models.networks import (
    DECODER_GAIN,
    ENCODER_GAIN,
    NETWORKS,
    NetworkOptions,
    check_choice,
    decoder_layers,
    encoder_layers,
    positive,
    whole,
    wrong_option,
)

MAX_LATENT = 8192
#: Of a shortcut's latents: values of real records then lie near 1, and draws start close to them.
_SCALE, _FIRST_LOGVAR, _SHORTCUT_GAIN = 4.0, -4.0, 0.1
PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"hidden": (64,), "latent_dim": 8},
    "small": {"hidden": (256,), "latent_dim": 16, "activation": "silu"},
    "base": {"hidden": (512, 512), "latent_dim": 64, "activation": "silu", "variance": 0.002},
}


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig(NetworkOptions):
    """What a `DenoisingVAE` is made of, beside its networks.

    Attributes:
        latent_dim: Number of latent dimensions.
        corruptions: Keys of `CORRUPTIONS`, applied one after another at the same level.
        shortcut: Whether a linear path runs beside encoder and decoder of an "mlp". It starts as
            the k lowest frequencies of a record, so that only a difference has to be learned.
        max_level: Largest level in training, where each record's is drawn uniformly from 0 to it.
    """

    latent_dim: int = whole(8, 1, MAX_LATENT)
    shortcut: bool = False
    corruptions: tuple[str, ...] = ("gaussian",)
    max_level: float = positive(0.2)

    def __post_init__(self) -> None:
        """Check every field, and that they go together.

        Raises:
            ConfigError: A field has the wrong type or lies outside its range.
        """
        super().__post_init__()
        if not isinstance(self.corruptions, tuple) or not self.corruptions:
            raise wrong_option(
                "corruptions",
                f"Expected corruptions as a list of names, got {self.corruptions!r}; "
                'give for example ["gaussian"].',
            )
        if not isinstance(self.shortcut, bool) or (self.shortcut and self.network != "mlp"):
            raise wrong_option(
                "shortcut",
                f"Expected shortcut as true or false, and false with network {self.network!r}, "
                f"got {self.shortcut!r}; correct one of them.",
            )
        for name in self.corruptions:
            check_choice("corruptions", name, CORRUPTIONS)


class DenoisingVAE(LikelihoodVAE[DenoisingConfig]):
    """The posterior reads a corrupted record and its level; the likelihood is of the clean one.

    Vincent et al., 2008, "Extracting and Composing Robust Features with Denoising Autoencoders";
    with the rate, Im et al., 2017, "Denoising Criterion for Variational Auto-Encoding Framework",
    equation 4. As the corruption is noise of the posterior alone, the terms still bound the
    likelihood of clean records. The level is an input, so that one model serves a blind range.
    `encode`, and with it scores and summaries, takes records as clean ones, of level 0.
    """

    def _build(self, generator: torch.Generator) -> None:
        config = self.config
        with torch.device("meta"):  # where layers draw nothing from torch's global generator
            self.encoder = self._encoder()
            self.decoder = self._decoder()
        self.to_empty(device="cpu")
        gain = _SHORTCUT_GAIN if config.shortcut else ENCODER_GAIN
        initialise(self.encoder, config.activation, generator, gain)
        initialise(self.decoder, config.activation, generator, DECODER_GAIN)
        if config.shortcut:
            self._start_shortcuts()

    @property
    def noise_dim(self) -> int:
        """Normal numbers of a record: k of the latent, one of the level, the corruptions' own."""
        return self.latent_dim + 1 + sum(self._numbers())

    @property
    def spatial_axes(self) -> int:
        """How many of a record's last axes are places and not channels."""
        dims = NETWORKS[self.config.network]
        return min(len(self.input_shape), 2) if dims is None else dims

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log variance, `[B, k]` each, of clean records."""
        return self.encode_at(x, torch.zeros_like(x.flatten(1)[:, 0]))

    def encode_at(self, x: Tensor, level_B: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log variance, `[B, k]` each, of records corrupted at a level."""
        share_B = level_B / self.config.max_level
        if self.config.network == "mlp":
            inputs = torch.cat([x.flatten(1), share_B[:, None]], 1)
        else:
            inputs = x if x.dim() > self.spatial_axes + 1 else x[:, None]
            plane = share_B.reshape(-1, *[1] * (inputs.dim() - 1))
            inputs = torch.cat([inputs, plane.expand_as(inputs[:, :1])], 1)
        mu_Bk, logvar_Bk = self.encoder(inputs).chunk(2, 1)
        return mu_Bk, logvar_Bk.clamp(LOGVAR_MIN, LOGVAR_MAX)

    def denoise(self, x: Tensor, level_B: Tensor) -> Tensor:
        """Estimates `[B, *shape]` of the clean records behind corrupted ones of a known level."""
        return self.reconstruct(self.encode_at(x, level_B)[0])

    def corrupt(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Corrupted records and their levels `[B]`, out of noise `[B, noise_dim - k]`."""
        level_B = self.config.max_level * torch.special.ndtr(eps[:, 0])
        parts = torch.split(eps[:, 1:], self._numbers(), 1)
        for name, noise in zip(self.config.corruptions, parts, strict=True):
            x = CORRUPTIONS[name].apply(x, noise, level_B, self.spatial_axes)
        return x, level_B

    def forward(self, x: Tensor, eps: Tensor) -> Terms:
        """Terms `[B]` of clean records `[B, *shape]` that are read through a corruption.

        Noise `eps [B, noise_dim]` holds the latent's numbers, the level's, the corruptions'.
        """
        corrupted, level_B = self.corrupt(x, eps[:, self.latent_dim :])
        mu_Bk, logvar_Bk = self.encode_at(corrupted, level_B)
        z_Bk = mu_Bk + (0.5 * logvar_Bk).exp() * eps[:, : self.latent_dim]
        return Terms(self.distortion(x, self.decode(z_Bk)), self.rate(mu_Bk, logvar_Bk, z_Bk))

    def graphs(self) -> dict[str, Graph]:
        """One graph: corrupted records and their levels `[B]` to estimates of the clean ones."""
        inputs = {"x": torch.zeros(2, *self.input_shape), "level": torch.zeros(2)}
        graph = Graph(module=_Denoiser(self), inputs=inputs, outputs=("reconstruction",))
        return {"denoise": graph}

    def _numbers(self) -> list[int]:
        """Of each corruption."""
        shape, axes = self.input_shape, self.spatial_axes
        return [CORRUPTIONS[name].numbers(shape, axes) for name in self.config.corruptions]

    def _encoder(self) -> nn.Module:
        """From the record and its level, as one more value or channel, to both moments."""
        config, axes, outputs = self.config, self.spatial_axes, 2 * self.latent_dim
        if config.network == "mlp":
            inputs = math.prod(self.input_shape) + 1
            layers = encoder_layers(config, (inputs,), outputs)
            return _Shortcut(layers, inputs, outputs) if config.shortcut else nn.Sequential(*layers)
        channels = self.input_shape if len(self.input_shape) > axes else (1,)
        shape = (channels[0] + 1, *self.input_shape[-axes:])
        return nn.Sequential(*encoder_layers(config, shape, outputs))

    def _decoder(self) -> nn.Module:
        layers = decoder_layers(self.config, self.latent_dim, self.input_shape)
        outputs = self.likelihood.parameters * math.prod(self.input_shape)
        if self.config.shortcut:
            return _Shortcut(layers, self.latent_dim, outputs)
        return nn.Sequential(*layers)

    def _start_shortcuts(self) -> None:
        """Latents as scaled cosine coefficients of low frequency, and narrow posteriors."""
        basis = torch.from_numpy(cosine_basis(self.input_shape, self.latent_dim)).float()
        rows, columns = basis.shape
        encoder, decoder = self.encoder, self.decoder
        assert isinstance(encoder, _Shortcut) and isinstance(decoder, _Shortcut)  # noqa: PT018
        with torch.no_grad():
            for path in (encoder, decoder):
                path.linear.weight.zero_()
            encoder.linear.weight[:rows, :columns] = _SCALE * basis
            encoder.linear.bias[self.latent_dim :] = _FIRST_LOGVAR
            decoder.linear.weight[:columns, :rows] = basis.T / _SCALE


class _Shortcut(nn.Module):
    """Layers with a linear path beside them."""

    def __init__(self, layers: list[nn.Module], inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.network = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.network(x)
        return out


class _Denoiser(nn.Module):
    def __init__(self, model: DenoisingVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.model.denoise(x, level)
