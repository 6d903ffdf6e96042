"""``fedlatent``: the root of the command line.

Heavy packages are imported inside the commands that need them, so that the edge commands run on
devices without PyTorch.
"""

import os
import signal
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from types import FrameType
from typing import Annotated, NoReturn

import typer

from fedlatent.cli import (
    audit,
    client,
    data,
    demo,
    doctor,
    edge,
    export,
    keys,
    model,
    new,
    page,
    privacy,
    release,
    schema,
    server,
    simulate,
    train,
)
from fedlatent.cli.console import print_error
from fedlatent.cli.renamed import RENAMED
from fedlatent.client.edge.commands.common import take_any_text
from fedlatent.client.edge.commands.renamed import renewed
from fedlatent.shared.errors import FedlatentError, StorageError
from fedlatent.shared.processes import hang_up_is_terminate
from fedlatent.shared.quiet import cache_folder

app = typer.Typer(
    name="fedlatent",
    help="Federated and on-device learning of variational autoencoders under differential privacy.",
    epilog="First minute: fedlatent demo | Own records: fedlatent train FILE --label COLUMN | "
    "When something is wrong: fedlatent doctor | Each command: fedlatent COMMAND --help",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("demo", epilog=demo.EXAMPLES)(demo.demo)
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("audit", epilog=audit.EXAMPLES)(audit.audit)
app.add_typer(server.app, name="server")
app.add_typer(client.app, name="client")
app.add_typer(data.app, name="data")
app.add_typer(simulate.app, name="simulate")
app.add_typer(export.app, name="export")
release.app.command("page", epilog=page.EXAMPLES)(page.page)
app.add_typer(release.app, name="release")
app.command("edge", epilog=edge.EXAMPLES, context_settings=edge.SETTINGS)(edge.edge)
app.add_typer(keys.app, name="keys")
app.add_typer(privacy.app, name="privacy")
app.add_typer(model.app, name="model")
app.add_typer(new.app, name="new")
app.command("schema", epilog=schema.EXAMPLES)(schema.schema)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(distribution_version("fedlatent"))
        except PackageNotFoundError:
            typer.echo("not installed; run from a checkout")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Federated and on-device learning of variational autoencoders under differential privacy."""


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """End, and with that what this command began: processes, temporary folders."""
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """Run the command line; errors that a person can cause become a sentence and an exit code."""
    signal.signal(signal.SIGTERM, _leave)
    hang_up_is_terminate()
    take_any_text()
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
    try:
        app(args=renewed(sys.argv[1:], RENAMED))
    except FedlatentError as error:
        sys.exit(_told(error))
    except OSError as error:
        sys.exit(_told(StorageError.of(error)))
    except ModuleNotFoundError as error:
        extras = {"client": "client"} | dict.fromkeys(("simulate", "audit", "data"), "simulation")
        extra = next((extras[word] for word in sys.argv if word in extras), "server")
        typer.echo(
            f"error: this command needs the package {error.name!r}, which is not installed; "
            f"install fedlatent[{extra}] (or fedlatent[all]).",
            err=True,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _told(error: FedlatentError) -> int:
    """Say what went wrong; returns the exit code."""
    print_error(error, as_json="--json" in sys.argv)
    return error.exit_code


if __name__ == "__main__":
    main()
