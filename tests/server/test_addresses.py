"""Where a server listens, with what names, and with a certificate that is renewed meanwhile."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlatent.client.preflight import preflight
from fedlatent.server.authority import ensure_certificate, issue_certificate, probe_context
from fedlatent.server.home import ServerHome
from fedlatent.server.seal import Seal
from fedlatent.server.service import ServerService, free_port, init_server
from fedlatent.server.settings import GatewayLimits
from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.shared.supervisor import Supervisor
from tests.server.gates import Gate, running
from tests.server.services import until


def has_ipv6() -> bool:
    """Whether this machine has a loopback of IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("127.0.0.2", "127.0.0.2"),
        ("0.0.0.0", "127.0.0.1"),
        pytest.param("::1", "[::1]", marks=needs_ipv6),
        pytest.param("::", "[::1]", marks=needs_ipv6),
    ],
)
def test_what_init_accepts_is_served(tmp_path: Path, host: str, near: str) -> None:
    """The gateway answers where the settings say, with a certificate that names the place."""
    home = ServerHome(tmp_path / "server")
    settings = init_server(home, host=host, port=0, names=["fl.example"])
    service = ServerService(home)
    assert service.address == f"{near}:{settings.port}"
    (gateway,) = [
        one.service for one in service.supervisor._workers if one.service.name == "gateway"
    ]
    with Supervisor(home.services, [gateway]):  # which waits until its own probe is content
        preflight(service.address, home.ca_certificate)
        if host in ("0.0.0.0", "::"):
            preflight(f"127.0.0.1:{settings.port}", home.ca_certificate)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "", "a b", "x" * 300, "fe80::1%lo"])
def test_where_this_machine_cannot_listen_is_refused(tmp_path: Path, host: str) -> None:
    """An address of elsewhere is an error in words before anything is written."""
    home = ServerHome(tmp_path / "server")
    with pytest.raises(ServiceError, match=r"Expected an address of this machine|Expected a DNS"):
        init_server(home, host=host, port=0)
    assert not home.root.exists()


@pytest.mark.parametrize("port", [-1, 65536])
def test_what_is_no_port_is_refused(tmp_path: Path, port: int) -> None:
    """A number that no port has is an error in words."""
    with pytest.raises(ConfigError, match="Expected a port of 0 to 65535"):
        init_server(ServerHome(tmp_path / "server"), port=port)


@needs_ipv6
def test_free_ports_are_found_for_both_families() -> None:
    """Port 0 takes a free one wherever the server listens."""
    assert all(1024 <= free_port(host) <= 65535 for host in ("127.0.0.1", "::1", "::", "localhost"))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gateway."""
    with running(Gate(tmp_path, GatewayLimits())) as made:
        yield made


def served(gate: Gate) -> int:
    """The number of the certificate that strangers are met with."""
    with gate.tls() as line:
        shown = line.getpeercert()
    assert shown is not None
    return int(str(shown["serialNumber"]), 16)


def test_a_renewed_certificate_is_served_without_a_restart(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that runs for longer than its certificate cuts nobody off, connections included."""
    first = served(gate)
    context = probe_context(gate.home)
    open_before = http.client.HTTPSConnection(gate.address, context=context, timeout=10)
    open_before.connect()
    with monkeypatch.context() as late:
        late.setattr("fedlatent.server.authority._RENEW_DAYS", 398)
        assert "end soon" in ensure_certificate(gate.home, [])
    until(lambda: served(gate) != first, 240)
    open_before.request("GET", "/")
    assert open_before.getresponse().status == 403
    open_before.close()
    second = served(gate)
    whole = gate.home.certificate.read_bytes()
    gate.home.certificate.write_bytes(whole[:100])
    gate.wait_for_log("cannot be read")
    assert served(gate) == second
    issue_certificate(gate.home, [])
    until(lambda: served(gate) != second, 240)


def test_a_running_server_renews_its_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The look at the runs has an eye on certificates too, and says what it does, once."""
    home = ServerHome(tmp_path / "server")
    init_server(home, port=0)
    before, seal = home.certificate.read_bytes(), Seal.of(home)
    assert seal is not None
    monkeypatch.setattr("fedlatent.server.service._RENEW_S", 0.1)
    monkeypatch.setattr("fedlatent.server.authority._RENEW_DAYS", 398)
    monkeypatch.setattr("fedlatent.server.service._WATCH_S", 0.1)
    service = ServerService(home)
    watcher = threading.Thread(target=service.watch_runs)
    watcher.start()
    try:
        until(lambda: home.certificate.read_bytes() != before, 240)
        monkeypatch.setattr("fedlatent.server.authority._RENEW_DAYS", 30)
        time.sleep(0.5)
        authority = home.ca_key.read_bytes()
        home.ca_key.write_bytes(b"junk")
        home.certificate.unlink()
        time.sleep(1.0)
        home.ca_key.write_bytes(authority)
        until(home.certificate.exists, 240)
    finally:
        service.stop()
        watcher.join()
    said = capfd.readouterr().err
    assert "the server has a new certificate" in said
    assert said.count("Expected the authority's private key") == 1
    fresh = seal.envelope({}, 1.0).seal.signer.certificate
    assert fresh != seal.signer.certificate
