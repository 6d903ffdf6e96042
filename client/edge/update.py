"""Updates on a device: from a signed release folder to a checked bundle in a slot.

The source is a folder (a USB stick), a ``file://`` or an ``http(s)://`` address of what
`server.publish` made. Nothing is trusted because of where it came from: TUF verifies all metadata
from the root that the device was provisioned with, and only then it is stored. Nothing is sent but
requests for files.

Order of an update: verify metadata, choose a version, download (at most the signed length), compare
the digest, open the file when it is sealed, verify its own signature, run its golden vectors on
this machine, write the free slot, switch. All but the last two steps happen in memory. Whatever
fails, the installed bundle keeps running, and `shared.errors.UpdateRefused` says why:

================  ================================================================================
reason            what was found
================  ================================================================================
rollback          older metadata than this device has seen, or only versions below its barrier
downgrade         a signed downgrade that does not reach up to this device's barrier
expired-metadata  metadata past its expiry: a freeze attack, or a publisher who did not refresh
mix-and-match     signed parts of different releases put together
wrong-key         too few signatures of trusted keys, or a bundle by another key than stated
damaged-metadata  metadata that cannot be read
swapped-file      a bundle file with other bytes than its signed digest
truncated         a bundle file that is too short
oversized         a file longer than is signed or allowed
expired-bundle    newer versions, all of which have expired
damaged-bundle    a rightly signed release of something that is no good bundle
unhealthy         a bundle that does not compute on this machine as its golden vectors say
wrong-recipient   a sealed bundle that this device cannot open
not-offered       no version of this device's model
unreachable       no release folder, or a connection that failed or was too slow
storage           a state folder that cannot be written
busy              another update of the same state folder
================  ================================================================================

What may be installed: a version at or above `client.edge.slots.Record.barrier`, or a lower one
whose signed ``downgrade_from`` is at least the barrier ("who has confirmed up to this version may
come down to me"). The highest version that the rollout gives this device wins, so a downgrade takes
effect once the higher versions are withdrawn. A withdrawn version is never installed, and never
removed where it runs.

This module imports tuf, which is slow to load; scoring never imports it.
"""

import hashlib
import json
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import (  # type: ignore[attr-defined]
    Metadata,
    Root,
    TargetFile,
    Targets,
)
from tuf.ngclient import Updater, UpdaterConfig  # type: ignore[attr-defined]
from tuf.ngclient.fetcher import FetcherInterface

from client.edge import slots
from client.edge.runtime import EdgeModel
from client.edge.slots import Device, Installed, Record
from shared.bundle.archive import MAX_BUNDLE_BYTES, SIGNATURE, parse_bundle
from shared.bundle.sealed import MAX_OVERHEAD, RecipientKey, SuiteName
from shared.bundle.strict import StrictObject, parse_object
from shared.errors import BundleError, ConfigError, FedlatentError, UpdateRefused
from shared.files import write_atomic

