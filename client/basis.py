"""Keyed digests of a site's records: of what an answer was made from, and to know them again.

Both are keyed by a random number that never leaves its place, so that nobody who gets hold of a
digest can try records against it. Digests never leave the node.
"""

import secrets
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives import hashes, hmac

from fedlatent.shared.errors import DataError
from fedlatent.shared.files import canonical_json, write_atomic

SALT_BYTES = 32


def load_salt(path: Path) -> bytes:
    """The random key in a file of mode 0600, made when the file is absent.

    Raises:
        DataError: the file holds no such key.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        salt = secrets.token_bytes(SALT_BYTES)
        write_atomic(path, salt.hex().encode(), 0o600)
        return salt
    try:
        salt = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        salt = b""
    if len(salt) != SALT_BYTES:
        raise DataError(
            f"Expected a key of {SALT_BYTES} bytes in {path}, got something else; put a copy of it "
            "back, or remove it: then what was charged and has not left is charged once more."
        )
    return salt


def basis_of(salt: bytes, records: np.ndarray, before: int | None) -> str:
    """Digest of what decides an answer besides the request and the noise.

    A retry repeats the draw of its first attempt. That is only as good as one answer where the two
    attempts compute the same; so an attempt from another basis must be another charge.

    Args:
        salt: key of the digest.
        records: preprocessed normal records [N, *shape].
        before: the ledger's entry whose release the answer builds on, if any.
    """
    facts = {
        "before": before,
        "dtype": records.dtype.str,
        "shape": list(records.shape),
        "software": list(_software()),
    }
    return keyed_digest(salt, canonical_json(facts), _bytes_of(np.ascontiguousarray(records)))


def fingerprint_of(salt: bytes, records: np.ndarray) -> str:
    """Digest by which the same records are known again, in whatever order and kind of file."""
    rows = np.ascontiguousarray(records).reshape(len(records), -1)
    ordered = np.sort(rows.view(np.dtype((np.void, rows.strides[0]))).ravel())
    return keyed_digest(salt, canonical_json(list(rows.shape)), _bytes_of(ordered))


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


@cache
def _software() -> tuple[str, str, str]:
    """Whatever computes: its versions may move the last digits of an answer."""
    try:
        own = version("fedlatent")
    except PackageNotFoundError:
        own = "checkout"
    return own, str(torch.__version__), np.__version__


def keyed_digest(salt: bytes, *parts: bytes | memoryview) -> str:
    """HMAC-SHA256 of some parts as 64 hexadecimal digits."""
    keyed = hmac.HMAC(salt, hashes.SHA256())
    for part in parts:
        keyed.update(part)
    return keyed.finalize().hex()
