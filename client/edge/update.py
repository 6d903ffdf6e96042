"""Updates on a device: from a signed release folder to a checked bundle in a slot.

Nothing is trusted because of where it came from: TUF verifies all metadata from the root that the
device was provisioned with. Nothing is sent but requests for files, to that server alone.

Order: verify metadata, choose a version, download at most the signed length, compare the digest,
unseal, verify the bundle's own signature, run its golden vectors on this machine, write the free
slot, switch. All but the last two happen in memory. Whatever fails, the installed bundle keeps
running, and `UpdateRefused` names the reason; docs/edge.md lists them. Scoring never imports tuf.
"""

import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from tuf.api import exceptions as tuf
from tuf.api.metadata import Metadata, Targets  # type: ignore[attr-defined]
from tuf.ngclient import Updater  # type: ignore[attr-defined]
from tuf.ngclient.fetcher import FetcherInterface

from fedlatent.client.edge import slots
from fedlatent.client.edge.slots import Device, Installed, Record
from fedlatent.shared.bundle.offer import CUSTOM_FORMAT, WORD, Offer
from fedlatent.shared.bundle.sealed import MAX_OVERHEAD, RecipientKey, SuiteName
from fedlatent.shared.bundle.strict import MAX_ITEMS
from fedlatent.shared.errors import (
    BundleError,
    ConfigError,
    FedlatentError,
    UpdateRefused,
    UpgradeNeeded,
)
from fedlatent.shared.files import sha256_hex, utc_text, write_atomic

#: Checks of a bundle that never end (crash, watchdog, busy machine) before it is set aside.
MAX_CHECKS = 3
CHECK_SECONDS = 60.0
#: For one file, however slowly it drips.
FETCH_SECONDS = 300.0

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class UpdateReport:
    """What an update did.

    Attributes:
        result: "installed", "available" (with ``check``), "current" (nothing newer for this
            device), "withdrawn" (what runs is offered no longer), or "none" (none runs yet).
        model: name.
        version: that runs now.
        before: that ran before.
        available: that was installed or would be.
        bytes: of its file.
        set_aside: versions that failed here, with this software, and were passed over.
        metadata_expires: UTC text when the first part of it does.
    """

    result: str
    model: str
    version: int | None
    before: int | None
    available: int | None = None
    bytes: int = 0
    set_aside: tuple[int, ...]
    metadata_expires: str


