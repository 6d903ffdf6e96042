"""``fedlatent keys``: signing keys of bundles."""

from pathlib import Path
from typing import Annotated

import typer

from fedlatent.cli.console import out, print_json
from fedlatent.cli.options import JsonOption

app = typer.Typer(no_args_is_help=True, help="Make and show the keys that sign bundles.")


@app.command(epilog="Example: fedlatent keys new release.pem")
def new(
    path: Annotated[Path, typer.Argument(help="Where to write the private key (mode 0600).")],
    json: JsonOption = False,
) -> None:
    """Make an Ed25519 signing key; the public half goes beside it with the ending .pub."""
    from fedlatent.shared.keys import SigningKey

    made = SigningKey.generate(path)
    public = path.with_name(path.name + ".pub")
    if json:
        print_json({"key_id": made.key_id, "private": str(path), "public": str(public)})
    else:
        out.print(f"key {made.key_id}: private {path}, public {public}")


@app.command(epilog="Example: fedlatent keys show ~/.fedlatent/server/keys/signing.pem.pub")
def show(
    path: Annotated[Path, typer.Argument(help="A private or public signing key.")],
    json: JsonOption = False,
) -> None:
    """Print the id and the public half of a key; compare the id over another channel."""
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.keys import SigningKey, VerifyKey

    try:
        public = VerifyKey.load(path)
    except ConfigError:
        public = SigningKey.load(path).public
    if json:
        print_json({"key_id": public.key_id, "public_pem": public.to_pem().decode()})
    else:
        out.print(f"key {public.key_id}")
        out.print(public.to_pem().decode(), end="")
