"""``fedlatent data describe``: a schema proposed for a file, as text to edit."""

from pathlib import Path
from typing import Annotated

import typer

from fedlatent.cli.console import err, out, print_json, styled
from fedlatent.cli.options import (
    ArrayOption,
    DecimalOption,
    DelimiterOption,
    EncodingOption,
    HeaderOption,
    JsonOption,
    dialect_of,
)

EXAMPLES = (
    "Examples: fedlatent data describe patients.csv -o patients.toml --skip hospital --skip sick | "
    "fedlatent data describe export.csv --delimiter ';' --decimal , --encoding cp1252 | "
    "fedlatent data describe beats.npz --json"
)


def describe(
    file: Annotated[
        Path,
        typer.Argument(
            help="A table with a header, an NPZ or NPY, or a folder of images.", exists=True
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the text here, not to the screen.")
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help="Column that is no part of a record: label, client, person, time; repeat.",
            show_default=False,
        ),
    ] = None,
    array: ArrayOption = "X",
    delimiter: DelimiterOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
    header: HeaderOption = None,
    json: JsonOption = False,
) -> None:
    """Propose a schema for a file, as TOML to edit; its bounds must become public knowledge."""
    from fedlatent.shared.data.describe import describe as propose
    from fedlatent.shared.data.dialect import Dialect
    from fedlatent.shared.files import write_atomic

    proposal = propose(
        file,
        skip=skip or (),
        records_key=array,
        dialect=Dialect(**dialect_of(delimiter, decimal, encoding, header)),
    )
    if output is not None:
        write_atomic(output, proposal.text.encode())
    if json:
        facts = {"data": proposal.data, "notes": proposal.notes, "left_out": proposal.left_out}
        print_json(facts | {"text": proposal.text, "file": output and str(output)})
    elif output is None:
        typer.echo(proposal.text, nl=False)
    else:
        out.print(f"proposed schema in {output}")
        told = " bounds and levels follow these records; replace them by public knowledge first"
        err.print(styled("yellow", "warning:", told))
        out.print(f"then: fedlatent client init SITE --schema {output} --data {file} ...")
