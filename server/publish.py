"""Release folders: bundles under signed metadata, for any static web server or a USB stick.

A release folder is a TUF repository (The Update Framework, theupdateframework.github.io). Four
roles sign it: **root** names all keys (kept offline), **targets** says which bundles exist and who
gets them, **snapshot** and **timestamp** (one online key) say which metadata is the newest::

    metadata/1.root.json, 2.root.json, ...    every root stays, so old devices can follow
    metadata/N.targets.json, N.snapshot.json
    metadata/timestamp.json                   the one file that changes; always written last
    targets/SHA256.NAME-VERSION.fedlatent     the bundles

A target is one bundle file. Its signed ``custom`` holds no floats and says what a device must know
before it downloads; `describe` makes it. A withdrawn bundle keeps its entry, marked, so that its
version is never used again and devices can tell a withdrawal from a rollback attack.

A crash at any step leaves the old release valid, since nothing refers to the new files until
``timestamp.json`` is replaced.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Key,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from shared.bundle.archive import parse_bundle
from shared.bundle.manifest import Manifest
from shared.bundle.sealed import RecipientPublic, bundle_info, seal
from shared.errors import BundleError, ConfigError, DataError
from shared.files import sync_folder, write_atomic
from shared.keys import SigningKey, VerifyKey

Role = Literal["root", "targets", "online"]

#: What `Release.rotate` takes; "online" is snapshot and timestamp together.
ROLES: tuple[Role, ...] = get_args(Role)
#: Of ``custom``; devices ignore targets of another format.
CUSTOM_FORMAT = 1
MAX_NAMES = 256
_DAYS = "x-fedlatent-days"
_KEPT = 5  # old versions of targets and snapshot that stay for devices in the middle of an update
_METADATA, _TARGETS = "metadata", "targets"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

Signed = TypeVar("Signed", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, kw_only=True)
class Expiries:
    """For how many days each role's metadata counts, from when it is signed.

    A device installs nothing when one has passed, and keeps on scoring. The timestamp's is the
    longest time for which an attacker on the way can hide a new version.

    Attributes:
        root: sign again (`Release.rotate`) within this time.
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
class Rollout:
    """Which devices may install a version: any of the three is enough.

    Attributes:
        percent: of all devices, by a hash of model, version and device; raising it only adds.
        cohorts: names of groups; a device knows its own.
        devices: ids of single devices.
    """

    percent: int = 100
    cohorts: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what devices would refuse.

        Raises:
            ConfigError: a percentage outside 0 to 100, or a name that is none.
        """
        if isinstance(self.percent, bool) or not 0 <= self.percent <= 100:
            raise ConfigError(f"Expected a rollout of 0 to 100 percent, got {self.percent}.")
        for names in (self.cohorts, self.devices):
            if len(names) > MAX_NAMES or not all(_WORD.fullmatch(name) for name in names):
                raise ConfigError(
                    f"Expected at most {MAX_NAMES} names of letters, digits, '.', '_' and '-' in a "
                    "rollout, got others; correct them."
                )


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
class ReleaseStatus:
    """What a release folder holds.

    Attributes:
        roles: by TUF's name of the role.
        targets: by model and version.
    """

    roles: Mapping[str, RoleStatus]
    targets: tuple[TargetStatus, ...]


def describe(
    manifest: Manifest,
    key: VerifyKey,
    rollout: Rollout,
    *,
    recipient: str | None = None,
    downgrade_from: int | None = None,
) -> dict[str, Any]:
    """The signed ``custom`` of a target.

    Args:
        manifest: of the bundle.
        key: that signed the bundle.
        rollout: who may install it.
        recipient: id of the key that the bundle is sealed to; None when it is not sealed.
        downgrade_from: devices that have confirmed a version up to this one may go down to this
            bundle; None for the normal case, up only.
    """
    return {
        "format": CUSTOM_FORMAT,
        "model": manifest.name,
        "version": manifest.version,
        "kind": manifest.kind,
        "expires": manifest.expires,
        "key": key.key.public_bytes_raw().hex(),
        "rollout": _rollout(rollout),
        "downgrade_from": downgrade_from,
        "recipient": recipient,
        "status": "offered",
    }


class Release:
    """A release folder that is open for changes; each change is one new signed state of it."""

    def __init__(
        self,
        folder: Path,
        root: Metadata[Root],
        targets: Metadata[Targets],
        snapshot: Metadata[Snapshot],
        timestamp: Metadata[Timestamp],
    ) -> None:
        """Use `create` or `open`."""
        self.folder = folder
        self._root, self._targets = root, targets
        self._snapshot, self._timestamp = snapshot, timestamp

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        root_keys: Sequence[SigningKey],
        root_threshold: int,
        targets_keys: Sequence[SigningKey],
        online_key: SigningKey,
        targets_threshold: int = 1,
        expiries: Expiries | None = None,
        now: datetime | None = None,
    ) -> Self:
        """Make an empty release in ``folder``.

        Args:
            folder: made when absent; must hold no release.
            root_keys: name all other keys; keep them offline.
            root_threshold: how many of them must sign a new root.
            targets_keys: sign what is released.
            online_key: signs snapshot and timestamp.
            targets_threshold: how many targets keys must sign.
            expiries: lifetimes of the metadata.
            now: the time of signing; None for the present.

        Raises:
            ConfigError: a release is there, or thresholds and keys do not fit.
        """
        times = expiries or Expiries()
        times.check()
        if (folder / _METADATA).exists():
            raise ConfigError(
                f"Expected no release in {folder}, got one; open it or choose another folder."
            )
        root = Root(consistent_snapshot=True, unrecognized_fields={_DAYS: asdict(times)})
        groups = {"root": root_keys, "targets": targets_keys}
        for role, keys in {**groups, "snapshot": [online_key], "timestamp": [online_key]}.items():
            for key in keys:
                root.add_key(_tuf_key(key.public), role)
        root.roles["root"].threshold = root_threshold
        root.roles["targets"].threshold = targets_threshold
        _check_thresholds(root)
        made = cls(
            folder,
            Metadata(root),
            Metadata(Targets(version=1)),
            Metadata(Snapshot(version=1)),
            Metadata(Timestamp(version=1)),
        )
        keys = [*root_keys, *targets_keys, online_key]
        moment = now or datetime.now(UTC)
        made._sign(made._root, "root", keys, moment)
        for name in (_METADATA, _TARGETS):
            (folder / name).mkdir(parents=True, exist_ok=True)
        sync_folder(folder)
        made._write(_root_name(made._root.signed), made._root.to_bytes())
        made._commit(made._targets, keys, moment)
        return made

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a release and check its signatures and versions, though not its expiries.

        Raises:
            DataError: there is none, or its files do not fit each other.
        """
        metadata = folder / _METADATA
        try:
            root = _newest_root(metadata)
            timestamp = _load(metadata / "timestamp.json", Timestamp)
            _verify(root, "timestamp", timestamp)
            meta = timestamp.signed.snapshot_meta
            data = (metadata / f"{meta.version}.snapshot.json").read_bytes()
            meta.verify_length_and_hashes(data)
            snapshot = Metadata[Snapshot].from_bytes(data)
            _verify(root, "snapshot", snapshot)
            meta = snapshot.signed.meta["targets.json"]
            data = (metadata / f"{meta.version}.targets.json").read_bytes()
            meta.verify_length_and_hashes(data)
            targets = Metadata[Targets].from_bytes(data)
            _verify(root, "targets", targets)
        except FileNotFoundError as error:
            name = Path(error.filename).name
            raise DataError(
                f"Expected a release in {folder}, got none or a part of one ({name} is missing); "
                "make one with 'fedlatent release init'."
            ) from None
        except (RepositoryError, KeyError) as error:
            raise DataError(
                f"Expected release metadata in {folder} that fits and is signed by its own keys, "
                f"got {type(error).__name__}; restore the folder from a copy, or finish an "
                "interrupted rotation with Release.repair."
            ) from None
        return cls(folder, root, targets, snapshot, timestamp)

    @classmethod
    def repair(
        cls, folder: Path, keys: Sequence[SigningKey], *, now: datetime | None = None
    ) -> Self:
        """Sign everything again under the newest root.

        Only a rotation without the old keys that was interrupted needs this: its new root was
        written, and the rest is not yet signed by the new keys.

        Args:
            folder: of the release.
            keys: targets and online keys of the newest root.
            now: the time of signing; None for the present.

        Raises:
            DataError: the folder holds no release.
            ConfigError: the keys are too few.
        """
        metadata = folder / _METADATA
        try:
            root = _newest_root(metadata)
            timestamp = _load(metadata / "timestamp.json", Timestamp)
            version = timestamp.signed.snapshot_meta.version
            snapshot = _load(metadata / f"{version}.snapshot.json", Snapshot)
            version = snapshot.signed.meta["targets.json"].version
            targets = _load(metadata / f"{version}.targets.json", Targets)
        except (OSError, RepositoryError, KeyError):
            raise DataError(
                f"Expected a release in {folder}, got none or a damaged one; restore it."
            ) from None
        made = cls(folder, root, targets, snapshot, timestamp)
        made._commit(_next(targets), keys, now or datetime.now(UTC))
        return made

    @property
    def root_path(self) -> Path:
        """The newest root, which new devices are provisioned with."""
        return self.folder / _METADATA / _root_name(self._root.signed)

    @property
    def expiries(self) -> Expiries:
        """The lifetimes that new metadata gets."""
        return Expiries(**self._root.signed.unrecognized_fields.get(_DAYS, {}))

    def keys_of(self, role: Role) -> tuple[VerifyKey, ...]:
        """The public keys of a role."""
        root = self._root.signed
        name = "timestamp" if role == "online" else role
        return tuple(_verify_key(root.keys[keyid]) for keyid in root.roles[name].keyids)

    def publish(
        self,
        bundle: Path,
        key: VerifyKey,
        *,
        targets_keys: Sequence[SigningKey],
        online_key: SigningKey,
        rollout: Rollout | None = None,
        recipient: RecipientPublic | None = None,
        downgrade_from: int | None = None,
        now: datetime | None = None,
    ) -> TargetStatus:
        """Add a bundle.

        Args:
            bundle: the file, signed by ``key``.
            key: the publisher's public key; devices trust it for this bundle alone.
            targets_keys: at least the role's threshold of them.
            online_key: signs snapshot and timestamp.
            rollout: who gets it; None for all devices.
            recipient: seal it to this key, so that only its holders can read it; the same version
                may be sealed to several.
            downgrade_from: see `describe`.
            now: the time of signing; None for the present.

        Raises:
            BundleError: the bundle is damaged, or signed by another key.
            ConfigError: this version was published before, it has expired, or keys are missing.
        """
        moment = now or datetime.now(UTC)
        wanted = rollout or Rollout()
        wanted.check()
        plain = _read(bundle)
        manifest = parse_bundle(plain, [key], str(bundle)).manifest
        _check_new(manifest, moment, downgrade_from)
        data, path = plain, f"{manifest.name}-{manifest.version}.fedlatent"
        if recipient is not None:
            data = seal(plain, recipient, bundle_info(manifest.name, manifest.version))
            path = f"{manifest.name}-{manifest.version}-{recipient.key_id}.fedlatent"
        targets = _next(self._targets)
        if path in targets.signed.targets:
            raise ConfigError(
                f"Expected a version of {manifest.name} that was never published, got "
                f"{manifest.version}; versions are not used twice, so export it under a new one."
            )
        target = TargetFile.from_data(path, data, ["sha256"])
        target.unrecognized_fields["custom"] = describe(
            manifest,
            key,
            wanted,
            recipient=recipient.key_id if recipient else None,
            downgrade_from=downgrade_from,
        )
        targets.signed.targets[path] = target
        self._check_signers(targets, "targets", targets_keys, moment)
        write_atomic(self.folder / _TARGETS / _prefixed(target), data)
        self._commit(targets, [*targets_keys, online_key], moment)
        return _target_status(target)

    def set_rollout(
        self,
        model: str,
        version: int,
        rollout: Rollout,
        *,
        targets_keys: Sequence[SigningKey],
        online_key: SigningKey,
        downgrade_from: int | None = None,
        now: datetime | None = None,
    ) -> None:
        """Change who may install a version. Devices that have it keep it.

        Raises:
            ConfigError: there is no such version, it is withdrawn, or keys are missing.
        """
        rollout.check()
        targets = _next(self._targets)
        for target in _matching(targets.signed, model, version):
            if target.custom["status"] == "withdrawn":
                raise ConfigError(
                    f"Expected a version of {model} that is offered, got {version}, which is "
                    "withdrawn; publish a new version."
                )
            target.custom["rollout"] = _rollout(rollout)
            if downgrade_from is not None:
                _check_downgrade(version, downgrade_from)
                target.custom["downgrade_from"] = downgrade_from
        self._commit(targets, [*targets_keys, online_key], now or datetime.now(UTC))

    def withdraw(
        self,
        model: str,
        version: int,
        *,
        targets_keys: Sequence[SigningKey],
        online_key: SigningKey,
        now: datetime | None = None,
    ) -> None:
        """Offer a version no longer, for good. Devices that run it keep it and say so.

        To bring them back to an older one as well, offer that with ``downgrade_from``.

        Raises:
            ConfigError: there is no such version, or keys are missing.
        """
        targets = _next(self._targets)
        found = _matching(targets.signed, model, version)
        for target in found:
            target.custom["status"] = "withdrawn"
        self._commit(targets, [*targets_keys, online_key], now or datetime.now(UTC))
        for target in found:  # after the commit: until then devices may ask for it
            (self.folder / _TARGETS / _prefixed(target)).unlink(missing_ok=True)

    def refresh(
        self,
        online_key: SigningKey,
        *,
        targets_keys: Sequence[SigningKey] = (),
        now: datetime | None = None,
    ) -> None:
        """Sign snapshot and timestamp again, so that devices see that nothing is hidden from them.

        Args:
            online_key: signs both.
            targets_keys: when given, targets is signed again too, for another period.
            now: the time of signing; None for the present.

        Raises:
            ConfigError: a key is not of its role.
        """
        targets = _next(self._targets) if targets_keys else self._targets
        self._commit(targets, [*targets_keys, online_key], now or datetime.now(UTC))

    def rotate(
        self,
        role: Role,
        *,
        keys: Sequence[SigningKey],
        add: Sequence[VerifyKey] = (),
        remove: Sequence[VerifyKey] = (),
        threshold: int | None = None,
        now: datetime | None = None,
    ) -> int:
        """Make a new root that gives ``role`` other keys; without changes it renews the root.

        The new root is signed by the threshold of the old root keys and by that of the new ones.
        When the old keys of ``role`` are among ``keys``, the rest is signed by old and new ones
        first, so that a crash at any step leaves a valid release. Without them (they are lost, or
        stolen) the root comes first; after a crash between the two, call `repair`.

        Args:
            role: whose keys change.
            keys: all private keys at hand: root keys, and old and new ones of ``role`` and of the
                online role.
            add: public keys that ``role`` gets.
            remove: public keys that ``role`` loses.
            threshold: of ``role``; None leaves it.
            now: the time of signing; None for the present.

        Returns:
            The version of the new root.

        Raises:
            ConfigError: unknown keys, a threshold that cannot be met, or too few signatures.
        """
        moment = now or datetime.now(UTC)
        old, new = self._root, _next(self._root)
        for name in ("snapshot", "timestamp") if role == "online" else (role,):
            _change_keys(new.signed, name, add, remove, threshold)
        self._root = new  # lifetimes and role keys of what is signed next
        try:
            self._sign(new, "root", keys, moment, also=old.signed)
            if role == "root":
                self._write(_root_name(new.signed), new.to_bytes())
            else:
                self._rotate_rest(role, old, new, keys, moment)
        except BaseException:
            if not (self.folder / _METADATA / _root_name(new.signed)).exists():
                self._root = old
            raise
        return new.signed.version

    def _rotate_rest(
        self,
        role: Role,
        old: Metadata[Root],
        new: Metadata[Root],
        keys: Sequence[SigningKey],
        moment: datetime,
    ) -> None:
        """Write the new root and the rest, in the order that keeps the release valid."""
        targets = _next(self._targets) if role == "targets" else self._targets
        files = self._prepare(targets, keys, moment, also=old.signed)
        root = (_root_name(new.signed), new.to_bytes())
        try:
            _verify(old, "targets", files[0])
            _verify(old, "snapshot", files[1])
            _verify(old, "timestamp", files[2])
        except UnsignedMetadataError:
            self._write(*root)
            self._store(*files)
        else:
            self._store(*files)
            self._write(*root)

    def status(self, now: datetime | None = None) -> ReleaseStatus:
        """What the folder holds and how long its metadata lasts."""
        moment = now or datetime.now(UTC)
        root = self._root.signed
        signed = {
            "root": root,
            "targets": self._targets.signed,
            "snapshot": self._snapshot.signed,
            "timestamp": self._timestamp.signed,
        }
        roles = {
            name: RoleStatus(
                version=one.version,
                expires=f"{one.expires:%Y-%m-%dT%H:%M:%SZ}",
                days_left=(one.expires - moment).days,
                keys=tuple(
                    _verify_key(root.keys[keyid]).key_id for keyid in root.roles[name].keyids
                ),
                threshold=root.roles[name].threshold,
            )
            for name, one in signed.items()
        }
        found = [_target_status(target) for target in self._targets.signed.targets.values()]
        found.sort(key=lambda one: (one.custom["model"], one.custom["version"], one.path))
        return ReleaseStatus(roles=roles, targets=tuple(found))

    def _commit(
        self, targets: Metadata[Targets], keys: Sequence[SigningKey], moment: datetime
    ) -> None:
        self._store(*self._prepare(targets, keys, moment))

    def _prepare(
        self,
        targets: Metadata[Targets],
        keys: Sequence[SigningKey],
        moment: datetime,
        also: Root | None = None,
    ) -> tuple[Metadata[Targets], Metadata[Snapshot], Metadata[Timestamp]]:
        """Sign a new state in memory; ``targets`` too when it is new."""
        snapshot = _next(self._snapshot) if self._snapshot.signatures else self._snapshot
        if targets is not self._targets or not targets.signatures:
            self._sign(targets, "targets", keys, moment, also)
            snapshot.signed.meta["targets.json"] = _meta(targets)
        self._sign(snapshot, "snapshot", keys, moment, also)
        timestamp = _next(self._timestamp) if self._timestamp.signatures else self._timestamp
        timestamp.signed.snapshot_meta = _meta(snapshot)
        self._sign(timestamp, "timestamp", keys, moment, also)
        return targets, snapshot, timestamp

    def _store(
        self,
        targets: Metadata[Targets],
        snapshot: Metadata[Snapshot],
        timestamp: Metadata[Timestamp],
    ) -> None:
        """Write a signed state; the timestamp, which makes it valid, comes last."""
        name = f"{targets.signed.version}.targets.json"
        if targets is not self._targets or not (self.folder / _METADATA / name).exists():
            self._write(name, targets.to_bytes())
        self._write(f"{snapshot.signed.version}.snapshot.json", snapshot.to_bytes())
        self._write("timestamp.json", timestamp.to_bytes())
        self._targets, self._snapshot, self._timestamp = targets, snapshot, timestamp
        for name, newest in (
            ("targets", targets.signed.version),
            ("snapshot", snapshot.signed.version),
        ):
            (self.folder / _METADATA / f"{newest - _KEPT}.{name}.json").unlink(missing_ok=True)

    def _write(self, name: str, data: bytes) -> None:
        write_atomic(self.folder / _METADATA / name, data)

    def _sign(
        self,
        metadata: "Metadata[Signed]",
        role: str,
        keys: Iterable[SigningKey],
        moment: datetime,
        also: Root | None = None,
    ) -> None:
        """Sign with those of ``keys`` that ``role`` has in the newest root, or has in ``also``."""
        root = self._root.signed
        days = asdict(self.expiries)[role]
        metadata.signed.expires = moment.replace(microsecond=0) + timedelta(days=days)
        allowed = set(root.roles[role].keyids) | set(also.roles[role].keyids if also else ())
        metadata.signatures.clear()
        for key in keys:
            signer = CryptoSigner(key.key)
            if signer.public_key.keyid in allowed:
                metadata.sign(signer, append=True)
        checks = [root, *([also] if also and role == "root" else [])]
        for one in checks:
            try:
                one.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            except UnsignedMetadataError:
                needed = one.roles[role]
                raise ConfigError(
                    f"Expected {needed.threshold} of the {len(needed.keyids)} {role} keys of root "
                    f"version {one.version} to sign, got {_count(needed.keyids, metadata)}; give "
                    "the private keys that are missing."
                ) from None

    def _check_signers(
        self,
        targets: Metadata[Targets],
        role: str,
        keys: Sequence[SigningKey],
        moment: datetime,
    ) -> None:
        """Fail for want of keys before a file is written."""
        self._sign(deepcopy(targets), role, keys, moment)


