"""Certificates that TLS accepts, and private files that stay private."""

import datetime
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from client.certificate import install_certificate
from client.home import ClientHome
from client.policy import NodeConfig
from server.authority import (
    create_authority,
    ensure_certificate,
    fingerprint,
    issue_certificate,
    issue_client_certificate,
)
from server.control import SITE_PATTERN, Control
from server.home import ServerHome
from shared.errors import ConfigError, ServiceError
from shared.keys import generate_node_key


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    """A server home with an authority and a certificate."""
    made = ServerHome(tmp_path / "server")
    made.create()
    create_authority(made)
    issue_certificate(made, ["fed.example.org", "192.0.2.7"])
    return made


def verify(home: ServerHome, name: x509.GeneralName) -> None:
    """Check the server certificate as a TLS client would."""
    authority = x509.load_pem_x509_certificate(home.ca_certificate.read_bytes())
    certificate = x509.load_pem_x509_certificate(home.certificate.read_bytes())
    subject: x509.DNSName | x509.IPAddress = (
        name if isinstance(name, x509.DNSName | x509.IPAddress) else x509.DNSName("")
    )
    builder = PolicyBuilder().store(Store([authority])).time(datetime.datetime.now())
    builder.build_server_verifier(subject).verify(certificate, [])


@pytest.mark.parametrize(
    "name",
    [
        x509.DNSName("fed.example.org"),
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.7")),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ],
)
def test_certificate_holds_for_its_names(home: ServerHome, name: x509.GeneralName) -> None:
    """The server certificate chains to the authority for each name and for loopback."""
    verify(home, name)


def test_certificate_does_not_hold_for_others(home: ServerHome) -> None:
    """A name that was not asked for is not covered."""
    with pytest.raises(VerificationError):
        verify(home, x509.DNSName("evil.example.org"))


def test_private_files_are_private(home: ServerHome) -> None:
    """Keys and the secret are for the owner alone."""
    for path in (home.ca_key, home.certificate_key, home.superexec_secret):
        assert path.stat().st_mode & 0o777 == 0o600
    assert home.root.stat().st_mode & 0o777 == 0o700


def test_an_authority_is_never_replaced(home: ServerHome) -> None:
    """A second authority, which would cut off every node, is refused."""
    before = fingerprint(home)
    with pytest.raises(ServiceError, match="Expected no authority"):
        create_authority(home)
    assert fingerprint(home) == before


def test_certificate_is_renewed_only_when_needed(home: ServerHome) -> None:
    """A good certificate stays; one that lacks a name is replaced under the same authority."""
    assert not ensure_certificate(home, ["fed.example.org"])
    assert ensure_certificate(home, ["new.example.org"])
    verify(home, x509.DNSName("new.example.org"))


def test_open_keys_are_refused(home: ServerHome) -> None:
    """A key that others can read stops the server."""
    home.ca_key.chmod(0o640)
    with pytest.raises(ConfigError, match="0640"):
        ensure_certificate(home, [])


@pytest.mark.parametrize("host", ["", "a b", "http://x", "ünicode.org"])
def test_malformed_hosts_are_refused(home: ServerHome, host: str) -> None:
    """A host that is neither a name nor an address is an error in words."""
    with pytest.raises(ServiceError, match="DNS name or an IP address"):
        issue_certificate(home, [host])


def test_client_certificates_are_for_nodes_alone(home: ServerHome, tmp_path: Path) -> None:
    """A site's certificate holds its node's key, lasts, and stands for no server."""
    public = generate_node_key(tmp_path / "node")
    pem = issue_client_certificate(home, "ward-1", public.read_text())
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.public_key() == serialization.load_ssh_public_key(public.read_bytes())
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert left > datetime.timedelta(days=3600)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    authority = x509.load_pem_x509_certificate(home.ca_certificate.read_bytes())
    certificate.verify_directly_issued_by(authority)
    assert certificate.not_valid_after_utc <= authority.not_valid_after_utc


@pytest.mark.parametrize("text", ["", "ssh-ed25519 AAAA", "nothing", "-----BEGIN"])
def test_client_certificates_need_an_ec_key(home: ServerHome, text: str) -> None:
    """What is no node's key gets no certificate."""
    with pytest.raises(ConfigError, match="Expected an EC public key"):
        issue_client_certificate(home, "ward-1", text)


def test_nodes_install_their_own_certificate_alone(home: ServerHome, tmp_path: Path) -> None:
    """A node takes the certificate of its key from its authority, and no other."""
    node = ClientHome(tmp_path / "node")
    with pytest.raises(ConfigError, match="client init"):
        install_certificate(node, b"")
    node.create()
    public = generate_node_key(node.node_key)
    node.ca_certificate.write_bytes(home.ca_certificate.read_bytes())
    mine = issue_client_certificate(home, "ward-1", public.read_text())
    other_key = generate_node_key(tmp_path / "other").read_text()
    foreign = ServerHome(tmp_path / "foreign")
    foreign.create()
    create_authority(foreign)
    for pem, words in (
        (b"nothing", "Expected a certificate in PEM"),
        (issue_client_certificate(home, "ward-2", other_key), "one of another key"),
        (issue_client_certificate(foreign, "ward-1", public.read_text()), "from another"),
    ):
        with pytest.raises(ConfigError, match=words):
            install_certificate(node, pem)
        assert not node.client_certificate.exists()
    install_certificate(node, mine)
    assert node.client_certificate.read_bytes() == mine


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "x" * 65, "ward 1", "ward\n"])
def test_sites_have_names_for_files(home: ServerHome, tmp_path: Path, name: str) -> None:
    """Nobody is admitted under a name that no node file may hold or that is a path."""
    public = generate_node_key(tmp_path / "node")
    with pytest.raises(ConfigError, match="Expected a site's name"):
        Control(home).admit(name, public)
    pattern = NodeConfig.model_fields["site"].metadata[0].pattern
    assert pattern == f"^{SITE_PATTERN}$"