CUSTOM_FORMAT = 1
MAX_ROOT_BYTES = 131_072
#: Health checks of one bundle that were begun and never ended (a crash, a watchdog) before it is
#: set aside.
MAX_ATTEMPTS = 3
HEALTH_SECONDS = 60.0
#: A file must arrive within this time, however slowly it drips.
FETCH_SECONDS = 300.0
_CONFIG = UpdaterConfig(
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=16_384,
    snapshot_max_length=65_536,
    targets_max_length=2_000_000,
)
_CHUNK = 65_536
_PATH = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}\.fedlatent"
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_HASH = r"[0-9a-f]{64}"
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One target of a release, as its signed metadata describes it.

    Attributes:
        path: of the target.
        digest: SHA-256 (hex) of the file.
        bytes: of the file.
        model: name.
        version: of the model.
        kind: "global" or "site".
        expires: UTC text after which it is not installed, or None.
        key: Ed25519 public key (64 hex) that signed the bundle.
        percent: of devices that may install it.
        cohorts: groups that may.
        devices: single devices that may.
        downgrade_from: devices up to this barrier may come down to it; None when none may.
        recipient: id of the key that it is sealed to, or None.
        withdrawn: whether it is offered no longer.
    """

    path: str
    digest: str
    bytes: int
    model: str
    version: int
    kind: str = "global"
    expires: str | None = None
    key: str = ""
    percent: int = 100
    cohorts: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    downgrade_from: int | None = None
    recipient: str | None = None
    withdrawn: bool = False

    def reaches(self, barrier: int) -> bool:
        """Whether a device with this barrier may have it, rollout aside."""
        return self.version >= barrier or self.comes_down(barrier)

    def comes_down(self, barrier: int) -> bool:
        """Whether it lies below the barrier and is signed as a downgrade from there."""
        signed = self.downgrade_from is not None and self.downgrade_from >= barrier
        return self.version < barrier and signed

    def includes(self, device: Device) -> bool:
        """Whether the rollout includes this device: by percent, cohort or id."""
        chosen = bucket(self.model, self.version, device.device) < self.percent
        in_cohort = not set(self.cohorts).isdisjoint(device.cohorts)
        return chosen or in_cohort or device.device in self.devices


@dataclass(frozen=True, kw_only=True)
class UpdateReport:
    """What an update did.

    Attributes:
        result: "installed", "available" (with ``check``: would be installed), "current" (nothing
            newer for this device), "withdrawn" (what runs is offered no longer), or "none" (nothing
            runs and nothing is offered to this device yet).
        model: name.
        version: that runs now, or None.
        before: that ran before, or None.
        available: that was installed or would be, or None.
        bytes: of the bundle file that was or would be downloaded; 0 without one.
        set_aside: versions that failed here and were passed over.
        expires: UTC text when the release's metadata expires first.
    """

    result: str
    model: str
    version: int | None
    before: int | None
    available: int | None
    bytes: int
    set_aside: tuple[int, ...]
    expires: str


def provision(
    state: Path,
    root: bytes,
    model: str,
    *,
    cohorts: Sequence[str] = (),
    device: str | None = None,
    recipient: Path | None = None,
    new_recipient: SuiteName | None = None,
) -> Device:
    """Prepare a state folder: once, from a root that was checked over another channel.

    Args:
        state: the folder; made when absent.
        root: content of a ``N.root.json`` of the release; all later trust follows from it.
        model: name of the model that this device runs.
        cohorts: groups of the device, for rollouts.
        device: its id; None makes a random one.
        recipient: private key file that opens bundles sealed to this device or its group; it is
            copied.
        new_recipient: make a key of this suite instead; its public half is recipient.key.pub.

    Raises:
        ConfigError: the folder is provisioned already, or an argument is not valid.
    """
    if (state / "device.json").exists():
        raise ConfigError(
            f"Expected a folder that is not provisioned, got {state}; use it, or remove it to "
            "start again (its version floor is then lost)."
        )
    _check_root(root)
    made = Device(
        device=device or secrets.token_hex(16),
        model=model,
        cohorts=tuple(sorted(set(cohorts))),
        provisioned=slots.utc_text(),
    )
    (state / "slots").mkdir(parents=True, exist_ok=True)
    write_atomic(state / "trust" / "bootstrap.json", root)
    _keep_recipient(slots.recipient_path(state), recipient, new_recipient)
    slots.write_device(state, made)
    try:
        return slots.read_device(state)
    except ConfigError:
        (state / "device.json").unlink()
        raise ConfigError(
            "Expected names of letters, digits, '.', '_' and '-' (at most 64) for model, cohorts "
            "and device, got others; correct them."
        ) from None


def update(
    state: Path,
    source: str | Path,
    *,
    check: bool = False,
    retry: bool = False,
    health_seconds: float = HEALTH_SECONDS,
) -> UpdateReport:
    """Bring a device up to date with a release folder.

    Args:
        state: the device's folder, made by `provision`.
        source: release folder, or its ``file://`` or ``http(s)://`` address.
        check: verify metadata and say what would be installed; download nothing else.
        retry: forget which bundles failed here before.
        health_seconds: longest time for loading a new bundle and its golden vectors.

    Raises:
        UpdateRefused: nothing was installed and what runs stays; see the module's table.
        ConfigError: the state folder is not provisioned, or the source is no address.
    """
    base = _address(source)
    device = slots.read_device(state)
    try:
        with slots.locked(state, "update.lock", wait=False):
            slots.sweep(state)
            return _update(state, base, device, check, retry, health_seconds)
    except UpdateRefused as refused:
        slots.log(state, "refused", reason=refused.reason, sentence=str(refused))
        raise
    except BlockingIOError:
        raise UpdateRefused(
            "busy", "Expected no other update of this folder, got one that runs; wait for it."
        ) from None
    except OSError as error:
        raise UpdateRefused(
            "storage",
            f"Expected a state folder {state} that can be written, got {error.strerror}; free "
            "space or mount it writable.",
        ) from None


def _update(
    state: Path, base: str, device: Device, check: bool, retry: bool, health_seconds: float
) -> UpdateReport:
    record = slots.heal(state)
    if retry and (record.set_aside or record.attempts):
        record = slots.edit(state, lambda found: replace(found, set_aside=(), attempts={}))
    fetcher = Fetcher()
    updater, targets, expires = refresh(state, base, fetcher)
    offers = read_offers(targets)
    recipient = _recipient(state)
    offer = choose(offers, device, record, recipient, datetime.now(UTC))
    before = record.current.version if record.current else None
    aside = {one.digest for one in record.set_aside}
    report = UpdateReport(
        result=_standing(offers, device, record),
        model=device.model,
        version=before,
        before=before,
        available=None,
        bytes=0,
        set_aside=tuple(sorted({one.version for one in offers if one.digest in aside})),
        expires=expires,
    )
    if offer is None:
        return report
    report = replace(report, available=offer.version, bytes=offer.bytes)
    if check:
        return replace(report, result="available")
    target = updater.get_targetinfo(offer.path)
    if target is None:
        raise UpdateRefused("damaged-metadata", f"Expected target {offer.path}, got none.")
    data = download(fetcher, f"{base}/targets", target)
    _check_space(state, len(data))
    plain_digest = _check_bundle(state, data, offer, health_seconds)
    slots.install(state, data, _describe(offer, plain_digest, record))
    return replace(report, result="installed", version=offer.version)


def bucket(model: str, version: int, device: str) -> int:
    """0 to 99, fixed for a device and a version: rollouts of more percent than this include it."""
    digest = hashlib.sha256(f"{model}|{version}|{device}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100


def choose(
    offers: Sequence[Offer],
    device: Device,
    record: Record,
    recipient: str | None,
    now: datetime,
) -> Offer | None:
    """The version that a device should install, or None when it has it or none is for it.

    Args:
        offers: all targets of the release.
        device: who asks.
        record: what it runs, its floor and what failed here.
        recipient: id of its key for sealed bundles, or None.
        now: against which bundles expire.

    Raises:
        UpdateRefused: not-offered, rollback, downgrade or expired-bundle.
    """
    mine = [
        one
        for one in offers
        if one.model == device.model and (one.recipient is None or one.recipient == recipient)
    ]
    if not mine:
        raise UpdateRefused(
            "not-offered",
            f"Expected a version of model {device.model} that this device can open, got none in "
            "this release; check the address and the model's name.",
        )
    barrier = record.barrier
    if not any(one.reaches(barrier) for one in mine):
        highest = max(one.version for one in mine)
        down = any(one.downgrade_from is not None for one in mine)
        raise UpdateRefused(
            "downgrade" if down else "rollback",
            f"Expected a version of {device.model} from {barrier} on"
            f"{' or a downgrade signed for it' if down else ''}, got {highest} at most; check the "
            "address, and ask the publisher when it is right.",
        )
    return _newest(mine, device, record, now)


def _newest(mine: Sequence[Offer], device: Device, record: Record, now: datetime) -> Offer | None:
    """The highest version above the running one that this device may and can install."""
    aside = {one.digest for one in record.set_aside}
    running = record.current.version if record.current else None
    expired: Offer | None = None
    for one in sorted(mine, key=lambda it: (-it.version, it.recipient is not None, it.path)):
        if one.withdrawn or not one.reaches(record.barrier):
            continue
        if one.version == running:
            break
        if one.digest in aside or not one.includes(device):
            continue
        if one.expires is None or datetime.fromisoformat(one.expires) > now:
            return one
        expired = expired or one
    if expired is not None:
        raise UpdateRefused(
            "expired-bundle",
            f"Expected a bundle that has not expired, got version {expired.version}, which expired "
            f"{expired.expires}; ask the publisher for a new version.",
        )
    return None


def read_offers(targets: Targets) -> list[Offer]:
    """The bundles of a release; targets of a kind that this program does not know are left out.

    Raises:
        UpdateRefused: damaged-metadata: a description that is not as it must be.
    """
    offers = []
    for path, target in targets.targets.items():
        custom = target.custom
        if isinstance(custom, dict) and custom.get("format") == CUSTOM_FORMAT:
            try:
                offers.append(_offer(path, target))
            except BundleError as error:
                raise UpdateRefused("damaged-metadata", str(error)) from None
    return offers


def refresh(state: Path, base: str, fetcher: "Fetcher") -> tuple[Updater, Targets, str]:
    """Verify a release's metadata from the stored trust on, and store what was verified.

    TUF's client writes without syncing; so it works on a copy, and what it verified is then written
    durably, also when a later step fails.

    Returns:
        The client, the verified targets, and UTC text when the metadata expires first.

    Raises:
        UpdateRefused: see the module's table.
        OSError: the state folder cannot be written.
    """
    trust, work = state / "trust", state / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(trust, work)
    try:
        updater = Updater(
            str(work),
            f"{base}/metadata",
            target_base_url=f"{base}/targets",
            fetcher=fetcher,
            config=_CONFIG,
            bootstrap=(trust / "bootstrap.json").read_bytes(),
        )
        try:
            updater.refresh()
        finally:
            _store_trust(work, trust)
        targets: Metadata[Targets] = Metadata.from_bytes((work / "targets.json").read_bytes())
    except (RepositoryError, DownloadError) as error:
        raise _refusal(error, fetcher) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    os.utime(trust / "timestamp.json")  # when the release was last verified
    ages = slots.status(state).metadata.values()
    return updater, targets.signed, min(age.expires for age in ages)


def download(fetcher: "Fetcher", base: str, target: TargetFile) -> bytes:
    """Fetch a target into memory: at most its signed length, with its signed digest.

    Raises:
        UpdateRefused: oversized, truncated, swapped-file or unreachable.
    """
    name = target.get_prefixed_paths()[0]
    if target.length > MAX_BUNDLE_BYTES + MAX_OVERHEAD:
        raise UpdateRefused(
            "oversized",
            f"Expected a bundle of at most {MAX_BUNDLE_BYTES} bytes, got one of {target.length}; "
            "ask the publisher.",
        )
    try:
        data = fetcher.download_bytes(f"{base}/{name}", target.length)
    except DownloadError as error:
        raise _refusal(error, fetcher) from error
    if len(data) < target.length:
        raise UpdateRefused(
            "truncated",
            f"Expected {target.length} bytes of {target.path}, got {len(data)}; try again.",
        )
    try:
        target.verify_length_and_hashes(data)
    except LengthOrHashMismatchError:
        raise UpdateRefused(
            "swapped-file",
            f"Expected {target.path} with its signed digest, got other bytes; try again, and ask "
            "the publisher when it stays so.",
        ) from None
    return data


class Fetcher(FetcherInterface):
    """Reads ``file://`` itself and leaves ``http(s)://`` to tuf's client; all in memory.

    Attributes:
        last: what the last call of `download_bytes` gave.
    """

    def __init__(self, seconds: float = FETCH_SECONDS) -> None:
        """Allow ``seconds`` for each file."""
        self._seconds = seconds
        self._http: FetcherInterface | None = None
        self.last = b""

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """The content of ``url``.

        Raises:
            DownloadLengthMismatchError: it is longer than ``max_length``.
            DownloadError: it cannot be read, or not in time.
        """
        started = time.monotonic()
        parts: list[bytes] = []
        length = 0
        try:
            for part in self._fetch(url):
                length += len(part)
                if length > max_length:
                    raise DownloadLengthMismatchError(f"more than {max_length} bytes")
                if time.monotonic() - started > self._seconds:
                    raise DownloadError(f"not whole within {self._seconds:g} s")
                parts.append(part)
        except DownloadError:
            raise
        except Exception as error:  # of sockets, TLS, HTTP: all of them mean no file
            raise DownloadError(type(error).__name__) from error
        self.last = b"".join(parts)
        return self.last

    def _fetch(self, url: str) -> Iterator[bytes]:
        if url.startswith("file:"):
            return _read_file(Path(unquote(urlsplit(url).path)))
        if self._http is None:
            from tuf.ngclient import Urllib3Fetcher  # type: ignore[attr-defined]

            self._http = Urllib3Fetcher(socket_timeout=30, chunk_size=_CHUNK)
        return self._http.fetch(url)


def _read_file(path: Path) -> Iterator[bytes]:
    """A regular file in parts; never waits for a pipe or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DownloadHTTPError("no such file", 404) from None
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DownloadError("no regular file")
        while part := stream.read(_CHUNK):
            yield part


