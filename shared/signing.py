"""Signatures of requests and replies, from end to end: what carries them need not be trusted.

A request's signature covers all of its header but itself, and the digest of the arrays; a reply's
covers the very bytes that the site's release door packed and logged. Requests are signed
with an Ed25519 key whose certificate the federation's authority issued for this purpose alone; the
sites have pinned that authority, so the key can be made anew without touching any of them. Each
request names its one receiver and when it expires. Replies are signed with the key that the site
was admitted with, and name the request that they answer.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedlatent.shared.errors import ConfigError, SignatureError
from fedlatent.shared.files import canonical_json, sha256_hex
from fedlatent.shared.keys import SigningKey, load_node_key
from fedlatent.shared.wire import Delivery, RequestHeader

#: What a certificate must be for, besides all else, for its key to sign requests: a name of our
#: own among the extended key usages, which no certificate of TLS has.
REQUESTS_PURPOSE = x509.ObjectIdentifier("2.25.126872010996160221863015822530417981453")
#: Seconds by which the clocks of server and site may differ.
CLOCK_SLACK_S = 300.0

_REQUEST_DOMAIN = b"fedlatent request 4\0"
_REPLY_DOMAIN = b"fedlatent reply 5\0"
_REPLY_ALGORITHM = ec.ECDSA(hashes.SHA384())


def digest_of(arrays: Mapping[str, np.ndarray]) -> bytes:
    """SHA-256 of named arrays, whatever their order: names, types, shapes and bytes.

    A single number is taken for an array of one, as ``fedlatent.shared.wire.pack`` has it.
    """
    digest = hashes.Hash(hashes.SHA256())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        kind = canonical_json([name, array.dtype.str, array.shape])
        for part in (kind, array.reshape(-1).view(np.uint8).data):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.finalize()


def request_name(header: RequestHeader, digest: bytes) -> str:
    """The name of exactly this request, signature included: 64 hexadecimal digits.

    Args:
        header: as it was sent.
        digest: of its arrays, see ``digest_of``.
    """
    return sha256_hex(_signed_part(header, digest) + header.signature.encode())


@dataclass(frozen=True, kw_only=True)
class RequestSigner:
    """Signs what the server asks.

    Attributes:
        key: private.
        certificate: of its public half, from the federation's authority.
    """

    key: SigningKey
    certificate: x509.Certificate

    @classmethod
    def load(cls, key: Path, certificate: Path) -> Self:
        """Read both files.

        Raises:
            ConfigError: a file is absent, open to others, or holds something else, or they are no
                pair.
        """
        signer = cls(key=SigningKey.load(key), certificate=_read_certificate(certificate))
        if signer.certificate.public_key() != signer.key.public.key:
            raise ConfigError(
                f"Expected the certificate of {key} in {certificate}, got that of another key; "
                "delete both and start the server again, which makes new ones."
            )
        return signer

    def sign(
        self, header: RequestHeader, digest: bytes, receiver: str, expires: float
    ) -> RequestHeader:
        """The header as it is sent to one site.

        Args:
            header: of a phase, for any site.
            digest: of the request's arrays, see ``digest_of``.
            receiver: the site's name.
            expires: seconds since 1970 after which no site takes it.
        """
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        stated = header.model_copy(
            update={"receiver": receiver, "expires": float(expires), "certificate": _text(der)}
        )
        signature = self.key.sign(_signed_part(stated, digest))
        return stated.model_copy(update={"signature": _text(signature)})


def check_request(
    header: RequestHeader, digest: bytes, authority: x509.Certificate, site: str, now: float
) -> None:
    """Pass only what the federation's server asks of this very site, now and unchanged.

    Args:
        header: as it came.
        digest: of the arrays that came, see ``digest_of``.
        authority: that this site has pinned.
        site: this site's name.
        now: seconds since 1970.

    Raises:
        SignatureError: naming the first thing that does not hold.
    """
    if not header.signature or not header.certificate:
        raise SignatureError(
            "unsigned",
            "Expected a request that the federation's server signed, got one without a signature; "
            "it is from somebody else, or the server must be updated.",
        )
    key = _certified_key(header.certificate, authority, now)
    if header.receiver != site:
        raise SignatureError(
            "receiver",
            f"Expected a request to site {site!r}, got one to {header.receiver!r}; if that is this "
            "site, the operator must admit it by the name in its node.toml.",
        )
    if now > header.expires + CLOCK_SLACK_S:
        raise SignatureError(
            "expired",
            f"Expected a request that still holds, got one that expired "
            f"{now - header.expires:.0f} s ago; set the clocks of server and site, or ask anew.",
        )
    try:
        key.verify(_bytes(header.signature), _signed_part(header, digest))
    except (InvalidSignature, ValueError):
        raise SignatureError(
            "altered",
            "Expected a request as the federation's server signed it, got one that its signature "
            "does not fit; it was changed on its way.",
        ) from None


@dataclass(frozen=True, kw_only=True)
class ReplySigner:
    """Signs what a site answers.

    Attributes:
        key: the private key that the site was admitted with.
    """

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the key file; errors as for ``fedlatent.shared.keys.load_node_key``."""
        return cls(key=load_node_key(path))

    def sign(self, payload: bytes, request: str) -> Delivery:
        """What a packed reply is sent with, as the answer to the request of that name."""
        stated = Delivery(request=request)
        part = _signed_part(stated, bytes.fromhex(sha256_hex(payload)))
        return stated.model_copy(update={"signature": _text(self.key.sign(part, _REPLY_ALGORITHM))})


