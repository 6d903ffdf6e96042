"""``fedlatent simulate``: experiments with many clients on this machine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlatent.cli import bench
from fedlatent.cli.console import figure, out, print_json, table
from fedlatent.cli.options import JsonOption

if TYPE_CHECKING:
    from fedlatent.simulations.experiments.compare import Comparison
    from fedlatent.simulations.experiments.results import Results

app = typer.Typer(
    help="Simulate private federations: experiments as TOML files, with sweeps and reports.",
    epilog="Start: fedlatent simulate run first-look",
    no_args_is_help=True,
)

app.command("bench", epilog=bench.EXAMPLES)(bench.bench)

Folder = Annotated[Path, typer.Argument(help="Folder that 'simulate run' has filled.")]

#: Columns of the table after a run: question, title.
_COLUMNS = (
    ("auroc_seen", "#took part"),
    ("auroc_absent", "#took no part"),
    ("auroc_new10", "#new, 10"),
    ("auroc_new100", "#new, 100"),
    ("clients_per_second", "#clients/s"),
)


@app.command(
    "run",
    epilog="Examples: fedlatent simulate run first-look | "
    "fedlatent simulate run mine.toml --out runs/mine --device cuda",
)
def run(
    experiment: Annotated[
        str, typer.Argument(help="A TOML file, or the name of a shipped experiment.")
    ],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Results go here; default runs/NAME.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the real data sets; default $FEDLATENT_DATA."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps, for the stacked grid.")] = "cpu",
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the clients' files of finished cells, too.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Run all cells of an experiment; the same command again goes on where it was stopped."""
    from fedlatent.cli.progress import experiment_progress
    from fedlatent.shared.files import write_atomic
    from fedlatent.simulations.experiments.report import report as html
    from fedlatent.simulations.experiments.results import Results
    from fedlatent.simulations.experiments.run import run_experiment
    from fedlatent.simulations.experiments.shipped import locate
    from fedlatent.simulations.experiments.spec import Experiment

    chosen = Experiment.load(locate(experiment))
    place = folder or Path("runs") / chosen.name
    source = data or Path(os.environ.get("FEDLATENT_DATA", "../shared/data"))
    with experiment_progress(quiet=json) as watch:
        content = run_experiment(
            chosen, place, data_dir=source, device=device, keep=keep, watch=watch
        )
    page = place / "report.html"
    results = Results.load(place)
    write_atomic(page, html(results).encode())
    if json:
        print_json({"folder": str(place), "report": str(page), **content})
        return
    _print_summary(results)
    out.print(f"report {page}")


@app.command(
    "list", epilog="Examples: fedlatent simulate list | fedlatent simulate list --out runs --json"
)
def list_(
    root: Annotated[Path, typer.Option("--out", help="Where to look for result folders.")] = Path(
        "runs"
    ),
    json: JsonOption = False,
) -> None:
    """Name the shipped experiments, and the result folders with how far they are."""
    from fedlatent.simulations.experiments.shipped import folders, shipped

    experiments, found = shipped(), folders(root)
    if json:
        print_json(
            {
                "shipped": [
                    {
                        "name": one.name,
                        "description": one.description,
                        "data": one.cells[0].data.source,
                        "cells": len(one.cells),
                    }
                    for one in experiments
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
    rows = table("shipped experiments", "name", "data", "#cells", "what")
    for one in experiments:
        rows.add_row(one.name, one.cells[0].data.source, str(len(one.cells)), one.description)
    out.print(rows)
    rows = table(f"results in {root}", "folder", "experiment", "#cells done", "state")
    for place in found:
        name = str(place.folder)
        rows.add_row(name, place.name, f"{place.done} of {place.cells}", place.state)
    out.print(rows if found else f"no results in {root}")


@app.command("report", epilog="Example: fedlatent simulate report runs/first-look -o first.html")
def report(
    folder: Folder,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The HTML file; default report.html in FOLDER."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a report with tables and plots as one HTML file that opens offline."""
    from fedlatent.shared.files import write_atomic
    from fedlatent.simulations.experiments.report import report as html
    from fedlatent.simulations.experiments.results import Results

    results = Results.load(folder)
    page = output or folder / "report.html"
    write_atomic(page, html(results).encode())
    if json:
        print_json({"report": str(page), **results.to_json()})
        return
    _print_summary(results)
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
        Path | None, typer.Option("--output", "-o", help="Write tables and plots as HTML, too.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Put experiments side by side: mean and spread over seeds of every measure."""
    from fedlatent.shared.files import write_atomic
    from fedlatent.simulations.experiments import compare as comparing
    from fedlatent.simulations.experiments.results import Results

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
    out.print("mean ± sample standard deviation over seeds")
    if output is not None:
        out.print(f"report {output}")


def _print_comparison(one: "Comparison", called: list[str]) -> None:
    from fedlatent.simulations.experiments.compare import table_rows

    rows = table(one.title, "setting", *(f"#{name}" for name in called))
    for row in table_rows(one):
        rows.add_row(*row)
    out.print(rows)


def _print_summary(results: "Results") -> None:
    from fedlatent.simulations.experiments.report import value_text

    summaries = results.summaries()
    shown = [
        (key, title) for key, title in _COLUMNS if any(key in one.measures for one in summaries)
    ]
    done = f"{len(results.cells)} of {len(results.experiment.cells)} cells"
    rows = table(
        f"{results.experiment.name}: AUROC, {done}", "setting", *(title for _, title in shown)
    )
    for one in summaries:
        values = [
            value_text(one.measures.get(key))
            if key.startswith("auroc")
            else figure(one.measures[key].mean if key in one.measures else None, 1)
            for key, _ in shown
        ]
        rows.add_row(one.label or "all cells", *values)
    out.print(rows)
