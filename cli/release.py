"""``fedlatent release``: a signed folder that devices update from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import JsonOption, err, out, print_json, size, table

if TYPE_CHECKING:
    from server.publish import Release
    from shared.keys import SigningKey

app = typer.Typer(
    no_args_is_help=True,
    help="Publish bundles in a signed folder that devices update from; any web server or USB stick "
    "can carry it.",
)

FolderArgument = Annotated[Path, typer.Argument(help="The release folder.", show_default=False)]
KeysOption = Annotated[
    Path | None,
    typer.Option("--keys", help="Folder of private keys (*.pem); by default FOLDER-keys."),
]
SignOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--sign-with",
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
    typer.Option("--device", help="Id of a device that may as well; repeat.", show_default=False),
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
    from server.publish import Expiries, Release
    from shared.errors import ConfigError
    from shared.files import sha256_hex
    from shared.keys import SigningKey

    target = _keys_folder(folder, keys)
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
    roots = [target / f"root-{number + 1}.pem" for number in range(root_keys)]
    rest = [target / "targets.pem", target / "online.pem"]
    made = {path: SigningKey.generate(path) for path in [*roots, *rest]}
    release = Release.create(
        folder,
        root_keys=[made[path] for path in roots],
        root_threshold=root_threshold,
        targets_keys=[made[rest[0]]],
        online_key=made[rest[1]],
        expiries=times,
    )
    if json:
        ids = {path.stem: key.key_id for path, key in made.items()}
        facts = {"folder": str(folder), "keys_folder": str(target), "keys": ids}
        digest = sha256_hex(release.root_path.read_bytes())
        print_json({**facts, "root": str(release.root_path), "root_sha256": digest})
    else:
        _print_start(release, roots, root_threshold, online_days)


def _print_start(release: "Release", roots: list[Path], threshold: int, days: int) -> None:
    """What to do after `init`."""
    from shared.files import sha256_hex

    root = release.root_path
    out.print(f"empty release in {release.folder}; its private keys are in {roots[0].parent}")
    out.print(
        f"Now move {', '.join(path.name for path in roots)} to {len(roots)} places offline, each "
        f"apart: any {threshold} of them can replace every key, and fewer can do nothing.",
        soft_wrap=True,
    )
    out.print(
        f"Provision devices with {root}, sha256 {sha256_hex(root.read_bytes())}. Refresh at least "
        f"every {days} days: fedlatent release refresh {release.folder}",
        soft_wrap=True,
    )


@app.command(
    epilog="Examples: fedlatent release add hearts-release hearts-2.fedlatent --percent 5 "
    "--cohort pilot | sealed: ... --recipient device.pub"
)
def add(
    folder: FolderArgument,
    bundle: Annotated[Path, typer.Argument(help="The bundle file.", show_default=False)],
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            "-k",
            help="Public key that signed the bundle; by default that of the server's home.",
        ),
    ] = None,
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
    from server.home import ServerHome
    from server.publish import Release
    from shared.bundle.sealed import RecipientPublic
    from shared.keys import VerifyKey

    public = key or Path(f"{ServerHome.find(None).signing_key}.pub")
    release = Release.open(folder)
    made = release.publish(
        bundle,
        VerifyKey.load(public),
        rollout=_rollout(percent, cohort, device),
        recipient=RecipientPublic.load(recipient) if recipient else None,
        downgrade_from=downgrade_from,
        **_signers(release, _private(folder, keys, sign_with)),
    )
    custom = made.custom
    if json:
        print_json({"path": made.path, "sha256": made.sha256, "bytes": made.bytes, **custom})
    else:
        out.print(
            f"version {custom['version']} of {custom['model']} ({size(made.bytes)}) for "
            f"{_who(custom)}{', sealed' if recipient else ''}",
            soft_wrap=True,
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
    from server.publish import Release

    release = Release.open(folder)
    release.set_rollout(
        model,
        version,
        _rollout(percent, cohort, device),
        downgrade_from=downgrade_from,
        **_signers(release, _private(folder, keys, sign_with)),
    )
    found = [
        one.custom
        for one in release.status().targets
        if (one.custom["model"], one.custom["version"]) == (model, version)
    ]
    if json:
        print_json({"model": model, "version": version, "rollout": found[0]["rollout"]})
    else:
        out.print(f"version {version} of {model}: {_who(found[0])}")


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
    from server.publish import Release

    release = Release.open(folder)
    release.withdraw(model, version, **_signers(release, _private(folder, keys, sign_with)))
    if json:
        print_json({"model": model, "version": version, "status": "withdrawn"})
    else:
        out.print(
            f"version {version} of {model} is withdrawn. To bring devices down from it: fedlatent "
            f"release rollout {folder} {model} OLDER --downgrade-from {version}",
            soft_wrap=True,
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
    from server.publish import Release

    private = _private(folder, keys, sign_with)
    if repair:
        release = Release.repair(folder, list(private.values()))
    else:
        release = Release.open(folder)
        signers = _signers(release, private)
        release.refresh(
            signers["online_key"], targets_keys=signers["targets_keys"] if targets else ()
        )
    roles = release.status().roles
    if json:
        print_json({role: one.expires for role, one in roles.items()})
    else:
        first = min(roles, key=lambda role: roles[role].expires)
        out.print(f"signed; the first to expire is {first}, on {roles[first].expires}")


@app.command(
    epilog="Examples: fedlatent release rotate hearts-release online --new --sign-with "
    "/media/a/root-1.pem --sign-with /media/b/root-2.pem | renew the root: ... rotate "
    "hearts-release root --sign-with ..."
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
    from server.publish import ROLES, Release
    from shared.errors import ConfigError
    from shared.keys import SigningKey, VerifyKey

    wanted = next((one for one in ROLES if one == role), None)
    if wanted is None or (new and wanted == "root"):
        raise ConfigError(
            f"Expected targets or online{'' if new else ' or root'}, got {role!r}; choose one."
        )
    release = Release.open(folder)
    private = _private(folder, keys, sign_with)
    added = [VerifyKey.load(path) for path in add_key or []]
    removed = [VerifyKey.load(path) for path in remove_key or []]
    made: Path | None = None
    if new:
        removed.extend(release.keys_of(wanted))
        made = _new_key(_keys_folder(folder, keys), role)
        fresh = SigningKey.load(made)
        private[fresh.key_id] = fresh
        added.append(fresh.public)
        threshold = threshold or 1
    try:
        version = release.rotate(
            wanted, keys=list(private.values()), add=added, remove=removed, threshold=threshold
        )
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
        err.print("[yellow]Old keys are no longer trusted; remove their private files.[/]")


@app.command(epilog="Example: fedlatent release status hearts-release")
def status(folder: FolderArgument, json: JsonOption = False) -> None:
    """Show the bundles of a release, its keys, and when its metadata expires."""
    from dataclasses import asdict

    from server.publish import Release

    found = Release.open(folder).status()
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


def _private(folder: Path, keys: Path | None, more: list[Path] | None) -> "dict[str, SigningKey]":
    """All private keys at hand by id."""
    from shared.keys import SigningKey

    paths = [*sorted(_keys_folder(folder, keys).glob("*.pem")), *(more or [])]
    loaded = [SigningKey.load(path) for path in paths]
    return {key.key_id: key for key in loaded}


def _signers(release: "Release", private: "dict[str, SigningKey]") -> dict[str, Any]:
    """The keyword arguments of a change: those keys that the roles have."""
    from shared.errors import ConfigError

    online = [private[key.key_id] for key in release.keys_of("online") if key.key_id in private]
    if not online:
        raise ConfigError(
            "Expected the private online key, got none; give its folder with --keys or its file "
            "with --sign-with."
        )
    targets = [private[key.key_id] for key in release.keys_of("targets") if key.key_id in private]
    return {"targets_keys": targets, "online_key": online[0]}


def _new_key(folder: Path, role: str) -> Path:
    from shared.keys import SigningKey

    number = 2
    while (folder / f"{role}-{number}.pem").exists():
        number += 1
    path = folder / f"{role}-{number}.pem"
    SigningKey.generate(path)
    return path


def _rollout(percent: int, cohorts: list[str] | None, devices: list[str] | None) -> Any:  # noqa: ANN401
    from server.publish import Rollout

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
