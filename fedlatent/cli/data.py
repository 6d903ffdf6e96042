"""``fedlatent data``: what data is, before it is used."""

import typer

from fedlatent.cli import describe

app = typer.Typer(
    help="Look at data before it is used.",
    epilog="Start: fedlatent data describe FILE",
    no_args_is_help=True,
)


@app.callback()
def data() -> None:
    """Look at data before it is used."""


app.command("describe", epilog=describe.EXAMPLES)(describe.describe)
