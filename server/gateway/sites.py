"""Who sends a request: the admitted keys, and Flower's signature over the time."""

import base64
import binascii
import datetime
import logging
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from starlette.datastructures import Headers

from fedlatent.server.control import Control, Site, fingerprint_of
from fedlatent.server.gateway.refusal import NotAdmitted, Refused
from fedlatent.server.home import ServerHome
from fedlatent.shared.errors import FedlatentError
from fedlatent.shared.keys import node_public_key

LOG = logging.getLogger("fedlatent.gateway")

_MAX_HEADER = 2048  # characters of a key, a time or a signature


@dataclass(frozen=True, kw_only=True)
class Member:
    """An admitted site as the gateway knows it."""

    name: str
    node: int
    fingerprint: str
    pem: bytes
    key: ec.EllipticCurvePublicKey

    @classmethod
    def of(cls, site: Site) -> "Member":
        """Read the key of an entry of ``sites.json``.

        Raises:
            ConfigError: It holds no EC key.
            ValueError: It holds no node id.
        """
        key = node_public_key(site.public_key, f"the admission of site {site.name!r}")
        pem = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(
            name=site.name,
            node=int(site.node_id),
            fingerprint=fingerprint_of(key),
            pem=pem,
            key=key,
        )

    def __str__(self) -> str:
        """The site's name in the log."""
        return f"site {self.name} (key {self.fingerprint})"


class Members:
    """The admitted sites by key; ``sites.json`` is read again whenever it changes."""

    def __init__(self, home: ServerHome) -> None:
        """Read ``home``'s sites when first asked."""
        self._control = Control(home)
        self._path = home.sites
        self._read: tuple[int, int] | None = None
        self._members: dict[str, Member] = {}

    def sender(self, headers: Headers, endpoint: str) -> Member:
        """The site that signed the head of a request, judged as Flower's SuperLink does.

        Raises:
            Refused: No admitted key, a time outside the window, or a signature that does not hold.
        """
        header = _only(headers, FLEET_HTTP_PUBLIC_KEY_HEADER)
        member = self._current().get(header)
        if member is None:
            fingerprint = key_fingerprint(header)
            raise NotAdmitted(fingerprint, activating=endpoint == "activate-node")
        timestamp = _only(headers, TIMESTAMP_HEADER)
        signature = _only(headers, FLEET_HTTP_SIGNATURE_HEADER)
        if not _in_window(timestamp) or not _signed(member.key, timestamp, signature):
            raise Refused(
                401,
                "the signature with the key of site %s does not hold, or the time in it is too "
                "far from this machine's",
                member.name,
                close=True,
            )
        return member

    def _current(self) -> dict[str, Member]:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return {}
        now = (status.st_mtime_ns, status.st_ino)
        if now != self._read:
            try:
                members = [Member.of(site) for site in self._control.sites()]
            except (FedlatentError, ValueError) as error:
                LOG.error("the sites admitted before stay: %s", error)
            else:
                self._members = {base64.b64encode(one.pem).decode(): one for one in members}
            self._read = now
        return self._members


def key_fingerprint(header: str) -> str:
    """Short name of the public key in Flower's request header, or ``unknown``."""
    try:
        if len(header) > _MAX_HEADER:
            return "unknown"
        key = serialization.load_pem_public_key(base64.b64decode(header, validate=True))
    except (ValueError, UnsupportedAlgorithm):
        return "unknown"
    return fingerprint_of(key) if isinstance(key, ec.EllipticCurvePublicKey) else "unknown"


def _only(headers: Headers, name: str) -> str:
    """The one field of that name; empty where there are several, of which any could count."""
    values = headers.getlist(name)
    return values[0] if len(values) == 1 else ""


def _in_window(timestamp: str) -> bool:
    try:
        signed_at = datetime.datetime.fromisoformat(timestamp[:_MAX_HEADER])
        age = (datetime.datetime.now(datetime.UTC) - signed_at).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return False
    return -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


def _signed(key: ec.EllipticCurvePublicKey, timestamp: str, signature: str) -> bool:
    try:
        raw = base64.b64decode(signature[:_MAX_HEADER], validate=True)
        key.verify(raw, timestamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True
