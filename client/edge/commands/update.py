"""``provision``, ``update``, ``status`` and ``rollback``: bundles from a signed release folder."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fedlatent.client.edge.commands.common import Commands, Run, add_json, print_json, print_table

if TYPE_CHECKING:
    from fedlatent.client.edge.update import UpdateReport

_STATE = "--state /var/lib/fedlatent-edge"


def register(commands: Commands) -> None:
    """Add ``provision``, ``update``, ``status`` and ``rollback`` to the command line."""
    parser = _add(
        commands,
        "provision",
        "Prepare a state folder once, from the root of a release that you checked.",
        _provision,
        "--root 1.root.json --model hearts --cohort pilot",
        "--root 1.root.json --model hearts --new-recipient x25519",
    )
    parser.add_argument(
        "--root", type=Path, required=True, metavar="FILE", help="metadata/N.root.json, the newest"
    )
    parser.add_argument("--model", required=True, help="name of the model that this device runs")
    parser.add_argument(
        "--cohort", action="append", default=[], help="group for rollouts; repeat for more"
    )
    parser.add_argument("--device-id", metavar="ID", help="id of the device; by default random")
    parser.add_argument(
        "--new-recipient",
        choices=("x25519", "mlkem768-x25519"),
        help="make a key for sealed bundles here",
    )
    _register_update(commands)
    _add(
        commands,
        "status",
        "Show what runs, what it can go back to, and how old the view of the release is.",
        _status,
        "",
    )
    _add(
        commands,
        "rollback",
        "Go back to the bundle before; the one that is left is not installed again.",
        _rollback,
        "",
    )


def _register_update(commands: Commands) -> None:
    parser = _add(
        commands,
        "update",
        "Install the newest version that a release folder has for this device.",
        _update,
        "https://models.example/hearts",
        "/media/usb/release --check",
    )
    parser.add_argument("source", help="release folder, or its file:// or http(s):// address")
    parser.add_argument("--check", action="store_true", help="only say what would be installed")
    parser.add_argument(
        "--retry",
        action="store_true",
        help="try again what failed on this device before; after an upgrade that is done anyway",
    )


def _add(
    commands: Commands, name: str, help: str, run: Run, *examples: str
) -> argparse.ArgumentParser:
    shown = [" ".join(filter(None, (name, _STATE, rest))) for rest in examples]
    parser = commands.add(name, help, run, shown)
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="the device's state folder"
    )
    add_json(parser)
    return parser


def _provision(args: argparse.Namespace) -> int:
    from fedlatent.client.edge.slots import recipient_path
    from fedlatent.client.edge.update import provision
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.files import sha256_hex

    try:
        root = args.root.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"Expected a readable root file at {args.root}, got {type(error).__name__}."
        ) from None
    device = provision(
        args.state,
        root,
        args.model,
        cohorts=args.cohort,
        device=args.device_id,
        new_recipient=args.new_recipient,
    )
    digest = sha256_hex(root)
    if args.json:
        print_json({**asdict(device), "root_sha256": digest})
        return 0
    print(f"device {device.device} for {device.model} in {args.state}")
    print(f"root sha256 {digest}; compare it with the publisher's over another way")
    if args.new_recipient:
        print(f"sealed bundles: give {recipient_path(args.state)}.pub to the publisher")
    return 0


def _update(args: argparse.Namespace) -> int:
    from fedlatent.client.edge.update import update

    report = update(args.state, args.source, check=args.check, retry=args.retry)
    if args.json:
        print_json(asdict(report))
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
    from fedlatent.client.edge.slots import rollback

    installed = rollback(args.state)
    if args.json:
        print_json(asdict(installed))
    else:
        print(f"version {installed.version} of {installed.name} runs from the next start on")
    return 0


def _status(args: argparse.Namespace) -> int:
    from fedlatent.client.edge.slots import status

    found = status(args.state)
    if args.json:
        print_json(asdict(found))
        return 0
    device = found.device
    print(f"device {device.device}, model {device.model}, floor {found.floor}")
    rows = [
        [name, str(one.version), one.status, one.digest, one.installed]
        for name, one in (("current", found.current), ("previous", found.previous))
        if one is not None
    ]
    print_table("bundles", ["slot", "#version", "status", "sha256", "installed"], rows)
    for one in found.set_aside:
        print(f"set aside: version {one.version} ({one.reason}, {one.time})")
    if found.checked_seconds_ago is not None:
        print(f"release verified {found.checked_seconds_ago / 3600:.1f} hours ago")
    for role, age in found.metadata.items():
        print(f"{role} {age.version} {'expired' if age.expired else 'expires'} {age.expires}")
    return 0
