"""Files that are whole or absent: atomic writes, canonical JSON, digests."""

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives import hashes

from shared.errors import DataError

#: What `utc_text` gives, as a pattern.
UTC_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old file or the new one, never a part.

    Args:
        path: target file; its folder is made when absent.
        data: the whole content.
        mode: permission bits of the new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line durably; a line that an earlier crash cut short is ended first.

    Raises:
        OSError: the line could not be written whole, as on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        text = line.replace("\n", " ").replace("\r", " ")
        data = b"\n" * torn + text.encode() + b"\n"
        written = os.write(descriptor, data)
        os.fsync(descriptor)
        if written != len(data):
            raise OSError(f"Expected to append {len(data)} bytes to {path}, got {written} written.")
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def canonical_json(value: object) -> bytes:
    """Encode ``value`` as JSON with sorted keys and no spaces; NaN and infinity are refused.

    Raises:
        ValueError: ``value`` holds a number that JSON cannot carry.
    """
    return json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
        ensure_ascii=False,
    ).encode()


def write_json(path: Path, value: object, mode: int = 0o644) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_atomic(path, text.encode() + b"\n", mode)


def read_json(path: Path) -> object:
    """Read one JSON value.

    Raises:
        DataError: the file is absent or is not JSON.
    """
    try:
        value: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"Expected a JSON file at {path}, got none; check the path.") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise DataError(f"Expected JSON in {path}, got something else: {error}.") from None
    return value


def sha256_hex(data: bytes) -> str:
    """SHA-256 of ``data`` as 64 hexadecimal digits."""
    digest = hashes.Hash(hashes.SHA256())  # hashlib would load a second OpenSSL
    digest.update(data)
    return digest.finalize().hex()


def utc_text(seconds: float | None = None) -> str:
    """A time since 1970, or the present, as text like "2026-01-31T12:00:00Z", which sorts."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
