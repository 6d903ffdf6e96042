"""Where one client node keeps its files."""

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shared.errors import ServiceError

HOME_VARIABLE = "FEDLATENT_CLIENT_HOME"
"""Environment variable that names the client home."""

USER_VARIABLE = "FEDLATENT_HOME"
"""Environment variable that names the folder of what all nodes of one user share."""

MAX_SOCKET_PATH = 100
"""Longest Unix socket path in bytes; the kernel's own limit is 108 with the final zero."""


def user_folder() -> Path:
    """Folder of what all nodes of one user share: the variable's value, else ``~/.fedlatent``."""
    return Path(os.environ.get(USER_VARIABLE) or "~/.fedlatent").expanduser().resolve()


@dataclass(frozen=True)
class ClientHome:
    """Paths below one client home directory; only :meth:`create` and :meth:`prepare_socket` write.

    Attributes:
        root: Absolute path of the home directory (mode 0700).
    """

    root: Path

    @classmethod
    def find(cls, path: Path | str | None = None) -> "ClientHome":
        """Resolve the home: ``path``, else the variable's value, else ``~/.fedlatent/client``."""
        chosen = (
            path if path is not None else os.environ.get(HOME_VARIABLE) or "~/.fedlatent/client"
        )
        return cls(Path(chosen).expanduser().resolve())

    def create(self) -> None:
        """Make the home and its fixed folders, readable by the owner alone."""
        for folder in (self.root, self.keys, self.store, self.outbox, self.bundles, self.services):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)

    @property
    def config(self) -> Path:
        """``node.toml``: site name, data, server address and local policy."""
        return self.root / "node.toml"

    @property
    def ca_certificate(self) -> Path:
        """PEM certificate of the federation's authority, copied from the server."""
        return self.root / "ca.crt"

    @property
    def keys(self) -> Path:
        """Folder of this node's private keys."""
        return self.root / "keys"

    @property
    def node_key(self) -> Path:
        """EC P-384 private key in OpenSSH form that the SuperNode signs with (mode 0600)."""
        return self.keys / "node"

    @property
    def node_public_key(self) -> Path:
        """Public half of :attr:`node_key`; the operator admits the site with it."""
        return self.keys / "node.pub"

    @property
    def superexec_secret(self) -> Path:
        """Secret between this node's own SuperNode and SuperExec (mode 0600)."""
        return self.keys / "superexec.secret"

    @property
    def signing_key(self) -> Path:
        """Ed25519 private key that signs this site's own bundles (mode 0600)."""
        return self.keys / "signing.pem"

    @property
    def salt(self) -> Path:
        """Random key of this home's digests of its records (mode 0600)."""
        return self.keys / "records.salt"

    @property
    def ledger(self) -> Path:
        """SQLite file of the privacy budget."""
        return self.root / "ledger.db"

    @property
    def store(self) -> Path:
        """Folder of local state: decoder, optimiser, round."""
        return self.root / "store"

    @property
    def outbox(self) -> Path:
        """Folder of released payloads, kept so that a repeated request gets the same bytes."""
        return self.root / "outbox"

    @property
    def release_log(self) -> Path:
        """``releases.log``: one line for people per thing that left."""
        return self.root / "releases.log"

    @property
    def release_journal(self) -> Path:
        """``releases.jsonl``: one JSON object per thing that left."""
        return self.root / "releases.jsonl"

    @property
    def bundles(self) -> Path:
        """Folder of site bundles made by this node."""
        return self.root / "bundles"

    @property
    def approvals(self) -> Path:
        """Folder of the runs that have asked for a person's approval."""
        return self.root / "approvals"

    @property
    def services(self) -> Path:
        """Folder of the supervised processes: logs, pid files, working directories."""
        return self.root / "services"

    @property
    def socket(self) -> Path:
        """Unix socket of the resident node.

        ``node.sock`` in the home, or a path in a private folder below the system's temporary
        folder when the home's path is too long for a Unix socket. The same home always gives
        the same path (for one user and one ``TMPDIR``).
        """
        path = self.root / "node.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
            return path
        tag = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"fedlatent-{os.getuid()}" / f"{tag}.sock"

    def prepare_socket(self) -> Path:
        """Make the socket's folder private and return the socket's path.

        Raises:
            ServiceError: The path is still too long, or its folder belongs to someone else or is
                open to others.
        """
        path = self.socket
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise ServiceError(
                f"Expected a socket path of at most {MAX_SOCKET_PATH} bytes, got {path}; "
                "set TMPDIR to a shorter path."
            )
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.parent.lstat()
        private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
        if not private or status.st_mode & 0o022:
            raise ServiceError(
                f"Expected {path.parent} to be a folder of this user that no one else can write, "
                "got one that is not; remove it or correct its mode and owner."
            )
        return path
