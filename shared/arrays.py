"""Named arrays, and the prefixes by which several sets of them lie side by side."""

from collections.abc import Mapping

import numpy as np

Arrays = dict[str, np.ndarray]


def strip_prefix(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """The arrays whose names begin with ``prefix``, without it."""
    return {
        key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)
    }


def add_prefix(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The same arrays with ``prefix`` before their names."""
    return {prefix + key: value for key, value in arrays.items()}