def _verify(root: Metadata[Root], role: str, metadata: Metadata[Any]) -> None:
    root.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


def _tuf_key(key: VerifyKey) -> SSlibKey:
    return SSlibKey.from_crypto(key.key)


def _verify_key(key: Key) -> VerifyKey:
    """A key in TUF's form, where an Ed25519 key is 64 hexadecimal digits."""
    raw = bytes.fromhex(str(key.keyval["public"]))
    return VerifyKey(key=Ed25519PublicKey.from_public_bytes(raw))


def _count(keyids: Sequence[str], metadata: "Metadata[Signed]") -> int:
    return sum(keyid in keyids for keyid in metadata.signatures)


def _check_thresholds(root: Root) -> None:
    for name, role in root.roles.items():
        if not 1 <= role.threshold <= len(role.keyids):
            raise ConfigError(
                f"Expected a threshold of 1 to {len(role.keyids)} for the keys of {name}, got "
                f"{role.threshold}; change it or add keys."
            )


def _change_keys(
    root: Root,
    role: str,
    add: Sequence[VerifyKey],
    remove: Sequence[VerifyKey],
    threshold: int | None,
) -> None:
    for key in add:
        root.add_key(_tuf_key(key), role)
    for key in remove:
        try:
            root.revoke_key(_tuf_key(key).keyid, role)
        except ValueError:
            raise ConfigError(
                f"Expected a key of role {role} to remove, got {key.key_id}; see "
                "'fedlatent release status'."
            ) from None
    if threshold is not None:
        root.roles[role].threshold = threshold
    _check_thresholds(root)


