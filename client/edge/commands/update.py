"""``provision``, ``update``, ``status`` and ``rollback``: bundles from a signed release folder."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from client.edge.commands.common import Commands, add_json, print_json, print_table

if TYPE_CHECKING:
    from client.edge.slots import Installed, StateStatus
    from client.edge.update import UpdateReport

_STATE = "/var/lib/fedlatent-edge"


def register(commands: Commands) -> None:
    """Add these commands."""
    _register_provision(commands)
    _register_update(commands)
    parser = commands.add(
        "status",
        "Show what runs, what it can go back to, and how old the view of the release is.",
        _status,
        [f"status --state {_STATE}"],
    )
    _add_state(parser)
    add_json(parser)
    parser = commands.add(
        "rollback",
        "Go back to the bundle before; the one that is left is not installed again.",
        _rollback,
        [f"rollback --state {_STATE}"],
    )
    _add_state(parser)
    add_json(parser)


def _register_provision(commands: Commands) -> None:
    parser = commands.add(
        "provision",
        "Prepare a state folder once, from the root of a release that you checked.",
        _provision,
        [
            f"provision --state {_STATE} --root 1.root.json --name hearts --cohort pilot",
            f"provision --state {_STATE} --root 1.root.json --name hearts --new-recipient x25519",
        ],
    )
    _add_state(parser)
    parser.add_argument(
        "--root", type=Path, required=True, metavar="FILE", help="metadata/N.root.json, the newest"
    )
    parser.add_argument("--name", required=True, help="name of the model that this device runs")
    parser.add_argument(
        "--cohort", action="append", default=[], help="group for rollouts; repeat for more"
    )
    parser.add_argument("--device-id", metavar="ID", help="id of the device; by default random")
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument(
        "--recipient-key",
        type=Path,
        metavar="FILE",
        help="private key that opens sealed bundles, such as that of a group; it is copied",
    )
    keys.add_argument(
        "--new-recipient",
        choices=("x25519", "mlkem768-x25519"),
        metavar="SUITE",
        help="make a key for sealed bundles here: x25519 or mlkem768-x25519",
    )
    add_json(parser)


def _register_update(commands: Commands) -> None:
    parser = commands.add(
        "update",
        "Install the newest version that a release folder has for this device.",
        _update,
        [
            f"update https://models.example/hearts --state {_STATE}",
            f"update /media/usb/release --state {_STATE} --check",
        ],
    )
    parser.add_argument("source", help="release folder, or its file:// or http(s):// address")
    _add_state(parser)
    parser.add_argument("--check", action="store_true", help="only say what would be installed")
    parser.add_argument(
        "--retry", action="store_true", help="try again what failed on this device before"
    )
    add_json(parser)


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="the device's state folder"
    )


def _provision(args: argparse.Namespace) -> int:
    from client.edge.slots import recipient_path
    from client.edge.update import MAX_ROOT_BYTES, provision
    from shared.errors import ConfigError
    from shared.files import sha256_hex

    try:
        with args.root.open("rb") as stream:
            root = stream.read(MAX_ROOT_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"Expected a readable root file at {args.root}, got {type(error).__name__}; check the "
            "path."
        ) from None
    device = provision(
        args.state,
        root,
        args.name,
        cohorts=args.cohort,
        device=args.device_id,
        recipient=args.recipient_key,
        new_recipient=args.new_recipient,
    )
    public = recipient_path(args.state).with_name("recipient.key.pub")
    facts = {
        "device": device.device,
        "model": device.model,
        "cohorts": list(device.cohorts),
        "root_sha256": sha256_hex(root),
        "recipient_public": str(public) if public.exists() else None,
    }
    if args.json:
        print_json(facts)
        return 0
    print(f"device {device.device} for model {device.model} in {args.state}")
    print(f"root sha256 {facts['root_sha256']}; compare it with the publisher's over another way")
    if public.exists():
        print(f"sealed bundles: give {public} to the publisher")
    return 0


def _update(args: argparse.Namespace) -> int:
    from client.edge.update import update

    report = update(args.state, args.source, check=args.check, retry=args.retry)
    if args.json:
        print_json(
            {
                "result": report.result,
                "model": report.model,
                "version": report.version,
                "before": report.before,
                "available": report.available,
                "bytes": report.bytes,
                "set_aside": list(report.set_aside),
                "metadata_expires": report.expires,
            }
        )
    else:
        print(_sentence(report))
    return 0


def _sentence(report: "UpdateReport") -> str:
    model, version = report.model, report.version
    said = {
        "installed": f"installed version {version} of {model}, on trial until it has scored",
        "available": f"version {report.available} of {model} is available; {version} runs",
        "current": f"version {version} of {model} runs; nothing newer for this device",
        "withdrawn": f"version {version} of {model} runs but was withdrawn; 'rollback' leaves it",
        "none": f"no version of {model} is for this device yet",
    }[report.result]
    aside = ", ".join(map(str, report.set_aside))
    return said + (f"; passed over, since they failed here: {aside}" if aside else "")


def _rollback(args: argparse.Namespace) -> int:
    from client.edge.slots import rollback

    installed = rollback(args.state)
    if args.json:
        print_json(_facts(installed))
    else:
        print(f"version {installed.version} of {installed.name} runs from the next start on")
    return 0


def _status(args: argparse.Namespace) -> int:
    from client.edge.slots import status

    found = status(args.state)
    if args.json:
        print_json(_as_json(found))
        return 0
    device = found.device
    print(f"device {device.device}, model {device.model}, floor {found.floor}")
    rows = [
        [name, str(one.version), one.status, one.digest[:16], one.installed]
        for name, one in (("current", found.current), ("previous", found.previous))
        if one is not None
    ]
    print_table("bundles", ["slot", "#version", "status", "sha256", "installed"], rows)
    for one in found.set_aside:
        print(f"set aside: version {one.version} ({one.reason}, {one.time})")
    expiry = [
        [role, str(age.version), age.expires, "expired" if age.expired else ""]
        for role, age in found.metadata.items()
    ]
    print_table("release metadata", ["role", "#version", "expires", ""], expiry)
    if found.checked_seconds_ago is not None:
        print(f"last verified {found.checked_seconds_ago / 3600:.1f} hours ago")
    return 0


def _as_json(found: "StateStatus") -> dict[str, object]:
    return {
        "device": found.device.device,
        "model": found.device.model,
        "cohorts": list(found.device.cohorts),
        "current": _facts(found.current) if found.current else None,
        "previous": _facts(found.previous) if found.previous else None,
        "floor": found.floor,
        "set_aside": [
            {"version": one.version, "reason": one.reason, "time": one.time, "sha256": one.digest}
            for one in found.set_aside
        ],
        "metadata": {
            role: {"version": age.version, "expires": age.expires, "expired": age.expired}
            for role, age in found.metadata.items()
        },
        "checked_seconds_ago": found.checked_seconds_ago,
    }


def _facts(installed: "Installed") -> dict[str, object]:
    return {
        "name": installed.name,
        "version": installed.version,
        "status": installed.status,
        "starts_on_trial": installed.boots,
        "slot": installed.slot,
        "sha256": installed.digest,
        "installed": installed.installed,
        "sealed_to": installed.recipient,
    }
