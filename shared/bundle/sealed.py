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

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args

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
_CODES: Mapping[SuiteName, int] = {"x25519": 1, "mlkem768-x25519": 2}
_HEADER_BYTES = len(_MAGIC) + 2
#: A sealed file is at most this much longer than what it holds.
MAX_OVERHEAD = 4_096


@dataclass(frozen=True, kw_only=True)
class RecipientPublic:
    """The public half of a recipient key: what a publisher seals to.

    Attributes:
        suite: which HPKE suite it is for.
        parts: public keys, ML-KEM first in the hybrid suite.
    """

    suite: SuiteName
    parts: tuple[Any, ...]

    @classmethod
    def from_pem(cls, data: bytes, origin: str = "the given bytes") -> Self:
        """Read what `to_pem` wrote.

        Raises:
            ConfigError: ``data`` is no public recipient key.
        """
        try:
            parts = tuple(serialization.load_pem_public_key(block) for block in _blocks(data))
        except (ValueError, UnsupportedAlgorithm):
            parts = ()
        suite = _suite_of([type(part).__name__ for part in parts], "PublicKey")
        if suite is None:
            raise ConfigError(
                f"Expected a public recipient key in {origin}, got something else; use the .pub "
                "file that was made beside the recipient key."
            )
        return cls(suite=suite, parts=parts)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a public recipient key file.

        Raises:
            ConfigError: the file is absent or holds something else.
        """
        return cls.from_pem(_read(path), str(path))

    @property
    def key_id(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the suite and the raw public bytes."""
        raw = b"".join(part.public_bytes_raw() for part in self.parts)
        return sha256_hex(self.suite.encode() + b"\0" + raw)[:16]

    def to_pem(self) -> bytes:
        """One PEM block a part."""
        return b"".join(
            part.public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            for part in self.parts
        )


@dataclass(frozen=True, kw_only=True)
class RecipientKey:
    """A device's (or a group's) private key; its representation never shows the key.

    Attributes:
        suite: which HPKE suite it is for.
        parts: private keys, ML-KEM first in the hybrid suite.
    """

    suite: SuiteName
    parts: tuple[Any, ...]

    @classmethod
    def generate(cls, path: Path, suite: SuiteName = "x25519") -> Self:
        """Make a new key: ``path`` (PEM, PKCS8, mode 0600) and ``path`` + ``.pub`` beside it.

        Raises:
            ConfigError: one of the two files exists, or this cryptography has no such suite.
        """
        public_path = path.with_name(path.name + ".pub")
        for one in (path, public_path):
            if one.exists():
                raise ConfigError(
                    f"Expected no file at {one}, got one; a key is never overwritten, so choose "
                    "another path or move the old key away."
                )
        parts: tuple[Any, ...] = (X25519PrivateKey.generate(),)
        if suite == "mlkem768-x25519":
            parts = (_new_mlkem(), *parts)
        made = cls(suite=suite, parts=parts)
        write_atomic(path, made.to_pem(), 0o600)
        write_atomic(public_path, made.public.to_pem(), 0o644)
        return made

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a private recipient key file.

        Raises:
            ConfigError: the file is absent, readable by others, or holds something else.
        """
        data = _read(path)
        check_private(path)
        try:
            parts = tuple(
                serialization.load_pem_private_key(block, password=None) for block in _blocks(data)
            )
        except (ValueError, TypeError, UnsupportedAlgorithm):
            parts = ()
        suite = _suite_of([type(part).__name__ for part in parts], "PrivateKey")
        if suite is None:
            raise ConfigError(
                f"Expected a private recipient key in {path}, got something else; make one with "
                "RecipientKey.generate."
            )
        return cls(suite=suite, parts=parts)

    def __repr__(self) -> str:
        """Suite and public id only."""
        return f"RecipientKey({self.suite}, {self.key_id})"

    @property
    def public(self) -> RecipientPublic:
        """The public half."""
        return RecipientPublic(
            suite=self.suite, parts=tuple(part.public_key() for part in self.parts)
        )

    @property
    def key_id(self) -> str:
        """The public half's ``key_id``."""
        return self.public.key_id

    def to_pem(self) -> bytes:
        """One PEM block a part."""
        return b"".join(
            part.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            for part in self.parts
        )


