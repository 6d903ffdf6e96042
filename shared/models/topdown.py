"""Options and networks of the deep hierarchical family: bottom-up, groups of latents, top-down.

The blocks are those of Child, 2021, "Very Deep VAEs Generalize Autoregressive Models and Can
Outperform Them on Images", figure 3: 1x1, 3x3, 3x3 and 1x1 convolutions, each after a GELU.

Shape suffixes: B records, k dimensions of the top group, W channels of the networks, Z channels of
a group, `...` the places of a resolution (none for "mlp").
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlatent.shared.models.base import LOGVAR_MAX, LOGVAR_MIN
from fedlatent.shared.models.functional import gaussian_log_density, per_record
from fedlatent.shared.models.likelihoods import LIKELIHOODS
from fedlatent.shared.models.networks import (
    Options,
    choice,
    positive,
    whole,
    wholes,
    wrong_option,
)

NETWORKS = ("mlp", "conv2d")
MAX_LAYERS = 128  # at one resolution
_POSTERIOR_GAIN = 0.1


@dataclass(frozen=True, kw_only=True)
class HierarchicalConfig(Options):
    """What a `HierarchicalVAE` is made of.

    Attributes:
        network: "mlp" for records of any shape; "conv2d" for `(H, W)` or `(C, H, W)`.
        latent_dim: Latents of the top group, which is what `encode` gives.
        groups: Groups below the top one at each resolution, coarsest first; each resolution has
            twice the side of the one before. "mlp" has a single one.
        blocks: Residual blocks of the bottom-up network at each resolution, coarsest first.
        width: Channels of both networks.
        bottleneck: Channels within a block.
        z_channels: Latent channels of a group at each place.
        patch: Side of the squares of pixels that are one place of the finest resolution.
        likelihood: A key of `LIKELIHOODS`.
        variance: Of the Gaussian likelihood, in squared data units.
    """

    network: str = choice("mlp", NETWORKS)
    latent_dim: int = whole(16)
    groups: tuple[int, ...] = wholes((3,), 0, MAX_LAYERS)
    blocks: tuple[int, ...] = wholes((2,), 0, MAX_LAYERS)
    width: int = whole(64)
    bottleneck: int = whole(32)
    z_channels: int = whole(8)
    patch: int = whole(1)
    likelihood: str = choice("gaussian", LIKELIHOODS)
    variance: float = positive(0.05)

    def __post_init__(self) -> None:
        """Check every field, and that they go together.

        Raises:
            ConfigError: A field has the wrong type or lies outside its range.
        """
        super().__post_init__()
        levels = 1 if self.network == "mlp" else len(self.groups)
        if not len(self.groups) == len(self.blocks) == levels or not sum(self.groups):
            raise wrong_option(
                "groups",
                f"Expected groups and blocks of {levels} resolutions and at least one group, got "
                f"{list(self.groups)} and {list(self.blocks)}; give both the same length, 1 for "
                "network 'mlp'.",
            )


class Gaussian(NamedTuple):
    """A diagonal Gaussian; mean and log variance have one shape."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, both: Tensor) -> "Gaussian":
        """From channels that hold the mean first, the log variance in bounds."""
        mean, logvar = both.chunk(2, 1)
        return cls(mean, logvar.clamp(LOGVAR_MIN, LOGVAR_MAX))

    def at(self, eps: Tensor | None) -> Tensor:
        """The draw of standard normal noise; the mean without."""
        return self.mean if eps is None else self.mean + (0.5 * self.logvar).exp() * eps

    def divergence(self, other: "Gaussian") -> Tensor:
        """KL of this from `other` in nats, `[B]`, summed over all places."""
        square = (self.mean - other.mean).square() * (-other.logvar).exp()
        ratio = self.logvar - other.logvar
        return per_record(0.5 * (square + ratio.exp() - 1.0 - ratio))

    def log_prob(self, z: Tensor) -> Tensor:
        """Logarithm of the density at `z` in nats, `[B]`."""
        return gaussian_log_density(z.flatten(1), self.mean.flatten(1), self.logvar.flatten(1))


