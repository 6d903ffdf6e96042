"""Bundles that only chosen devices can read: sealed to a recipient key by HPKE (RFC 9180).

The release folder, its host and everyone on the way see only ciphertext; whoever is root on the
device can read the model. Anyone who has the public key can seal (HPKE's base mode), so a bundle is
signed first and sealed then, and signed metadata names the sealed file by its digest.

A sealed file is a header of 9 bytes (magic, format version, suite) and HPKE's output. HPKE's info
is the header with the model's name and version: a file opens only as what it was sealed as.
Suites: X25519, or ML-KEM-768 with X25519 (a hybrid that also withstands a later quantum computer),
each with HKDF-SHA256 and AES-256-GCM.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedlatent.shared.errors import BundleError, ConfigError
from fedlatent.shared.files import sha256_hex, write_atomic
from fedlatent.shared.keys import MAX_KEY_BYTES, check_private, public_path

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hpke import Suite

SuiteName = Literal["x25519", "mlkem768-x25519"]

SUITES: tuple[SuiteName, ...] = get_args(SuiteName)
FORMAT_VERSION = 1
#: A sealed file is at most this much longer than what it holds.
MAX_OVERHEAD = 4_096
_MAGIC = b"FEDSEAL"
_PEM = re.compile(rb"-----BEGIN [A-Z ]+-----\s[^-]+-----END [A-Z ]+-----\s")


@dataclass(frozen=True, kw_only=True)
class RecipientPublic:
    """What a publisher seals to.

    Attributes:
        parts: one public key, X25519, or two: ML-KEM-768 and X25519.
    """

    parts: tuple[Any, ...]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a public recipient key file.

        Raises:
            ConfigError: the file is absent or holds something else.
        """
        return cls(parts=_load(path, serialization.load_pem_public_key, "PublicKey"))

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
    """A device's (or a group's) private key; its ``parts`` are as those of `RecipientPublic`."""

    parts: tuple[Any, ...] = field(repr=False)

    @classmethod
    def generate(cls, path: Path, suite: SuiteName = "x25519") -> Self:
        """Make a key: ``path`` (PEM, PKCS8, mode 0600) and ``path`` + ``.pub``, one block a part.

        Raises:
            ConfigError: one of the two files exists, or this cryptography has no such suite.
        """
        beside = public_path(path)
        if path.exists() or beside.exists():
            raise ConfigError(
                f"Expected no file at {path} and {beside}, got one; a key is never "
                "overwritten, so choose another path or move the old key away."
            )
        parts: tuple[Any, ...] = (X25519PrivateKey.generate(),)
        if suite != "x25519":
            _suite(suite)  # says in a sentence when there is none
            from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

            parts = (MLKEM768PrivateKey.generate(), *parts)
        made, pem = cls(parts=parts), serialization.Encoding.PEM
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        private_form, open_text = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        public = [part.public_bytes(pem, form) for part in made.public.parts]
        private = [part.private_bytes(pem, private_form, open_text) for part in parts]
        write_atomic(beside, b"".join(public))
        write_atomic(path, b"".join(private), 0o600)
        return made

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a private recipient key file.

        Raises:
            ConfigError: the file is absent, readable by others, or holds something else.
        """
        parts = _load(path, lambda it: serialization.load_pem_private_key(it, None), "PrivateKey")
        check_private(path)
        return cls(parts=parts)

    @property
    def public(self) -> RecipientPublic:
        """The public half, which may be given away."""
        return RecipientPublic(parts=tuple(part.public_key() for part in self.parts))


def seal(data: bytes, recipient: RecipientPublic, model: str, version: int) -> bytes:
    """Encrypt ``data``, which is signed already, so that only ``recipient`` can read it.

    Raises:
        ConfigError: this cryptography has no HPKE.
    """
    header, suite = _header(recipient.suite), _suite(recipient.suite)
    key = _whole(recipient.parts, "PublicKey")
    return header + suite.encrypt(data, key, _info(header, model, version))


def open_sealed(data: bytes, recipient: RecipientKey, model: str, version: int) -> bytes:
    """Decrypt what `seal` made for the same model and version.

    Raises:
        BundleError: ``data`` is no sealed file, was sealed to another key or as something else, or
            was changed.
        ConfigError: this cryptography has no HPKE.
    """
    public = recipient.public
    header, suite = _header(public.suite), _suite(public.suite)
    if not data.startswith(header):
        raise BundleError(
            f"Expected a bundle sealed in format {FORMAT_VERSION} for suite {public.suite}, got "
            "another or none; have it sealed to this device's key."
        )
    key = _whole(recipient.parts, "PrivateKey")
    try:
        return suite.decrypt(data[len(header) :], key, _info(header, model, version))
    except (InvalidTag, ValueError):
        raise BundleError(
            f"Expected a bundle sealed to key {public.key_id} as version {version} of {model}, got "
            "another or a changed one; have it sealed again."
        ) from None


def _header(suite: SuiteName) -> bytes:
    return _MAGIC + bytes([FORMAT_VERSION, SUITES.index(suite) + 1])


def _info(header: bytes, model: str, version: int) -> bytes:
    return header + f"fedlatent-bundle|{FORMAT_VERSION}|{model}|{version}".encode()


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


def _load(path: Path, read: Callable[[bytes], object], kind: str) -> tuple[Any, ...]:
    """The keys in a PEM file, when they are those of a suite."""
    try:
        with path.open("rb") as stream:
            parts = tuple(map(read, _PEM.findall(stream.read(MAX_KEY_BYTES))))
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        parts = ()
    if [type(part).__name__ for part in parts] not in (
        [f"X25519{kind}"],
        [f"MLKEM768{kind}", f"X25519{kind}"],
    ):
        raise ConfigError(
            f"Expected a recipient's {kind} in {path}, got none; 'provision --new-recipient' makes "
            "a pair, and the publisher gets the .pub file."
        )
    return parts
