"""Where one client node keeps its files."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.shared.files import file_lock
from fedlatent.shared.home import Home
from fedlatent.shared.sockets import home_path, socket_in

HOME_VARIABLE = "FEDLATENT_CLIENT_HOME"
"""Environment variable that names the client home."""

USER_VARIABLE = "FEDLATENT_HOME"
"""Environment variable that names the folder of what all nodes of one user share."""


def user_folder() -> Path:
    """Folder of what all nodes of one user share: the variable's value, else ``~/.fedlatent``."""
    return home_path(os.environ.get(USER_VARIABLE) or "~/.fedlatent", USER_VARIABLE)


class ClientHome(Home):
    """Paths below one client home directory; only :meth:`create` writes."""

    variable = HOME_VARIABLE
    usual = "~/.fedlatent/client"
    below = (*Home.below, "store", "outbox")

    def require(self) -> None:
        """See that a node is here; nothing is read or written.

        Raises:
            ConfigError: Neither a node nor what one of a simulation has left.
        """
        if not self.config.exists() and not self.ledger.exists():
            raise ConfigError(
                f"Expected a node at {self.config}, found none; give its home by --home, or run "
                "'fedlatent client init' first."
            )

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the one process that works for this home; the kernel ends that of one that dies.

        Raises:
            ServiceError: Another one does: the node runs.
            StorageError: The lock's file cannot be opened.
        """
        busy = ServiceError(
            f"Expected no other resident node for {self.root}, got one that runs; stop it."
        )
        with file_lock(self.root / "resident.lock", busy):
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
    def approvals(self) -> Path:
        """Folder of the runs that have asked for a person's approval."""
        return self.root / "approvals"

    @property
    def socket(self) -> Path:
        """Unix socket of the resident node."""
        return socket_in(self.root, "node.sock")

    @property
    def runtime_socket(self) -> Path:
        """Unix socket of this node's own SuperNode."""
        return socket_in(self.root, "runtime.sock")
