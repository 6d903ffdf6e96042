"""Two slots on a device: one bundle runs, the one before waits, and one file says which is which.

The state folder::

    device.json          who this device is; written once by `client.edge.update.provision`
    current.json         the commit point: replaced as a whole, after the slot is safely on disk
    slots/a.fedlatent, slots/b.fedlatent
    trust/               newest verified release metadata
    recipient.key        opens sealed bundles; optional
    log.jsonl, log.1.jsonl   what happened: at most 256 kB each

A new bundle is on **trial** until its first good scores (`confirm`). `boot` goes back to the bundle
before when the current one is not good here, or was started three times and never confirmed; what
failed by its own fault is set aside. A read-only folder boots without counting.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedlatent.client.edge.versions import software
from fedlatent.shared.bundle.offer import WORD
from fedlatent.shared.bundle.strict import parse_object
from fedlatent.shared.errors import BundleError, ConfigError, FedlatentError, UpdateRefused
from fedlatent.shared.files import (
    UTC_TIME,
    append_line,
    canonical_json,
    sha256_hex,
    utc_text,
    write_atomic,
    write_json,
)
from fedlatent.shared.keys import VerifyKey

if TYPE_CHECKING:
    from fedlatent.client.edge.runtime import EdgeModel

FORMAT = 1
#: A trial that was started this often and never confirmed is rolled back at the next start.
MAX_BOOTS = 3
MAX_SET_ASIDE = 64
MAX_LOG_BYTES = 256_000
DAMAGED_SLOT, WRONG_RECIPIENT = "damaged-slot", "wrong-recipient"
#: Reasons that no upgrade of a program changes.
_LASTING = frozenset({"wrong-key", "mix-and-match", "by-hand"})
_MAX_DEVICE_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class Device:
    """Who a device is, for rollouts: its id, the model that it runs, its groups, since when."""

    device: str
    model: str
    cohorts: tuple[str, ...]
    provisioned: str


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A bundle in a slot.

    Attributes:
        slot: "a" or "b".
        digest: SHA-256 (hex) of the file, sealed or not.
        bundle: SHA-256 (hex) of the bundle itself.
        bytes: of the file.
        key: Ed25519 public key (64 hex) that signed the bundle.
        name: of the model.
        version: of the model.
        kind: "global", or "site", which its owner alone may read.
        recipient: id of the key that it is sealed to.
        installed: UTC text.
        direction: "down" when confirming it lowers the floor, or "up".
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
    direction: str = "up"
    status: str = "trial"
    boots: int = 0


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A bundle that is not installed again, or not before an upgrade of what judged it.

    Attributes:
        digest: SHA-256 (hex) of its file.
        version: of the model.
        reason: of an `UpdateRefused`, or the code of another error.
        time: UTC text.
        software: that judged it (see `client.edge.versions`); "" when that does not matter.
    """

    digest: str
    version: int
    reason: str
    time: str
    software: str = ""


@dataclass(frozen=True, kw_only=True)
class Record:
    """All of current.json.

    Attributes:
        current: what runs, or None before the first install.
        previous: what `boot` goes back to, or None.
        floor: highest version that was confirmed, or what a signed downgrade lowered it to.
        checking: digest of the file whose check was begun last, or None.
        checks: of it that never ended.
        set_aside: what is not installed again, oldest first.
    """

    current: Installed | None = None
    previous: Installed | None = None
    floor: int = 0
    checking: str | None = None
    checks: int = 0
    set_aside: tuple[SetAside, ...] = ()

    @property
    def barrier(self) -> int:
        """Lowest version that installs without a signed downgrade; a trial counts."""
        return max(self.floor, self.current.version if self.current else 0)


@dataclass(frozen=True, kw_only=True)
class RoleAge:
    """Stored metadata of one role; expiry blocks new installs, never scoring."""

    version: int
    expires: str
    expired: bool


@dataclass(frozen=True, kw_only=True)
class StateStatus(Record):
    """The record, and how fresh the view of the release is.

    Attributes:
        device: who it is.
        metadata: by role; empty before the first update.
        checked_seconds_ago: since an update last verified the release, or None.
    """

    device: Device
    metadata: Mapping[str, RoleAge]
    checked_seconds_ago: float | None


