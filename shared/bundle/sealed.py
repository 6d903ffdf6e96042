"""Bundles that only chosen devices can read: sealed to a recipient key by HPKE (RFC 9180).

What sealing gives: the release folder, its host and everyone on the way see only ciphertext.
What it does not give:

- HPKE's base mode does **not** say who sealed: anyone who has the public key can seal. So a bundle
  is signed first and sealed then, and the sealed file is named by its digest in signed metadata.
- Whoever is root on the device can read the model, since the device must open it to score.

A sealed file is a header of 9 bytes (magic, format version, suite) and HPKE's output. The header
and ``info`` (which names the model and its version) are bound: a file opens only as what it was
sealed as. Suites: X25519, or ML-KEM-768 with X25519 (a hybrid that also withstands a later quantum
computer), each with HKDF-SHA256 and AES-256-GCM.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shared.errors import BundleError, ConfigError
from shared.files import sha256_hex, write_atomic
from shared.keys import MAX_KEY_BYTES, check_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hpke import Suite

SuiteName = Literal["x25519", "mlkem768-x25519"]

SUITES: tuple[SuiteName, ...] = get_args(SuiteName)
FORMAT_VERSION = 1
_MAGIC = b"FEDSEAL"
_HEADER_BYTES = len(_MAGIC) + 2
#: A sealed file is at most this much longer than what it holds.
MAX_OVERHEAD = 4_096
_PEM = re.compile(rb"-----BEGIN [A-Z ]+-----\s[^-]+-----END [A-Z ]+-----\s")


@dataclass(frozen=True, kw_only=True)
class RecipientPublic:
    """The public half of a recipient key: what a publisher seals to.

    Attributes:
        parts: one key, X25519, or two: ML-KEM-768 and X25519.
    """

    parts: tuple[Any, ...]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a public recipient key file, as `RecipientKey.save` wrote it.

        Raises:
            ConfigError: the file is absent or holds something else.
        """
        return cls(parts=_load(path, serialization.load_pem_public_key, "public", "PublicKey"))

    @property
    def suite(self) -> SuiteName:
        """The HPKE suite that it is for."""
        return SUITES[len(self.parts) - 1]

    @property
    def key_id(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the suite and the raw public bytes."""
        raw = b"".join(part.public_bytes_raw() for part in self.parts)
        return sha256_hex(self.suite.encode() + b"\0" + raw)[:16]


@dataclass(frozen=True, kw_only=True)
class RecipientKey:
    """A device's (or a group's) private key; its representation never shows the key.

    Attributes:
        parts: as of `RecipientPublic`.
    """

    parts: tuple[Any, ...]

    @classmethod
    def generate(cls, path: Path, suite: SuiteName = "x25519") -> Self:
        """Make a new key and save it.

        Raises:
            ConfigError: one of the two files exists, or this cryptography has no such suite.
        """
        if path.exists() or _public_path(path).exists():
            raise ConfigError(
                f"Expected no file at {path} and {path}.pub, got one; a key is never overwritten, "
                "so choose another path or move the old key away."
            )
        parts: tuple[Any, ...] = (X25519PrivateKey.generate(),)
        if suite != "x25519":
            _suite(suite)  # says in a sentence when there is none
            from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

            parts = (MLKEM768PrivateKey.generate(), *parts)
        made = cls(parts=parts)
        made.save(path)
        return made

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a private recipient key file.

        Raises:
            ConfigError: the file is absent, readable by others, or holds something else.
        """

        def read(block: bytes) -> object:
            return serialization.load_pem_private_key(block, password=None)

        parts = _load(path, read, "private", "PrivateKey")
        check_private(path)
        return cls(parts=parts)

    def save(self, path: Path) -> None:
        """Write ``path`` (PEM, PKCS8, mode 0600) and ``path`` + ``.pub``, one block a part."""
        private = [
            part.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            for part in self.parts
        ]
        public = [
            part.public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            for part in self.public.parts
        ]
        write_atomic(path, b"".join(private), 0o600)
        write_atomic(_public_path(path), b"".join(public))

    def __repr__(self) -> str:
        """Suite and public id only."""
        return f"RecipientKey({self.public.suite}, {self.public.key_id})"

    @property
    def public(self) -> RecipientPublic:
        """The public half."""
        return RecipientPublic(parts=tuple(part.public_key() for part in self.parts))


