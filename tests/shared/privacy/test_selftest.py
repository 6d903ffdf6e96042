"""Each test of the random numbers finds the fault it is there for, and passes sound ones."""

import itertools
import os
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from fedlatent.shared.errors import ServiceError
from fedlatent.shared.privacy import selftest
from fedlatent.shared.privacy.noise import SecureNoise
from fedlatent.shared.privacy.selftest import check_bytes, check_normals, check_random_numbers


def test_sound_random_numbers_pass() -> None:
    """A hundred starts in a row find nothing wrong."""
    for _ in range(100):
        check_random_numbers()


def test_cutoffs_are_those_of_the_standard() -> None:
    """One false alarm in 2^40 at seven bits a byte, as NIST SP 800-90B, section 4.4, has them."""
    assert 1 + int(np.ceil(40 / 7)) == selftest.REPETITIONS
    window = stats.binom(selftest.WINDOW, 2.0**-7)
    assert 1 + window.ppf(1.0 - 2.0**-40) == selftest.PROPORTION


def _stuck(count: int) -> bytes:
    return bytes(count)


def _counting(count: int) -> bytes:
    return (np.arange(count) % 251).astype(np.uint8).tobytes()


def _biased(count: int) -> bytes:
    """Every tenth byte is the same: no long run, but one value far too often."""
    data = bytearray(os.urandom(count))
    data[::10] = b"\x07" * len(data[::10])
    return bytes(data)


def _halved(count: int) -> bytes:
    return (os.urandom(count // 2) * 2)[:count]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (_stuck, "repetition count"),
        (_biased, "adaptive proportion"),
        (_counting, "repeat a block"),
        (_halved, "repeat a block"),
    ],
    ids=["stuck", "biased", "counting", "halves repeated"],
)
def test_a_broken_system_generator_is_found(source: Callable[[int], bytes], words: str) -> None:
    """Bytes that stick, lean to one value, count or come twice stop the node."""
    size = 2**15
    with pytest.raises(ServiceError, match=words):
        check_bytes(source(size), "these bytes")
    with pytest.raises(ServiceError, match=words):
        check_random_numbers(entropy=source)


def test_a_constant_key_is_found() -> None:
    """A generator whose every key is the same is stopped, however good its long outputs are."""

    def entropy(count: int) -> bytes:
        return bytes(range(count)) if count < 100 else os.urandom(count)

    with pytest.raises(ServiceError, match="two keys"):
        check_random_numbers(entropy=entropy)


class _Keyless(SecureNoise):
    """A stream that does not look at its key."""

    def __init__(self, sealed: bytes | None = None) -> None:
        super().__init__(bytes(48))


class _Fresh(SecureNoise):
    """A stream that takes another key than the one it is given."""

    def __init__(self, sealed: bytes | None = None) -> None:
        super().__init__()


class _Constant(SecureNoise):
    """A stream of one number for each key."""

    def uniform(self, size: int) -> np.ndarray:
        return np.full(size, super().uniform(1)[0])


class _Twice(SecureNoise):
    """Whose every draw is its first half twice."""

    def uniform(self, size: int) -> np.ndarray:
        return np.tile(super().uniform((size + 1) // 2), 2)[:size]


class _Small(SecureNoise):
    """With nine tenths of the deviation."""

    def normal(self, size: int) -> np.ndarray:
        return 0.9 * super().normal(size)


class _Shifted(SecureNoise):
    """Whose noise has a mean."""

    def normal(self, size: int) -> np.ndarray:
        return super().normal(size) + 0.1


class _Flat(SecureNoise):
    """Uniform noise of the right variance."""

    def normal(self, size: int) -> np.ndarray:
        return (self.uniform(size) - 0.5) * np.sqrt(12.0)


class _Halves(SecureNoise):
    """Whose Gaussian noise is its first half twice."""

    def normal(self, size: int) -> np.ndarray:
        return np.tile(super().normal((size + 1) // 2), 2)[:size]


class _Pairs(SecureNoise):
    """Each number of whose Gaussian noise comes twice in a row."""

    def normal(self, size: int) -> np.ndarray:
        return np.repeat(super().normal((size + 1) // 2), 2)[:size]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_Keyless, "two keys"),
        (_Fresh, "one key"),
        (_Constant, "noise stream"),
        (_Twice, "repeat a block"),
        (_Small, "variance"),
        (_Shifted, "mean"),
        (_Flat, "fourth moment"),
        (_Halves, "product of halves"),
        (_Pairs, "product of neighbours"),
    ],
)
def test_a_broken_stream_is_found(make: type[SecureNoise], words: str) -> None:
    """A stream that ignores its key, repeats itself or is no standard normal stops the node."""
    with pytest.raises(ServiceError, match=words):
        check_random_numbers(make=make)


def test_numbers_that_are_not_finite_are_found() -> None:
    """NaN passes no comparison, and so no test."""
    with pytest.raises(ServiceError, match="mean"):
        check_normals(np.full(2**14, np.nan))


def test_a_window_of_sound_bytes_is_far_from_the_cutoffs() -> None:
    """Among many sound streams none comes within reach of an alarm."""
    for _ in itertools.repeat(None, 50):
        check_bytes(os.urandom(2**17), "the system's bytes")