def _check_new(manifest: Manifest, moment: datetime, downgrade_from: int | None) -> None:
    if manifest.expires is not None and datetime.fromisoformat(manifest.expires) <= moment:
        raise ConfigError(
            f"Expected a bundle that has not expired, got one that expired {manifest.expires}; "
            "export it again."
        )
    if downgrade_from is not None:
        _check_downgrade(manifest.version, downgrade_from)


def _check_downgrade(version: int, downgrade_from: int) -> None:
    if downgrade_from <= version:
        raise ConfigError(
            f"Expected a version above {version} to come down from, got {downgrade_from}; give the "
            "highest version that devices may have."
        )


def _matching(targets: Targets, model: str, version: int) -> list[TargetFile]:
    found = [
        target
        for target in targets.targets.values()
        if target.custom["model"] == model and target.custom["version"] == version
    ]
    if not found:
        raise ConfigError(
            f"Expected a published version of {model}, got {version}; see 'fedlatent release "
            "status'."
        )
    return found


def _rollout(rollout: Rollout) -> dict[str, Any]:
    return {
        "percent": rollout.percent,
        "cohorts": sorted(set(rollout.cohorts)),
        "devices": sorted(set(rollout.devices)),
    }


def _target_status(target: TargetFile) -> TargetStatus:
    return TargetStatus(
        path=target.path,
        sha256=target.hashes["sha256"],
        bytes=target.length,
        custom=deepcopy(target.custom),
    )