def boot(state: Path) -> "EdgeModel":
    """Load the current bundle, or the one before, after all checks.

    Raises:
        BundleError: nothing is installed, or neither slot holds a good bundle.
    """
    record = _count_start(state)
    current, previous = record.current, record.previous
    if current is None:
        raise BundleError(f"Expected a bundle in {state}, got none yet; run 'update' first.")
    failures: list[FedlatentError] = []
    order = [one for one in (current, previous) if one]
    if previous and current.status == "trial" and current.boots > MAX_BOOTS:
        sentence = f"Expected a confirmation within {MAX_BOOTS} starts, got none."
        failures.append(UpdateRefused("unconfirmed", sentence))
        order.reverse()
    for one in order:
        try:
            model = load_slot(state, one)
        except FedlatentError as error:
            failures.append(error)
            continue
        if one is previous:
            with contextlib.suppress(OSError):  # read-only: the same again at the next start
                _go_back(state, current, failures[0], previous)
        return model
    said = " ".join(map(str, failures))
    raise BundleError(f"Expected a good bundle in one of two slots, got none: {said}")


def confirm(state: Path, bundle: str | None = None) -> bool:
    """Say that the bundle with this digest (None: the current one) has scored well: ends its trial.

    Returns:
        Whether it is current and confirmed now; False in a read-only folder.
    """

    def change(record: Record) -> Record:
        now = record.current
        if now is None or now.status == "confirmed" or bundle not in (None, now.bundle):
            return record
        done = replace(now, status="confirmed", boots=0, direction="up")
        floor = now.version if now.direction == "down" else max(record.floor, now.version)
        return replace(record, current=done, floor=floor)

    try:
        now = edit(state, change, "confirmed").current
    except OSError:
        return False
    return now is not None and bundle in (None, now.bundle)


def rollback(state: Path) -> Installed:
    """Go back to the bundle before, by hand, and set aside the one that is left.

    Raises:
        BundleError: there is nothing to go back to, it is not good, or the folder is in use.
    """
    try:
        with locked(state, "update.lock", wait=False):
            record = read_record(state)
            if record.current is None or record.previous is None:
                raise BundleError(
                    f"Expected a bundle to go back to in {state}, got none; update instead."
                )
            load_slot(state, record.previous)
            by_hand = UpdateRefused("by-hand", "Expected another version.")
            _go_back(state, record.current, by_hand, record.previous)
            return record.previous
    except OSError as error:
        raise BundleError(
            f"Expected a writable folder {state} and no update that runs, got "
            f"{type(error).__name__}; wait, or mount it writable."
        ) from None


def status(state: Path) -> StateStatus:
    """What runs, and how old the view of the release is.

    Raises:
        ConfigError: the folder is not provisioned.
        BundleError: current.json is damaged.
    """
    device = read_device(state)
    seen = last_verified(state)
    return StateStatus(
        **vars(read_record(state)),
        device=device,
        metadata=metadata(state),
        checked_seconds_ago=None if seen is None else time.time() - seen,
    )


def last_verified(state: Path) -> float | None:
    """When an update last verified the release, in seconds since 1970, or None."""
    try:
        return (state / "trust" / "timestamp.json").stat().st_mtime
    except OSError:
        return None