def check_reply(
    delivery: Delivery, sha256: str, key: ec.EllipticCurvePublicKey, request: str
) -> str | None:
    """Why a reply is not that of one site to one request, in a sentence; None when it is.

    Args:
        delivery: as it came.
        sha256: of the packed reply that came with it, in hexadecimal.
        key: that the site was admitted with.
        request: name of the request, see ``request_name``.
    """
    if not delivery.signature:
        return (
            "Expected a reply signed with the site's key, got one without a signature; "
            "another process answered for the node, or the node must be updated."
        )
    if delivery.request != request:
        return (
            "Expected a reply to the request that was sent, got one that names another; "
            "an old reply was sent again, or the request was changed on its way."
        )
    try:
        part = _signed_part(delivery, bytes.fromhex(sha256))
        key.verify(_bytes(delivery.signature), part, _REPLY_ALGORITHM)
    except (InvalidSignature, ValueError):
        return (
            "Expected a reply signed with the key that the site was admitted with, got one that "
            "this key did not sign so; it is from somebody else or was changed on its way."
        )
    return None


def _signed_part(header: RequestHeader | Delivery, digest: bytes) -> bytes:
    """The bytes that a signature is over: which kind, the header without signature, the rest.

    Args:
        header: of a request, or what a reply is delivered with.
        digest: SHA-256 of a request's arrays, or of the whole packed reply.
    """
    domain = _REQUEST_DOMAIN if isinstance(header, RequestHeader) else _REPLY_DOMAIN
    text = canonical_json(header.model_dump(mode="json", exclude={"signature"}))
    return domain + digest + text


def _certified_key(text: str, authority: x509.Certificate, now: float) -> Ed25519PublicKey:
    """The key of a certificate that the authority issued for requests and that is valid now."""
    try:
        certificate = x509.load_der_x509_certificate(_bytes(text))
        certificate.verify_directly_issued_by(authority)
        key = certificate.public_key()
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except Exception:  # of many kinds, since anybody may have written the certificate
        purposes = None
    if purposes is None or list(purposes) != [REQUESTS_PURPOSE]:
        raise SignatureError(
            "certificate",
            "Expected a certificate for requests from the authority in this site's ca.crt, got "
            "another; it is from somebody else, or the site has another federation's ca.crt.",
        )
    starts = certificate.not_valid_before_utc.timestamp() - CLOCK_SLACK_S
    ends = certificate.not_valid_after_utc.timestamp() + CLOCK_SLACK_S
    if not starts <= now <= ends or not isinstance(key, Ed25519PublicKey):
        raise SignatureError(
            "certificate",
            "Expected a certificate for requests that is valid now, got one that is not; set this "
            "site's clock, or have the operator restart the server to renew it.",
        )
    return key


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise ConfigError(
            f"Expected a certificate in PEM in {path}, got none; restore the file."
        ) from None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    """The bytes of base64 text, which has one form alone.

    Raises:
        ValueError: it is not what ``_text`` gives.
    """
    data = base64.b64decode(text, validate=True)
    if _text(data) != text:
        raise ValueError("Expected base64 in its one form, got another.")
    return data
