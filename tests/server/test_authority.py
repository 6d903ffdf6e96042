"""Certificates that TLS accepts, and private files that stay private."""

import datetime
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from server.authority import create_authority, ensure_certificate, fingerprint, issue_certificate
from server.home import ServerHome
from shared.errors import ConfigError, ServiceError
from shared.signing import REQUESTS_PURPOSE, RequestSigner


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
    assert not ensure_certificate(home, ["fed.example.org"])
    assert ensure_certificate(home, ["new.example.org"])
    verify(home, x509.DNSName("new.example.org"))


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
        early.setattr("server.authority._RENEW_DAYS", 398)
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


@pytest.mark.parametrize("host", ["", "a b", "http://x", "ünicode.org"])
def test_malformed_hosts_are_refused(home: ServerHome, host: str) -> None:
    """A host that is neither a name nor an address is an error in words."""
    with pytest.raises(ServiceError, match="DNS name or an IP address"):
        issue_certificate(home, [host])
