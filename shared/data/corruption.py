"""Corruptions of records: pure functions of the record, of noise and of a level.

Every corruption maps `x [B, *shape]`, standard normal `noise [B, numbers]` and `level_B >= 0` to
corrupted records of the same shape, where level 0 changes nothing. A record is corrupted by itself.
Shape suffixes: B records, n values of a record, S sinusoids.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlatent.shared.errors import ConfigError

_RADIUS = 4  # samples on each side that a blur reads
_SINUSOIDS = 3
_SHARPEST = 1e-2  # samples; a blur this narrow is none


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        about: What the level is, in one line.
        numbers: Normal numbers for a record, from its shape and its spatial axes.
        apply: From records, noise, levels and the number of spatial axes to corrupted records.
    """

    about: str
    numbers: Callable[[tuple[int, ...], int], int]
    apply: Callable[[Tensor, Tensor, Tensor, int], Tensor]


def gaussian(x: Tensor, noise: Tensor, level_B: Tensor, axes: int) -> Tensor:
    """Add white Gaussian noise of the standard deviation `level_B`, in data units."""
    return x + _beside(level_B, x) * noise.reshape(x.shape)


def salt_pepper(x: Tensor, noise: Tensor, level_B: Tensor, axes: int) -> Tensor:
    """Replace a share `level_B` of values by the record's largest or least one, half each."""
    uniform, half = _uniform(noise).reshape(x.shape), 0.5 * _beside(level_B, x)
    least, largest = _beside(x.flatten(1).amin(1), x), _beside(x.flatten(1).amax(1), x)
    return torch.where(uniform < half, least, torch.where(uniform > 1.0 - half, largest, x))


def masking(x: Tensor, noise: Tensor, level_B: Tensor, axes: int) -> Tensor:
    """Set a share `level_B` of values to 0 (Vincent et al., 2008, section 2.2)."""
    return torch.where(_uniform(noise).reshape(x.shape) < _beside(level_B, x), 0.0, x)


def blur(x: Tensor, noise: Tensor, level_B: Tensor, axes: int) -> Tensor:
    """Smooth every spatial axis by a Gaussian of standard deviation `level_B`, in samples.

    The kernel ends after 4 samples; edges are repeated. No noise is used.
    """
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=x.dtype, device=x.device)
    scale_B1 = level_B.clamp(min=_SHARPEST)[:, None]
    weights = torch.exp(-0.5 * (offsets / scale_B1).square())
    weights = weights / weights.sum(1, keepdim=True)
    for axis in range(x.dim() - axes, x.dim()):
        length = x.shape[axis]
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, length - 1, 1)
        padded = torch.cat([first] * _RADIUS + [x] + [last] * _RADIUS, axis)
        parts = [
            _beside(weights[:, step], x) * padded.narrow(axis, step, length)
            for step in range(2 * _RADIUS + 1)
        ]
        x = torch.stack(parts).sum(0)
    return x


def wander(x: Tensor, noise: Tensor, level_B: Tensor, axes: int, cycles: float = 1.0) -> Tensor:
    """Add slow sinusoids of root mean square `level_B` in data units: a wandering baseline.

    Each of three sinusoids has a random phase and amplitude, and along every spatial axis a
    frequency drawn uniformly between 0 and `cycles` periods in a record. Channels move together.
    """
    numbers_BSn = noise.reshape(len(x), _SINUSOIDS, 2 + axes)
    frequency = 2.0 * math.pi * cycles * _uniform(numbers_BSn[..., 2:])
    size = tuple(x.shape[x.dim() - axes :])
    angle = x.new_zeros(())
    for axis, length in enumerate(size):
        place = torch.arange(length, dtype=x.dtype, device=x.device) / length
        place = place.reshape(-1, *[1] * (axes - axis - 1))
        angle = angle + frequency[..., axis].reshape(-1, _SINUSOIDS, *[1] * axes) * place
    cosine, sine = (numbers_BSn[..., i].reshape(-1, _SINUSOIDS, *[1] * axes) for i in (0, 1))
    added = (cosine * angle.cos() + sine * angle.sin()).sum(1) / math.sqrt(_SINUSOIDS)
    added = added.reshape(-1, *[1] * (x.dim() - 1 - axes), *size)
    return x + _beside(level_B, x) * added


def _each_value(shape: tuple[int, ...], axes: int) -> int:
    return math.prod(shape)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian": Corruption(
        about="standard deviation in data units", numbers=_each_value, apply=gaussian
    ),
    "salt_pepper": Corruption(
        about="share of values at the record's extremes", numbers=_each_value, apply=salt_pepper
    ),
    "masking": Corruption(about="share of values set to 0", numbers=_each_value, apply=masking),
    "blur": Corruption(
        about="standard deviation in samples", numbers=lambda shape, axes: 0, apply=blur
    ),
    "wander": Corruption(
        about="root mean square in data units",
        numbers=lambda shape, axes: _SINUSOIDS * (2 + axes),
        apply=wander,
    ),
}


def corrupt(
    records: NDArray[np.float32], kind: str, level: float, seed: int, axes: int | None = None
) -> NDArray[np.float32]:
    """Corrupted copies of records `[N, *shape]`, all at one level.

    Args:
        records: Clean ones.
        kind: A key of `CORRUPTIONS`.
        level: What it means is told by the kind.
        seed: Equal seeds corrupt equally.
        axes: Spatial axes, the last ones; None for two where a record has them.

    Raises:
        ConfigError: The kind is unknown.
    """
    if kind not in CORRUPTIONS:
        raise ConfigError(
            f"Expected a corruption out of {sorted(CORRUPTIONS)}, got {kind!r}; choose one."
        )
    x, shape = torch.from_numpy(records), records.shape[1:]
    axes = min(len(shape), 2) if axes is None else axes
    chosen, generator = CORRUPTIONS[kind], torch.Generator().manual_seed(seed)
    noise = torch.randn(len(x), chosen.numbers(shape, axes), generator=generator)
    found: NDArray[np.float32] = chosen.apply(x, noise, x.new_full((len(x),), level), axes).numpy()
    return found


def _uniform(noise: Tensor) -> Tensor:
    uniform: Tensor = torch.special.ndtr(noise)
    return uniform


def _beside(value_B: Tensor, x: Tensor) -> Tensor:
    """`[B]` with as many axes as `x`."""
    return value_B.reshape(-1, *[1] * (x.dim() - 1))
