"""Where random numbers come from: a cryptographic stream for real nodes, a seeded one for tests.

Both kinds draw Poisson samples and Gaussian noise. Which kind made a release is reported as
``rng = "secure" | "simulation"`` beside every epsilon.
"""

import os
from typing import Literal, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

RngName = Literal["secure", "simulation"]

_SUMMANDS = 4


class NoiseSource(Protocol):
    """A stream of random numbers for private training."""

    rng: RngName

    def uniform(self, size: int) -> np.ndarray:
        """Float64 numbers in [0, 1); shape [size]."""
        ...

    def normal(self, size: int) -> np.ndarray:
        """Float64 standard normal numbers; shape [size]."""
        ...


class SecureNoise:
    """AES-256 in counter mode with a fresh key from the operating system, turned into numbers.

    A Gaussian is the sum of four Box-Muller draws divided by two: the low bits of one
    floating-point Gaussian betray its value, a sum of several does not (Holohan & Braghin 2021,
    section 4; Opacus's secure mode does the same).
    """

    rng: RngName = "secure"

    def __init__(self) -> None:
        """Take a fresh key; nothing of it is ever stored."""
        cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16)))
        self._stream = cipher.encryptor()

    def uniform(self, size: int) -> np.ndarray:
        """Float64 numbers in [0, 1) with 53 random bits; shape [size]."""
        words = np.frombuffer(self._stream.update(bytes(8 * size)), dtype=np.uint64)
        return np.asarray((words >> np.uint64(11)) * 2.0**-53)

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


class SimulationNoise:
    """A seeded Philox stream: the same key gives the same numbers; for simulations and tests."""

    rng: RngName = "simulation"

    def __init__(self, *key: int) -> None:
        """Key the stream by non-negative integers, such as run seed, client, round and purpose."""
        self._generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))

    def uniform(self, size: int) -> np.ndarray:
        """Float64 numbers in [0, 1); shape [size]."""
        return self._generator.random(size)

    def normal(self, size: int) -> np.ndarray:
        """Float64 standard normal numbers; shape [size]."""
        return self._generator.standard_normal(size)