def _prefixed(target: TargetFile) -> str:
    return target.get_prefixed_paths()[0]


def _root_name(root: Root) -> str:
    return f"{root.version}.root.json"


def _meta(metadata: "Metadata[Signed]") -> MetaFile:
    """Version and hash. No length: a device names what comes instead better by its hash."""
    made = MetaFile.from_data(metadata.signed.version, metadata.to_bytes(), ["sha256"])
    made.length = None
    return made


def _next(metadata: "Metadata[Signed]") -> "Metadata[Signed]":
    """A copy with the next version number."""
    made = deepcopy(metadata)
    made.signed.version += 1
    return made


def _load(path: Path, kind: "type[Signed]") -> "Metadata[Signed]":
    made: Metadata[Signed] = Metadata.from_bytes(path.read_bytes())
    if not isinstance(made.signed, kind):
        raise RepositoryError(f"{path.name} is no {kind.type}")
    return made


def _newest_root(metadata: Path) -> Metadata[Root]:
    """Follow the chain of roots from the first one that is here."""
    versions = sorted(
        int(path.name.split(".")[0])
        for path in metadata.glob("*.root.json")
        if path.name.split(".")[0].isdigit()
    )
    if not versions:
        raise FileNotFoundError(2, "no root", str(metadata / "1.root.json"))
    root: Metadata[Root] = _load(metadata / f"{versions[0]}.root.json", Root)
    _verify(root, "root", root)
    for version in versions[1:]:
        newer: Metadata[Root] = _load(metadata / f"{version}.root.json", Root)
        _verify(root, "root", newer)
        _verify(newer, "root", newer)
        root = newer
    return root


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"Expected a readable bundle at {path}, got {type(error).__name__}; check the path."
        ) from None
