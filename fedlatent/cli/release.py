"""``fedlatent release``: a signed folder that devices update from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlatent.cli.console import err, out, print_json, size, styled, table
from fedlatent.cli.options import KEY, JsonOption

if TYPE_CHECKING:
    from fedlatent.server.repository import Repository

app = typer.Typer(
    no_args_is_help=True,
    help="Publish bundles in a signed folder that devices update from; any web server or USB stick "
    "can carry it.",
)

FolderArgument = Annotated[Path, typer.Argument(help="The release folder.", show_default=False)]
KeysOption = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        help="The publisher's own folder: private keys (*.pem) and the root.json that trust begins "
        "with; by default FOLDER-keys.",
    ),
]
SignOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--signing-key",
        help="A private key from elsewhere, such as a USB stick; repeat for more.",
        show_default=False,
    ),
]
ModelArgument = Annotated[str, typer.Argument(help="Name of the model.", show_default=False)]
VersionArgument = Annotated[int, typer.Argument(help="Its version.", show_default=False)]
PercentOption = Annotated[int, typer.Option(help="Of all devices that may install it, 0 to 100.")]
CohortOption = Annotated[
    list[str] | None,
    typer.Option("--cohort", help="Group of devices that may as well; repeat.", show_default=False),
]
DeviceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--device-id", help="Id of a device that may as well; repeat.", show_default=False
    ),
]
DowngradeOption = Annotated[
    int | None,
    typer.Option(
        help="Let devices that have confirmed a version up to this one come down to it.",
        show_default=False,
    ),
]


@app.command(
    epilog="Example: fedlatent release init hearts-release, then: fedlatent release add "
    "hearts-release hearts-1.fedlatent"
)
def init(
    folder: FolderArgument,
    keys: KeysOption = None,
    root_keys: Annotated[int, typer.Option(help="How many root keys to make.")] = 3,
    root_threshold: Annotated[
        int, typer.Option(help="How many of them must sign when keys change.")
    ] = 2,
    root_days: Annotated[int, typer.Option(help="Days that the root counts.")] = 365,
    targets_days: Annotated[int, typer.Option(help="Days that the list of bundles counts.")] = 90,
    online_days: Annotated[
        int, typer.Option(help="Days that snapshot and timestamp count: refresh within them.")
    ] = 14,
    json: JsonOption = False,
) -> None:
    """Make an empty release and its keys: some for a safe place, one to publish, one online."""
    from fedlatent.server.metadata import Expiries
    from fedlatent.server.repository import Repository
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.files import sha256_hex
    from fedlatent.shared.keys import SigningKey

    own = _keys_folder(folder, keys)
    if not 1 <= root_threshold <= root_keys <= 16:
        raise ConfigError(
            f"Expected 1 to 16 root keys and a threshold within, got {root_keys} and "
            f"{root_threshold}; change them."
        )
    times = Expiries(
        root=root_days, targets=targets_days, snapshot=online_days, timestamp=online_days
    )
    times.check()
    if (folder / "metadata").exists():
        raise ConfigError(f"Expected no release in {folder}, got one; choose another folder.")
    roots = [f"root-{number + 1}" for number in range(root_keys)]
    made = {
        name: SigningKey.generate(own / f"{name}.pem") for name in [*roots, "targets", "online"]
    }
    root = Repository.create(
        folder,
        root_keys=[made[name] for name in roots],
        root_threshold=root_threshold,
        targets_keys=[made["targets"]],
        online_key=made["online"],
        expiries=times,
        pinned=own,
    ).root_path
    if json:
        ids = {name: key.key_id for name, key in made.items()}
        facts = {"folder": str(folder), "keys_folder": str(own), "keys": ids, "root": str(root)}
        print_json({**facts, "root_sha256": sha256_hex(root.read_bytes())})
        return
    out.print(f"empty release in {folder}; its private keys are in {own}")
    out.print(
        f"Now move {', '.join(f'{name}.pem' for name in roots)} to {root_keys} places offline, "
        f"each apart: any {root_threshold} of them can replace every key, fewer can do nothing.\n"
        f"Provision devices with {root}, sha256 {sha256_hex(root.read_bytes())}. Refresh at least "
        f"every {online_days} days: fedlatent release refresh {folder}",
    )


@app.command(
    epilog="Examples: fedlatent release add hearts-release hearts-2.fedlatent --percent 5 "
    "--cohort pilot | sealed: ... --recipient device.pub"
)
def add(
    folder: FolderArgument,
    bundle: Annotated[Path, typer.Argument(help="The bundle file.", show_default=False)],
    key: Annotated[Path | None, KEY] = None,
    percent: PercentOption = 100,
    cohort: CohortOption = None,
    device: DeviceOption = None,
    recipient: Annotated[
        Path | None,
        typer.Option(help="Seal it to this public recipient key, so that only its holders read it"),
    ] = None,
    downgrade_from: DowngradeOption = None,
    keys: KeysOption = None,
    sign_with: SignOption = None,
    json: JsonOption = False,
) -> None:
    """Publish a bundle, to all devices or to some first."""
    from fedlatent.server.home import ServerHome
    from fedlatent.shared.bundle.sealed import RecipientPublic
    from fedlatent.shared.keys import VerifyKey

    public = key or Path(f"{ServerHome.find(None).signing_key}.pub")
    made = _open(folder, keys, sign_with).publish(
        bundle,
        VerifyKey.load(public),
        rollout=_rollout(percent, cohort, device),
        recipient=RecipientPublic.load(recipient) if recipient else None,
        downgrade_from=downgrade_from,
    )
    custom = made.custom
    if json:
        print_json({"path": made.path, "sha256": made.sha256, "bytes": made.bytes, **custom})
    else:
        out.print(
            f"version {custom['version']} of {custom['model']} ({size(made.bytes)}) for "
            f"{_who(custom)}{', sealed' if recipient else ''}",
        )


@app.command(epilog="Example: fedlatent release rollout hearts-release hearts 2 --percent 50")
def rollout(
    folder: FolderArgument,
    model: ModelArgument,
    version: VersionArgument,
    percent: PercentOption = 100,
    cohort: CohortOption = None,
    device: DeviceOption = None,
    downgrade_from: DowngradeOption = None,
    keys: KeysOption = None,
    sign_with: SignOption = None,
    json: JsonOption = False,
) -> None:
    """Change who may install a version; more percent only adds devices, and none loses it."""
    wanted = _rollout(percent, cohort, device)
    release = _open(folder, keys, sign_with)
    made = release.set_rollout(model, version, wanted, downgrade_from=downgrade_from)
    if json:
        print_json({"model": model, "version": version, "rollout": made.custom["rollout"]})
    else:
        out.print(f"version {version} of {model}: {_who(made.custom)}")


@app.command(epilog="Example: fedlatent release withdraw hearts-release hearts 2")
def withdraw(
    folder: FolderArgument,
    model: ModelArgument,
    version: VersionArgument,
    keys: KeysOption = None,
    sign_with: SignOption = None,
    json: JsonOption = False,
) -> None:
    """Offer a version no longer, for good; devices that run it keep it and say so."""
    _open(folder, keys, sign_with).withdraw(model, version)
    if json:
        print_json({"model": model, "version": version, "status": "withdrawn"})
    else:
        out.print(
            f"version {version} of {model} is withdrawn. To bring devices down from it: fedlatent "
            f"release rollout {folder} {model} OLDER --downgrade-from {version}",
        )


@app.command(epilog="Example: fedlatent release refresh hearts-release, weekly, from cron")
def refresh(
    folder: FolderArgument,
    targets: Annotated[
        bool, typer.Option("--targets", help="Sign the list of bundles again as well.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Finish a key rotation that was interrupted.")
    ] = False,
    keys: KeysOption = None,
    sign_with: SignOption = None,
    json: JsonOption = False,
) -> None:
    """Sign the newest state again before it expires; needs the online key alone."""
    release = _open(folder, keys, sign_with, unfinished=repair)
    release.refresh(targets=targets or repair)
    roles = release.status().roles
    if json:
        print_json({role: one.expires for role, one in roles.items()})
    else:
        first = min(roles, key=lambda role: roles[role].expires)
        out.print(f"signed; the first to expire is {first}, on {roles[first].expires}")


@app.command(
    epilog="Examples: fedlatent release rotate hearts-release online --new --signing-key "
    "/media/a/root-1.pem --signing-key /media/b/root-2.pem | renew the root: ... rotate "
    "hearts-release root --signing-key ..."
)
def rotate(
    folder: FolderArgument,
    role: Annotated[str, typer.Argument(help="root, targets or online.", show_default=False)],
    new: Annotated[
        bool, typer.Option("--new", help="Make one new key in place of all of targets or online.")
    ] = False,
    add_key: Annotated[
        list[Path] | None,
        typer.Option("--add", help="Public key to add; repeat for more.", show_default=False),
    ] = None,
    remove_key: Annotated[
        list[Path] | None,
        typer.Option("--remove", help="Public key to remove; repeat for more.", show_default=False),
    ] = None,
    threshold: Annotated[
        int | None, typer.Option(help="How many keys must sign from now on.", show_default=False)
    ] = None,
    keys: KeysOption = None,
    sign_with: SignOption = None,
    json: JsonOption = False,
) -> None:
    """Change the keys of a role, or renew the root; needs the root keys."""
    from fedlatent.server.repository import ROLES
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.keys import SigningKey, VerifyKey

    wanted = next((one for one in ROLES if one == role), None)
    if wanted is None or (new and wanted == "root"):
        raise ConfigError(
            f"Expected targets or online{'' if new else ' or root'}, got {role!r}; choose one."
        )
    release = _open(folder, keys, sign_with)
    added = [VerifyKey.load(path) for path in add_key or []]
    removed = [VerifyKey.load(path) for path in remove_key or []]
    made: Path | None = None
    if new:
        removed.extend(release.keys_of(wanted))
        own = _keys_folder(folder, keys)
        numbered = (own / f"{role}-{number}.pem" for number in range(2, 10_000))
        made = next(path for path in numbered if not path.exists())
        fresh = SigningKey.generate(made)
        release.keys += (fresh,)
        added.append(fresh.public)
        threshold = threshold or 1
    try:
        version = release.rotate(wanted, add=added, remove=removed, threshold=threshold)
    except ConfigError:  # nothing was written, so the new key is of no use
        if made is not None:
            made.unlink()
            made.with_name(f"{made.name}.pub").unlink()
        raise
    ids = [one.key_id for one in release.keys_of(wanted)]
    if json:
        print_json({"root_version": version, "role": role, "keys": ids})
    else:
        out.print(f"root version {version}; keys of {role}: {', '.join(ids)}")
        err.print(styled("yellow", "Old keys are no longer trusted; remove their private files."))


@app.command(epilog="Example: fedlatent release status hearts-release")
def status(folder: FolderArgument, json: JsonOption = False) -> None:
    """Show the bundles of a release, its keys, and when its metadata expires."""
    from dataclasses import asdict

    from fedlatent.server.metadata import PINNED_ROOT
    from fedlatent.server.repository import Repository

    own = _keys_folder(folder, None)
    pinned = own if (own / PINNED_ROOT).exists() else None
    found = Repository.open(folder, pinned=pinned).status()
    if json:
        print_json(asdict(found))
        return
    bundles = table(str(folder), "model", "#version", "#size", "who", "status")
    for one in found.targets:
        custom = one.custom
        sealed = f", sealed to {custom['recipient']}" if custom["recipient"] else ""
        bundles.add_row(
            custom["model"],
            str(custom["version"]),
            size(one.bytes),
            _who(custom) + sealed,
            custom["status"],
        )
    out.print(bundles)
    roles = table("signed metadata", "role", "#version", "expires", "#days left", "keys")
    for name, role in found.roles.items():
        signed = f"{role.threshold} of {', '.join(role.keys)}"
        roles.add_row(name, str(role.version), role.expires, str(role.days_left), signed)
    out.print(roles)


def _keys_folder(folder: Path, keys: Path | None) -> Path:
    whole = folder.resolve()
    return keys or whole.with_name(f"{whole.name}-keys")


def _open(
    folder: Path, keys: Path | None, more: list[Path] | None, *, unfinished: bool = False
) -> "Repository":
    """The release for changes, with all private keys at hand, pinned by the publisher's folder."""
    from fedlatent.server.metadata import PINNED_ROOT
    from fedlatent.server.repository import Repository
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.keys import SigningKey

    own = _keys_folder(folder, keys)
    if not (own / PINNED_ROOT).exists():
        raise ConfigError(
            f"Expected {PINNED_ROOT} and private keys in {own}, got none; give the publisher's own "
            "folder with --keys. A new one needs the release's first root, from a copy you trust."
        )
    paths = [*sorted(own.glob("*.pem")), *(more or [])]
    loaded = {key.key_id: key for key in map(SigningKey.load, paths)}
    return Repository.open(folder, list(loaded.values()), pinned=own, unfinished=unfinished)


def _rollout(percent: int, cohorts: list[str] | None, devices: list[str] | None) -> Any:  # noqa: ANN401
    from fedlatent.shared.bundle.offer import Rollout

    return Rollout(percent=percent, cohorts=tuple(cohorts or ()), devices=tuple(devices or ()))


def _who(custom: Any) -> str:  # noqa: ANN401
    """A rollout in words."""
    rollout = custom["rollout"]
    parts = [f"{rollout['percent']} % of devices"]
    if rollout["cohorts"]:
        parts.append(f"cohorts {', '.join(rollout['cohorts'])}")
    if rollout["devices"]:
        parts.append(f"{len(rollout['devices'])} named devices")
    return " and ".join(parts)
