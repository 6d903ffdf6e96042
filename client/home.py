"""Where one client node keeps its files."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedlatent.shared.errors import ServiceError
from fedlatent.shared.files import telling
from fedlatent.shared.sockets import home_path, make_home, socket_in

HOME_VARIABLE = "FEDLATENT_CLIENT_HOME"
"""Environment variable that names the client home."""

USER_VARIABLE = "FEDLATENT_HOME"
"""Environment variable that names the folder of what all nodes of one user share."""


def user_folder() -> Path:
    """Folder of what all nodes of one user share: the variable's value, else ``~/.fedlatent``."""
    return home_path(os.environ.get(USER_VARIABLE) or "~/.fedlatent", USER_VARIABLE)


@dataclass(frozen=True)
class ClientHome:
    """Paths below one client home directory; only :meth:`create` writes.

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
        return cls(home_path(chosen))

    def create(self) -> None:
        """Make the home and its fixed folders, readable by the owner alone.

        Raises:
            ServiceError: The home is there and belongs to someone else.
        """
        make_home(self.root, (self.keys, self.store, self.outbox, self.bundles, self.services))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the one process that works for this home; the kernel ends that of one that dies.

        Raises:
            ServiceError: Another one does: the node runs.
            StorageError: The lock's file cannot be opened.
        """
        with telling():
            lock = (self.root / "resident.lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServiceError(
                    f"Expected no other resident node for {self.root}, got one that runs; stop it."
                ) from None
            yield

    @property
    def config(self) -> Path:
        """``node.toml``: site name, data, server address and local policy."""
        return self.root / "node.toml"

    @property
    def ca_certificate(self) -> Path:
        """PEM certificate of the federation's authority, copied from the server."""
        return self.root / "ca.crt"

    @property
    def client_certificate(self) -> Path:
        """PEM certificate of this node's key, where the operator has issued one."""
        return self.root / "client.crt"

    @property
    def keys(self) -> Path:
        """Folder of this node's private keys."""
        return self.root / "keys"

    @property
    def node_key(self) -> Path:
        """EC P-384 private key in OpenSSH form that the SuperNode signs with (mode 0600)."""
        return self.keys / "node"

    @property
    def node_key_pem(self) -> Path:
        """:attr:`node_key` in PKCS8 form, as TLS takes it (mode 0600); made when it is needed."""
        return self.keys / "node.pem"

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
        """Unix socket of the resident node."""
        return socket_in(self.root, "node.sock")

    @property
    def runtime_socket(self) -> Path:
        """Unix socket of this node's own SuperNode."""
        return socket_in(self.root, "runtime.sock")
