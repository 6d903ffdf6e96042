"""Release folders: bundles under signed metadata, for any static web server or a USB stick.

A release folder is a TUF repository (The Update Framework, theupdateframework.github.io). Four
roles sign it: **root** names all keys (kept offline), **targets** says which bundles exist and who
gets them, **snapshot** and **timestamp** (one online key) say which metadata is the newest::

    metadata/1.root.json, 2.root.json, ...    every root stays, so old devices can follow
    metadata/N.targets.json, N.snapshot.json
    metadata/timestamp.json                   the one file that changes; always written last
    targets/SHA256.NAME-VERSION.fedlatent     the bundles

A target is one bundle file. Its signed ``custom`` says what a device must know before it downloads
(`fedlatent.shared.bundle.offer`). A withdrawn bundle keeps its entry, marked, so that its
version is never used again and devices can tell a withdrawal from a rollback attack.

A crash at any step leaves the old release valid, since nothing refers to the new files until
``timestamp.json`` is replaced. Two processes that change a release at once do not lose each other's
change: the later one is refused.

The folder may lie on a web server that is not trusted, yet what is signed anew is first read from
it. So a publisher **pins** the release: a folder of its own, beside the keys, holds the first root
and the version of the list of bundles that it signed last. Whoever can write the release folder can
then break it, but cannot make the publisher sign a list that it never signed, or an older one.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Self, get_args

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.exceptions import BadVersionNumberError, RepositoryError, UnsignedMetadataError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from fedlatent.server.metadata import (
    PINNED_ROOT,
    Expiries,
    Files,
    RepositoryStatus,
    RoleStatus,
    Signed,
    TargetStatus,
    change_keys,
    check_thresholds,
    fits,
    meta_of,
    next_version,
    read_metadata,
    read_roots,
    root_name,
    tuf_key,
    verify_key,
)
from fedlatent.shared.bundle.archive import parse_bundle
from fedlatent.shared.bundle.offer import Offer, Rollout
from fedlatent.shared.bundle.sealed import RecipientPublic, seal
from fedlatent.shared.errors import BundleError, ConfigError, DataError
from fedlatent.shared.files import read_json, sync_folder, write_atomic, write_json
from fedlatent.shared.keys import SigningKey, VerifyKey

Role = Literal["root", "targets", "online"]

#: What `Repository.rotate` takes; "online" is snapshot and timestamp together.
ROLES: tuple[Role, ...] = get_args(Role)
_SEEN = "seen.json"
_DAYS = "x-fedlatent-days"
_KEPT = 5  # old versions of targets and snapshot that stay for devices in the middle of an update
_METADATA, _TARGETS = "metadata", "targets"


class Repository:
    """A release folder that is open for changes; each change is one new signed state of it.

    Attributes:
        folder: of the release.
        keys: private keys at hand; each role's metadata is signed by those that the role has.
    """

    def __init__(
        self,
        folder: Path,
        keys: Sequence[SigningKey],
        root: Metadata[Root],
        files: Files,
        pinned: Path | None,
    ) -> None:
        """Use `create` or `open`."""
        self.folder, self.keys = folder, tuple(keys)
        self._root, self._pinned = root, pinned
        self._targets, self._snapshot, self._timestamp = files

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        root_keys: Sequence[SigningKey],
        root_threshold: int,
        targets_keys: Sequence[SigningKey],
        online_key: SigningKey,
        expiries: Expiries | None = None,
        pinned: Path | None = None,
        now: datetime | None = None,
    ) -> Self:
        """Make an empty release in ``folder``.

        Args:
            folder: made when absent; must hold no release.
            root_keys: name all other keys; keep them offline.
            root_threshold: how many of them must sign a new root.
            targets_keys: any one of them signs what is released.
            online_key: signs snapshot and timestamp.
            expiries: lifetimes of the metadata.
            pinned: the publisher's own folder; see `open`.
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
        signed = Root(consistent_snapshot=True, unrecognized_fields={_DAYS: asdict(times)})
        groups = {"root": root_keys, "targets": targets_keys}
        for role, keys in {**groups, "snapshot": [online_key], "timestamp": [online_key]}.items():
            for key in keys:
                signed.add_key(tuf_key(key.public), role)
        signed.roles["root"].threshold = root_threshold
        check_thresholds(signed)
        root = Metadata(signed)
        files = Metadata(Targets()), Metadata(Snapshot()), Metadata(Timestamp())
        made = cls(folder, [*root_keys, *targets_keys, online_key], root, files, pinned)
        moment = now or datetime.now(UTC)
        made._sign(root, "root", moment)
        for name in (_METADATA, _TARGETS):
            (folder / name).mkdir(parents=True, exist_ok=True)
        sync_folder(folder)
        if pinned:
            write_atomic(pinned / PINNED_ROOT, root.to_bytes())
        made._write(root_name(signed), root)
        made._commit(made._targets, moment)
        return made

    @classmethod
    def open(
        cls,
        folder: Path,
        keys: Sequence[SigningKey] = (),
        *,
        pinned: Path | None = None,
        unfinished: bool = False,
    ) -> Self:
        """Read a release and check its signatures and versions, though not its expiries.

        Args:
            folder: of the release.
            keys: private keys for changes.
            pinned: the publisher's own folder: the release must begin with its root.json, and be at
                least as new as when this publisher last changed it. None trusts the folder.
            unfinished: also accept what the root before the newest allows. Only a rotation without
                the old keys that was interrupted needs this; then `refresh` it with its targets.

        Raises:
            DataError: there is none, or its files do not fit each other or what is pinned.
        """
        metadata = folder / _METADATA
        try:
            roots = read_roots(metadata, pinned)
            trusted = roots[-2:] if unfinished else roots[-1:]
            timestamp = read_metadata(metadata / "timestamp.json", Timestamp, trusted)
            meta = timestamp.signed.snapshot_meta
            snapshot = read_metadata(
                metadata / f"{meta.version}.snapshot.json", Snapshot, trusted, meta
            )
            meta = snapshot.signed.meta["targets.json"]
            targets = read_metadata(
                metadata / f"{meta.version}.targets.json", Targets, trusted, meta
            )
            if pinned and targets.signed.version < _seen(pinned):
                raise BadVersionNumberError("older than this publisher has seen")
        except FileNotFoundError as error:
            name = Path(error.filename).name
            raise DataError(
                f"Expected a release in {folder}, got none or a part of one ({name} is missing); "
                "make one with 'fedlatent release init'."
            ) from None
        except (RepositoryError, KeyError) as error:
            raise DataError(
                f"Expected release metadata in {folder} that fits, is signed by its own keys and "
                f"is as new as it was, got {type(error).__name__}; restore the folder from a copy, "
                "or finish a key rotation that was interrupted ('release refresh --repair')."
            ) from None
        return cls(folder, keys, roots[-1], (targets, snapshot, timestamp), pinned)

    @property
    def root_path(self) -> Path:
        """The newest root, which new devices are provisioned with."""
        return self.folder / _METADATA / root_name(self._root.signed)

    @property
    def expiries(self) -> Expiries:
        """The lifetimes that new metadata gets."""
        return Expiries(**self._root.signed.unrecognized_fields.get(_DAYS, {}))

    def keys_of(self, role: Role) -> tuple[VerifyKey, ...]:
        """The public keys of a role."""
        root = self._root.signed
        name = "timestamp" if role == "online" else role
        return tuple(verify_key(root.keys[keyid]) for keyid in root.roles[name].keyids)

    def publish(
        self,
        bundle: Path,
        key: VerifyKey,
        *,
        rollout: Rollout | None = None,
        recipient: RecipientPublic | None = None,
        downgrade_from: int | None = None,
        now: datetime | None = None,
    ) -> TargetStatus:
        """Add a bundle.

        Args:
            bundle: the file, signed by ``key``.
            key: the publisher's public key; devices trust it for this bundle alone.
            rollout: who gets it; None for all devices.
            recipient: seal it to this key, so that only its holders can read it; the same version
                may be sealed to several.
            downgrade_from: see `Offer`.
            now: the time of signing; None for the present.

        Raises:
            BundleError: the bundle is damaged, or signed by another key.
            ConfigError: this version was published before, it has expired, or a key is missing; or,
                as with every change, another process changed the release.
        """
        moment, wanted = now or datetime.now(UTC), rollout or Rollout()
        wanted.check()
        data = _read(bundle)
        manifest = parse_bundle(data, [key], str(bundle)).manifest
        if manifest.expires is not None and datetime.fromisoformat(manifest.expires) <= moment:
            raise ConfigError(
                f"Expected a bundle that has not expired, got one that expired {manifest.expires}; "
                "export it again."
            )
        _check_downgrade(manifest.version, downgrade_from)
        path = f"{manifest.name}-{manifest.version}"
        if recipient is not None:
            data = seal(data, recipient, manifest.name, manifest.version)
            path = f"{path}-{recipient.key_id}"
        target = TargetFile.from_data(f"{path}.fedlatent", data, ["sha256"])
        targets = next_version(self._targets)
        if target.path in targets.signed.targets:
            raise ConfigError(
                f"Expected a version of {manifest.name} that was never published, got "
                f"{manifest.version}; versions are not used twice, so export it under a new one."
            )
        offer = Offer(
            path=target.path,
            digest=target.hashes["sha256"],
            bytes=target.length,
            model=manifest.name,
            version=manifest.version,
            kind=manifest.kind,
            expires=manifest.expires,
            key=key.key.public_bytes_raw().hex(),
            rollout=wanted,
            downgrade_from=downgrade_from or 0,
            recipient=recipient.key_id if recipient else None,
        )
        target.unrecognized_fields["custom"] = offer.custom()
        targets.signed.targets[target.path] = target
        self._commit(targets, moment, {self._file(target): data})
        return _target_status(target)

    def set_rollout(
        self, model: str, version: int, rollout: Rollout, *, downgrade_from: int | None = None
    ) -> TargetStatus:
        """Change who may install a version. Devices that have it keep it.

        Raises:
            ConfigError: there is no such version, it is withdrawn, or a key is missing.
        """
        rollout.check()
        _check_downgrade(version, downgrade_from)
        targets = next_version(self._targets)
        found = _matching(targets.signed, model, version)
        for target in found:
            if target.custom["status"] == "withdrawn":
                raise ConfigError(
                    f"Expected a version of {model} that is offered, got {version}, which is "
                    "withdrawn; publish a new version."
                )
            target.custom["rollout"] = rollout.to_dict()
            target.custom["downgrade_from"] = downgrade_from or target.custom["downgrade_from"]
        self._commit(targets)
        return _target_status(found[0])

    def withdraw(self, model: str, version: int) -> None:
        """Offer a version no longer, for good. Devices that run it keep it and say so.

        To bring them back to an older one as well, offer that with ``downgrade_from``.

        Raises:
            ConfigError: there is no such version, or a key is missing.
        """
        targets = next_version(self._targets)
        found = _matching(targets.signed, model, version)
        for target in found:
            target.custom["status"] = "withdrawn"
        self._commit(targets)
        for target in found:  # after the commit: until then devices may ask for it
            self._file(target).unlink(missing_ok=True)

    def refresh(self, *, targets: bool = False, now: datetime | None = None) -> None:
        """Sign snapshot and timestamp again, so that devices see that nothing is hidden from them.

        Args:
            targets: sign the list of bundles again too, for another period.
            now: the time of signing; None for the present.

        Raises:
            ConfigError: a key is missing.
        """
        self._commit(next_version(self._targets) if targets else self._targets, now)

    def rotate(
        self,
        role: Role,
        *,
        add: Sequence[VerifyKey] = (),
        remove: Sequence[VerifyKey] = (),
        threshold: int | None = None,
    ) -> int:
        """Make a new root that gives ``role`` other keys; without changes it renews the root.

        The new root is signed by the threshold of the old root keys and by that of the new ones.
        When the old keys of ``role`` are at hand, the rest is signed by old and new ones first, so
        that a crash at any step leaves a valid release. Without them (they are lost, or stolen) the
        root comes first; after a crash between the two, `open` it as ``unfinished``.

        Args:
            role: whose keys change.
            add: public keys that ``role`` gets.
            remove: public keys that ``role`` loses.
            threshold: of ``role``; None leaves it.

        Returns:
            The version of the new root.

        Raises:
            ConfigError: unknown keys, a threshold that cannot be met, or too few signatures.
        """
        moment, old, new = datetime.now(UTC), self._root, next_version(self._root)
        for name in ("snapshot", "timestamp") if role == "online" else (role,):
            change_keys(new.signed, name, add, remove, threshold)
        self._root = new  # lifetimes and role keys of what is signed next
        try:
            self._sign(new, "root", moment, also=old.signed)
            files = None
            if role != "root":
                targets = next_version(self._targets) if role == "targets" else self._targets
                files = self._prepare(targets, moment, also=old.signed)
            with self._changing():
                root_last = files is not None and fits(old, files)
                if files and root_last:
                    self._store(files)
                self._write(root_name(new.signed), new)
                if files and not root_last:
                    self._store(files)
        except BaseException:
            if not self.root_path.exists():
                self._root = old
            raise
        return new.signed.version

    def status(self, now: datetime | None = None) -> RepositoryStatus:
        """What the folder holds and how long its metadata lasts."""
        moment, root = now or datetime.now(UTC), self._root.signed
        parts = (root, self._targets.signed, self._snapshot.signed, self._timestamp.signed)
        roles = {}
        for one in parts:
            role = root.roles[one.type]
            roles[one.type] = RoleStatus(
                version=one.version,
                expires=f"{one.expires:%Y-%m-%dT%H:%M:%SZ}",
                days_left=(one.expires - moment).days,
                keys=tuple(verify_key(root.keys[keyid]).key_id for keyid in role.keyids),
                threshold=role.threshold,
            )
        found = [_target_status(target) for target in self._targets.signed.targets.values()]
        found.sort(key=lambda one: (one.custom["model"], one.custom["version"], one.path))
        return RepositoryStatus(roles=roles, targets=tuple(found))

    def _commit(
        self,
        targets: Metadata[Targets],
        moment: datetime | None = None,
        more: Mapping[Path, bytes] | None = None,
    ) -> None:
        """Sign a new state, and only then write: ``more`` first, then the metadata."""
        files = self._prepare(targets, moment or datetime.now(UTC))
        with self._changing():
            for path, data in (more or {}).items():
                write_atomic(path, data)
            self._store(files)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the folder, which must be as it was read."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with suppress(OSError):  # a network file system may have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            path = self.folder / _METADATA / "timestamp.json"
            if path.exists() and read_metadata(path, Timestamp) != self._timestamp:
                raise ConfigError(
                    f"Expected a release in {self.folder} that nobody else changes at the same "
                    "time, got a changed one; run the command again."
                )
            yield
        finally:
            os.close(descriptor)

    def _prepare(
        self, targets: Metadata[Targets], moment: datetime, also: Root | None = None
    ) -> Files:
        """Sign a new state in memory; ``targets`` too when it is new."""
        snapshot = next_version(self._snapshot) if self._snapshot.signatures else self._snapshot
        if targets is not self._targets or not targets.signatures:
            self._sign(targets, "targets", moment, also)
            snapshot.signed.meta["targets.json"] = meta_of(targets)
        self._sign(snapshot, "snapshot", moment, also)
        timestamp = next_version(self._timestamp) if self._timestamp.signatures else self._timestamp
        timestamp.signed.snapshot_meta = meta_of(snapshot)
        self._sign(timestamp, "timestamp", moment, also)
        return targets, snapshot, timestamp

    def _store(self, files: Files) -> None:
        """Write a signed state; the timestamp, which makes it valid, comes last."""
        targets, snapshot, timestamp = files
        name = f"{targets.signed.version}.targets.json"
        if targets is not self._targets or not (self.folder / _METADATA / name).exists():
            self._write(name, targets)
        self._write(f"{snapshot.signed.version}.snapshot.json", snapshot)
        self._write("timestamp.json", timestamp)
        self._targets, self._snapshot, self._timestamp = files
        if self._pinned:
            write_json(self._pinned / _SEEN, targets.signed.version)
        for one in (targets.signed, snapshot.signed):
            name = f"{one.version - _KEPT}.{one.type}.json"
            (self.folder / _METADATA / name).unlink(missing_ok=True)

    def _write(self, name: str, metadata: Metadata[Any]) -> None:
        write_atomic(self.folder / _METADATA / name, metadata.to_bytes())

    def _file(self, target: TargetFile) -> Path:
        return self.folder / _TARGETS / target.get_prefixed_paths()[0]

    def _sign(
        self, metadata: "Metadata[Signed]", role: str, moment: datetime, also: Root | None = None
    ) -> None:
        """Sign with the keys that ``role`` has in the newest root, or has in ``also``."""
        root = self._root.signed
        days = asdict(self.expiries)[role]
        metadata.signed.expires = moment.replace(microsecond=0) + timedelta(days=days)
        allowed = set(root.roles[role].keyids) | set(also.roles[role].keyids if also else ())
        metadata.signatures.clear()
        for key in self.keys:
            signer = CryptoSigner(key.key)
            if signer.public_key.keyid in allowed:
                metadata.sign(signer, append=True)
        for one in (root, also) if also and role == "root" else (root,):
            try:
                one.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            except UnsignedMetadataError:
                needed = one.roles[role]
                found = sum(keyid in needed.keyids for keyid in metadata.signatures)
                raise ConfigError(
                    f"Expected {needed.threshold} of the {len(needed.keyids)} {role} keys of root "
                    f"version {one.version} to sign, got {found}; give the private keys that are "
                    "missing."
                ) from None


def _check_downgrade(version: int, downgrade_from: int | None) -> None:
    if downgrade_from is not None and downgrade_from <= version:
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


def _target_status(target: TargetFile) -> TargetStatus:
    return TargetStatus(
        path=target.path,
        sha256=target.hashes["sha256"],
        bytes=target.length,
        custom=deepcopy(target.custom),
    )


def _seen(pinned: Path) -> int:
    """Version of the newest list of bundles that this publisher has signed or seen."""
    path = pinned / _SEEN
    found = read_json(path) if path.exists() else 0
    if not isinstance(found, int):
        raise DataError(f"Expected a number in {path}, got something else; restore it.")
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"Expected a readable bundle at {path}, got {type(error).__name__}; check the path."
        ) from None
