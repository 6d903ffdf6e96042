"""Keys: Ed25519 pairs that sign bundles, and the EC pair a node shows to the server.

Private files are mode 0600; loading one that others can read is refused, since it may have been
copied already. Everything here comes from ``cryptography``; nothing is built by hand.
"""

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.files import sha256_hex, write_atomic

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

MAX_KEY_BYTES = 16_384


def sole_certificate(data: bytes) -> "x509.Certificate":
    """The one certificate of a PEM text: TLS would trust all that such a file holds.

    Raises:
        ConfigError: there is none, or more than one.
    """
    from cryptography import x509  # devices, which have keys alone, start faster without it

    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        found = []
    if len(found) != 1:
        raise ConfigError(
            "Expected one certificate, the federation's ca.crt in PEM, got "
            f"{len(found) or 'something else'}; ask the operator for the file tls/ca.crt of the "
            "server, and compare fingerprints."
        )
    return found[0]


@dataclass(frozen=True, kw_only=True)
class VerifyKey:
    """The public half of a signing key: what a device trusts."""

    key: Ed25519PublicKey

    @classmethod
    def from_pem(cls, data: bytes, origin: str = "the given bytes") -> Self:
        """Read a public key in PEM.

        Args:
            data: PEM text (SubjectPublicKeyInfo).
            origin: where it came from, for the error sentence.

        Raises:
            ConfigError: ``data`` is not an Ed25519 public key.
        """
        key = _parsed(lambda: serialization.load_pem_public_key(data))
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError(
                f"Expected an Ed25519 public key in PEM in {origin}, got something else; "
                "use the .pub file that was made beside the signing key."
            )
        return cls(key=key)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a public key file.

        Raises:
            ConfigError: the file is absent or holds something else.
        """
        return cls.from_pem(_read_key_file(path), str(path))

    @property
    def key_id(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the 32 raw public bytes."""
        return sha256_hex(self.key.public_bytes_raw())[:16]

    def to_pem(self) -> bytes:
        """The key as PEM text."""
        return self.key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is this key's signature over exactly ``data``."""
        try:
            self.key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """An Ed25519 private key; its representation never shows the key."""

    key: Ed25519PrivateKey

    @classmethod
    def generate(cls, path: Path) -> Self:
        """Make a new key: ``path`` (PEM, PKCS8, mode 0600) and ``path`` + ``.pub`` beside it.

        Raises:
            ConfigError: one of the two files exists.
        """
        beside = public_path(path)
        _refuse_existing(path, beside)
        made = cls(key=Ed25519PrivateKey.generate())
        private = made.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_atomic(path, private, 0o600)
        write_atomic(beside, made.public.to_pem(), 0o644)
        return made

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a private key file.

        Raises:
            ConfigError: the file is absent, readable by others, or holds something else.
        """
        data = _read_key_file(path)
        check_private(path)
        key = _parsed(lambda: serialization.load_pem_private_key(data, password=None))
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(
                f"Expected an unencrypted Ed25519 private key in PEM in {path}, got something "
                "else; make one with SigningKey.generate."
            )
        return cls(key=key)

    @property
    def public(self) -> VerifyKey:
        """The public half, which verifies what this key signs."""
        return VerifyKey(key=self.key.public_key())

    @property
    def key_id(self) -> str:
        """The public half's ``key_id``."""
        return self.public.key_id

    def sign(self, data: bytes) -> bytes:
        """The 64-byte signature over ``data``."""
        return self.key.sign(data)


def generate_node_key(path: Path, site: str = "") -> Path:
    """Make a node's EC P-384 key in OpenSSH format: ``path`` (mode 0600) and ``path`` + ``.pub``.

    Args:
        path: of the private file.
        site: name of the site, the comment of the public file; empty for none.

    Returns:
        The public file, which the operator registers.

    Raises:
        ConfigError: one of the two files exists.
    """
    beside = public_path(path)
    _refuse_existing(path, beside)
    from cryptography.hazmat.primitives.asymmetric import ec  # devices never need it

    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_atomic(path, private, 0o600)
    write_atomic(beside, f"{public.decode()} {site}".encode().strip() + b"\n", 0o644)
    return beside


def site_of_key(text: str) -> str:
    """The name of the site that a node's public file states; empty where it states none."""
    return " ".join(text.split()[2:])


def name_node_key(path: Path, site: str) -> None:
    """See that the public file of a node's key states the site's name of now.

    Args:
        path: of the private file.
        site: name of the site.

    Raises:
        OSError: the public file cannot be read or written.
    """
    beside = public_path(path)
    text = beside.read_text(encoding="utf-8", errors="replace")
    if site_of_key(text) != site:
        named = " ".join([*text.split()[:2], site])
        write_atomic(beside, f"{named}\n".encode(), 0o644)


def load_node_key(path: Path) -> "ec.EllipticCurvePrivateKey":
    """Read the private file that ``generate_node_key`` made.

    Raises:
        ConfigError: the file is absent, readable by others, or holds something else.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    data = _read_key_file(path)
    check_private(path)
    try:
        key = serialization.load_ssh_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"Expected an unencrypted EC private key in OpenSSH form in {path}, got something "
            "else; restore the key that 'fedlatent client init' made."
        )
    return key


def node_public_key(text: str, origin: str) -> "ec.EllipticCurvePublicKey":
    """Read the public half of a node's key from its OpenSSH text.

    Args:
        text: of one line.
        origin: where it came from, for the error sentence.

    Raises:
        ConfigError: it is no EC key in that form.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(
            f"Expected an EC public key in OpenSSH form in {origin}, got something else; "
            "use the node.pub that 'fedlatent client init' made."
        )
    return key


def check_private(path: Path) -> None:
    """Refuse a private file that anyone but its owner can touch.

    Raises:
        ConfigError: group or others have a permission on it, or it cannot be looked at.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(
            f"Expected a private key at {path}, got none: {error.strerror}; put its copy back."
        ) from None
    if mode & 0o077:
        raise ConfigError(
            f"Expected mode 0600 on private key {path}, got {mode:04o}; run chmod 600 on it, and "
            "replace the key if others may have read it."
        )


def public_path(path: Path) -> Path:
    """Where the public key lies that belongs to a private one."""
    return path.with_name(path.name + ".pub")


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise ConfigError(
                f"Expected no file at {path}, got one; a key is never overwritten, so choose "
                "another path or move the old key away."
            )


def _parsed(load: Callable[[], object]) -> object:
    """What ``load`` makes of PEM; None of what is no key, is encrypted, or of an unknown kind."""
    try:
        return load()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _read_key_file(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"Expected a readable key file at {path}, got {type(error).__name__}; check the path."
        ) from None
    if len(data) > MAX_KEY_BYTES:
        raise ConfigError(
            f"Expected a key file of at most {MAX_KEY_BYTES} bytes at {path}, got a larger one; "
            "check the path."
        )
    return data
