"""Digests of what a prepared file holds, whatever wrote its bytes, and the bytes of such a file."""

import gzip
import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlatent.shared.errors import DataError

Arrays = Mapping[str, NDArray[Any]]


def content_digest(name: str, data: bytes) -> str:
    """SHA-256 of what a file holds, as 64 hexadecimal digits.

    Of a gzipped file it is the unpacked bytes. Of an NPZ it is, by name, the type, the shape and
    the values of every array in C order; so a file that another zlib packed is the same.

    Args:
        name: Of the file; its ending says what it is.
        data: Its bytes.

    Raises:
        DataError: It is no such file.
    """
    try:
        if name.endswith(".gz"):
            return hashlib.sha256(gzip.decompress(data)).hexdigest()
        digest = hashlib.sha256()
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            for key in sorted(arrays.files):
                array = np.ascontiguousarray(arrays[key])
                digest.update(f"{key} {array.dtype.str} {list(array.shape)}\n".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"Expected the file {name} whole, got a damaged one ({type(error).__name__}); fetch it "
            "again."
        ) from error


def npz(arrays: Arrays) -> bytes:
    """An NPZ of these arrays; equal arrays give equal bytes."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def gzipped(text: bytes) -> bytes:
    """A gzipped file without a name or a time."""
    return gzip.compress(text, 9, mtime=0)
