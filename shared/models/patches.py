"""Options of the sequence family; how its records are made of channels and cut into patches.

Shape suffixes: B records, C channels that are modelled, M all channels of a record, K channels
known in advance, T samples, W samples of a patch.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models.layers import ACTIVATIONS
from fedlatent.shared.models.networks import check_choice, check_switch, check_whole, wrong_option

_MAX_WIDTH = 4096


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """What a `SequenceVAE` is made of.

    Attributes:
        latent_dim: Latent dimensions of one step.
        width: Of the recurrent state.
        hidden: Width of the layer inside each head.
        activation: "tanh", "relu", "gelu" or "silu".
        patch: Samples that one step reads.
        season: Samples after which a series repeats; the forecast is then what is added to the
            value one season before. A multiple of `patch`; 0 for none.
        memory: Last samples that every head reads as they are beside the recurrent state, and the
            mean by a linear path. A multiple of `patch`, at least the season where not 0.
        known: How many of the last channels are known in advance, such as the hour of the day:
            they are read, not modelled. A step reads their first sample.
        masked: Whether the channels after the modelled ones are their masks: above 0.5 observed,
            else missing. Missing values cost nothing and are read as what the prior expects.
    """

    latent_dim: int = 8
    width: int = 64
    hidden: int = 64
    activation: str = "tanh"
    patch: int = 1
    season: int = 0
    memory: int = 0
    known: int = 0
    masked: bool = False

    @property
    def held(self) -> int:
        """Samples of each channel that the state holds."""
        return max(self.season, self.memory)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: A field has the wrong type or lies outside its range.
        """
        check_choice("activation", self.activation, ACTIVATIONS)
        for name in ("latent_dim", "width", "hidden", "patch"):
            check_whole(name, getattr(self, name), 1, _MAX_WIDTH)
        for name in ("season", "memory", "known"):
            check_whole(name, getattr(self, name), 0, _MAX_WIDTH)
        for name in ("season", "memory"):
            if getattr(self, name) % self.patch:
                raise wrong_option(
                    name,
                    f"Expected {name} as a multiple of patch {self.patch}, got "
                    f"{getattr(self, name)}; choose a patch that divides it.",
                )
        if 0 < self.memory < self.season:
            raise wrong_option(
                "memory",
                f"Expected memory of at least the season {self.season}, got {self.memory}; "
                "raise it, or set it to 0 for the season.",
            )
        check_switch("masked", self.masked)


class Patch(NamedTuple):
    """What one step reads: values and their mask `[B, C, W]`, 1 observed, and `[B, K]` known."""

    x: Tensor
    mask: Tensor
    known: Tensor


@dataclass(frozen=True)
class Layout:
    """How a record `[B, *shape]` is made of channels and patches.

    Attributes:
        channels: Number C of channels that are modelled.
        masked: Whether as many masks follow.
        known: Number K of channels known in advance, the last ones.
        patch: Number W of samples in a step.
    """

    channels: int
    masked: bool
    known: int
    patch: int

    @classmethod
    def of(cls, config: SequenceConfig, shape: tuple[int, ...]) -> "Layout":
        """Of records of a shape.

        Raises:
            ConfigError: The options do not fit the shape.
        """
        if len(shape) > 2:
            raise ConfigError(
                f"Expected records (T,) or (channels, T) for family 'sequence', got {shape}; "
                "reshape them."
            )
        every, length = shape if len(shape) == 2 else (1, *shape)
        parts = 2 if config.masked else 1
        channels, over = divmod(every - config.known, parts)
        if channels < 1 or over:
            raise wrong_option(
                "known",
                f"Expected {config.known} known channels and a number that {parts} divides beside "
                f"them, got {every} channels; correct 'known', 'masked' or the shape.",
            )
        if length % config.patch or length < 2 * config.patch:
            raise wrong_option(
                "patch",
                f"Expected at least two whole patches of {config.patch} samples, got {length} "
                "samples; choose another patch.",
            )
        return cls(channels, config.masked, config.known, config.patch)

    @property
    def all(self) -> int:
        """Number of channels of a record."""
        return self.channels * (2 if self.masked else 1) + self.known

    def split(self, x: Tensor) -> Patch:
        """Values, masks and known channels of whole records, each `[B, ., T]`."""
        x_BMT = x.reshape(x.shape[0], self.all, x.shape[-1])
        values, rest = x_BMT[:, : self.channels], x_BMT[:, self.channels :]
        mask = torch.ones_like(values)
        if self.masked:
            # A comparison, so that a mask out of bounds cannot weigh a record.
            mask = (rest[:, : self.channels] > 0.5).to(x.dtype)
        return Patch(values, mask, rest[:, self.all - self.channels - self.known :])

    def patches(self, x: Tensor) -> list[Patch]:
        """One after another; what is over of whole patches is cut at the beginning."""
        x, mask, known = self.split(x)
        first = x.shape[2] % self.patch
        ends = range(first + self.patch, x.shape[2] + 1, self.patch)
        return [
            Patch(
                x[:, :, end - self.patch : end],
                mask[:, :, end - self.patch : end],
                known[:, :, end - self.patch],
            )
            for end in ends
        ]

    def record(self, x_BCT: Tensor) -> Tensor:
        """Channels `[B, M, T]` of values, all observed; known channels are 0."""
        masks = [torch.ones_like(x_BCT)] if self.masked else []
        return torch.cat(
            [x_BCT, *masks, x_BCT.new_zeros(x_BCT.shape[0], self.known, x_BCT.shape[2])], 1
        )
