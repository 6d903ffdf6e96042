"""What a repository signs about each bundle, and what a device reads before it downloads one.

The signed ``custom`` of a target of The Update Framework. Both sides use this module, so that a
device reads what was signed. It needs neither tuf nor anything but what reads bundles.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from fedlatent.shared.bundle.strict import MAX_ITEMS, StrictObject
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.files import UTC_TIME, sha256_hex

#: Of ``custom``; devices ignore targets of another format.
CUSTOM_FORMAT = 1
#: Patterns of names, digests (and keys) and key ids.
WORD, HASH, KEY_ID = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "[0-9a-f]{64}", "[0-9a-f]{16}"

_OFFERED, _WITHDRAWN = "offered", "withdrawn"


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
            if len(names) > MAX_ITEMS or not all(re.fullmatch(WORD, name) for name in names):
                raise ConfigError(
                    f"Expected at most {MAX_ITEMS} names of letters, digits, '.', '_' and '-' in a "
                    "rollout, got others; correct them."
                )

    def to_dict(self) -> dict[str, Any]:
        """As it is signed."""
        cohorts, devices = sorted(set(self.cohorts)), sorted(set(self.devices))
        return {"percent": self.percent, "cohorts": cohorts, "devices": devices}

    @classmethod
    def read(cls, found: StrictObject) -> Self:
        """From what was signed.

        Raises:
            BundleError: it is none.
        """
        made = cls(
            percent=found.integer("percent", 0, 100),
            cohorts=found.texts("cohorts", WORD),
            devices=found.texts("devices", WORD),
        )
        found.close()
        return made


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One bundle of a repository, as its signed metadata describes it.

    Attributes:
        path: name of the target.
        digest: SHA-256 (hex) of its file.
        bytes: of its file.
        model: name of the model.
        version: of the model.
        kind: "global", or "site", which its owner alone may read.
        expires: UTC text after which it is not installed, or None.
        key: Ed25519 public key (64 hex) that signed the bundle.
        rollout: who may install it.
        downgrade_from: devices that have confirmed a version up to this one may go down to this
            bundle; 0 for the normal case, up only.
        recipient: id of the key that the bundle is sealed to; None when it is not sealed.
        withdrawn: whether it is offered no longer.
    """

    path: str
    digest: str
    bytes: int
    model: str
    version: int
    kind: str
    expires: str | None
    key: str
    rollout: Rollout = Rollout()
    downgrade_from: int = 0
    recipient: str | None = None
    withdrawn: bool = False

    def reaches(self, barrier: int) -> bool:
        """Whether it is not below this barrier, or signed to come down to from there."""
        return max(self.version, self.downgrade_from) >= barrier

    def includes(self, device: str, cohorts: Collection[str]) -> bool:
        """Whether the rollout includes a device of these cohorts."""
        by_percent = bucket(self.model, self.version, device) < self.rollout.percent
        return (
            by_percent
            or device in self.rollout.devices
            or bool({*self.rollout.cohorts} & {*cohorts})
        )

    def custom(self) -> dict[str, Any]:
        """What is signed beside path, digest and length; it holds no floats."""
        return {
            "format": CUSTOM_FORMAT,
            "model": self.model,
            "version": self.version,
            "kind": self.kind,
            "expires": self.expires,
            "key": self.key,
            "rollout": self.rollout.to_dict(),
            "downgrade_from": self.downgrade_from or None,
            "recipient": self.recipient,
            "status": _WITHDRAWN if self.withdrawn else _OFFERED,
        }

    @classmethod
    def read(cls, path: str, digest: object, length: int, custom: Mapping[str, Any]) -> Self:
        """From what was signed.

        Raises:
            BundleError: it is no offer of this format.
        """
        values = {"path": path, "digest": digest, "bytes": length}
        down = {"downgrade_from": custom.get("downgrade_from") or 0}
        top = StrictObject({**custom, **down, **values}, f"target {path[:80]!r}")
        top.integer("format", CUSTOM_FORMAT, CUSTOM_FORMAT)
        rollout = top.child("rollout")
        made = cls(
            path=top.text("path", "[A-Za-z0-9_.-]+"),
            digest=top.text("digest", HASH),
            bytes=top.integer("bytes", 1),
            model=top.text("model", WORD),
            version=top.integer("version", 1),
            kind=top.text("kind", "global|site"),
            expires=top.optional_text("expires", UTC_TIME),
            key=top.text("key", HASH),
            rollout=Rollout.read(rollout),
            downgrade_from=top.integer("downgrade_from", 0),
            recipient=top.optional_text("recipient", KEY_ID),
            withdrawn=top.text("status", f"{_OFFERED}|{_WITHDRAWN}") == _WITHDRAWN,
        )
        top.close()
        return made


def bucket(model: str, version: int, device: str) -> int:
    """0 to 99, fixed for a device and a version: rollouts of more percent than this include it."""
    return int(sha256_hex(f"{model}|{version}|{device}".encode())[:16], 16) % 100
