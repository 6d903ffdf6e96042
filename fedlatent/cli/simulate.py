"""``fedlatent simulate``: studies with many clients on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedlatent.cli import bench
from fedlatent.cli.console import err, out, print_json, table
from fedlatent.cli.options import (
    DATA_HELP,
    SCHEMA,
    AcceptOption,
    ArrayOption,
    ClientOption,
    ColumnOption,
    DecimalOption,
    DelimiterOption,
    EncodingOption,
    HeaderOption,
    JsonOption,
    LabelOption,
    NormalLabelOption,
    dialect_of,
    label_of,
)

if TYPE_CHECKING:
    from fedlatent.simulations.study.compare import Comparison
    from fedlatent.simulations.study.results import Results

app = typer.Typer(
    help="Simulate private federations: studies as TOML files, with sweeps and reports.",
    epilog="Start: fedlatent simulate run first-look",
    no_args_is_help=True,
)

app.command("bench", epilog=bench.EXAMPLES)(bench.bench)
app.command("check", epilog=bench.CHECK_EXAMPLES)(bench.check)

Folder = Annotated[Path, typer.Argument(help="Folder that 'simulate run' has filled.")]

Metric = Literal["auroc", "auprc", "fpr95"]


@app.command(
    "run",
    epilog="Examples: fedlatent simulate run first-look | "
    "fedlatent simulate run mine.toml --out runs/mine --device cuda | "
    "fedlatent simulate run --data beats.csv --client patient --label kind --normal-label N | "
    "fedlatent simulate run likelihood --quick | "
    "fedlatent simulate run utility --only data=mitbih,smd --only seed=0 --processes 2",
)
def run(
    study: Annotated[
        str | None,
        typer.Argument(
            help="A TOML file, or the name of a shipped study; none for a file of one's own.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Results go here; default runs/NAME.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A file or folder of one's own records.", exists=True),
    ] = None,
    data_sets: Annotated[Path | None, typer.Option("--data-sets", help=DATA_HELP)] = None,
    schema: Annotated[Path | None, SCHEMA] = None,
    client: ClientOption = None,
    label: LabelOption = None,
    normal_label: NormalLabelOption = None,
    column: ColumnOption = None,
    array: ArrayOption = "X",
    delimiter: DelimiterOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
    header: HeaderOption = None,
    accept: AcceptOption = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="The study's quick form: seconds, and no result.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="AXIS=VALUE,... runs these cells alone; axes are swept keys and seed."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the file, such as seeds=[3]; a study of its own."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Cells at once, each on one thread; 1: all threads.")
    ] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps, for the stacked grid.")] = "cpu",
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the clients' files of finished cells, too.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Run all cells of a study; the same command again goes on where it was stopped."""
    from fedlatent.cli.progress import study_progress
    from fedlatent.shared.data.catalog import data_folder
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.files import write_atomic
    from fedlatent.simulations.study.report import report as html
    from fedlatent.simulations.study.results import Results
    from fedlatent.simulations.study.run import run_study
    from fedlatent.simulations.study.shipped import OWN, locate
    from fedlatent.simulations.study.spec import Study

    own = {
        "client": client,
        "label": label,
        "normal_label": label_of(normal_label),
        "schema": None if schema is None else str(schema.resolve()),
        "columns": column,
        "array": None if array == "X" else array,
        **dialect_of(delimiter, decimal, encoding, header),
    }
    said = {key: value for key, value in own.items() if value is not None}
    changes = list(change or ())
    if data is not None and data.is_dir() and study is not None:
        err.print(f"note: the folder of data sets is now --data-sets {data}; --data names records.")
        data, data_sets = None, data
    if data is not None:
        changes = [*_of_file(data, said, accept=accept, quiet=json), *changes]
    elif study is None or said:
        raise ConfigError(
            f"Expected --data to name a file or folder of records, got {data or 'none'}; "
            f"without them there is no {', '.join(said) or 'study to run'}.",
            field="data",
        )
    chosen = Study.load(OWN if study is None else locate(study), changes, quick=quick)
    place = folder or Path("runs") / (f"{chosen.name}-quick" if quick else chosen.name)
    with study_progress(quiet=json) as watch:
        content = run_study(
            chosen,
            place,
            data_dir=data_folder(data_sets),
            only=_axes(only or []),
            processes=processes,
            device=device,
            keep=keep,
            watch=watch,
        )
    page = place / "report.html"
    results = Results.load(place)
    write_atomic(page, html(results).encode())
    if json:
        print_json({"folder": str(place), "report": str(page), **content})
        return
    _print_tables(results)
    out.print(f"report {page}")


