"""Signed metadata of The Update Framework: read, checked, described, made ready to sign anew."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]
from tuf.api.exceptions import BadVersionNumberError, RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Key,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.keys import VerifyKey

Signed = TypeVar("Signed", Root, Targets, Snapshot, Timestamp)
#: A signed state of a repository beside its root.
Files = tuple[Metadata[Targets], Metadata[Snapshot], Metadata[Timestamp]]
#: In the publisher's own folder: the root that all trust in a repository begins with.
PINNED_ROOT = "root.json"


@dataclass(frozen=True, kw_only=True)
class Expiries:
    """For how many days each role's metadata counts, from when it is signed.

    A device installs nothing when one has passed, and keeps on scoring. The timestamp's is the
    longest time for which an attacker on the way can hide a new version.

    Attributes:
        root: sign again (`Repository.rotate`) within this time.
        targets: publish, or refresh with the targets key, within this time.
        snapshot: refresh with the online key within this time.
        timestamp: as snapshot; 14 days allow a weekly refresh that fails once.
    """

    root: int = 365
    targets: int = 90
    snapshot: int = 14
    timestamp: int = 14

    def check(self) -> None:
        """Refuse numbers of days that make no sense.

        Raises:
            ConfigError: a number below 1 or above 36500.
        """
        for role, days in asdict(self).items():
            if not 1 <= days <= 36_500:
                raise ConfigError(f"Expected 1 to 36500 days for {role}, got {days}; change it.")


@dataclass(frozen=True, kw_only=True)
class RoleStatus:
    """One role's newest metadata.

    Attributes:
        version: rises with each signing.
        expires: UTC text.
        days_left: whole days until then; negative when it has passed.
        keys: `VerifyKey.key_id` of each key of the role.
        threshold: how many of them must sign.
    """

    version: int
    expires: str
    days_left: int
    keys: tuple[str, ...]
    threshold: int


@dataclass(frozen=True, kw_only=True)
class TargetStatus:
    """One bundle of a release.

    Attributes:
        path: name of the target.
        sha256: of its file.
        bytes: of its file.
        custom: what is signed beside it.
    """

    path: str
    sha256: str
    bytes: int
    custom: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RepositoryStatus:
    """What a release folder holds.

    Attributes:
        roles: by TUF's name of the role.
        targets: by model and version.
    """

    roles: Mapping[str, RoleStatus]
    targets: tuple[TargetStatus, ...]


def fits(root: Metadata[Root], files: Files) -> bool:
    """Whether a signed state is valid under ``root`` too."""
    return all(
        root.signed.get_verification_result(one.signed.type, one.signed_bytes, one.signatures)
        for one in files
    )


def verify(roots: Sequence[Metadata[Root]], role: str, metadata: Metadata[Any]) -> None:
    """Check the signatures under one of ``roots``."""
    for root in roots:
        found = root.signed.get_verification_result(
            role, metadata.signed_bytes, metadata.signatures
        )
        if found:
            return
    raise UnsignedMetadataError(f"{role} is not signed by its keys")


def tuf_key(key: VerifyKey) -> SSlibKey:
    """A public key in TUF's form."""
    return SSlibKey.from_crypto(key.key)


def verify_key(key: Key) -> VerifyKey:
    """A key in TUF's form, where an Ed25519 key is 64 hexadecimal digits."""
    raw = bytes.fromhex(str(key.keyval["public"]))
    return VerifyKey(key=Ed25519PublicKey.from_public_bytes(raw))


def check_thresholds(root: Root) -> None:
    """See that each role has as many keys as must sign.

    Raises:
        ConfigError: a role has not.
    """
    for name, role in root.roles.items():
        if not 1 <= role.threshold <= len(role.keyids):
            raise ConfigError(
                f"Expected a threshold of 1 to {len(role.keyids)} for the keys of {name}, got "
                f"{role.threshold}; change it or add keys."
            )


def change_keys(
    root: Root,
    role: str,
    add: Sequence[VerifyKey],
    remove: Sequence[VerifyKey],
    threshold: int | None,
) -> None:
    """Give a role other keys; a threshold of None stays.

    Raises:
        ConfigError: a key to remove is none of the role, or too few are left to sign.
    """
    for key in add:
        root.add_key(tuf_key(key), role)
    for key in remove:
        try:
            root.revoke_key(tuf_key(key).keyid, role)
        except ValueError:
            raise ConfigError(
                f"Expected a key of role {role} to remove, got {key.key_id}; see "
                "'fedlatent release status'."
            ) from None
    if threshold is not None:
        root.roles[role].threshold = threshold
    check_thresholds(root)


def root_name(root: Root) -> str:
    """Name of the file of a root."""
    return f"{root.version}.root.json"


def meta_of(metadata: "Metadata[Signed]") -> MetaFile:
    """Version and hash. No length: a device names what comes instead better by its hash."""
    made = MetaFile.from_data(metadata.signed.version, metadata.to_bytes(), ["sha256"])
    made.length = None
    return made


def next_version(metadata: "Metadata[Signed]") -> "Metadata[Signed]":
    """A copy with the next version number."""
    made = deepcopy(metadata)
    made.signed.version += 1
    return made


def read_metadata(
    path: Path,
    kind: "type[Signed]",
    roots: Sequence[Metadata[Root]] = (),
    meta: MetaFile | None = None,
) -> "Metadata[Signed]":
    """A metadata file, signed under one of ``roots`` if given; ``meta`` says what its hash is."""
    data = path.read_bytes()
    if meta:
        meta.verify_length_and_hashes(data)
    made: Metadata[Signed] = Metadata.from_bytes(data)
    if not isinstance(made.signed, kind):
        raise RepositoryError(f"{path.name} is no {kind.type}")
    if roots:
        verify(roots, kind.type, made)
    return made


def read_roots(metadata: Path, pinned: Path | None) -> list[Metadata[Root]]:
    """The chain of roots from the pinned one, or the first one, each signed by the one before."""
    path = pinned / PINNED_ROOT if pinned else metadata / "1.root.json"
    roots: list[Metadata[Root]] = [read_metadata(path, Root)]
    verify(roots, "root", roots[0])
    while (path := metadata / f"{roots[-1].signed.version + 1}.root.json").exists():
        newer = read_metadata(path, Root, roots[-1:])
        verify([newer], "root", newer)
        if newer.signed.version != roots[-1].signed.version + 1:
            raise BadVersionNumberError(f"{path.name} is of another version")
        roots.append(newer)
    return roots