def bundle_info(model: str, version: int) -> bytes:
    """What a sealed bundle is bound to: the format, the model's name and its version."""
    return f"fedlatent-bundle|{FORMAT_VERSION}|{model}|{version}".encode()


def is_sealed(data: bytes) -> bool:
    """Whether ``data`` starts like a sealed file."""
    return data.startswith(_MAGIC)


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
    key = _hpke_key(recipient.suite, recipient.parts, "Public")
    return header + _suite(recipient.suite).encrypt(data, key, header + info)


def open_sealed(data: bytes, recipient: RecipientKey, info: bytes) -> bytes:
    """Decrypt what `seal` made with the same ``info``.

    Raises:
        BundleError: ``data`` is no sealed file, was sealed to another key or as something else, or
            was changed.
        ConfigError: this cryptography has no HPKE.
    """
    header = _header(recipient.suite)
    if not is_sealed(data) or len(data) < _HEADER_BYTES:
        raise BundleError(
            "Expected a sealed bundle, got something else or a cut file; get it again."
        )
    if data[:_HEADER_BYTES] != header:
        raise BundleError(
            f"Expected a bundle sealed in format {FORMAT_VERSION} for suite {recipient.suite}, got "
            "another format or suite; have it sealed to this device's public key."
        )
    key = _hpke_key(recipient.suite, recipient.parts, "Private")
    try:
        return _suite(recipient.suite).decrypt(data[_HEADER_BYTES:], key, header + info)
    except (InvalidTag, ValueError):
        raise BundleError(
            f"Expected a bundle sealed to key {recipient.key_id} as what it is offered as, got one "
            "sealed to another key, as something else, or changed; have it sealed again."
        ) from None


def _header(suite: SuiteName) -> bytes:
    return _MAGIC + bytes([FORMAT_VERSION, _CODES[suite]])


def _suite(name: SuiteName) -> "Suite":
    try:
        from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

        kem = KEM.X25519 if name == "x25519" else KEM.MLKEM768_X25519
        return Suite(kem, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    except (ImportError, AttributeError, UnsupportedAlgorithm):
        raise ConfigError(
            f"Expected a cryptography package with HPKE suite {name}, got one without; update it."
        ) from None


def _hpke_key(suite: SuiteName, parts: tuple[Any, ...], half: str) -> Any:  # noqa: ANN401
    """The key object that HPKE takes: the X25519 key itself, or both parts of the hybrid."""
    if suite == "x25519":
        return parts[0]
    _suite(suite)  # says in a sentence when HPKE is missing
    from cryptography.hazmat.primitives import hpke

    both = hpke.MLKEM768X25519PublicKey if half == "Public" else hpke.MLKEM768X25519PrivateKey
    return both(*parts)


def _new_mlkem() -> Any:  # noqa: ANN401
    _suite("mlkem768-x25519")
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

    return MLKEM768PrivateKey.generate()


def _suite_of(names: list[str], half: str) -> SuiteName | None:
    """The suite whose keys have these class names."""
    known = {
        (f"X25519{half}",): "x25519",
        (f"MLKEM768{half}", f"X25519{half}"): "mlkem768-x25519",
    }
    return cast(SuiteName | None, known.get(tuple(names)))


def _blocks(data: bytes) -> list[bytes]:
    """The PEM blocks of ``data``; text around them is refused by the parser."""
    end = b"-----END "
    pieces = data.split(end)
    blocks = []
    for number, piece in enumerate(pieces[1:], start=1):
        tail, _, _ = piece.partition(b"\n")
        head = pieces[number - 1]
        begin = head.rfind(b"-----BEGIN ")
        if begin < 0:
            raise ValueError("no PEM")
        blocks.append(head[begin:] + end + tail + b"\n")
    return blocks


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_KEY_BYTES)
    except OSError as error:
        raise ConfigError(
            f"Expected a readable key file at {path}, got {type(error).__name__}; check the path."
        ) from None