def metadata(state: Path) -> dict[str, RoleAge]:
    """Stored metadata by role; it was verified when it was stored."""
    found = {}
    for role in ("timestamp", "snapshot", "targets", "root"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            signed = json.loads((state / "trust" / f"{role}.json").read_bytes())["signed"]
            version, expires = int(signed["version"]), str(signed["expires"])
            found[role] = RoleAge(version=version, expires=expires, expired=expires <= utc_text())
    return found


def load_slot(state: Path, installed: Installed) -> "EdgeModel":
    """Verify and load one slot.

    Raises:
        BundleError: it is not good on this machine; UpdateRefused: nor is its storage or key.
    """
    from fedlatent.client.edge.runtime import EdgeModel

    data = _read_slot(state, installed)
    if installed.recipient is not None:
        data = unseal(state, data, installed.name, installed.version)
    return EdgeModel.from_bytes(data, [verify_key(installed.key)], f"slot {installed.slot}")


def unseal(state: Path, data: bytes, model: str, version: int) -> bytes:
    """Open a sealed bundle with this device's key.

    Raises:
        UpdateRefused: "wrong-recipient": there is no such key.
    """
    from fedlatent.shared.bundle.sealed import RecipientKey, open_sealed

    try:
        return open_sealed(data, RecipientKey.load(recipient_path(state)), model, version)
    except (BundleError, ConfigError) as error:
        raise UpdateRefused(WRONG_RECIPIENT, str(error)) from None


def recipient_path(state: Path) -> Path:
    """The key that opens sealed bundles."""
    return state / "recipient.key"


def slot_path(state: Path, slot: str) -> Path:
    """The file of slot "a" or "b"."""
    return state / "slots" / f"{slot}.fedlatent"


def verify_key(text: str) -> VerifyKey:
    """An Ed25519 public key from its 64 hexadecimal digits."""
    return VerifyKey(key=Ed25519PublicKey.from_public_bytes(bytes.fromhex(text)))


def install(state: Path, data: bytes, installed: Installed) -> Installed:
    """Write checked ``data`` to the free slot and make it the current bundle, on trial.

    A kill at any step leaves the old bundle or the new one current, whole.

    Raises:
        OSError: the folder cannot be written.
    """
    current = edit(state, _free_slot).current
    slot = "b" if current and current.slot == "a" else "a"
    made = replace(installed, slot=slot, status="trial", boots=0)
    write_atomic(slot_path(state, slot), data, 0o600 if made.kind == "site" else 0o644)
    edit(state, lambda it: replace(it, current=made, previous=it.current), "installed")
    return made


def heal(state: Path) -> Record:
    """Drop a current bundle whose file is not what was installed, so that it can be again.

    Raises:
        OSError: the folder cannot be written.
    """
    record = read_record(state)
    current, previous = record.current, record.previous
    if current is None or slot_is_intact(state, current):
        return record
    damaged = UpdateRefused(DAMAGED_SLOT, "Expected the installed file.")
    whole = previous and slot_is_intact(state, previous)
    return _go_back(state, current, damaged, previous if whole else None)


def slot_is_intact(state: Path, installed: Installed) -> bool:
    """Whether the slot's file has its digest."""
    try:
        _read_slot(state, installed)
    except UpdateRefused:
        return False
    return True


def set_aside(record: Record, digest: str, version: int, reason: str) -> Record:
    """``record`` with a bundle that is not tried again; the oldest one is forgotten when full."""
    others = [one for one in record.set_aside if one.digest != digest]
    judge = "" if reason in _LASTING else software()
    made = SetAside(digest=digest, version=version, reason=reason, time=utc_text(), software=judge)
    return replace(record, set_aside=(*others, made)[-MAX_SET_ASIDE:], checking=None, checks=0)


def passed_over(record: Record) -> dict[str, SetAside]:
    """What was set aside and still counts, by digest: by the very software here, or for good."""
    judged = [one for one in record.set_aside if one.reason not in _LASTING]
    now = software() if judged else ""  # it loads ONNX Runtime
    outdated = {one.digest for one in judged if one.software != now}
    return {one.digest: one for one in record.set_aside if one.digest not in outdated}


def read_record(state: Path) -> Record:
    """Read current.json; an absent one is an empty record.

    Raises:
        BundleError: it is not as it was written.
    """
    try:
        data = json.loads((state / "current.json").read_bytes())
        values = data["record"]
        if data["sha256"] != sha256_hex(canonical_json(values)):
            raise ValueError
        for name in ("current", "previous"):
            values[name] = values[name] and Installed(**values[name])
        values["set_aside"] = tuple(SetAside(**one) for one in values["set_aside"])
        return Record(**values)
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"Expected current.json in {state} as it was written, got {type(error).__name__}; "
            "remove it and update again (the version floor is then lost)."
        ) from None