def _address(source: str | Path) -> str:
    """The release folder as an address without a slash at its end."""
    text = str(source)
    if text.startswith(("http://", "https://", "file:///")):
        return text.rstrip("/")
    if "://" in text:
        raise ConfigError(
            f"Expected a folder or an address with file://, http:// or https://, got {text!r}."
        )
    return Path(text).resolve().as_uri()


def _keep_recipient(path: Path, given: Path | None, suite: SuiteName | None) -> None:
    """Copy the key that was given, or make one; one that is here already is never replaced."""
    public = path.with_name(path.name + ".pub")
    if given is None and suite is None:
        return
    if path.exists():
        key = RecipientKey.load(path)
        if suite not in (None, key.suite) or (
            given and RecipientKey.load(given).key_id != key.key_id
        ):
            raise ConfigError(
                f"Expected no other recipient key at {path}, got one; move it away first."
            )
        write_atomic(public, key.public.to_pem())
    elif given is not None:
        key = RecipientKey.load(given)
        write_atomic(public, key.public.to_pem())
        write_atomic(path, key.to_pem(), 0o600)
    elif suite is not None:
        public.unlink(missing_ok=True)
        RecipientKey.generate(path, suite)


def _check_root(root: bytes) -> None:
    bad = ConfigError(
        "Expected a root.json of a release that is signed by its own keys, got something else; "
        "take the newest metadata/N.root.json of the release."
    )
    if len(root) > MAX_ROOT_BYTES:
        raise bad
    try:
        found: Metadata[Root] = Metadata.from_bytes(root)
        if not isinstance(found.signed, Root):
            raise bad
        found.signed.verify_delegate("root", found.signed_bytes, found.signatures)
    except RepositoryError:
        raise bad from None


