"""The real gateway process before a stub of the SuperLink, with admitted sites."""

import contextlib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlatent.server.authority import create_authority, issue_certificate
from fedlatent.server.control import Control, Site, fingerprint_of
from fedlatent.server.home import ServerHome
from fedlatent.server.quota import ReplyQuota, save_quota
from fedlatent.server.service import free_port
from fedlatent.server.settings import GatewayLimits, ServerSettings, save_settings
from fedlatent.shared.files import write_json
from fedlatent.shared.keys import generate_node_key
from fedlatent.shared.processes import Warden
from fedlatent.shared.supervisor import child_environment
from tests.server.fleet import FleetNode, read_all
from tests.server.stub_link import RUN, StubLink

QUOTA = ReplyQuota(bytes=200_000, objects=12)


class Gate:
    """A gateway under test and all around it."""

    def __init__(
        self, root: Path, limits: GatewayLimits, *, client_certificates: bool = False
    ) -> None:
        """Make a server home with an authority; nothing runs yet."""
        self.home = ServerHome(root / "server")
        self.home.create()
        create_authority(self.home)
        issue_certificate(self.home, [])
        self.settings = ServerSettings(
            port=free_port(), limits=limits, client_certificates=client_certificates
        )
        save_settings(self.home, self.settings)
        save_quota(self.home, RUN, QUOTA)
        self.link = StubLink(self.home.link_socket)
        self.log_file = self.home.root / "gateway.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.warden = Warden(self.home.services)  # should the tests themselves be killed

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.settings.port}"

    def start(self) -> None:
        """Start the gateway and wait until it listens."""
        self.warden.watch(child_environment())
        with self.log_file.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedlatent.server.gateway", "--home", str(self.home.root)],
                env=child_environment() | self.warden.marks(),
                stderr=stream,
            )
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.settings.port), timeout=1).close()
                return
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def stop(self) -> None:
        """End the gateway."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)
        self.warden.dismiss()

    def key(self, name: str) -> Path:
        """A new node key."""
        path = self.home.root / "nodes" / name
        generate_node_key(path)
        return path

    def admit(self, name: str, node: int) -> FleetNode:
        """Make a node and enter it where ``server admit`` does."""
        path = self.key(name)
        text = path.with_name(name + ".pub").read_text().strip()
        public = serialization.load_ssh_public_key(text.encode())
        assert isinstance(public, ec.EllipticCurvePublicKey)
        site = Site(
            name=name,
            node_id=str(node),
            fingerprint=fingerprint_of(public),
            public_key=text,
            admitted="now",
        )
        sites = [*Control(self.home).sites(), site]
        write_json(self.home.sites, [vars(one) for one in sites])
        made = FleetNode(self.address, self.home.ca_certificate, path)
        self.link.nodes[made.public] = made.node_id = node
        return made

    def remove(self, name: str) -> None:
        """Take an admission back."""
        sites = [one for one in Control(self.home).sites() if one.name != name]
        write_json(self.home.sites, [vars(one) for one in sites])

    def log(self) -> str:
        """What the gateway said so far."""
        return self.log_file.read_text()

    def wait_for_log(self, text: str) -> str:
        """Wait until the log holds ``text``; returns the log."""
        deadline = time.monotonic() + 120
        while text not in (log := self.log()):
            assert time.monotonic() < deadline, log
            time.sleep(0.05)
        return log

    def memory(self) -> int:
        """Resident bytes of the gateway."""
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [one for one in text.splitlines() if one.startswith("VmRSS")]
        return int(line.split()[1]) * 1024

    def tls(self) -> ssl.SSLSocket:
        """A TLS connection of a stranger."""
        context = ssl.create_default_context(cafile=str(self.home.ca_certificate))
        plain = socket.create_connection(("127.0.0.1", self.settings.port), timeout=10)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")

    def send(self, raw: bytes) -> tuple[int, bytes]:
        """Send raw bytes over TLS; returns the status and everything that came back."""
        with self.tls() as line:
            with contextlib.suppress(OSError):
                line.sendall(raw)
            answer = read_all(line)
        return int(answer.split(b" ", 2)[1]) if answer else 0, answer


@contextlib.contextmanager
def running(gate: Gate) -> Iterator[Gate]:
    """Run the gateway and its SuperLink for a while."""
    gate.link.start()
    gate.start()
    try:
        yield gate
    finally:
        gate.stop()
        gate.link.stop()
        assert "Traceback" not in gate.log()
