"""Files that are whole or absent: atomic writes, whole lines, canonical JSON, digests."""

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cryptography.hazmat.primitives import hashes

from fedlatent.shared.errors import DataError, StorageError

Line = TypeVar("Line")

#: What `utc_text` gives, as a pattern.
UTC_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Turn what the operating system refuses inside into a sentence.

    Raises:
        StorageError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError.of(error) from error


def ending_of(path: Path, endings: Iterable[str]) -> str | None:
    """The longest of ``endings``, such as ".csv.gz", that the file's name has in any case."""
    name = path.name.lower()
    return max((one for one in endings if name.endswith(one)), key=len, default=None)


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old file or the new one, never a part.

    Args:
        path: target file; its folder is made when absent.
        data: the whole content.
        mode: permission bits of the new file.

    Raises:
        OSError: naming ``path``, which is as it was.
    """
    with _about(path):
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


@contextlib.contextmanager
def file_lock(path: Path, busy: Exception | None = None) -> Iterator[None]:
    """Hold a lock that one process has at a time, by its file; the kernel frees it at any death.

    Args:
        path: of the lock's file, which is made and stays.
        busy: raised where another process holds it; by default that is waited for.

    Raises:
        StorageError: the file cannot be opened.
    """
    with telling():
        stream = path.open("w")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise busy or StorageError(f"Expected the lock {path}, got none.") from None
        yield


def append_line(path: Path, line: str) -> None:
    """Append one line durably and whole, or not at all.

    A line that an earlier crash cut short is ended first; one that the disk does not take whole is
    taken back.

    Raises:
        OSError: naming ``path``, which is as it was.
    """
    data = line.replace("\n", " ").replace("\r", " ").encode() + b"\n"
    with _about(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # what is taken back must be one's own
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            try:
                _write_all(descriptor, b"\n" * torn + data)
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    """A disk that fills up takes a part first, and says so only when it is asked again."""
    while data:
        data = data[os.write(descriptor, data) :]


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    """Let an error of the operating system name the file that it is about."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def check_room(folder: Path, nbytes: int) -> None:
    """See that so many bytes can be written into ``folder`` now; nothing of them stays.

    Raises:
        OSError: naming ``folder``: it is full, read-only or not this account's.
    """
    with _about(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            os.posix_fallocate(stream.fileno(), 0, nbytes)


@dataclass(frozen=True, kw_only=True)
class Lines(Generic[Line]):
    """What a file of JSON lines holds.

    Attributes:
        rows: number in the file and content of each whole line.
        torn: how many other lines there are: cut short by a crash, or damaged.
    """

    rows: tuple[tuple[int, Line], ...]
    torn: int

    @property
    def values(self) -> list[Line]:
        """The contents, in order."""
        return [value for _, value in self.rows]


def read_lines(path: Path, made: Callable[[dict[str, Any]], Line]) -> Lines[Line]:
    """Read the lines that ``append_line`` wrote; none of an absent file.

    Args:
        path: the file.
        made: makes the object of a line into its content; raises ValueError, TypeError or KeyError
            where it is not whole.

    Raises:
        OSError: the file cannot be read.
    """
    with _about(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return Lines(rows=(), torn=0)
    rows: list[tuple[int, Line]] = []
    torn = 0
    # Not splitlines, which also ends a line inside of a text.
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise TypeError(type(value))
            rows.append((number, made(value)))
        except (ValueError, TypeError, KeyError, RecursionError):
            torn += bool(line.strip())
    return Lines(rows=tuple(rows), torn=torn)


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
        DataError: the file is absent, a folder or not JSON.
    """
    try:
        value: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"Expected a JSON file at {path}, got none; check the path.") from None
    except IsADirectoryError:
        raise DataError(f"Expected a JSON file at {path}, got a folder; remove it.") from None
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
