"""Release folders of tiny bundles, devices that follow them, and what an attacker would sign."""

import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Signed

from fedlatent.client.edge import slots
from fedlatent.client.edge.update import provision, update
from fedlatent.server.metadata import TargetStatus
from fedlatent.server.repository import Repository
from fedlatent.shared.bundle.archive import write_bundle
from fedlatent.shared.bundle.offer import Rollout
from fedlatent.shared.bundle.sealed import RecipientPublic
from fedlatent.shared.keys import SigningKey
from tests.client.edge.powercut import Files, load, store
from tests.shared.bundle import tiny

MODEL = "tiny-hearts"


class Publisher:
    """A release with its keys: two root keys that both must sign, one of targets, one online."""

    def __init__(
        self,
        folder: Path,
        now: datetime | None = None,
        keys: Mapping[str, SigningKey] | None = None,
    ) -> None:
        """Make keys and an empty release below ``folder``; with ``keys``, open the one there."""
        self.folder = folder
        if keys is not None:
            self.keys = dict(keys)
            signers = [key for name, key in keys.items() if name != "bundle"]
            self.release = Repository.open(folder / "release", signers)
            return
        names = ("root-1", "root-2", "targets", "online", "bundle")
        self.keys = {name: SigningKey.generate(folder / "keys" / name) for name in names}
        self.release = Repository.create(
            folder / "release",
            root_keys=[self.keys["root-1"], self.keys["root-2"]],
            root_threshold=2,
            targets_keys=[self.keys["targets"]],
            online_key=self.keys["online"],
            now=now,
        )

    @property
    def source(self) -> Path:
        """The release folder."""
        return self.release.folder

    @property
    def metadata(self) -> Path:
        """Its metadata folder."""
        return self.source / "metadata"

    def bundle(
        self,
        version: int,
        *,
        key: SigningKey | None = None,
        expires: str | None = None,
        replaced: Mapping[str, bytes] | None = None,
        needs: str = "1.24",
    ) -> Path:
        """A bundle file of ``version`` that needs this ONNX Runtime."""
        runtime = replace(tiny.manifest().runtime, min_onnxruntime=needs)
        manifest = replace(tiny.manifest(), version=version, expires=expires, runtime=runtime)
        path = self.folder / f"{MODEL}-{version}.fedlatent"
        files = {**tiny.files(tiny.manifest()), **(replaced or {})}
        write_bundle(path, manifest, files, key or self.keys["bundle"])
        return path

    def publish(
        self,
        version: int,
        rollout: Rollout | None = None,
        *,
        replaced: Mapping[str, bytes] | None = None,
        expires: str | None = None,
        recipient: RecipientPublic | None = None,
        downgrade_from: int | None = None,
        now: datetime | None = None,
        needs: str = "1.24",
    ) -> TargetStatus:
        """Make and publish a bundle."""
        return self.release.publish(
            self.bundle(version, replaced=replaced, expires=expires, needs=needs),
            self.keys["bundle"].public,
            rollout=rollout,
            recipient=recipient,
            downgrade_from=downgrade_from,
            now=now,
        )

    def device(self, name: str = "device", **options: object) -> Path:
        """A provisioned state folder that trusts this release's newest root."""
        state = self.folder / name
        provision(state, self.release.root_path.read_bytes(), MODEL, **options)
        return state

    def copy(self, name: str) -> Path:
        """The release folder as it is now, kept by an attacker."""
        return Path(shutil.copytree(self.source, self.folder / name))

    def forge(
        self,
        *,
        targets: Callable[[Any], None] | None = None,
        snapshot: Callable[[Any], None] | None = None,
        timestamp: Callable[[Any], None] | None = None,
        key: SigningKey | None = None,
    ) -> None:
        """Change signed metadata and sign it rightly again, without the checks of a publisher.

        Each function gets the signed part. With ``key`` everything is signed by that key instead.
        """
        files: dict[str, Metadata[Any]] = {}
        files["timestamp"] = Metadata.from_file(str(self.metadata / "timestamp.json"))
        version = files["timestamp"].signed.snapshot_meta.version
        files["snapshot"] = Metadata.from_file(str(self.metadata / f"{version}.snapshot.json"))
        version = files["snapshot"].signed.meta["targets.json"].version
        files["targets"] = Metadata.from_file(str(self.metadata / f"{version}.targets.json"))
        changes = {"targets": targets, "snapshot": snapshot, "timestamp": timestamp}
        for role, change in changes.items():
            signed = files[role].signed
            signed.version += 1
            if role == "snapshot":
                signed.meta["targets.json"] = _meta(files["targets"])
            if role == "timestamp":
                signed.snapshot_meta = _meta(files["snapshot"])
            if change is not None:
                change(signed)
            own = self.keys["targets" if role == "targets" else "online"]
            files[role].sign(CryptoSigner((key or own).key))
            prefix = "" if role == "timestamp" else f"{signed.version}."
            files[role].to_file(str(self.metadata / f"{prefix}{role}.json"))


@functools.cache
def _first() -> tuple[Mapping[str, SigningKey], Files, Files]:
    """Keys, a folder with a release of version 1, and that of a device which confirmed it."""
    with tempfile.TemporaryDirectory() as folder:
        made = Publisher(Path(folder))
        made.publish(1)
        files = load(Path(folder))
        state = made.device()
        update(state, made.source)
        slots.confirm(state)
        return made.keys, files, load(state)


def with_version_1(folder: Path) -> Publisher:
    """A release with version 1 below ``folder``, which holds nothing else; a copy, so fast."""
    keys, files, _ = _first()
    return Publisher(store(files, folder), keys=keys)


def confirmed(publisher: Publisher) -> Path:
    """A device of a release `with_version_1` that runs that version, confirmed; copied as well."""
    return store(_first()[2], publisher.folder / "device")


def past(signed: Signed) -> None:
    """Let metadata expire a day ago."""
    signed.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)


def _meta(metadata: Metadata[Any]) -> MetaFile:
    made = MetaFile.from_data(metadata.signed.version, metadata.to_bytes(), ["sha256"])
    made.length = None
    return made
