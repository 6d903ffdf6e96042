"""Two slots on a device: one bundle runs, the one before waits, and one file says which is which.

The state folder::

    device.json          who this device is; written once by `client.edge.update.provision`
    current.json         the commit point: replaced as a whole, after the slot is safely on disk
    slots/a.fedlatent, slots/b.fedlatent
    trust/               newest verified release metadata
    recipient.key        opens sealed bundles; optional
    log.jsonl, log.1.jsonl   what happened: at most 256 kB each

A new bundle is on **trial**: it is confirmed by `confirm` after its first good scores. `boot` goes
back to the bundle before when the current one does not load, does not match its digest or computes
otherwise here, or when it was started three times and never confirmed. A bundle that failed by its
own fault is set aside by its digest and not installed again.

The **floor** is the highest version that was confirmed; see `Record.barrier`. Booting writes
nothing that it needs: on a read-only file system it loads the same bundle, without counting.

The folder needs a local file system with atomic rename, file locks and symbolic links, such as
ext4.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.bundle.strict import StrictObject, parse_object
from shared.errors import BundleError, ConfigError, FedlatentError, UpdateRefused
from shared.files import append_line, sha256_hex, write_atomic, write_json
from shared.keys import VerifyKey

if TYPE_CHECKING:
    from client.edge.runtime import EdgeModel

Status = Literal["trial", "confirmed"]
Direction = Literal["up", "down"]

FORMAT = 1
#: A trial that was started this often and never confirmed is rolled back at the next start.
MAX_BOOTS = 3
#: Digests that are remembered as set aside, newest last.
MAX_SET_ASIDE = 64
MAX_LOG_BYTES = 256_000
_MAX_STATE_BYTES = 65_536
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_HASH = r"[0-9a-f]{64}"
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
DAMAGED_SLOT = "damaged-slot"


@dataclass(frozen=True, kw_only=True)
class Device:
    """Who a device is, for rollouts.

    Attributes:
        device: its id; random unless it was given.
        model: name of the model that it runs.
        cohorts: groups that it belongs to.
        provisioned: UTC text.
    """

    device: str
    model: str
    cohorts: tuple[str, ...]
    provisioned: str


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A bundle in a slot.

    Attributes:
        slot: "a" or "b".
        digest: SHA-256 (hex) of the file in the slot, sealed or not.
        bundle: SHA-256 (hex) of the bundle itself; the same when it is not sealed.
        bytes: length of the file in the slot.
        key: Ed25519 public key (64 hex) that signed the bundle.
        name: of the model.
        version: of the model.
        kind: "global" or "site".
        recipient: id of the key that it is sealed to, or None.
        installed: UTC text.
        direction: "down" when it came by a signed downgrade: confirming it lowers the floor.
        status: "trial" or "confirmed".
        boots: starts while on trial.
    """

    slot: str
    digest: str
    bundle: str
    bytes: int
    key: str
    name: str
    version: int
    kind: str
    recipient: str | None
    installed: str
    direction: Direction = "up"
    status: Status = "trial"
    boots: int = 0


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A bundle that this device does not install again.

    Attributes:
        digest: SHA-256 (hex) of its file.
        version: of the model.
        reason: short name of why.
        time: UTC text.
    """

    digest: str
    version: int
    reason: str
    time: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """All of current.json.

    Attributes:
        current: what runs, or None before the first install.
        previous: what `boot` goes back to, or None.
        floor: highest version that was confirmed, or what a signed downgrade lowered it to.
        attempts: health checks begun and not ended, by digest; a crash leaves its count here.
        set_aside: bundles that are not tried again.
    """

    current: Installed | None = None
    previous: Installed | None = None
    floor: int = 0
    attempts: Mapping[str, int] = field(default_factory=dict)
    set_aside: tuple[SetAside, ...] = ()

    @property
    def barrier(self) -> int:
        """Lowest version that may be installed without a signed downgrade.

        It is the floor, or the running version when that is higher (a trial).
        """
        return max(self.floor, self.current.version if self.current else 0)


@dataclass(frozen=True, kw_only=True)
class Booted:
    """A start of the installed bundle.

    Attributes:
        model: ready to score.
        installed: which bundle it is.
        rolled_back: the sentence why the bundle after it was given up in this start, or None.
        recorded: False when the folder could not be written, so that nothing was counted.
    """

    model: "EdgeModel"
    installed: Installed
    rolled_back: str | None
    recorded: bool


@dataclass(frozen=True, kw_only=True)
class RoleAge:
    """Stored metadata of one role.

    Attributes:
        version: of the metadata.
        expires: UTC text.
        expired: whether that has passed; it blocks new installs, never scoring.
    """

    version: int
    expires: str
    expired: bool


@dataclass(frozen=True, kw_only=True)
class StateStatus:
    """What a device runs and how fresh its view of the release is.

    Attributes:
        device: who it is.
        current: what runs.
        previous: what it can go back to.
        floor: see `Record`.
        set_aside: see `Record`.
        metadata: by role; empty before the first update.
        checked_seconds_ago: since the last update that verified the release; None before.
    """

    device: Device
    current: Installed | None
    previous: Installed | None
    floor: int
    set_aside: tuple[SetAside, ...]
    metadata: Mapping[str, RoleAge]
    checked_seconds_ago: float | None


def boot(state: Path) -> "EdgeModel":
    """Load the installed bundle; see `start`.

    Raises:
        BundleError: nothing is installed, or neither slot holds a good bundle.
    """
    return start(state).model


def start(state: Path) -> Booted:
    """Load the installed bundle: digest, signature and golden vectors are checked on this machine.

    A trial is counted. When the current bundle fails, the one before is loaded in its place and
    that is recorded.

    Raises:
        BundleError: nothing is installed, or neither slot holds a good bundle.
    """
    record, recorded = _count_start(state)
    current, previous = record.current, record.previous
    if current is None:
        raise BundleError(
            f"Expected an installed bundle in {state}, got none yet; run the update command first."
        )
    if current.status == "trial" and current.boots > MAX_BOOTS and previous is not None:
        failure: FedlatentError = UpdateRefused(
            "unconfirmed",
            f"Expected version {current.version} to be confirmed within {MAX_BOOTS} starts, got "
            f"none; going back to version {previous.version}.",
        )
    else:
        try:
            model = load_slot(state, current)
        except FedlatentError as error:
            failure = error
        else:
            return Booted(model=model, installed=current, rolled_back=None, recorded=recorded)
    if previous is None:
        raise BundleError(
            f"Expected a good bundle in slot {current.slot}, got none, and no other to go back "
            f"to: {failure}"
        ) from failure
    try:
        model = load_slot(state, previous)
    except FedlatentError as error:
        raise BundleError(
            f"Expected a good bundle in one of two slots, got none: {failure} {error}"
        ) from error
    recorded = _go_back(state, current, failure)
    return Booted(model=model, installed=previous, rolled_back=str(failure), recorded=recorded)


def confirm(state: Path, bundle: str | None = None) -> bool:
    """Say that the running bundle has scored well; a trial is then over. Cheap when it is already.

    Args:
        state: the state folder.
        bundle: ``digest`` of the bundle that scored (`EdgeModel.bundle`), so that a process which
            still runs an older one confirms nothing; None confirms whatever is current.

    Returns:
        Whether the bundle is confirmed now; False on a read-only file system.
    """
    current = read_record(state).current
    if current is None or (bundle is not None and bundle != current.bundle):
        return False
    if current.status == "confirmed":
        return True

    def change(record: Record) -> Record:
        now = record.current
        if now is None or now.digest != current.digest or now.status == "confirmed":
            return record
        done = replace(now, status="confirmed", boots=0, direction="up")
        floor = now.version if now.direction == "down" else max(record.floor, now.version)
        return replace(record, current=done, floor=floor)

    try:
        edit(state, change)
    except OSError:
        return False
    log(state, "confirmed", version=current.version, digest=current.digest)
    return True


def rollback(state: Path) -> Installed:
    """Go back to the bundle before, by hand; the one that is left is set aside.

    Returns:
        What runs from the next start on.

    Raises:
        BundleError: there is nothing to go back to, or it is not good.
    """
    record = read_record(state)
    if record.current is None or record.previous is None:
        raise BundleError(
            f"Expected a bundle to go back to in {state}, got none; update to another version."
        )
    load_slot(state, record.previous)
    reason = UpdateRefused("by-hand", f"Expected version {record.current.version} to stay.")
    if not _go_back(state, record.current, reason):
        raise BundleError(
            f"Expected a writable folder {state}, got one that is not; mount it writable."
        )
    return record.previous


def status(state: Path) -> StateStatus:
    """What runs, and how old the view of the release is; reads files only.

    Raises:
        ConfigError: the folder is not provisioned.
        BundleError: current.json is damaged.
    """
    record = read_record(state)
    now = datetime.now(UTC)
    metadata = {}
    for role in ("timestamp", "snapshot", "targets", "root"):
        found = _metadata(state, role)
        if found is not None:
            version, expires = found
            passed = datetime.fromisoformat(expires) <= now
            metadata[role] = RoleAge(version=version, expires=expires, expired=passed)
    try:
        checked = time.time() - (state / "trust" / "timestamp.json").stat().st_mtime
    except OSError:
        checked = None
    return StateStatus(
        device=read_device(state),
        current=record.current,
        previous=record.previous,
        floor=record.floor,
        set_aside=record.set_aside,
        metadata=metadata,
        checked_seconds_ago=checked,
    )


def load_slot(state: Path, installed: Installed) -> "EdgeModel":
    """Verify and load one slot.

    Raises:
        UpdateRefused: "damaged-slot": the file is not the one that was installed.
        BundleError: the bundle is not good on this machine.
        ConfigError: it is sealed and the key is missing.
    """
    from client.edge.runtime import EdgeModel

    data = _read_slot(state, installed)
    where = f"slot {installed.slot}"
    if installed.recipient is not None:
        data = unseal(state, data, installed.name, installed.version)
    model = EdgeModel.from_bytes(data, [verify_key(installed.key)], where)
    if model.bundle.digest != installed.bundle:
        raise BundleError(
            f"Expected the bundle that was installed in {where}, got another; update again."
        )
    return model


def unseal(state: Path, data: bytes, model: str, version: int) -> bytes:
    """Open a sealed bundle with this device's key.

    Raises:
        ConfigError: the device has no key.
        BundleError: it is sealed to another key or as something else.
    """
    from shared.bundle.sealed import RecipientKey, bundle_info, open_sealed

    key = RecipientKey.load(recipient_path(state))
    return open_sealed(data, key, bundle_info(model, version))


def recipient_path(state: Path) -> Path:
    """Where the key that opens sealed bundles lies."""
    return state / "recipient.key"


def slot_path(state: Path, slot: str) -> Path:
    """The file of slot "a" or "b"."""
    return state / "slots" / f"{slot}.fedlatent"


def verify_key(text: str) -> VerifyKey:
    """An Ed25519 public key from its 64 hexadecimal digits."""
    return VerifyKey(key=Ed25519PublicKey.from_public_bytes(bytes.fromhex(text)))


def install(state: Path, data: bytes, installed: Installed) -> Installed:
    """Write a bundle, already checked, to the free slot and make it the current one, on trial.

    A kill at any step leaves the old bundle or the new one current, whole.

    Args:
        state: the state folder.
        data: what goes into the slot.
        installed: describes it; its slot is chosen here.

    Raises:
        OSError: the folder cannot be written.
    """
    record = edit(state, _free_slot)
    taken = record.current.slot if record.current else "b"
    made = replace(installed, slot="b" if taken == "a" else "a", status="trial", boots=0)
    mode = 0o600 if made.kind == "site" else 0o644
    write_atomic(slot_path(state, made.slot), data, mode)

    def change(found: Record) -> Record:
        attempts = {k: v for k, v in found.attempts.items() if k != made.digest}
        return replace(found, current=made, previous=found.current, attempts=attempts)

    edit(state, change)
    log(state, "installed", version=made.version, digest=made.digest, slot=made.slot)
    return made


def heal(state: Path) -> Record:
    """Drop slots whose file is not what was installed, so that it can be installed again.

    Raises:
        BundleError: current.json is damaged.
    """
    record = read_record(state)
    current, previous = record.current, record.previous
    if current is None or slot_is_intact(state, current):
        return record
    if previous is not None and slot_is_intact(state, previous):
        _go_back(state, current, UpdateRefused(DAMAGED_SLOT, "Expected the installed file."))
    else:
        edit(state, lambda found: replace(found, current=None, previous=None))
        log(state, "dropped", version=current.version, digest=current.digest)
    return read_record(state)


def slot_is_intact(state: Path, installed: Installed) -> bool:
    """Whether the slot's file has its digest."""
    try:
        _read_slot(state, installed)
    except UpdateRefused:
        return False
    return True