def _of_file(path: Path, said: Mapping[str, object], *, accept: bool, quiet: bool) -> list[str]:
    """Lines that make a study one of this file, once its records have been looked at."""
    import json

    from fedlatent.cli.check import judge
    from fedlatent.simulations.study.job import file_federation
    from fedlatent.simulations.study.tables import DataTable

    table = {"source": "file", "path": str(path.resolve()), **said}
    federation = file_federation(DataTable.model_validate(table), path.parent, seed=0)
    judge(federation.check, accept=accept, quiet=quiet)
    # JSON of texts, numbers and lists is TOML as well.
    lines = [f"data.{key} = {json.dumps(value)}" for key, value in table.items()]
    alone = ["data.absent = 0", 'evaluate.questions = ["seen"]']  # one client, who takes part
    return lines if "client" in said else [*lines, *alone]


@app.command(
    "list",
    epilog="Examples: fedlatent simulate list | fedlatent simulate list --results runs --json",
)
def list_(
    root: Annotated[
        Path, typer.Option("--results", help="Where to look for result folders.")
    ] = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Name the shipped studies, and the result folders with how far they are."""
    from fedlatent.simulations.study.shipped import folders, shipped

    studies, found = shipped(), folders(root)
    if json:
        print_json(
            {
                "shipped": [
                    {
                        "name": one.name,
                        "description": one.description,
                        "data": one.data,
                        "needs": list(one.needs),
                        "cells": len(one.cells),
                    }
                    for one in studies
                ],
                "folders": [
                    {
                        "folder": str(one.folder),
                        "experiment": one.name,
                        "state": one.state,
                        "done": one.done,
                        "cells": one.cells,
                        "problem": one.problem,
                    }
                    for one in found
                ],
            }
        )
        return
    rows = table("shipped studies", "name", "needs", "#cells", "what")
    for one in studies:
        rows.add_row(one.name, ", ".join(one.needs), str(len(one.cells)), one.description)
    out.print(rows)
    rows = table(f"results in {root}", "folder", "study", "#cells done", "state")
    for place in found:
        name = str(place.folder)
        rows.add_row(name, place.name, f"{place.done} of {place.cells}", place.state)
    out.print(rows if found else f"no results in {root}")


@app.command("report", epilog="Example: fedlatent simulate report runs/first-look -o first.html")
def report(
    folder: Folder,
    output: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The HTML file; default report.html in FOLDER."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables as Markdown, too.")
    ] = False,
    metric: Annotated[
        Metric, typer.Option(help="Of the Markdown tables, if the study has it.")
    ] = "auroc",
    json: JsonOption = False,
) -> None:
    """Write a report with tables and plots as one HTML file that opens offline."""
    from fedlatent.shared.files import write_atomic
    from fedlatent.simulations.study.report import markdown as as_markdown
    from fedlatent.simulations.study.report import report as html
    from fedlatent.simulations.study.results import Results

    results = Results.load(folder)
    page = output or folder / "report.html"
    write_atomic(page, html(results).encode())
    if json:
        print_json({"report": str(page), **results.to_json()})
        return
    if markdown:
        print(as_markdown(results, metric), end="")
        return
    _print_tables(results)
    out.print(f"report {page}")


@app.command(
    "compare",
    epilog="Example: fedlatent simulate compare runs/small runs/large -o small-or-large.html",
)
def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Two or more folders that 'simulate run' has filled.")
    ],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write tables and plots as HTML, too.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Put studies side by side: mean and spread over seeds of every measure."""
    from fedlatent.shared.files import write_atomic
    from fedlatent.simulations.study import compare as comparing
    from fedlatent.simulations.study.layout import SPREAD
    from fedlatent.simulations.study.results import Results

    parts = [Results.load(folder) for folder in folders]
    called = comparing.names(parts)
    content = comparing.to_json(parts)
    if output is not None:
        write_atomic(output, comparing.comparison_report(parts).encode())
        content["report"] = str(output)
    if json:
        print_json(content)
        return
    for one in comparing.compare(parts):
        _print_comparison(one, called)
    out.print(SPREAD)
    if output is not None:
        out.print(f"report {output}")


def _print_comparison(one: "Comparison", called: list[str]) -> None:
    from fedlatent.simulations.study.compare import table_rows

    rows = table(one.title, "setting", *(f"#{name}" for name in called))
    for row in table_rows(one):
        rows.add_row(*row)
    out.print(rows)


def _print_tables(results: "Results") -> None:
    from fedlatent.simulations.study.layout import SPREAD, tables

    done = f"{len(results.cells)} of {len(results.study.cells)} cells"
    for one in tables(results) if results.cells else []:
        title = one.title or "AUROC"
        rows = table(f"{results.study.name}: {title}, {done}", *one.columns)
        for row in one.rows:
            rows.add_row(*(cell if isinstance(cell, str) else cell[0] for cell in row))
        out.print(rows)
    out.print(SPREAD)


def _axes(only: list[str]) -> dict[str, list[str]]:
    """Values by axis from words such as ``data=mitbih,smd``."""
    from fedlatent.shared.errors import ConfigError

    found: dict[str, list[str]] = {}
    for word in only:
        axis, equals, values = word.partition("=")
        if not (axis and equals and values):
            raise ConfigError(f"Expected --only AXIS=VALUE,..., got {word!r}.")
        found.setdefault(axis, []).extend(values.split(","))
    return found
