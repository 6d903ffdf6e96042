"""Checks of the random numbers before a node uses them: a broken generator voids every epsilon.

The two health tests are those of NIST SP 800-90B (2018), section 4.4, with cutoffs for one false
alarm in 2^40 tests of a source of at least seven bits a byte. They find a stuck or a strongly
biased source. They cannot find a predictable one: no test of numbers can.
"""

import os
from collections.abc import Callable

import numpy as np

from fedlatent.shared.errors import ServiceError
from fedlatent.shared.privacy.noise import SEALED_BYTES, NoiseSource, SecureNoise

#: Equal bytes in a row that end the repetition count test: 1 + ceil(40 / 7).
REPETITIONS = 7
#: Bytes of one window of the adaptive proportion test.
WINDOW = 512
#: Bytes equal to the first of a window that end it: 1 + critbinom(512, 2^-7, 1 - 2^-40).
PROPORTION = 26

_BYTES = 2**15  # of the system's
_WORDS = 2**12  # of the stream, six bytes of each
_BLOCK = 16  # bytes of AES; under one key no block of a counter's stream comes twice
_NORMALS = 2**14
_DEVIATIONS = 7.0  # of a sample moment: one false alarm in 10^11

Entropy = Callable[[int], bytes]
Make = Callable[[bytes], NoiseSource]


def check_random_numbers(entropy: Entropy = os.urandom, make: Make = SecureNoise) -> None:
    """Test the operating system's bytes and the stream that a key gives; some milliseconds.

    Args:
        entropy: gives that many random bytes.
        make: gives the stream of a key.

    Raises:
        ServiceError: saying which test failed.
    """
    check_bytes(entropy(_BYTES), "the operating system's random bytes")
    first, second = entropy(SEALED_BYTES), entropy(SEALED_BYTES)
    streams = [_bytes_of(make(key)) for key in (first, second, first)]
    if first == second or streams[0] == streams[1]:
        raise _failed("two keys to give two streams", "the same numbers twice")
    if streams[0] != streams[2]:
        raise _failed("one key to give one stream", "two different ones")
    check_bytes(streams[0], "the noise stream")
    check_normals(make(second).normal(_NORMALS))


def check_bytes(data: bytes, name: str) -> None:
    """Repetition count, adaptive proportion, and no block twice.

    Args:
        data: at least one window long.
        name: of their source, for the error.

    Raises:
        ServiceError: saying which test failed.
    """
    values = np.frombuffer(data, dtype=np.uint8)
    changes = np.flatnonzero(np.diff(values)) + 1
    runs = np.diff(np.concatenate([[0], changes, [len(values)]]))
    if runs.max() >= REPETITIONS:
        raise _failed(
            f"{name} to pass the repetition count test", f"{runs.max()} equal bytes in a row"
        )
    windows = values[: len(values) // WINDOW * WINDOW].reshape(-1, WINDOW)
    most = int((windows == windows[:, :1]).sum(axis=1).max())
    if most >= PROPORTION:
        raise _failed(
            f"{name} to pass the adaptive proportion test", f"one byte {most} times in {WINDOW}"
        )
    blocks = {data[start : start + _BLOCK] for start in range(0, len(data), _BLOCK)}
    if len(blocks) < len(range(0, len(data), _BLOCK)):
        raise _failed(f"{name} never to repeat a block", "one that came twice")


def check_normals(draws: np.ndarray) -> None:
    """Mean, variance, fourth moment, and no likeness between halves or neighbours.

    Args:
        draws: standard normal numbers [n].

    Raises:
        ServiceError: saying which test failed.
    """
    half = len(draws) // 2
    found = {
        "mean": (float(draws.mean()), 0.0, 1.0),
        "variance": (float((draws**2).mean()), 1.0, 2.0),
        "fourth moment": (float((np.clip(draws, -6.0, 6.0) ** 4).mean()), 3.0, 96.0),
        "product of halves": (float((draws[:half] * draws[half:]).mean()), 0.0, 2.0),
        "product of neighbours": (float((draws[1:] * draws[:-1]).mean()), 0.0, 1.0),
    }
    for name, (value, expected, variance) in found.items():
        reach = _DEVIATIONS * (variance / len(draws)) ** 0.5
        if not abs(value - expected) <= reach:
            raise _failed(
                f"Gaussian noise with a {name} of {expected:g} within {reach:.3f}", f"{value:.3f}"
            )


def _bytes_of(source: NoiseSource) -> bytes:
    """The stream's bytes as its uniform numbers show them: the upper 48 bits of each."""
    words = (source.uniform(_WORDS) * 2.0**48).astype("<u8")
    return words.view(np.uint8).reshape(-1, 8)[:, :6].tobytes()


def _failed(expected: str, got: str) -> ServiceError:
    return ServiceError(
        f"Expected {expected}, got {got}: the random numbers of this machine cannot be trusted; "
        "mend its generator before this node starts."
    )
