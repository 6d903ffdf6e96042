"""Certificates that TLS accepts, and private files that stay private."""

import datetime
import ipaddress
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedlatent.client.certificate import install_certificate
from fedlatent.client.home import ClientHome
from fedlatent.client.policy import NodeConfig
from fedlatent.server.authority import (
    create_authority,
    ensure_certificate,
    ensure_secret,
    fingerprint,
    issue_certificate,
    issue_client_certificate,
    probe_context,
)
from fedlatent.server.control import SITE_PATTERN, Control
from fedlatent.server.home import ServerHome
from fedlatent.server.settings import ServerSettings, save_settings
from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.shared.keys import generate_node_key
from fedlatent.shared.signing import REQUESTS_PURPOSE, RequestSigner


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
    for path in (home.ca_key, home.certificate_key, home.requests_key, home.superexec_secret):
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
    assert ensure_certificate(home, ["fed.example.org"]) == ""
    assert ensure_certificate(home, ["new.example.org"]) == "it lacked a name"
    verify(home, x509.DNSName("new.example.org"))


def other_pair(home: ServerHome) -> None:
    """Put another server's certificate and key in the place of ours."""
    other = ServerHome(home.root / "other")
    other.create()
    create_authority(other)
    issue_certificate(other, ["fed.example.org"])
    for mine, its in (
        (home.certificate, other.certificate),
        (home.certificate_key, other.certificate_key),
    ):
        mine.write_bytes(its.read_bytes())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda home: home.certificate.unlink(), "absent"),
        (lambda home: home.certificate.write_bytes(b""), "damaged"),
        (lambda home: home.certificate.write_bytes(b"\xff"), "damaged"),
        (lambda home: home.certificate.write_bytes(home.ca_certificate.read_bytes()), "damaged"),
        (lambda home: home.certificate_key.write_bytes(b"junk"), "damaged"),
        (lambda home: home.certificate_key.write_bytes(home.ca_key.read_bytes()), "another key"),
        (other_pair, "another authority"),
    ],
)
def test_a_certificate_that_will_not_do_is_replaced(
    home: ServerHome, damage: Callable[[ServerHome], object], reason: str
) -> None:
    """Damaged, foreign or half a pair: the authority is here, and makes a new one."""
    damage(home)
    assert reason in ensure_certificate(home, ["fed.example.org"])
    verify(home, x509.DNSName("fed.example.org"))
    assert ensure_certificate(home, ["fed.example.org"]) == ""


def test_a_certificate_of_the_future_is_replaced(
    home: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was made while the clock was ahead does not hold now."""
    with monkeypatch.context() as ahead:
        ahead.setattr("fedlatent.server.authority._CLOCK_SLACK", datetime.timedelta(days=-2))
        issue_certificate(home, [])
    with pytest.raises(VerificationError):
        verify(home, x509.DNSName("localhost"))
    assert "did not hold now" in ensure_certificate(home, [])
    verify(home, x509.DNSName("localhost"))


@pytest.mark.parametrize("name", ["ca_key", "ca_certificate"])
@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_a_damaged_authority_is_said(home: ServerHome, name: str, content: bytes | None) -> None:
    """What every node trusts is never made anew, and its loss is no traceback."""
    path = getattr(home, name)
    path.unlink() if content is None else path.write_bytes(content)
    home.certificate.unlink()
    with pytest.raises(ServiceError, match="put it back from your copy of the home"):
        ensure_certificate(home, [])


@pytest.mark.parametrize("name", ["probe_key", "probe_certificate"])
def test_a_damaged_probe_is_made_anew(home: ServerHome, name: str) -> None:
    """The server's own look at its gateway does not fail for a file that costs nothing."""
    save_settings(home, ServerSettings(client_certificates=True))
    probe_context(home)
    getattr(home, name).write_bytes(b"junk")
    probe_context(home)
    assert getattr(home, name).read_bytes().startswith(b"-----BEGIN")


@pytest.mark.parametrize("content", [None, b"", b"short"])
def test_a_lost_secret_is_made_anew(home: ServerHome, content: bytes | None) -> None:
    """SuperLink and SuperExec get a new one at their next start; a sound one stays."""
    before = home.superexec_secret.read_bytes()
    ensure_secret(home)
    assert home.superexec_secret.read_bytes() == before
    if content is None:
        home.superexec_secret.unlink()
    else:
        home.superexec_secret.write_bytes(content)
    ensure_secret(home)
    assert len(home.superexec_secret.read_bytes()) == 64
    assert home.superexec_secret.stat().st_mode & 0o777 == 0o600


def test_the_key_for_requests_is_for_them_alone(home: ServerHome) -> None:
    """No TLS client takes its certificate, which the authority issued for our own purpose."""
    authority = x509.load_pem_x509_certificate(home.ca_certificate.read_bytes())
    certificate = x509.load_pem_x509_certificate(home.requests_certificate.read_bytes())
    certificate.verify_directly_issued_by(authority)
    extensions = certificate.extensions
    purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [REQUESTS_PURPOSE]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    builder = PolicyBuilder().store(Store([authority])).time(datetime.datetime.now())
    with pytest.raises(VerificationError):
        builder.build_server_verifier(x509.DNSName("localhost")).verify(certificate, [])


def test_a_home_of_before_gets_its_key_for_requests(
    home: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absent, unpaired or near its end it is made anew; a good one stays, and so does the rest."""
    kept = [path.read_bytes() for path in (home.ca_key, home.ca_certificate, home.certificate)]
    first = home.requests_key.read_bytes()
    assert not ensure_certificate(home, [])
    assert home.requests_key.read_bytes() == first
    home.requests_certificate.unlink()
    assert not ensure_certificate(home, [])
    second = home.requests_key.read_bytes()
    home.requests_key.unlink()
    home.requests_certificate.unlink()
    assert not ensure_certificate(home, [])
    third = home.requests_key.read_bytes()
    assert len({first, second, third}) == 3
    home.requests_key.write_bytes(first)
    assert not ensure_certificate(home, [])
    RequestSigner.load(home.requests_key, home.requests_certificate)
    assert kept == [
        path.read_bytes() for path in (home.ca_key, home.ca_certificate, home.certificate)
    ]
    before = home.requests_key.read_bytes()
    with monkeypatch.context() as early:
        early.setattr("fedlatent.server.authority._RENEW_DAYS", 398)
        assert ensure_certificate(home, [])
    assert home.requests_key.read_bytes() != before
    home.requests_key.chmod(0o644)
    with pytest.raises(ConfigError, match="0644"):
        ensure_certificate(home, [])


def test_open_keys_are_refused(home: ServerHome) -> None:
    """A key that others can read stops the server."""
    home.ca_key.chmod(0o640)
    with pytest.raises(ConfigError, match="0640"):
        ensure_certificate(home, [])


@pytest.mark.parametrize("host", ["", "a b", "http://x", "ünicode.org", "fe80::1%eth0"])
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
