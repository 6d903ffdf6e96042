"""TLS from a node to its server: whom it trusts, and the certificate that it shows."""

import ssl
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from fedlatent.client.home import ClientHome
from fedlatent.shared.errors import ServiceError
from fedlatent.shared.files import write_atomic
from fedlatent.shared.keys import load_node_key

Identity = tuple[Path, Path]
"""A certificate and its private key, both PEM files."""


def identity_of(home: ClientHome) -> Identity | None:
    """This node's certificate and key; None where the operator has issued no certificate.

    The node's key is written once more in the form that TLS takes, mode 0600.

    Raises:
        ConfigError: Others can read the key, or it is none.
    """
    if not home.client_certificate.exists():
        return None
    pem = load_node_key(home.node_key).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    if not home.node_key_pem.exists() or home.node_key_pem.read_bytes() != pem:
        write_atomic(home.node_key_pem, pem, 0o600)
    return home.client_certificate, home.node_key_pem


def context_for(ca_certificate: Path, identity: Identity | None = None) -> ssl.SSLContext:
    """Trust one authority alone, and show a certificate where there is one.

    Args:
        ca_certificate: PEM file of the federation's authority.
        identity: This node's certificate and key.

    Raises:
        ServiceError: A file does not hold what it must.
    """
    try:
        context = ssl.create_default_context(cafile=str(ca_certificate))
    except (OSError, ssl.SSLError):
        raise ServiceError(
            f"Expected the federation's certificate in {ca_certificate}, got none; "
            "copy the server's tls/ca.crt there."
        ) from None
    if identity is not None:
        certificate, key = identity
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError):
            raise ServiceError(
                f"Expected a certificate of this node's key in {certificate}, got something else; "
                "ask the operator for the one that belongs to this site."
            ) from None
    return context
