"""What the denoising experiment needs beside a model: pictures, strips, patches, other filters."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median_filter

from fedlatent.shared.data.corruption import wander

Array = NDArray[np.float32]

RATE = 360  # samples a second
WANDER_HERTZ = 0.7
_SCIKIT_IMAGE = ("astronaut", "camera", "chelsea", "coffee", "brick", "grass", "gravel", "rocket")
_SCIKIT_LEARN = ("china.jpg", "flower.jpg")
_PYWAVELETS = ("aero", "ascent")
_BLURS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.7, 2.0)  # pixels
_LEVELS = 8  # halvings of the wavelets; what is left lies below 0.7 Hz


def photographs() -> list[Array]:
    """Luminance in [0, 1] of the photographs that installed packages bring, at two scales."""
    import pywt.data
    import skimage.data
    from sklearn.datasets import load_sample_image

    found = [getattr(skimage.data, name)() for name in _SCIKIT_IMAGE]
    found += [load_sample_image(name) for name in _SCIKIT_LEARN]
    found += [getattr(pywt.data, name)() for name in _PYWAVELETS]
    large = [luminance(np.asarray(image)) for image in found]
    return large + [_halved(image) for image in large]


def luminance(pixels: NDArray[np.generic]) -> Array:
    """Grey values in [0, 1] of 0 to 255, colours weighed as in ITU-R BT.601."""
    values = pixels.astype(np.float32) / 255
    if values.shape[-1] == 3:
        values = values @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.asarray(values, dtype=np.float32)


def reference(strips: Array) -> Array:
    """Strips `[N, T]` less their baseline: medians of 0.2 s, then of 0.6 s."""
    first = median_filter(strips, (1, 73))
    found: Array = strips - median_filter(first, (1, 217))
    return found


def normal(shape: Sequence[int], seed: int) -> Array:
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def corrupted_strips(strips: Array, level: float, seed: int) -> Array:
    """Strips `[N, T]` with white noise and a wander below 0.7 Hz, each of the same level."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(np.ascontiguousarray(strips))
    seconds = x.shape[1] / RATE
    noise = torch.randn(len(x), 9, generator=generator)
    moved = wander(x, noise, x.new_full((len(x),), level), 1, cycles=WANDER_HERTZ * seconds)
    found: Array = (moved + level * torch.randn(x.shape, generator=generator)).numpy()
    return found


def cut(image: Array, size: tuple[int, int], step: tuple[int, int]) -> Array:
    """Overlapping patches `[N, *size]` of an image, the last ones flush with its edges."""
    rows, columns = _places(image.shape, size, step)
    return sliding_window_view(image, size)[np.ix_(rows, columns)].reshape(-1, *size).copy()


def assembled(patches: Array, shape: tuple[int, ...], step: tuple[int, int]) -> Array:
    """The image of `shape` whose patches were `cut`: where they overlap, their mean."""
    size = (patches.shape[1], patches.shape[2])
    rows, columns = _places(shape, size, step)
    grid = patches.reshape(len(rows), len(columns), *size)
    total, count = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for down in range(size[0]):
        for right in range(size[1]):
            place = np.ix_(rows + down, columns + right)
            total[place] += grid[:, :, down, right]
            count[place] += 1
    return total / count


def bm3d_of(noisy: Array, sigma: float) -> Array:
    """Both stages of BM3D on each image."""
    from bm3d import bm3d

    return np.stack([np.asarray(bm3d(image, sigma), np.float32) for image in noisy])


def best_blur(noisy: Array, clean: Array) -> Array:
    """The Gaussian blur of the best mean PSNR, which is chosen on these very images."""
    blurred = [gaussian_filter(noisy, (0, width, width)) for width in _BLURS]
    best: Array = max(blurred, key=lambda estimate: psnr(estimate, clean))
    return best


def shrink(noisy: Array, level: float, factor: float) -> Array:
    """Soft wavelet shrinkage of strips; the threshold is a factor of the universal one."""
    import pywt

    threshold = factor * level * math.sqrt(2.0 * math.log(noisy.shape[-1]))
    lowest, *details = pywt.wavedec(noisy, "sym8", level=_LEVELS, axis=-1)
    kept = [pywt.threshold(detail, threshold, "soft") for detail in details]
    estimate = pywt.waverec([np.zeros_like(lowest), *kept], "sym8", axis=-1)
    return np.asarray(estimate[..., : noisy.shape[-1]], dtype=np.float32)


def psnr(estimates: Array, clean: Array) -> float:
    """Mean over images `[N, H, W]` in [0, 1] of the peak signal-to-noise ratio, in dB."""
    error = np.square(estimates - clean, dtype=np.float64).mean((1, 2))
    return float(np.mean(-10.0 * np.log10(error)))


def snr(estimates: Array, clean: Array) -> float:
    """Mean over strips `[N, T]` of the signal-to-noise ratio, in dB."""
    error = np.square(estimates - clean, dtype=np.float64).sum(1)
    return float(np.mean(10.0 * np.log10(np.square(clean, dtype=np.float64).sum(1) / error)))


def _halved(image: Array) -> Array:
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    blocks = image[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2)
    return np.asarray(blocks.mean((1, 3)), dtype=np.float32)


def _places(
    shape: tuple[int, ...], size: tuple[int, int], step: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, columns = (
        np.unique(np.append(np.arange(0, whole - part + 1, by), whole - part))
        for whole, part, by in zip(shape, size, step, strict=True)
    )
    return rows, columns