def provision(
    state: Path,
    root: bytes,
    model: str,
    *,
    cohorts: Sequence[str] = (),
    device: str | None = None,
    new_recipient: SuiteName | None = None,
) -> Device:
    """Prepare a state folder: once, from a root that was checked over another channel.

    ``root`` is the content of a ``N.root.json``, ``device`` an id (random by default). With
    ``new_recipient`` a key of this suite for sealed bundles is made, unless recipient.key is there.

    Raises:
        ConfigError: the folder is provisioned already, or an argument is not valid.
    """
    if (state / "device.json").exists():
        raise ConfigError(
            f"Expected a folder that is not provisioned, got {state}; use it, or remove it (the "
            "version floor is then lost)."
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            _client(folder, "", root)
    except tuf.RepositoryError:
        raise ConfigError(
            "Expected a release's metadata/N.root.json, signed by its own keys, got something else."
        ) from None
    made = Device(
        device=device or secrets.token_hex(16),
        model=model,
        cohorts=tuple(sorted(set(cohorts))),
        provisioned=utc_text(),
    )
    names = (made.device, made.model, *made.cohorts)
    if len(names) > MAX_ITEMS or not all(re.fullmatch(WORD, name) for name in names):
        raise ConfigError(
            "Expected names of at most 64 letters, digits, '.', '_' and '-', got others; correct "
            "them."
        )
    (state / "slots").mkdir(parents=True, exist_ok=True)
    write_atomic(state / "trust" / "bootstrap.json", root)
    key = slots.recipient_path(state)
    if new_recipient and not key.exists():
        key.with_name(f"{key.name}.pub").unlink(missing_ok=True)  # of a run that was cut short
        RecipientKey.generate(key, new_recipient)
    slots.write_device(state, made)
    return made


def update(
    state: Path, source: str | Path, *, check: bool = False, retry: bool = False
) -> UpdateReport:
    """Bring a device up to date with a release folder.

    Args:
        state: made by `provision`.
        source: folder, or its ``file://`` or ``http(s)://`` address.
        check: only say what would be installed.
        retry: forget which bundles failed here before.

    Raises:
        UpdateRefused: what runs stays.
        ConfigError: the state folder is not provisioned, or the source is no address.
    """
    base = _address(source)
    device = slots.read_device(state)
    try:
        with slots.locked(state, "update.lock", wait=False):
            slots.sweep(state)
            return _update(state, base, device, check, retry)
    except UpdateRefused as refused:
        slots.log(state, "refused", reason=refused.reason, sentence=str(refused))
        raise
    except BlockingIOError:
        raise UpdateRefused(
            "busy", "Expected no other update of this folder, got one; wait for it."
        ) from None
    except OSError as error:
        raise UpdateRefused(
            "storage",
            f"Expected to write in {state} and the folder of temporary files, got "
            f"{type(error).__name__}; free space or mount them writable.",
        ) from None


def _update(state: Path, base: str, device: Device, check: bool, retry: bool) -> UpdateReport:
    record = slots.heal(state)
    if retry:
        record = slots.edit(state, lambda it: replace(it, set_aside=(), checking=None, checks=0))
    offers, expires, now = refresh(state, base)
    key = slots.recipient_path(state)
    recipient = RecipientKey.load(key).public.key_id if key.exists() else None
    offer = choose(offers, device, record, recipient, now)
    report = _report(offers, device, record, expires)
    if offer is None:
        return report
    report = replace(report, available=offer.version, bytes=offer.bytes)
    if check:
        return replace(report, result="available")
    data = download(base, offer)
    disk = os.statvfs(state)
    if disk.f_bavail * disk.f_frsize < len(data) + 262_144:  # before anything is given up
        raise UpdateRefused("storage", f"Expected room for {len(data)} bytes in {state}, got less.")
    made = Installed(
        slot="a",
        digest=offer.digest,
        bundle=_checked(state, data, offer),
        bytes=offer.bytes,
        key=offer.key,
        name=offer.model,
        version=offer.version,
        kind=offer.kind,
        recipient=offer.recipient,
        installed=utc_text(),
        direction="down" if offer.version < record.barrier else "up",
    )
    slots.install(state, data, made)
    return replace(report, result="installed", version=offer.version)


def _report(offers: Sequence[Offer], device: Device, record: Record, expires: str) -> UpdateReport:
    """How things stand when nothing is installed."""
    before = record.current.version if record.current else None
    aside = slots.passed_over(record)
    same = [one.withdrawn for one in offers if (one.model, one.version) == (device.model, before)]
    standing = "withdrawn" if same and all(same) else "current"
    return UpdateReport(
        result=standing if before else "none",
        model=device.model,
        version=before,
        before=before,
        set_aside=tuple(sorted({one.version for one in offers if one.digest in aside})),
        metadata_expires=expires,
    )


def choose(
    offers: Sequence[Offer], device: Device, record: Record, recipient: str | None, now: str
) -> Offer | None:
    """The version that a device should install, or None when it has it or none is for it.

    That is the highest one that the rollout gives it, at or above `Record.barrier` or signed as a
    downgrade from there; so a downgrade takes effect once the higher versions are withdrawn.

    Raises:
        UpdateRefused: not-offered, rollback, downgrade, expired-bundle or needs-upgrade.
    """
    mine = [
        one for one in offers if one.model == device.model and one.recipient in (None, recipient)
    ]
    if not mine:
        raise UpdateRefused(
            "not-offered",
            f"Expected a version of {device.model} that this device can open, got none; check the "
            "address and the model's name.",
        )
    possible = [one for one in mine if one.reaches(record.barrier)]
    if not possible:
        down = any(one.downgrade_from for one in mine)
        raise UpdateRefused(
            "downgrade" if down else "rollback",
            f"Expected a version from {record.barrier} on or a downgrade signed for it, got "
            f"{max(one.version for one in mine)} at most; {_CHECK}.",
        )
    return _newest(possible, device, record, now)


def _newest(possible: Sequence[Offer], device: Device, record: Record, now: str) -> Offer | None:
    aside = slots.passed_over(record)
    expired: Offer | None = None
    waiting: Offer | None = None
    for one in sorted(possible, key=lambda it: (-it.version, it.recipient is not None, it.path)):
        if one.withdrawn:
            continue
        if record.current and one.version == record.current.version:
            break
        if not one.includes(device.device, device.cohorts):
            continue
        if one.digest in aside:
            if aside[one.digest].reason == UpgradeNeeded.code:
                waiting = waiting or one
            continue
        if one.expires is None or one.expires > now:
            return one
        expired = expired or one
    if expired is not None:
        raise UpdateRefused(
            "expired-bundle",
            f"Expected a bundle that has not expired, got version {expired.version} until "
            f"{expired.expires}; ask the publisher.",
        )
    if waiting is not None:
        raise UpdateRefused(
            UpgradeNeeded.code,
            f"Expected newer software for version {waiting.version}, got "
            f"{aside[waiting.digest].software}; upgrade onnxruntime and this program, then update "
            "again.",
        )
    return None


def refresh(state: Path, base: str) -> tuple[list[Offer], str, str]:
    """Verify a release's metadata from the stored trust on, and store what was verified.

    TUF's client writes without syncing, so it works on a copy; what it verified is then written
    durably, even when a later step fails.

    Returns:
        The offers, when the metadata expires first, and the present: not before the last update,
        so that a clock which was set back hides no expiry.

    Raises:
        UpdateRefused: it is not good, or cannot be had.
    """
    trust = state / "trust"
    now = max(time.time(), slots.last_verified(state) or 0.0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(shutil.copytree(trust, folder, dirs_exist_ok=True))
            client = _client(folder, base, (trust / "bootstrap.json").read_bytes())
            try:
                client.refresh()
            finally:
                _store_trust(work, trust)
        targets: Metadata[Targets] = Metadata.from_bytes((trust / "targets.json").read_bytes())
        expires = min(age.expires for age in slots.metadata(state).values())
        if expires <= utc_text(now):
            raise tuf.ExpiredMetadataError(f"at {expires}, and this clock was set back")
    except (tuf.RepositoryError, tuf.DownloadError) as error:
        raise _refusal(error) from error
    os.utime(trust / "timestamp.json", (now, now))
    return read_offers(targets.signed), expires, utc_text(now)


def read_offers(targets: Targets) -> list[Offer]:
    """The bundles of a release; targets of an unknown format are left out.

    Raises:
        UpdateRefused: damaged-metadata.
    """
    try:
        return [
            Offer.read(path, target.hashes.get("sha256"), target.length, target.custom)
            for path, target in targets.targets.items()
            if isinstance(target.custom, dict) and target.custom.get("format") == CUSTOM_FORMAT
        ]
    except BundleError as error:
        raise UpdateRefused("damaged-metadata", str(error)) from None


def download(base: str, offer: Offer) -> bytes:
    """Fetch a bundle into memory: at most its signed length, with its signed digest.

    Raises:
        UpdateRefused: oversized, truncated, swapped-file or unreachable.
    """
    from fedlatent.shared.bundle.archive import MAX_BUNDLE_BYTES  # slow to load, and rarely needed

    if offer.bytes > MAX_BUNDLE_BYTES + MAX_OVERHEAD:
        raise UpdateRefused(
            "oversized",
            f"Expected at most {MAX_BUNDLE_BYTES} bytes, got {offer.bytes}; ask the publisher.",
        )
    try:
        data = Fetcher().download_bytes(f"{base}/targets/{offer.digest}.{offer.path}", offer.bytes)
    except tuf.DownloadError as error:
        raise _refusal(error) from error
    if sha256_hex(data) != offer.digest:
        raise UpdateRefused(
            "truncated" if len(data) < offer.bytes else "swapped-file",
            f"Expected {offer.bytes} bytes with their signed digest, got {len(data)} or others; "
            f"{_AGAIN}.",
        )
    return data


class Fetcher(FetcherInterface):
    """Reads files or asks a web server, each whole in memory and within `FETCH_SECONDS`."""

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """The content of ``url``.

        Raises:
            tuf.DownloadError: it cannot be read, or not in time, or is longer than ``max_length``.
        """
        try:
            data = _within(FETCH_SECONDS, lambda: _read(url, max_length + 1))
        except tuf.DownloadError:
            raise
        except Exception as error:  # of sockets, TLS, HTTP: all of them mean no file
            raise tuf.DownloadError(type(error).__name__) from error
        if len(data) > max_length:
            raise tuf.DownloadLengthMismatchError(f"more than {max_length} bytes")
        return data

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError  # only the method replaced here calls it


def _read(url: str, most: int) -> bytes:
    """The first ``most`` bytes of a regular file or of a web server's answer."""
    if url.startswith("file:"):
        path = Path(unquote(urlsplit(url).path))
        if not path.is_file():  # a device or a pipe is not even opened
            raise tuf.DownloadHTTPError("no such file", 404)
        with path.open("rb") as stream:
            return stream.read(most)
    from urllib.error import HTTPError
    from urllib.request import HTTPRedirectHandler, build_opener

    class Stay(HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            """Go nowhere: no answer may send this device to its neighbours."""

    try:
        with build_opener(Stay).open(url, timeout=30) as answer:
            data: bytes = answer.read(most)
            return data
    except HTTPError as error:
        with error:
            raise tuf.DownloadHTTPError(f"HTTP status {error.code}", error.code) from None


def _within(seconds: float, work: Callable[[], Value]) -> Value:
    """The result of ``work``, or TimeoutError.

    Neither native code nor the look-up of a name can be interrupted; such a thread is left behind.
    """
    future: Future[Value] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


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


def _client(folder: str, base: str, root: bytes) -> Updater:
    """TUF's client, which trusts ``root`` when it is signed by its own keys."""
    return Updater(folder, f"{base}/metadata", fetcher=Fetcher(), bootstrap=root)


def _store_trust(work: Path, trust: Path) -> None:
    """Write what TUF's client verified: roots first, then in its order of trust."""
    names = ("root_history/*.root", "root", "timestamp", "snapshot", "targets")
    for source in [path for name in names for path in work.glob(f"{name}.json")]:
        target, data = trust / source.relative_to(work), source.read_bytes()
        if not target.exists() or target.read_bytes() != data:
            write_atomic(target, data)


_CHECK = "check the address, and ask the publisher when it is right"
_AGAIN = "try again, and ask the publisher when it stays so"
#: By kind of error, the first that fits: the name, what was expected, what to do.
_REFUSALS: Mapping[type[Exception], tuple[str, str, str]] = {
    tuf.ExpiredMetadataError: (
        "expired-metadata",
        "metadata that has not expired",
        "ask the publisher to refresh the release, and check this device's clock",
    ),
    tuf.BadVersionNumberError: (
        "rollback",
        "metadata at least as new as this device has seen",
        _CHECK,
    ),
    tuf.UnsignedMetadataError: ("wrong-key", "metadata signed by enough trusted keys", _CHECK),
    tuf.LengthOrHashMismatchError: (
        "mix-and-match",
        "metadata that belongs together and is whole",
        _AGAIN,
    ),
    tuf.RepositoryError: ("damaged-metadata", "readable metadata", _AGAIN),
    tuf.DownloadLengthMismatchError: (
        "oversized",
        "a file of its signed or allowed length",
        _CHECK,
    ),
    tuf.DownloadError: ("unreachable", "a release folder with all its files", _CHECK),
}


def _refusal(error: tuf.RepositoryError | tuf.DownloadError) -> UpdateRefused:
    """The name and the sentence for an error of TUF's client."""
    came = (str(error).splitlines() or [type(error).__name__])[0][:120]
    reason, expected, then = next(it for kind, it in _REFUSALS.items() if isinstance(error, kind))
    return UpdateRefused(reason, f"Expected {expected}, got {came!r}; {then}.")


def _checked(state: Path, data: bytes, offer: Offer) -> str:
    """Open and try a downloaded bundle; one that is no good is set aside. Gives its own digest."""
    plain = data
    if offer.recipient is not None:
        plain = slots.unseal(state, data, offer.model, offer.version)

    def begin(found: Record) -> Record:
        checks = found.checks if found.checking == offer.digest else 0
        return replace(found, checking=offer.digest, checks=checks + 1)

    try:
        if slots.edit(state, begin).checks > MAX_CHECKS:
            raise UpdateRefused(
                "unhealthy",
                f"Expected a check that ends, got {MAX_CHECKS} that did not; ask the publisher.",
            )
        return _tried(plain, offer)
    except UpdateRefused as refused:
        reason = refused.reason
        slots.edit(state, lambda it: slots.set_aside(it, offer.digest, offer.version, reason))
        raise
    except (TimeoutError, MemoryError) as error:  # counted: it may do better when less goes on
        raise UpdateRefused(
            "unhealthy",
            f"Expected a bundle that computes within {CHECK_SECONDS:g} s and the memory here, got "
            f"{type(error).__name__}; ask the publisher for a smaller one.",
        ) from None


def _tried(plain: bytes, offer: Offer) -> str:
    """Check a bundle's signature, that it is what the release says, and what it computes here."""
    from fedlatent.client.edge.runtime import EdgeModel
    from fedlatent.shared.bundle.archive import UNKNOWN_KEY, parse_bundle

    key = slots.verify_key(offer.key)
    try:
        bundle = parse_bundle(plain, [key], offer.path)
    except UpgradeNeeded as error:
        raise UpdateRefused(error.code, str(error)) from None
    except BundleError as error:
        reason = "wrong-key" if error.reason == UNKNOWN_KEY else "damaged-bundle"
        raise UpdateRefused(reason, str(error)) from None
    manifest, digest = bundle.manifest, bundle.digest
    del bundle  # the check below has its own copy
    said = (offer.model, offer.version, offer.kind, offer.expires)
    if (manifest.name, manifest.version, manifest.kind, manifest.expires) != said:
        raise UpdateRefused(
            "mix-and-match",
            f"Expected {said} as the release says, got another name, version, kind or expiry; ask "
            "the publisher.",
        )
    try:
        _within(CHECK_SECONDS, lambda: EdgeModel.from_bytes(plain, [key], offer.path))
    except UpgradeNeeded as error:
        raise UpdateRefused(error.code, str(error)) from None
    except FedlatentError as error:
        raise UpdateRefused("unhealthy", str(error)) from None
    return digest