def _store_trust(work: Path, trust: Path) -> None:
    """Write what TUF's client verified: roots first, then in its order of trust."""
    roots = sorted((work / "root_history").glob("*.root.json"))
    names = [f"root_history/{path.name}" for path in roots]
    for name in [*names, "timestamp.json", "snapshot.json", "targets.json"]:
        source, target = work / name, trust / name
        if source.exists():
            data = source.read_bytes()
            if not target.exists() or target.read_bytes() != data:
                write_atomic(target, data)


_REFUSALS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        ExpiredMetadataError,
        "expired-metadata",
        "Expected metadata that has not expired, got some that has ({}); ask the publisher to "
        "refresh the release, and check this device's clock.",
    ),
    (
        BadVersionNumberError,
        "rollback",
        "Expected metadata at least as new as this device has seen, got older ({}); check the "
        "address, and ask the publisher when it is right.",
    ),
    (
        UnsignedMetadataError,
        "wrong-key",
        "Expected metadata signed by enough trusted keys, got too few signatures ({}); check the "
        "address, and ask the publisher when it is right.",
    ),
    (
        RepositoryError,
        "damaged-metadata",
        "Expected readable metadata, got some that is damaged ({}); try again, and ask the "
        "publisher when it stays so.",
    ),
    (
        DownloadLengthMismatchError,
        "oversized",
        "Expected a file of its signed or allowed length, got more ({}); check the address.",
    ),
    (
        DownloadError,
        "unreachable",
        "Expected a release folder with all its files, got none or a part ({}); check the address "
        "and the connection.",
    ),
)


