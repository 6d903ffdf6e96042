"""A client node as a set of supervised processes.

The resident node (holds the records, trains), SuperNode (Flower's link to the server) and
SuperExec (starts a small process for each message, which asks the resident node). What goes wrong
between node and server is said in one sentence with the remedy.
"""

import argparse
import secrets
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.serialization import Encoding

from fedlatent.client.home import HOME_VARIABLE, ClientHome
from fedlatent.client.policy import NodeConfig
from fedlatent.client.preflight import (
    NO_CERTIFICATE,
    ServerAway,
    certificate_problem,
    preflight,
)
from fedlatent.client.tls import identity_of
from fedlatent.shared import flower
from fedlatent.shared.contact import Contact, Silence
from fedlatent.shared.editor import directive, write_schema
from fedlatent.shared.errors import ConfigError, ServiceError, exit_code_of
from fedlatent.shared.files import write_atomic
from fedlatent.shared.keys import (
    SigningKey,
    check_private,
    generate_node_key,
    name_node_key,
    sole_certificate,
)
from fedlatent.shared.proxies import proxy_environment, split_address
from fedlatent.shared.sockets import check_folder, prepare_socket
from fedlatent.shared.supervisor import Service, ServiceStatus, Supervisor, run_until_signal
from fedlatent.shared.toml import dumps

NOT_ADMITTED = (
    "the server does not know this node's key, or still counts its last connection as alive, "
    "which ends within half a minute; if it goes on, send {key} to the operator to be admitted"
)

_POLL_S = 0.2
_QUIET_S = 90.0  # both give a sign of life every few seconds
_SIGN_S = 10.0  # for the next sign, as after all of us were stopped for a while
_AWAY_S = 30.0  # how long a node waits at its start for a server that does not answer


def init_client(
    home: ClientHome,
    *,
    site: str,
    server: str,
    ca_certificate: bytes,
    data: Mapping[str, object],
    policy: Mapping[str, object],
    limits: Mapping[str, object] | None = None,
) -> NodeConfig:
    """Make a client home: configuration, keys and the server's certificate.

    Args:
        home: An absent or empty folder.
        site: The site's name.
        server: ``host:port`` of the gateway.
        ca_certificate: The federation's ``ca.crt``, PEM.
        data: Table ``[data]`` of ``node.toml``; see ``fedlatent.client.policy.NodeData``.
        policy: Table ``[policy]``; see ``fedlatent.client.policy.Policy``.
        limits: Table ``[limits]``; see ``fedlatent.client.policy.NodeLimits``.

    Raises:
        ConfigError: A value is not what the node file takes, or that is not one certificate.
        ServiceError: The home is in use.
    """
    if home.config.exists():
        raise ServiceError(
            f"Expected no node in {home.root}, found one; start that one: its ledger is the one of "
            "these records. A node for other records takes another folder, by --home."
        )
    split_address(server)
    authority = sole_certificate(ca_certificate).public_bytes(Encoding.PEM)
    tables = {"site": site, "data": data, "server": {"address": server}, "policy": policy}
    text = directive("node") + dumps(tables if limits is None else tables | {"limits": limits})
    config = NodeConfig.from_toml(text, str(home.config))
    home.create()
    write_atomic(home.ca_certificate, authority)
    generate_node_key(home.node_key, site)
    SigningKey.generate(home.signing_key)
    write_atomic(home.superexec_secret, secrets.token_hex(32).encode(), 0o600)
    write_schema(home.root, "node", NodeConfig)
    write_atomic(home.config, text.encode(), 0o600)
    return config


