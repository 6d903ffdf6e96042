"""Unix sockets that only the owner of a home can reach."""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fedlatent.shared.errors import ConfigError, ServiceError

MAX_SOCKET_PATH = 100
"""Longest Unix socket path in bytes; the kernel's own limit is 108 with the final zero."""


def socket_in(home: Path, name: str) -> Path:
    """The path of a home's socket.

    ``name`` in the home, or a path in a private folder below the system's temporary folder when
    the home's path is too long for a Unix socket. The same home always gives the same path (for
    one user and one ``TMPDIR``).

    Args:
        home: Absolute path of the home, mode 0700.
        name: File name, ending in ``.sock``.
    """
    path = home / name
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    tag = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"fedlatent-{os.getuid()}" / f"{tag}.sock"


def prepare_socket(path: Path) -> Path:
    """Make the folder of a socket private; returns ``path``.

    Raises:
        ServiceError: The path is still too long, or its folder belongs to someone else or is open
            to others.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ServiceError(
            f"Expected a socket path of at most {MAX_SOCKET_PATH} bytes, got {path}; "
            "set TMPDIR to a shorter path."
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_folder(path.parent)
    return path


def home_path(chosen: Path | str, by: str = "--home") -> Path:
    """The absolute path of a home, in which ``~`` may stand for that of the account.

    Args:
        chosen: The path, absolute or not.
        by: What else names it, for people.

    Raises:
        ConfigError: the account has no home, as one without a name often has none.
    """
    try:
        return Path(chosen).expanduser().resolve()
    except RuntimeError:
        raise ConfigError(
            f"Expected a home of user {os.getuid()} for {chosen}, got none; set HOME, or name a "
            f"folder with {by}."
        ) from None


def make_home(root: Path, folders: Iterable[Path]) -> None:
    """Make a home and the folders right below it, readable by the owner alone.

    Raises:
        ServiceError: The home is there and belongs to someone else.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.stat().st_uid == os.getuid():
        root.chmod(0o700)
    check_folder(root)
    for folder in folders:
        folder.mkdir(mode=0o700, exist_ok=True)


def check_folder(path: Path) -> None:
    """See that nobody but this user can put files into a folder, or take them out.

    Raises:
        ServiceError: It is none, belongs to someone else or can be written by others.
    """
    status = path.lstat()
    private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not private or status.st_mode & 0o022:
        raise ServiceError(
            f"Expected {path} to be a folder of this user that no one else can write, got one "
            "that is not; correct its owner and mode, or choose another (a home by --home, the "
            "temporary folder by TMPDIR)."
        )