def _refusal(error: Exception, fetcher: Fetcher) -> UpdateRefused:
    """The name and the sentence for an error of TUF's client."""
    if isinstance(error, LengthOrHashMismatchError) and _is_json(fetcher.last):
        return UpdateRefused(
            "mix-and-match",
            "Expected metadata that belongs together, got parts of different releases; try again, "
            "and ask the publisher when it stays so.",
        )
    for kind, reason, sentence in _REFUSALS:
        if isinstance(error, kind):
            detail = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            return UpdateRefused(reason, sentence.format(detail.rstrip(".")))
    raise error


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _offer(path: str, target: TargetFile) -> Offer:
    values = {**target.custom, "path": path, "digest": target.hashes.get("sha256")}
    if values.get("downgrade_from", 0) is None:
        values["downgrade_from"] = 0
    top = StrictObject(values, f"target {path[:80]!r}")
    top.integer("format", CUSTOM_FORMAT, CUSTOM_FORMAT)
    rollout = top.child("rollout")
    made = Offer(
        path=top.text("path", _PATH),
        digest=top.text("digest", _HASH),
        bytes=target.length,
        model=top.text("model", _WORD),
        version=top.integer("version", 1),
        kind=top.text("kind", "global|site"),
        expires=top.optional_text("expires", _TIME),
        key=top.text("key", _HASH),
        percent=rollout.integer("percent", 0, 100),
        cohorts=rollout.texts("cohorts", _WORD),
        devices=rollout.texts("devices", _WORD),
        downgrade_from=top.integer("downgrade_from", 0) or None,
        recipient=top.optional_text("recipient", "[0-9a-f]{16}"),
        withdrawn=top.text("status", "offered|withdrawn") == "withdrawn",
    )
    rollout.close()
    top.close()
    return made


