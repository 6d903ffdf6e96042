"""The certificate with which this node passes the TLS handshake of its server's gateway."""

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fedlatent.client.home import ClientHome
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.files import write_atomic
from fedlatent.shared.keys import node_public_key


def install_certificate(home: ClientHome, pem: bytes) -> None:
    """Put the certificate that the operator made for this node in its place.

    Args:
        home: The node's home.
        pem: The certificate, PEM.

    Raises:
        ConfigError: It is no certificate, not of this node's key, or of another authority than the
            one in ``ca.crt``; or there is no node in ``home``.
    """
    try:
        key = node_public_key(home.node_public_key.read_text(), str(home.node_public_key))
        authority = x509.load_pem_x509_certificate(home.ca_certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Expected a node in {home.root}, got {type(error).__name__} for its key or ca.crt; "
            "run 'fedlatent client init' first."
        ) from None
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise ConfigError(
            "Expected a certificate in PEM, got something else; use the file that the operator "
            "made when admitting this site."
        ) from None
    if certificate.public_key() != key:
        raise ConfigError(
            f"Expected a certificate of the key in {home.node_public_key}, got one of another "
            "key; ask the operator for the file of this site."
        )
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise ConfigError(
            f"Expected a certificate from the authority in {home.ca_certificate}, got one from "
            "another; the operator and this node have different federations in mind."
        ) from None
    write_atomic(home.client_certificate, pem)
