"""Where one aggregation server keeps its files."""

from pathlib import Path

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.home import Home
from fedlatent.shared.sockets import socket_in

HOME_VARIABLE = "FEDLATENT_SERVER_HOME"
"""Environment variable that names the server home for the ServerApp process."""


class ServerHome(Home):
    """Paths below one server home directory; only :meth:`create` writes."""

    variable = HOME_VARIABLE
    usual = "~/.fedlatent/server"
    below = (*Home.below, "tls", "runs")

    def require(self) -> None:
        """See that something is here, before a command would make an empty registry.

        Raises:
            ConfigError: Neither a server nor the results of a simulation.
        """
        if not self.config.exists() and not self.registry.exists():
            raise ConfigError(
                f"Expected a server in {self.root}, found none; give its home by --home, or run "
                "'fedlatent server init' first."
            )

    @property
    def config(self) -> Path:
        """``server.toml``: ports, limits and host names, written by ``init_server``."""
        return self.root / "server.toml"

    @property
    def tls(self) -> Path:
        """Folder of the certificate authority, the server certificate and the SuperExec secret."""
        return self.root / "tls"

    @property
    def ca_certificate(self) -> Path:
        """PEM certificate of the authority; every node gets a copy of this file."""
        return self.tls / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Private key of the authority (mode 0600)."""
        return self.tls / "ca.key"

    @property
    def certificate(self) -> Path:
        """PEM certificate of the server, signed by the authority."""
        return self.tls / "server.pem"

    @property
    def certificate_key(self) -> Path:
        """Private key of the server certificate (mode 0600)."""
        return self.tls / "server.key"

    @property
    def requests_certificate(self) -> Path:
        """PEM certificate of the key that signs requests to sites, signed by the authority."""
        return self.tls / "requests.pem"

    @property
    def requests_key(self) -> Path:
        """Ed25519 private key that signs requests to sites (mode 0600)."""
        return self.tls / "requests.key"

    @property
    def probe_certificate(self) -> Path:
        """PEM certificate that our own probes show to the gateway."""
        return self.tls / "probe.pem"

    @property
    def probe_key(self) -> Path:
        """Private key of the probes' certificate (mode 0600)."""
        return self.tls / "probe.key"

    @property
    def superexec_secret(self) -> Path:
        """Shared secret of SuperLink and SuperExec (mode 0600)."""
        return self.tls / "superexec.secret"

    @property
    def link_database(self) -> Path:
        """SQLite file of Flower's SuperLink."""
        return self.root / "link.db"

    @property
    def registry(self) -> Path:
        """SQLite file of our own registry: runs, rounds, sites, artefacts."""
        return self.root / "registry.db"

    @property
    def sites(self) -> Path:
        """``sites.json``: admitted sites, name to public key and Flower node id."""
        return self.root / "sites.json"

    @property
    def former_sites(self) -> Path:
        """``former.json``: sites that were removed, whose keys Flower still knows."""
        return self.root / "former.json"

    @property
    def certificates(self) -> Path:
        """Folder of the sites' TLS certificates, where nodes must have one; for the sites."""
        return self.root / "certificates"

    @property
    def runs(self) -> Path:
        """Folder that holds one folder a run."""
        return self.root / "runs"

    def run(self, run_id: str) -> Path:
        """Folder of one run: config, checkpoints, result."""
        return self.runs / run_id

    @property
    def link_socket(self) -> Path:
        """Unix socket of the SuperLink, which has no other door."""
        return socket_in(self.root, "link.sock")

    def quota(self, flower_run: int) -> Path:
        """What one reply in this run of Flower's may weigh now; see ``fedlatent.server.quota``."""
        return self.services / "quotas" / f"{flower_run}.json"
