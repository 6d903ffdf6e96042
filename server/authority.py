"""The federation's own certificate authority, what it certifies, and the SuperExec secret.

Nodes trust exactly one certificate, ``ca.crt``, which the operator hands to each site together
with the server's address. The certificates of the server and of the key that signs requests are
short-lived next to the authority and can be made anew without touching any node. Where the operator
wants it, nodes have a certificate of the same authority, without which the gateway's TLS lets
nobody in.
"""

import datetime
import ipaddress
import secrets
import ssl
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlatent.server.home import ServerHome
from fedlatent.server.settings import load_settings
from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.shared.files import write_atomic
from fedlatent.shared.keys import check_private, node_public_key
from fedlatent.shared.proxies import LOOPBACK
from fedlatent.shared.signing import REQUESTS_PURPOSE, RequestSigner

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 397  # the longest that today's TLS stacks accept without complaint
_RENEW_DAYS = 30
_CLOCK_SLACK = datetime.timedelta(hours=1)
_KEEP = "put it back from your copy of the home, since every node trusts it"


def create_authority(home: ServerHome) -> None:
    """Make the authority's key and certificate, the key for requests and the SuperExec secret.

    Raises:
        ServiceError: An authority exists already; a new one would cut off every node.
    """
    if home.ca_key.exists() or home.ca_certificate.exists():
        raise ServiceError(
            f"Expected no authority in {home.tls}, found one; keep it, since every node trusts it."
        )
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name(f"fedlatent authority {secrets.token_hex(4)}")
    certificate = (
        _builder(name, name, key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    write_atomic(home.ca_key, _private_pem(key), 0o600)
    write_atomic(home.ca_certificate, certificate.public_bytes(serialization.Encoding.PEM))
    ensure_secret(home)
    issue_requests_certificate(home)


def ensure_secret(home: ServerHome) -> None:
    """Make the secret of SuperLink and SuperExec where it is absent or damaged; for a start alone.

    Raises:
        ConfigError: It is open to others.
    """
    if home.superexec_secret.exists():
        check_private(home.superexec_secret)
        if len(home.superexec_secret.read_bytes()) >= 64:
            return
    write_atomic(home.superexec_secret, secrets.token_hex(32).encode(), 0o600)


def issue_certificate(home: ServerHome, hosts: Sequence[str]) -> None:
    """Make a new server key and certificate for ``hosts`` and for loopback.

    Args:
        home: Server home with an authority.
        hosts: DNS names and IP addresses that nodes use to reach the server.

    Raises:
        ServiceError: The authority is absent or its key is open to others, or a host is malformed.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    names = x509.SubjectAlternativeName(certificate_names(hosts))
    purpose = ExtendedKeyUsageOID.SERVER_AUTH
    certificate = _certified(home, "fedlatent server", key.public_key(), purpose, names)
    write_atomic(home.certificate_key, _private_pem(key), 0o600)
    write_atomic(home.certificate, certificate.public_bytes(serialization.Encoding.PEM))


def issue_requests_certificate(home: ServerHome) -> None:
    """Make a new key that signs requests to sites, and its certificate for that alone.

    Raises:
        ServiceError: The authority is absent or its key is open to others.
    """
    key = Ed25519PrivateKey.generate()
    certificate = _certified(home, "fedlatent requests", key.public_key(), REQUESTS_PURPOSE)
    write_atomic(home.requests_key, _private_pem(key), 0o600)
    write_atomic(home.requests_certificate, certificate.public_bytes(serialization.Encoding.PEM))


def issue_client_certificate(home: ServerHome, site: str, public_key: str) -> bytes:
    """Make the certificate with which a site's node passes the gateway's TLS handshake.

    It lasts as long as the authority: whether the site may still join is asked at each request.

    Args:
        home: Server home with an authority.
        site: The site's name, for people.
        public_key: Its node's public key in OpenSSH form, as in ``node.pub``.

    Returns:
        The certificate as PEM text.

    Raises:
        ConfigError: That is no EC key.
        ServiceError: The authority is absent or its key is open to others.
    """
    key = node_public_key(public_key, f"the admission of site {site!r}")
    return _client_pem(home, site, key)


def probe_context(home: ServerHome) -> ssl.SSLContext:
    """TLS with which this server looks whether its own gateway answers.

    Where nodes need a certificate the probes need one too; it is made when there is no sound one.

    Raises:
        ConfigError: There is no server in ``home``.
        ServiceError: The authority is absent or its key is open to others.
    """
    context = ssl.create_default_context(cafile=str(home.ca_certificate))
    if load_settings(home).client_certificates:
        try:
            context.load_cert_chain(home.probe_certificate, home.probe_key)
        except (OSError, ssl.SSLError):  # absent, damaged or half a pair
            key = ec.generate_private_key(ec.SECP384R1())
            write_atomic(home.probe_key, _private_pem(key), 0o600)
            certificate = _client_pem(home, "fedlatent probe", key.public_key())
            write_atomic(home.probe_certificate, certificate)
            context.load_cert_chain(home.probe_certificate, home.probe_key)
    return context


def ensure_certificate(home: ServerHome, hosts: Sequence[str]) -> str:
    """Renew the server certificate when nodes would not take it, or soon not any more.

    That of the key for requests is renewed likewise.

    Returns:
        Why a new server certificate was made, in the words "it ..."; empty when the old one stays.

    Raises:
        ServiceError: As :func:`issue_certificate`, or a private file is open to others.
    """
    check_private(_authority_file(home.ca_key))
    _ensure_requests_certificate(home)
    reason = _unfit(home, hosts)
    if reason:
        issue_certificate(home, hosts)
    return reason


def fingerprint(home: ServerHome) -> str:
    """SHA-256 of the authority's certificate, to compare by telephone: 64 hexadecimal digits.

    Raises:
        ServiceError: The authority is absent or damaged.
    """
    return _authority_certificate(home).fingerprint(hashes.SHA256()).hex()


def _unfit(home: ServerHome, hosts: Sequence[str]) -> str:
    """Why the server certificate must be renewed; empty if it need not."""
    if not (home.certificate.exists() and home.certificate_key.exists()):
        return "it was absent"
    check_private(home.certificate_key)
    try:
        certificate = x509.load_pem_x509_certificate(home.certificate.read_bytes())
        key = serialization.load_pem_private_key(home.certificate_key.read_bytes(), password=None)
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        if key.public_key() != certificate.public_key():
            return "it was of another key"
        certificate.verify_directly_issued_by(_authority_certificate(home))
    except (ValueError, TypeError, x509.ExtensionNotFound, UnsupportedAlgorithm, InvalidSignature):
        return "it was damaged, or of another authority"
    if not set(extension.value) >= set(certificate_names(hosts)):
        return "it lacked a name"
    return "" if _lasts(certificate) else "it did not hold now, or would end soon"


def _ensure_requests_certificate(home: ServerHome) -> None:
    if home.requests_key.exists():
        check_private(home.requests_key)
        try:
            if _lasts(RequestSigner.load(home.requests_key, home.requests_certificate).certificate):
                return
        except ConfigError:
            pass  # half of the pair is absent or of another time; a new one costs nothing
    issue_requests_certificate(home)


def _lasts(certificate: x509.Certificate) -> bool:
    now = datetime.datetime.now(datetime.UTC)
    left = certificate.not_valid_after_utc - now
    return certificate.not_valid_before_utc <= now and left > datetime.timedelta(days=_RENEW_DAYS)


def _client_pem(home: ServerHome, common: str, key: ec.EllipticCurvePublicKey) -> bytes:
    """A certificate for TLS clients that ends with the authority."""
    _, authority = _load_authority(home)
    left = authority.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = _certified(home, common, key, purpose, days=left.days)
    return certificate.public_bytes(serialization.Encoding.PEM)


def _certified(
    home: ServerHome,
    common: str,
    key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    purpose: x509.ObjectIdentifier,
    names: x509.SubjectAlternativeName | None = None,
    days: int = _SERVER_DAYS,
) -> x509.Certificate:
    """A certificate of the authority in ``home`` for one key and one purpose."""
    authority_key, authority = _load_authority(home)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = (
        _builder(_name(common), authority.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(identifier, critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(authority_key, hashes.SHA384())


def _load_authority(
    home: ServerHome,
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    check_private(_authority_file(home.ca_key))
    try:
        key = serialization.load_pem_private_key(home.ca_key.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ServiceError(
            f"Expected the authority's private key in {home.ca_key}, got something else; {_KEEP}."
        )
    return key, _authority_certificate(home)


def _authority_certificate(home: ServerHome) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_authority_file(home.ca_certificate).read_bytes())
    except ValueError:
        raise ServiceError(
            f"Expected the authority's certificate in {home.ca_certificate}, got something else; "
            f"{_KEEP}."
        ) from None


def _authority_file(path: Path) -> Path:
    """See that a file of the authority is there."""
    if not path.exists():
        raise ServiceError(
            f"Expected the authority's {path}, found none; run 'fedlatent server init' for a new "
            f"server, else {_KEEP}."
        )
    return path


def certificate_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    """Names and addresses, and loopback, as a certificate holds them.

    Raises:
        ServiceError: One is malformed.
    """
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys([*hosts, *LOOPBACK]):
        try:
            # an address with a zone, of one machine's interface, is no name in a certificate
            names.append(x509.IPAddress(ipaddress.ip_address(host.replace("%", "/"))))
        except ValueError:
            if not host or not all(c.isalnum() or c in "-." for c in host) or not host.isascii():
                raise ServiceError(
                    f"Expected a DNS name or an IP address as host, got {host!r}; correct it."
                ) from None
            names.append(x509.DNSName(host))
    return names


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