def bundle_info(model: str, version: int) -> bytes:
    """What a sealed bundle is bound to: the format, the model's name and its version."""
    return f"fedlatent-bundle|{FORMAT_VERSION}|{model}|{version}".encode()


def seal(data: bytes, recipient: RecipientPublic, info: bytes) -> bytes:
    """Encrypt ``data`` so that only the holder of the private key can read it.

    This does not say who sealed it: sign ``data`` first.

    Args:
        data: what to hide, such as a signed bundle.
        recipient: public key of a device or a group.
        info: what it is, such as `bundle_info`; needed again to open.

    Raises:
        ConfigError: this cryptography has no HPKE.
    """
    header = _header(recipient.suite)
    suite = _suite(recipient.suite)
    return header + suite.encrypt(data, _whole(recipient.parts, "PublicKey"), header + info)


def open_sealed(data: bytes, recipient: RecipientKey, info: bytes) -> bytes:
    """Decrypt what `seal` made with the same ``info``.

    Raises:
        BundleError: ``data`` is no sealed file, was sealed to another key or as something else, or
            was changed.
        ConfigError: this cryptography has no HPKE.
    """
    public = recipient.public
    header = _header(public.suite)
    if data[:_HEADER_BYTES] != header:
        raise BundleError(
            f"Expected a bundle sealed in format {FORMAT_VERSION} for suite {public.suite}, got "
            "another format or suite or no sealed bundle; have it sealed to this device's key."
        )
    suite, key = _suite(public.suite), _whole(recipient.parts, "PrivateKey")
    try:
        return suite.decrypt(data[_HEADER_BYTES:], key, header + info)
    except (InvalidTag, ValueError):
        raise BundleError(
            f"Expected a bundle sealed to key {public.key_id} as what it is offered as, got one "
            "sealed to another key, as something else, or changed; have it sealed again."
        ) from None


def _header(suite: SuiteName) -> bytes:
    return _MAGIC + bytes([FORMAT_VERSION, SUITES.index(suite) + 1])


def _suite(name: SuiteName) -> "Suite":
    try:
        from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

        kem = KEM.X25519 if name == "x25519" else KEM.MLKEM768_X25519
        return Suite(kem, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    except (ImportError, AttributeError, UnsupportedAlgorithm):
        raise ConfigError(
            f"Expected a cryptography package with HPKE suite {name}, got one without; update it."
        ) from None


def _whole(parts: tuple[Any, ...], kind: str) -> Any:  # noqa: ANN401
    """The key object that HPKE takes: the X25519 key itself, or both parts as one."""
    from cryptography.hazmat.primitives import hpke

    return parts[0] if len(parts) == 1 else getattr(hpke, f"MLKEM768X25519{kind}")(*parts)


def _load(path: Path, read: Callable[[bytes], object], half: str, kind: str) -> tuple[Any, ...]:
    """The keys in a PEM file, when they are those of a suite."""
    try:
        with path.open("rb") as stream:
            blocks = _PEM.findall(stream.read(MAX_KEY_BYTES))
    except OSError as error:
        raise ConfigError(
            f"Expected a readable key file at {path}, got {type(error).__name__}; check the path."
        ) from None
    try:
        parts = tuple(map(read, blocks))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        parts = ()
    names = [type(part).__name__.removesuffix(kind) for part in parts]
    if names not in (["X25519"], ["MLKEM768", "X25519"]):
        raise ConfigError(
            f"Expected a {half} recipient key in {path}, got something else; 'provision "
            "--new-recipient' makes a pair."
        )
    return parts


def _public_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.pub")
