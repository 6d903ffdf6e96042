"""Public changes of raw records: redraw images by a map of the plane, shift a client's features."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.data.schema import Schema

Transform = Callable[[NDArray[Any]], NDArray[Any]]

#: At strength 1: radians; exponents of 2; share of the width, or of the distance of the bounds.
_TURN, _ZOOM, _MOVE = math.pi / 4, 0.4, 0.15
_GAIN, _OFFSET = 1.0, 0.1


def affine_points(
    height: int, width: int, source_from_target: NDArray[np.float64], move: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return where each target pixel comes from, [height, width, 2] as (row, column).

    Args:
        height: Rows of the image.
        width: Columns of the image.
        source_from_target: Linear map [2, 2] about the middle of the image.
        move: Way of the picture (rows, columns) in pixels, before that map.
    """
    rows, columns = np.arange(float(height)), np.arange(float(width))
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    return np.asarray((grid - middle - move) @ source_from_target.T + middle)


def resample(
    images: NDArray[np.float64], points: NDArray[np.float64], blank: float = 0.0
) -> NDArray[np.float64]:
    """Read images at points between their pixels, bilinearly.

    Args:
        images: [N, rows, columns].
        points: [height, width, 2] as (row, column); outside the image all is `blank`.
        blank: Value of an empty pixel.

    Returns:
        [N, height, width].
    """
    low = np.floor(points).astype(np.int64)
    share = points - low
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=blank)
    last = np.array(padded.shape[1:]) - 1
    drawn = np.zeros((len(images), *points.shape[:-1]))
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row, column = np.moveaxis(np.clip(low + step + 1, 0, last), -1, 0)
        part = np.where(np.array(step) == 1, share, 1.0 - share).prod(axis=-1)
        drawn += part * padded[:, row, column]
    return drawn


def draw_shift(
    schema: Schema, strength: float, rng: np.random.Generator, images: bool
) -> Transform:
    """Draw the transformation of one client's raw records; the data have no part in it.

    Images [N, ..., rows, columns] are turned, zoomed and moved, by up to 45 degrees, a factor of
    2^0.4 and 15 % of the width at strength 1, with blank margins. Series [N, ..., time] get a gain
    of up to a factor of 2 and an offset of up to 10 % of the distance between the public bounds,
    one of each per channel; a schema that centres records takes the offset away again. Shape and
    type of the records stay.
    """
    if strength == 0.0:
        return lambda rows: rows
    if images:
        size = np.array(schema.shape[-2:])
        turn = rng.uniform(-1, 1) * _TURN * strength
        zoom = 2 ** (rng.uniform(-1, 1) * _ZOOM * strength)
        move = rng.uniform(-1, 1, 2) * _MOVE * strength * size
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        points = affine_points(int(size[0]), int(size[1]), rotation / zoom, move)
        blank = schema.lower / schema.scale

        def redraw(rows: NDArray[Any]) -> NDArray[Any]:
            drawn = resample(rows.reshape(-1, *size), points, blank)
            return _as_type(drawn.reshape(rows.shape), rows.dtype)

        return redraw
    channels = (*schema.shape[:-1], 1)
    gain = 2 ** (rng.uniform(-1, 1, channels) * _GAIN * strength)
    width = (schema.upper - schema.lower) / schema.scale
    offset = rng.uniform(-1, 1, channels) * _OFFSET * strength * width
    return lambda rows: _as_type(rows * gain + offset, rows.dtype)


def _as_type(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return values in the type of raw records, rounded to its whole numbers if it has those."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)