class ClientService:
    """Starts, watches and stops the processes of one node."""

    def __init__(self, home: ClientHome) -> None:
        """Read the configuration; nothing starts yet.

        Raises:
            ConfigError: There is no node in ``home``, it names no server, or a key is open to
                others.
        """
        self.home = home
        config = NodeConfig.load(home.config)
        if config.server is None:
            raise ConfigError(
                f"Expected a table [server] with an address in {home.config}, found none; add it."
            )
        self.address = config.server.address
        self.site = config.site
        split_address(self.address)
        for path in (home.node_key, home.superexec_secret):
            check_private(path)
        self.supervisor = Supervisor(home.services, self._services())

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self, *, check_server: bool = True) -> None:
        """Start all processes; the node is then waiting for, or in, its federation.

        Args:
            check_server: Whether to refuse to start when the way to the server is not open.

        Raises:
            ServiceError: Other accounts can write the home, the way to the server is not open, or
                a process did not come up. A server that does not answer is given 30 s, since it
                may be starting itself.
        """
        check_folder(self.home.root)
        name_node_key(self.home.node_key, self.site)
        if check_server:
            self._await_server()
        prepare_socket(self.home.socket)
        self.supervisor.start()

    def _await_server(self) -> None:
        deadline = time.monotonic() + _AWAY_S
        while True:
            try:
                return preflight(self.address, self.home.ca_certificate, identity_of(self.home))
            except ServerAway:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop all processes; the server is told that the node is away."""
        self.supervisor.stop()

    def run(self, *, check_server: bool = True) -> None:
        """Start, serve until SIGTERM or SIGINT, stop; for the main thread."""
        run_until_signal(lambda: self.start(check_server=check_server), self.stop)

    def status(self) -> list[ServiceStatus]:
        """The state of each process."""
        return self.supervisor.status()

    def wait_online(self, timeout_s: float) -> None:
        """Wait until the server has let this node in.

        Raises:
            ServiceError: It has not within ``timeout_s``; the sentence says why.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = next(one for one in self.status() if one.name == "supernode")
            if status.state == "ready":
                return
            if time.monotonic() > deadline:
                reason = status.reason or f"no answer; see {status.log}"
                raise ServiceError(
                    f"Expected to be let in by {self.address} within {timeout_s:g} s, but: {reason}"
                )
            time.sleep(_POLL_S)

    def _services(self) -> list[Service]:
        home = self.home
        runtime = flower.address_of(home.runtime_socket)
        launcher = (sys.executable, "-P", "-m", "fedlatent.client.launcher")
        variables = {HOME_VARIABLE: str(home.root)}
        secret = ("--superexec-auth-secret-file", str(home.superexec_secret))
        silence = {
            name: Silence(Contact(home.services / name)) for name in ("supernode", "superexec")
        }
        resident = Service(
            name="resident",
            argv=(sys.executable, "-m", "fedlatent.client.resident", "--home", str(home.root)),
            ready=lambda _log: _accepts(home.socket),
            ready_timeout_s=120.0,
        )
        supernode = Service(
            name="supernode",
            argv=(
                *(*launcher, "supernode", "--host", runtime),
                *("--superlink", self.address),
                *("--root-certificates", str(home.ca_certificate)),
                *("--auth-supernode-private-key", str(home.node_key)),
                *("--isolation", "process", *secret),
                *("--node-config", f'socket={_quoted(home.socket)} site="{self.site}"'),
            ),
            env=variables | proxy_environment(split_address(self.address)[0]),
            ready=lambda log: "SuperNode ID:" in log,
            required=False,
            diagnose=lambda log: diagnose_supernode(log, home, self.address),
            pause_s=(1.0, 10.0),
            ails=lambda: silence["supernode"].ailment(_QUIET_S),
            patience_s=_SIGN_S,
        )
        superexec = Service(
            name="superexec",
            argv=(
                *(*launcher, "superexec", "--insecure"),
                *("--runtime-api-address", runtime, *secret),
            ),
            env=variables,
            ready=lambda log: "Starting Flower SuperExec" in log,
            required=False,
            ails=lambda: silence["superexec"].ailment(_QUIET_S),
            patience_s=_SIGN_S,
        )
        return [resident, supernode, superexec]


def diagnose_supernode(log: str, home: ClientHome, address: str) -> str:
    """Say in one sentence why a SuperNode ended, from what it printed."""
    if "code: 2004" in log:
        return NOT_ADMITTED.format(key=home.node_public_key)
    if "CERTIFICATE_REQUIRED" in log.upper().replace(" ", "_"):
        return NO_CERTIFICATE
    if "CERTIFICATE_VERIFY_FAILED" in log:
        return certificate_problem(log, address, home.ca_certificate)
    if "401" in log or "Invalid SuperNode authentication" in log:
        return "the server refused this node's signature; check the clock and the admission"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "Error" in line]
    return (errors or lines or ["it printed nothing"])[-1][:300]


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_POLL_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _quoted(path: Path) -> str:
    if any(character in str(path) for character in "\"'\\\n"):
        raise ServiceError(
            f"Expected a home without quotes or backslashes in its path, got {path}; move it."
        )
    return f'"{path}"'


def main() -> None:
    """Command line: ``python -m fedlatent.client.service --home DIR``, until SIGTERM."""
    parser = argparse.ArgumentParser(description="Run one client node.")
    parser.add_argument("--home")
    home = parser.parse_args().home
    sys.exit(exit_code_of(lambda: ClientService(ClientHome.find(home)).run(check_server=False)))


if __name__ == "__main__":
    main()
