"""How far single latents follow single known factors of the data; numpy alone.

Shape suffixes: N records, k latent dimensions, F factors.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlatent.shared.errors import ConfigError

BINS = 20


def information(
    codes_Nk: ArrayLike, factors_NF: ArrayLike, bins: int = BINS
) -> NDArray[np.float64]:
    """Share `[k, F]` in [0, 1] of each factor's entropy that each latent tells.

    The mutual information of a latent, cut into `bins` of equally many records, and a factor; both
    it and the entropy are corrected for the number of records (Miller, 1955, "Note on the bias of
    information estimates").

    Args:
        codes_Nk: Posterior means.
        factors_NF: Levels of the known factors, any numbers; at most `bins` levels each for a
            latent to be able to tell them all apart.
        bins: Of each latent.

    Raises:
        ConfigError: The shapes do not fit or a factor has one level only.
    """
    codes, factors = np.asarray(codes_Nk, np.float64), np.asarray(factors_NF)
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise ConfigError(
            f"Expected codes [N, k] and factors [N, F] of the same records, got {codes.shape} and "
            f"{factors.shape}; give one row for each record."
        )
    levels = [np.unique(factor, return_inverse=True)[1] for factor in factors.T]
    for number, level in enumerate(levels):
        if level.max(initial=0) < 1:
            raise ConfigError(
                f"Expected two levels or more of every factor, got one of factor {number}; "
                "leave it out."
            )
    shares = [[_share(_binned(code, bins), level) for level in levels] for code in codes.T]
    return np.asarray(shares, dtype=np.float64)


def mutual_information_gap(codes_Nk: ArrayLike, factors_NF: ArrayLike, bins: int = BINS) -> float:
    """Mean over factors of what the best latent tells more than the second best, in [0, 1].

    1 where each factor has a latent of its own that tells it whole, 0 where no latent tells
    anything or two tell the same (Chen et al., 2018, "Isolating sources of disentanglement",
    equation 6), with posterior means for codes.

    Args:
        codes_Nk: Posterior means, two latents or more.
        factors_NF: As for `information`.
        bins: Of each latent.
    """
    best = np.sort(information(codes_Nk, factors_NF, bins), axis=0)
    if len(best) < 2:
        raise ConfigError("Expected two latents or more for a gap, got one; use `information`.")
    return float((best[-1] - best[-2]).mean())


def _binned(code: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Numbers of bins of equally many records; equal values share a bin."""
    edges = np.quantile(code, np.arange(1, bins) / bins)
    return np.searchsorted(edges, code, side="right")


def _share(bin_N: NDArray[np.int64], level_N: NDArray[np.int64]) -> float:
    count = len(bin_N)
    table = np.zeros((bin_N.max() + 1, level_N.max() + 1))
    np.add.at(table, (bin_N, level_N), 1.0)
    of_bin, of_level, of_both = table.sum(1), table.sum(0), table.ravel()
    told = _entropy(of_bin, count) + _entropy(of_level, count) - _entropy(of_both, count)
    return float(np.clip(told / _entropy(of_level, count), 0.0, 1.0))


def _entropy(counts: NDArray[np.float64], total: int) -> float:
    """In nats, with Miller's correction: (occupied cells - 1) / 2N."""
    shares = counts[counts > 0] / total
    return float(-(shares * np.log(shares)).sum() + (len(shares) - 1) / (2 * total))
