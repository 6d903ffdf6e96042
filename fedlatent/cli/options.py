"""The vocabulary: options and arguments that several commands share.

One name has one meaning, one sentence of help and one default. An `Annotated` type is used as it
is; a name in capitals is the option alone, for commands where it is of another type or required.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print the rows as CSV for scripts.")]

ServerHomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="The server's folder; default $FEDLATENT_SERVER_HOME or ~/.fedlatent/server."
    ),
]
ClientHomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="The node's folder; default $FEDLATENT_CLIENT_HOME or ~/.fedlatent/client."
    ),
]

RunFileArgument = Annotated[Path, typer.Argument(help="The run file (TOML).")]
RunArgument = Annotated[str, typer.Argument(help="The run; 'server status' names all.")]
SiteArgument = Annotated[str, typer.Argument(help="Name of the site, as in its node.toml.")]
WaitOption = Annotated[bool, typer.Option(help="Watch the run to its end.")]

KEY = typer.Option(
    "--key",
    "-k",
    help="Public key that signed the bundle; by default that of the server's home.",
    show_default=False,
)

ArrayOption = Annotated[str, typer.Option(help="Array of an NPZ that holds the records.")]
LabelOption = Annotated[
    str | None, typer.Option(help="Column or array of labels; anomalies are not trained on.")
]
NormalLabelOption = Annotated[
    str | None, typer.Option(help="Which label is normal, where labels are not 0 (normal) and 1.")
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column", help="Column of a table, in record order; repeat.", show_default=False
    ),
]
DelimiterOption = Annotated[
    str | None, typer.Option(help="Between the cells of a CSV file: ',' ';' '|' or 'tab'.")
]
DecimalOption = Annotated[
    str | None, typer.Option(help="Before the decimals of a CSV file: '.' or ','.")
]
EncodingOption = Annotated[str | None, typer.Option(help="Of a CSV file; by default utf-8.")]
HeaderOption = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        help="Whether a CSV file's first line is names; by default it shows.",
    ),
]
ClientOption = Annotated[
    str | None, typer.Option("--client", help="Column or array that says whose record it is.")
]
AcceptOption = Annotated[
    bool, typer.Option("--accept", help="Go on although the check of the records stops.")
]
SCHEMA = typer.Option(
    help=r"A TOML file whose table \[data] says what a record is, such as a run file.", exists=True
)

DATA_HELP = (
    "Folder of the real data sets; default $FEDLATENT_DATA, ../shared/data or "
    "~/.local/share/fedlatent/data."
)

SeedOption = Annotated[
    int,
    typer.Option(
        min=0, help="Seed of all that is random, except noise of real nodes, which is secure."
    ),
]


def label_of(text: str | None) -> int | str | None:
    """The value of ``--normal-label``: a whole number where it is one, else the text itself."""
    return int(text) if text and text.isdecimal() else text


def dialect_of(
    delimiter: str | None, decimal: str | None, encoding: str | None, header: bool | None
) -> dict[str, Any]:
    """What was said of a CSV file, as fields of a `Dialect` and keys of a node file."""
    said = {
        "delimiter": delimiter,
        "decimal": decimal,
        "encoding": encoding,
        "header": header,
    }
    return {key: value for key, value in said.items() if value is not None}
