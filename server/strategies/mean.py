"""A weighted mean that is the same to the last bit whatever the order of arrival."""

from collections.abc import Mapping

import numpy as np

from fedlatent.shared.arrays import Arrays

_BLOCK = 2**14


class WeightedMean:
    """A running weighted mean of named arrays with an error-free sum.

    The sum of each entry is kept as two float64 numbers (Knuth's TwoSum), and a whole weight
    below 2^24 times a float32 is exact in float64; so the order of arrival does not change the
    float32 result.

    Attributes:
        weight: sum of the weights so far.
        count: number of contributions.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.weight = 0.0
        self.count = 0
        self._sums: Arrays = {}
        self._rests: Arrays = {}
        self._dtypes: dict[str, np.dtype[np.generic]] = {}

    def add(self, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        """Fold in one contribution; ``arrays`` may be dropped afterwards.

        Raises:
            ValueError: other keys or shapes than before, or a weight that is not positive.
        """
        if not weight > 0:
            raise ValueError(f"Expected a positive weight, got {weight}.")
        if not self.count:
            for key, value in arrays.items():
                self._sums[key] = np.zeros(value.shape)
                self._rests[key] = np.zeros(value.shape)
                self._dtypes[key] = value.dtype
        if arrays.keys() != self._sums.keys():
            raise ValueError(f"Expected arrays {sorted(self._sums)}, got {sorted(arrays)}.")
        for key, value in arrays.items():
            _add_exactly(self._sums[key], self._rests[key], value, weight)
        self.weight += weight
        self.count += 1

    def result(self) -> Arrays:
        """The mean, each array in the dtype of the first contribution.

        Raises:
            ValueError: nothing was added.
        """
        if not self.count:
            raise ValueError("Expected at least one contribution, got none.")
        return {
            key: ((self._sums[key] + self._rests[key]) / self.weight).astype(self._dtypes[key])
            for key in self._sums
        }


def _add_exactly(sums: np.ndarray, rests: np.ndarray, value: np.ndarray, weight: float) -> None:
    """Add ``weight * value`` to ``sums`` in place, and what rounding lost to ``rests``.

    Block by block, so that the intermediate values stay in the processor's cache.
    """
    flat, flat_sums, flat_rests = value.reshape(-1), sums.reshape(-1), rests.reshape(-1)
    for start in range(0, len(flat), _BLOCK):
        block = slice(start, start + _BLOCK)
        before, term = flat_sums[block], flat[block] * np.float64(weight)
        total = before + term
        part = total - before
        term -= part
        part -= total
        part += before  # (before - (total - part)), the part of ``before`` that was lost
        part += term
        flat_rests[block] += part
        before[:] = total