def set_aside(record: Record, digest: str, version: int, reason: str) -> Record:
    """``record`` with a bundle that is not tried again; the oldest one is forgotten when full."""
    others = tuple(one for one in record.set_aside if one.digest != digest)
    made = SetAside(digest=digest, version=version, reason=reason, time=utc_text())
    attempts = {k: v for k, v in record.attempts.items() if k != digest}
    kept = (*others, made)[-MAX_SET_ASIDE:]
    return replace(record, set_aside=kept, attempts=attempts)


def read_record(state: Path) -> Record:
    """Read current.json; an absent one is an empty record.

    Raises:
        BundleError: it is damaged.
    """
    try:
        data = (state / "current.json").read_bytes()
    except FileNotFoundError:
        return Record()
    except OSError as error:
        raise BundleError(
            f"Expected a readable current.json in {state}, got {type(error).__name__}; check the "
            "folder."
        ) from None
    top = parse_object(data, "current.json", _MAX_STATE_BYTES)
    top.integer("format", FORMAT, FORMAT)
    current = top.optional_child("current")
    previous = top.optional_child("previous")
    attempts = top.number_mapping("attempts", _HASH)
    aside = top.children("set_aside", _HASH, _set_aside)
    record = Record(
        current=_installed(current) if current else None,
        previous=_installed(previous) if previous else None,
        floor=top.integer("floor", 0),
        attempts={digest: int(count) for digest, count in attempts.items()},
        set_aside=tuple(sorted(aside.values(), key=lambda one: (one.time, one.digest))),
    )
    top.close()
    return record