@dataclass(frozen=True)
class Plan:
    """How layers and sizes follow from a configuration and the shape of a record."""

    config: HierarchicalConfig
    shape: tuple[int, ...]

    @property
    def levels(self) -> int:
        """Number of resolutions, 1 for an "mlp"."""
        return len(self.config.groups)

    @property
    def padded(self) -> tuple[int, int]:
        """Sides of an image with the zeros that make all halvings even."""
        unit = self.config.patch * 2 ** (self.levels - 1)
        height, width = (-(-side // unit) * unit for side in self.shape[1:])
        return height, width

    def places(self, level: int) -> tuple[int, ...]:
        """Spatial sizes of a resolution, 0 the coarsest."""
        if self.config.network == "mlp":
            return ()
        unit = self.config.patch * 2 ** (self.levels - 1 - level)
        return tuple(side // unit for side in self.padded)

    def layer(self, level: int, inputs: int, outputs: int, kernel: int) -> nn.Module:
        """A linear layer, or a convolution that keeps the size; 1x1 where 3x3 sees only zeros."""
        places = self.places(level)
        if not places:
            return nn.Linear(inputs, outputs)
        kernel = kernel if max(places) > 1 else 1
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)

    def block(self, level: int, inputs: int, outputs: int) -> nn.Sequential:
        """Four convolutions, each after a GELU."""
        middle = self.config.bottleneck
        sizes = (
            (inputs, middle, 1),
            (middle, middle, 3),
            (middle, middle, 3),
            (middle, outputs, 1),
        )
        return nn.Sequential(
            *(part for size in sizes for part in (nn.GELU(), self.layer(level, *size)))
        )


class BottomUp(nn.Module):
    """Records to features of every resolution, and to the posterior of the top group."""

    def __init__(self, plan: Plan) -> None:
        """Build the layers."""
        super().__init__()
        config, self.plan = plan.config, plan
        if config.network == "mlp":
            self.stem: nn.Module = nn.Linear(math.prod(plan.shape), config.width)
        else:
            patch = config.patch
            self.stem = nn.Conv2d(plan.shape[0], config.width, patch + 2, patch, padding=1)
        self.levels = nn.ModuleList(
            nn.ModuleList(plan.block(level, config.width, config.width) for _ in range(count))
            for level, count in enumerate(config.blocks)
        )
        flat = config.width * math.prod(plan.places(0))
        self.head = nn.Linear(flat, 2 * config.latent_dim)

    def forward(self, x: Tensor) -> tuple[Gaussian, list[Tensor]]:
        """The posterior of the top group, and features `[B, W, ...]`, coarsest first."""
        state = self.stem(self._framed(x))
        features: list[Tensor] = []
        for blocks in reversed(self.levels):
            if features:
                state = F.avg_pool2d(state, 2)
            for block in blocks:  # type: ignore[attr-defined]
                state = state + block(state)
            features.insert(0, state)
        return Gaussian.of(self.head(state.flatten(1))), features

    def damp(self) -> None:
        """Scale what blocks add, so that the sum of all starts on the scale of one (Child)."""
        blocks = [block for level in self.levels for block in level]  # type: ignore[attr-defined]
        _scale([block[-1] for block in blocks], len(blocks))

    def _framed(self, x: Tensor) -> Tensor:
        if self.plan.config.network == "mlp":
            return x.flatten(1)
        x = x.reshape(-1, *self.plan.shape)
        (height, width), (to_height, to_width) = self.plan.shape[1:], self.plan.padded
        return F.pad(x, (0, to_width - width, 0, to_height - height))


class Group(nn.Module):
    """One group of latents: prior, posterior and what its draw adds to the state."""

    def __init__(self, plan: Plan, level: int) -> None:
        """Build the layers."""
        super().__init__()
        width, channels = plan.config.width, plan.config.z_channels
        self.prior = plan.block(level, width, 2 * channels + width)
        self.posterior = plan.block(level, 2 * width, 2 * channels)
        self.project = plan.layer(level, channels, width, 1)
        self.block = plan.block(level, width, width)
        self.channels = channels

    def forward(
        self, state: Tensor, features: Tensor | None, eps: Tensor | None
    ) -> tuple[Tensor, Tensor, Gaussian, Gaussian]:
        """The next state, the draw, and the densities it was drawn from and is measured against.

        Without features the draw is one of the prior; without noise it is the mean.
        """
        found = self.prior(state)
        prior = Gaussian.of(found[:, : 2 * self.channels])
        drawn = prior
        if features is not None:
            drawn = Gaussian.of(self.posterior(torch.cat([state, features], 1)))
        z = drawn.at(eps)
        state = state + found[:, 2 * self.channels :] + self.project(z)
        return state + self.block(state), z, drawn, prior


class TopDown(nn.Module):
    """The top group to the parameters of the likelihood, through all other groups."""

    def __init__(self, plan: Plan, parameters: int) -> None:
        """Build the layers."""
        super().__init__()
        config, self.plan = plan.config, plan
        start = config.width * math.prod(plan.places(0))
        self.start = nn.Linear(config.latent_dim, start)
        self.levels = nn.ModuleList(
            nn.ModuleList(Group(plan, level) for _ in range(count))
            for level, count in enumerate(config.groups)
        )
        outputs = parameters * plan.shape[0]
        if config.network == "mlp":
            outputs *= math.prod(plan.shape[1:])
        else:
            outputs *= config.patch**2
        self.out = plan.layer(plan.levels - 1, config.width, outputs, 3)

    def forward(
        self, z: Tensor, features: list[Tensor] | None = None, eps: Tensor | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Gaussian, Gaussian]]]:
        """Likelihood parameters with channels first, and draw, posterior and prior of each group.

        Args:
            z: Draw of the top group `[B, k]`.
            features: Of the bottom-up network; None draws from the priors.
            eps: Noise of the groups side by side; None takes the means.
        """
        state = self.start(z).reshape(-1, self.plan.config.width, *self.plan.places(0))
        found, used = [], 0
        for level, groups in enumerate(self.levels):
            if level:
                state = F.interpolate(state, scale_factor=2.0, mode="nearest")
            shape = (self.plan.config.z_channels, *self.plan.places(level))
            for group in groups:  # type: ignore[attr-defined]
                own = None
                if eps is not None:
                    own = eps[:, used : used + math.prod(shape)].reshape(-1, *shape)
                    used += math.prod(shape)
                seen = None if features is None else features[level]
                state, drawn, posterior, prior = group(state, seen, own)
                found.append((drawn, posterior, prior))
        return self._cropped(self.out(F.gelu(state))), found

    @property
    def latents(self) -> int:
        """Numbers of all groups together."""
        config = self.plan.config
        return config.z_channels * sum(
            count * math.prod(self.plan.places(level)) for level, count in enumerate(config.groups)
        )

    def damp(self) -> None:
        """Scale what groups add, so that the sum starts on the scale of one; priors start at 0.

        Posteriors start near these priors: the rate of many groups would else start at thousands
        of nats and drown the first steps.
        """
        groups = [group for level in self.levels for group in level]  # type: ignore[attr-defined]
        _scale([part for group in groups for part in (group.project, group.block[-1])], len(groups))
        for group in groups:
            nn.init.zeros_(group.prior[-1].weight)
            with torch.no_grad():
                group.posterior[-1].weight.mul_(_POSTERIOR_GAIN)

    def _cropped(self, out: Tensor) -> Tensor:
        if self.plan.config.network == "mlp":
            return out
        (height, width), patch = self.plan.shape[1:], self.plan.config.patch
        rows, columns = self.plan.places(self.plan.levels - 1)
        # A pixel shuffle; torch's own has no gradient of an empty batch.
        squares = out.reshape(-1, out.shape[1] // patch**2, patch, patch, rows, columns)
        image = squares.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)
        return image[:, :, :height, :width]


def _scale(layers: list[nn.Linear | nn.Conv2d], depth: int) -> None:
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(1.0 / math.sqrt(depth))
