"""How records of a sequence are made of channels and cut into patches.

Shape suffixes: B records, C channels that are modelled, M all channels of a record, K channels
known in advance, T samples, W samples of a patch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models.networks import wrong_option

if TYPE_CHECKING:
    from fedlatent.shared.models.sequence import SequenceConfig


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
    def of(cls, config: "SequenceConfig", shape: tuple[int, ...]) -> "Layout":
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