def _standing(offers: Sequence[Offer], device: Device, record: Record) -> str:
    """How the running bundle stands when nothing is installed."""
    if record.current is None:
        return "none"
    running = record.current
    same = [one for one in offers if (one.model, one.version) == (running.name, running.version)]
    return "withdrawn" if same and all(one.withdrawn for one in same) else "current"


def _recipient(state: Path) -> str | None:
    path = slots.recipient_path(state)
    return RecipientKey.load(path).key_id if path.exists() else None


def _check_space(state: Path, length: int) -> None:
    """Refuse before anything is given up when the new file has no room."""
    found = os.statvfs(state)
    if found.f_bavail * found.f_frsize < length + 262_144:
        raise UpdateRefused(
            "storage",
            f"Expected room for {length} bytes in {state}, got too little; free some.",
        )


def _check_bundle(state: Path, data: bytes, offer: Offer, seconds: float) -> str:
    """Open, verify and try a downloaded bundle in memory; a failure sets it aside.

    Returns:
        The digest of the bundle itself.
    """

    def begin(found: Record) -> Record:
        attempts = {**found.attempts, offer.digest: found.attempts.get(offer.digest, 0) + 1}
        return replace(found, attempts=dict(list(attempts.items())[-16:]))

    record = slots.edit(state, begin)
    try:
        if record.attempts[offer.digest] > MAX_ATTEMPTS:
            raise UpdateRefused(
                "unhealthy",
                f"Expected the check of version {offer.version} to end, got {MAX_ATTEMPTS} that "
                "did not; ask the publisher for a new version.",
            )
        plain = data if offer.recipient is None else _opened(state, data, offer)
        bundle = _parsed(plain, offer)
        trusted = [slots.verify_key(offer.key)]
        _healthy(lambda: EdgeModel.from_bytes(plain, trusted, offer.path), offer, seconds)
    except UpdateRefused as refused:
        if refused.reason != "wrong-recipient":  # the key may be put right
            reason = refused.reason
            slots.edit(
                state, lambda found: slots.set_aside(found, offer.digest, offer.version, reason)
            )
        raise
    return bundle


