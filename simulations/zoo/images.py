"""Images for the experiments: grey values, binarisations, small shifts, and sheets of pictures."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.archives import read_npz

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Images = NDArray[np.float32]


def grey(path: Path, count: int | None = None) -> Images:
    """The first images [N, H, W] of ``X`` in an npz of bytes, as grey values in [0, 1]."""
    return (read_npz(path, ["X"])["X"][:count] / 255.0).astype(np.float32)


def binarised(images: Images, rng: np.random.Generator) -> Images:
    """Pixels drawn as 0 or 1 with the probability of their grey value in [0, 1]."""
    uniform = rng.random(images.shape, dtype=np.float32)
    return (uniform < images).astype(np.float32)


def shifted(images: Images, rng: np.random.Generator) -> Images:
    """Each of [N, H, W] moved by -1, 0 or 1 pixels each way; what comes in is 0."""
    count, height, width = images.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    down, right = rng.integers(0, 3, (2, count))
    moved: Images = windows[np.arange(count), down, right]
    return moved


def sheet(images: Images) -> Images:
    """Images [n * n, H, W] as one square picture [n * H, n * W], row by row."""
    side = round(len(images) ** 0.5)
    height, width = images.shape[1:]
    tiles = images.reshape(side, side, height, width).transpose(0, 2, 1, 3)
    return tiles.reshape(side * height, side * width)


def png(figure: "Figure") -> bytes:
    """The figure as the bytes of a PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
