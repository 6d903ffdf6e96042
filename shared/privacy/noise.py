"""Where random numbers come from: a cryptographic stream for real nodes, a seeded one for tests.

Both kinds draw Poisson samples and Gaussian noise. Which kind made a release is reported as
``rng = "secure" | "simulation"`` beside every epsilon.
"""

import functools
import hashlib
import math
import os
from typing import Literal, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

RngName = Literal["secure", "simulation"]

#: Length of what names one secure stream: a key of AES-256 and the first value of its counter.
SEALED_BYTES = 48

_KEY_BYTES = 32
_SUMMANDS = 4
_LEVELS = 2**16
_BLOCK = 2**16  # numbers made at a time, so that all of it stays in the processor's cache
_ZEROS = bytes(_BLOCK)


class NoiseSource(Protocol):
    """A stream of random numbers for private training."""

    rng: RngName

    def uniform(self, size: int) -> np.ndarray:
        """Float64 numbers in [0, 1); shape [size]."""
        ...

    def normal(self, size: int) -> np.ndarray:
        """Float64 standard normal numbers; shape [size]."""
        ...

    def add_normal(self, total: np.ndarray, scale: float) -> None:
        """Add ``scale`` times ``normal(len(total))`` to the float32 vector ``total`` in place."""
        ...


def sealed_key() -> bytes:
    """A fresh key of one secure stream from the operating system: AES-256 key and first counter."""
    return os.urandom(SEALED_BYTES)


class SecureNoise:
    """AES-256 in counter mode with a key from the operating system, turned into numbers.

    A Gaussian is the sum of four Box-Muller draws divided by two: the low bits of one
    floating-point Gaussian betray its value, a sum of several does not (Holohan & Braghin 2021,
    section 4; Opacus's secure mode does the same).
    """

    rng: RngName = "secure"

    def __init__(self, sealed: bytes | None = None) -> None:
        """Start the stream of a key.

        Args:
            sealed: what ``sealed_key`` gave, so that a computation that broke off can be done again
                with the very same numbers; by default a fresh key that nobody keeps.

        Raises:
            ValueError: ``sealed`` is not of that length.
        """
        key = sealed_key() if sealed is None else sealed
        if len(key) != SEALED_BYTES:
            raise ValueError(f"Expected a sealed key of {SEALED_BYTES} bytes, got {len(key)}.")
        cipher = Cipher(algorithms.AES(key[:_KEY_BYTES]), modes.CTR(key[_KEY_BYTES:]))
        self._stream = cipher.encryptor()

    def uniform(self, size: int) -> np.ndarray:
        """Float64 numbers in [0, 1) with 53 random bits; shape [size]."""
        return _uniform(self._stream, size)

    def normal(self, size: int) -> np.ndarray:
        """Float64 standard normal numbers; shape [size]."""
        pairs = (size + 1) // 2
        total = np.zeros(2 * pairs)
        for _ in range(_SUMMANDS):
            radius = np.sqrt(-2.0 * np.log1p(-self.uniform(pairs)))
            angle = 2.0 * np.pi * self.uniform(pairs)
            total[:pairs] += radius * np.cos(angle)
            total[pairs:] += radius * np.sin(angle)
        draws: np.ndarray = total[:size] / np.sqrt(_SUMMANDS)
        return draws

    def add_normal(self, total: np.ndarray, scale: float) -> None:
        """Add ``scale`` times ``normal(len(total))`` to the float32 vector ``total`` in place.

        What leaves the range of float32 becomes infinite.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            total += (self.normal(len(total)) * scale).astype(np.float32)


class SimulationNoise:
    """A seeded stream: the same key gives the same numbers; for simulations and tests, and fast.

    AES-128 in counter mode under a key hashed from the seed. Normal numbers come in pairs: two
    bytes choose one of 65,536 points of the plane whose radii are equally likely values of a
    normal pair's, and a block of points is turned by an angle of its own. That is a quarter of the
    cost of PyTorch's generator. Pairs are isotropic, their variance is exactly 1, and no number is
    larger than 4.9. The noise that protects real records comes from ``SecureNoise``.
    """

    rng: RngName = "simulation"

    def __init__(self, *key: int) -> None:
        """Key the stream by non-negative integers, such as run seed, client, round and purpose."""
        digest = hashlib.sha256(repr(key).encode()).digest()
        cipher = Cipher(algorithms.AES(digest[:16]), modes.CTR(digest[16:]))
        self._stream = cipher.encryptor()

    def uniform(self, size: int) -> np.ndarray:
        """Float64 numbers in [0, 1) with 53 random bits; shape [size]."""
        return _uniform(self._stream, size)

    def normal(self, size: int) -> np.ndarray:
        """Float64 standard normal numbers; shape [size]."""
        total = np.zeros(size, dtype=np.float32)
        self.add_normal(total, 1.0)
        return total.astype(np.float64)

    def add_normal(self, total: np.ndarray, scale: float) -> None:
        """Add ``scale`` times ``normal(len(total))`` to the float32 vector ``total`` in place.

        What leaves the range of float32 becomes infinite.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            self._add(total, scale)

    def _add(self, total: np.ndarray, scale: float) -> None:
        points = _points()
        for start in range(0, len(total), _BLOCK):
            part = total[start : start + _BLOCK]
            turn = np.exp(2j * np.pi * _uniform(self._stream, 1)[0])
            random = self._stream.update(_ZEROS[: 2 * ((len(part) + 1) // 2)])
            index = np.frombuffer(random, dtype="<u2").astype(np.intp)
            # Every index is within the table; "wrap" spares numpy the check.
            pairs = np.take(points, index, mode="wrap")
            pairs *= np.complex64(scale * turn)
            part += pairs.view(np.float32)[: len(part)]


@functools.cache
def _points() -> np.ndarray:
    """65,536 points of the plane as complex64: a sunflower with the radii of normal pairs."""
    place = np.arange(_LEVELS)
    radii = np.sqrt(-2.0 * np.log((place + 0.5) / _LEVELS))
    radii *= math.sqrt(2.0 / float(np.mean(radii**2)))
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    points: np.ndarray = (radii * np.exp(2j * np.pi * golden * place)).astype(np.complex64)
    return points


def _uniform(stream: CipherContext, size: int) -> np.ndarray:
    """Float64 numbers in [0, 1) with 53 random bits of a key stream; shape [size]."""
    words = np.frombuffer(stream.update(bytes(8 * size)), dtype="<u8")
    return np.asarray((words >> np.uint64(11)) * 2.0**-53)
