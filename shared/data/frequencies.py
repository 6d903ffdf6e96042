"""The lowest frequencies of a record: a public linear map to few features."""

import functools
import math

import numpy as np
from numpy.typing import NDArray


@functools.lru_cache(maxsize=8)
def cosine_basis(shape: tuple[int, ...], features: int) -> NDArray[np.float64]:
    """Rows of the orthonormal cosine transform (DCT-II) along every axis: [features, size].

    The lowest frequencies come first, where an axis of each length counts alike. With as many
    features as a record has values nothing is left out, and the basis is the identity.

    Args:
        shape: of one record.
        features: rows that are kept; more than the record's size means all.
    """
    size = math.prod(shape)
    if features >= size:
        return np.eye(size)
    matrix: NDArray[np.float64] = np.ones((1, 1))
    order: NDArray[np.float64] = np.zeros(1)
    for length in shape:
        index = np.arange(length)
        axis = np.cos(np.pi * index[:, None] * (2 * index + 1) / (2 * length))
        axis *= np.sqrt(np.where(index == 0, 1.0, 2.0) / length)[:, None]
        matrix = np.asarray(np.kron(matrix, axis), dtype=np.float64)
        order = (order[:, None] + index / length).ravel()
    return matrix[np.argsort(order, kind="stable")[:features]]