def edit(state: Path, change: Callable[[Record], Record]) -> Record:
    """Replace current.json by ``change`` of it, under a lock; no write when nothing changes.

    Raises:
        OSError: the folder cannot be written.
        BundleError: current.json is damaged.
    """
    with locked(state, "lock"):
        old = read_record(state)
        new = change(old)
        if new != old:
            value = {**asdict(new), "format": FORMAT}
            value["set_aside"] = {one.digest: asdict(one) for one in new.set_aside}
            write_json(state / "current.json", value)
        return new


@contextmanager
def locked(state: Path, name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock of the state folder; a process that dies lets go of it.

    Raises:
        BlockingIOError: another process holds it and ``wait`` is False.
        OSError: the folder cannot be written.
    """
    descriptor = os.open(state / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def sweep(state: Path) -> None:
    """Remove the unfinished files that a kill left behind."""
    with locked(state, "lock"):  # no other process is in the middle of a write of these
        for folder, prefix in ((state, ".current.json."), (state / "slots", "."), *_trust(state)):
            for path in sorted(folder.glob(f"{prefix}*")):
                path.unlink(missing_ok=True)


def read_device(state: Path) -> Device:
    """Read device.json.

    Raises:
        ConfigError: the folder is not provisioned, or the file is damaged.
    """
    try:
        data = (state / "device.json").read_bytes()
        top = parse_object(data, "device.json", _MAX_STATE_BYTES)
        top.integer("format", FORMAT, FORMAT)
        device = Device(
            device=top.text("device", _WORD),
            model=top.text("model", _WORD),
            cohorts=top.texts("cohorts", _WORD),
            provisioned=top.text("provisioned", _TIME),
        )
        top.close()
    except (OSError, BundleError):
        raise ConfigError(
            f"Expected a provisioned state folder at {state}, got none or a damaged one; run the "
            "provision command."
        ) from None
    return device


def write_device(state: Path, device: Device) -> None:
    """Write device.json; the last step of provisioning."""
    write_json(state / "device.json", {**asdict(device), "format": FORMAT})


def log(state: Path, event: str, **facts: object) -> None:
    """Append one line to log.jsonl, which is turned over at 256 kB; silent when it cannot."""
    line = json.dumps({"time": utc_text(), "event": event, **facts}, ensure_ascii=False)
    path = state / "log.jsonl"
    with contextlib.suppress(OSError):
        if path.exists() and path.stat().st_size + len(line) > MAX_LOG_BYTES:
            path.replace(state / "log.1.jsonl")
        append_line(path, line)


def utc_text() -> str:
    """The present as text, like "2026-01-31T12:00:00Z"."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _count_start(state: Path) -> tuple[Record, bool]:
    """The record with one more start of a trial, and whether it could be written."""

    def change(record: Record) -> Record:
        current = record.current
        if current is None or current.status == "confirmed" or current.boots > MAX_BOOTS:
            return record
        return replace(record, current=replace(current, boots=current.boots + 1))

    record = read_record(state)
    if change(record) is record:
        return record, True
    try:
        return edit(state, change), True
    except OSError:
        return record, False


def _go_back(state: Path, failed: Installed, why: FedlatentError) -> bool:
    """Make the bundle before the current one; False when the folder cannot be written."""
    reason = why.reason if isinstance(why, UpdateRefused) else why.code
    # storage or a key at fault is not the bundle's fault
    blame = isinstance(why, BundleError) and reason != DAMAGED_SLOT

    def change(record: Record) -> Record:
        if record.current is None or record.current.digest != failed.digest:
            return record
        if record.previous is None:
            return record
        made = replace(record, current=record.previous, previous=None)
        return set_aside(made, failed.digest, failed.version, reason) if blame else made

    try:
        edit(state, change)
    except OSError:
        return False
    log(state, "rolled-back", version=failed.version, digest=failed.digest, reason=reason)
    return True


def _free_slot(record: Record) -> Record:
    """Give up the slot that comes next: a trial for the good bundle before it, else the older."""
    current, previous = record.current, record.previous
    if current is not None and current.status == "trial" and previous is not None:
        return replace(record, current=previous, previous=None)
    return replace(record, previous=None)


def _read_slot(state: Path, installed: Installed) -> bytes:
    try:
        with slot_path(state, installed.slot).open("rb") as stream:
            data = stream.read(installed.bytes + 1)
    except OSError:
        data = b""
    if sha256_hex(data) != installed.digest:
        raise UpdateRefused(
            DAMAGED_SLOT,
            f"Expected the file in slot {installed.slot} to match its recorded digest, got other "
            "bytes; the storage may be failing, so update again.",
        )
    return data


def _installed(value: StrictObject) -> Installed:
    made = Installed(
        slot=value.text("slot", "a|b"),
        digest=value.text("digest", _HASH),
        bundle=value.text("bundle", _HASH),
        bytes=value.integer("bytes", 1),
        key=value.text("key", _HASH),
        name=value.text("name", _WORD),
        version=value.integer("version", 1),
        kind=value.text("kind", "global|site"),
        recipient=value.optional_text("recipient", "[0-9a-f]{16}"),
        installed=value.text("installed", _TIME),
        direction=cast(Direction, value.text("direction", "up|down")),
        status=cast(Status, value.text("status", "trial|confirmed")),
        boots=value.integer("boots", 0),
    )
    value.close()
    return made


def _set_aside(value: StrictObject) -> SetAside:
    return SetAside(
        digest=value.text("digest", _HASH),
        version=value.integer("version", 1),
        reason=value.text("reason", _WORD),
        time=value.text("time", _TIME),
    )


def _trust(state: Path) -> Sequence[tuple[Path, str]]:
    trust = state / "trust"
    return ((trust, "."), (trust / "root_history", "."))


def _metadata(state: Path, role: str) -> tuple[int, str] | None:
    """Version and expiry of stored metadata, which was verified when it was stored."""
    trust = state / "trust"
    if role == "root":
        roots = [
            (int(path.name.split(".")[0]), path)
            for path in (trust / "root_history").glob("*.root.json")
            if path.name.split(".")[0].isdigit()
        ]
        path = max(roots)[1] if roots else trust / "bootstrap.json"
    else:
        path = trust / f"{role}.json"
    try:
        signed = json.loads(path.read_bytes())["signed"]
        version, expires = int(signed["version"]), str(signed["expires"])
        datetime.fromisoformat(expires)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return version, expires