def edit(
    state: Path, change: Callable[[Record], Record], event: str = "", **facts: object
) -> Record:
    """Replace current.json by ``change`` of it and log ``event``, unless that changes nothing.

    Raises:
        OSError: the folder cannot be written.
        BundleError: current.json is damaged.
    """
    old = read_record(state)
    if change(old) == old:
        return old
    with locked(state, "lock"):
        old = read_record(state)
        new = change(old)
        if new != old:
            value = asdict(new)
            digest = sha256_hex(canonical_json(value))
            write_json(state / "current.json", {"record": value, "sha256": digest})
    if event and new != old:
        now = new.current
        log(state, event, version=now and now.version, digest=now and now.digest, **facts)
    return new


@contextmanager
def locked(state: Path, name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock of the state folder; a process that dies lets go of it.

    Raises:
        OSError: the folder cannot be written; BlockingIOError: another process holds it.
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
        for pattern in (".current.json.*", "slots/.*", "trust/.*", "trust/root_history/.*"):
            for path in list(state.glob(pattern)):
                path.unlink(missing_ok=True)


def read_device(state: Path) -> Device:
    """Read device.json.

    Raises:
        ConfigError: the folder is not provisioned, or the file is damaged.
    """
    try:
        data = (state / "device.json").read_bytes()
        top = parse_object(data, "device.json", _MAX_DEVICE_BYTES)
        top.integer("format", FORMAT, FORMAT)
        device = Device(
            device=top.text("device", WORD),
            model=top.text("model", WORD),
            cohorts=top.texts("cohorts", WORD),
            provisioned=top.text("provisioned", UTC_TIME),
        )
        top.close()
    except (OSError, BundleError):
        raise ConfigError(
            f"Expected a provisioned state folder at {state}, got none or a damaged one; run "
            "'provision'."
        ) from None
    return device


def write_device(state: Path, device: Device) -> None:
    """Write device.json; the last step of provisioning."""
    write_json(state / "device.json", {**asdict(device), "format": FORMAT})


def log(state: Path, event: str, **facts: object) -> None:
    """Append one line to log.jsonl, which is turned over when full; silent when it cannot."""
    line = json.dumps({"time": utc_text(), "event": event, **facts})
    path = state / "log.jsonl"
    with contextlib.suppress(OSError):
        if path.exists() and path.stat().st_size + len(line) >= MAX_LOG_BYTES:
            path.replace(state / "log.1.jsonl")
        append_line(path, line)


def _count_start(state: Path) -> Record:
    """The record with one more start of a trial, when that can be written."""

    def change(record: Record) -> Record:
        current = record.current
        if current is None or current.status == "confirmed" or current.boots > MAX_BOOTS:
            return record
        return replace(record, current=replace(current, boots=current.boots + 1))

    try:
        return edit(state, change)
    except OSError:
        return read_record(state)


def _go_back(state: Path, failed: Installed, why: FedlatentError, to: Installed | None) -> Record:
    """Make ``to`` the current bundle, unless another than ``failed`` became current."""
    reason = getattr(why, "reason", why.code)
    # storage or a key at fault is not the bundle's fault
    blame = isinstance(why, BundleError) and reason not in (DAMAGED_SLOT, WRONG_RECIPIENT)

    def change(record: Record) -> Record:
        if record.current is None or record.current.digest != failed.digest:
            return record
        made = replace(record, current=to, previous=None)
        return set_aside(made, failed.digest, failed.version, reason) if blame else made

    return edit(state, change, "rolled-back", failed=failed.version, sentence=str(why))


def _free_slot(record: Record) -> Record:
    """Give up the slot that comes next: a trial for the good bundle before it, else the older."""
    current = record.current
    if current and current.status == "trial" and record.previous:
        current = record.previous
    return replace(record, current=current, previous=None, checking=None, checks=0)


def _read_slot(state: Path, installed: Installed) -> bytes:
    try:
        with slot_path(state, installed.slot).open("rb") as stream:
            data = stream.read(installed.bytes + 1)
    except OSError:
        data = b""
    if sha256_hex(data) != installed.digest:
        raise UpdateRefused(
            DAMAGED_SLOT,
            f"Expected the file in slot {installed.slot} as it was installed, got other bytes; the "
            "storage may be failing, so update again.",
        )
    return data