def _opened(state: Path, data: bytes, offer: Offer) -> bytes:
    try:
        return slots.unseal(state, data, offer.model, offer.version)
    except (BundleError, ConfigError) as error:
        raise UpdateRefused("wrong-recipient", str(error)) from None


def _parsed(plain: bytes, offer: Offer) -> str:
    """Check the bundle's own signature and that it is what the release says; give its digest."""
    key = slots.verify_key(offer.key)
    try:
        bundle = parse_bundle(plain, [key], offer.path)
    except BundleError as error:
        claimed = _claimed_key(plain)
        reason = "damaged-bundle" if claimed in (None, key.key_id) else "wrong-key"
        raise UpdateRefused(reason, str(error)) from None
    manifest = bundle.manifest
    said = (offer.model, offer.version, offer.kind, offer.expires)
    if (manifest.name, manifest.version, manifest.kind, manifest.expires) != said:
        raise UpdateRefused(
            "mix-and-match",
            f"Expected version {offer.version} of {offer.model} as the release says, got version "
            f"{manifest.version} of {manifest.name} or another kind or expiry; ask the publisher.",
        )
    return bundle.digest


def _claimed_key(plain: bytes) -> str | None:
    """The key id that a bundle claims, which proves nothing; for the name of a refusal."""
    import io
    import zipfile

    try:
        with zipfile.ZipFile(io.BytesIO(plain)) as archive, archive.open(SIGNATURE) as stream:
            return parse_object(stream.read(1_025), SIGNATURE, 1_024).text("key_id")
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, RuntimeError, BundleError):
        return None


def _healthy(load: Callable[[], EdgeModel], offer: Offer, seconds: float) -> None:
    """Load the bundle and run its golden vectors, within a time."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            load()
        except BaseException as error:
            failures.append(error)

    # a thread, since a graph in native code cannot be interrupted; it dies with the process
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise UpdateRefused(
            "unhealthy",
            f"Expected version {offer.version} to load and compute within {seconds:g} s, got no "
            "end; ask the publisher for a smaller model.",
        )
    if failures and isinstance(failures[0], FedlatentError | MemoryError):
        raise UpdateRefused("unhealthy", str(failures[0]) or "Expected enough memory, got none.")
    if failures:
        raise failures[0]


def _describe(offer: Offer, bundle: str, record: Record) -> Installed:
    """The slot's entry."""
    return Installed(
        slot="a",
        digest=offer.digest,
        bundle=bundle,
        bytes=offer.bytes,
        key=offer.key,
        name=offer.model,
        version=offer.version,
        kind=offer.kind,
        recipient=offer.recipient,
        installed=slots.utc_text(),
        direction="down" if offer.comes_down(record.barrier) else "up",
    )
