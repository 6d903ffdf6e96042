"""``fedlatent train``: from one file to a signed bundle and a report."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlatent.cli.check import judge
from fedlatent.cli.console import err, figure, out, print_json, progress, size, styled, table
from fedlatent.cli.options import (
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
    SeedOption,
    dialect_of,
    label_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedlatent.cli.console import Stages
    from fedlatent.simulations.federation import Progress
    from fedlatent.simulations.train import Trained

EXAMPLES = (
    "Examples: fedlatent train beats.csv -o beats.fedlatent --label kind --normal-label N | "
    "fedlatent train patients.csv --schema patients.toml --client hospital --epsilon 4 "
    "-o patients.fedlatent"
)


def train(
    file: Annotated[
        Path,
        typer.Argument(
            help="Records: CSV, Parquet, NPZ, a folder of images and more.", exists=True
        ),
    ],
    target: Annotated[
        Path,
        typer.Option("--out", "-o", help="The bundle; its report goes beside it.", exists=False),
    ] = Path("model.fedlatent"),
    schema: Annotated[Path | None, SCHEMA] = None,
    label: LabelOption = None,
    normal_label: NormalLabelOption = None,
    client: ClientOption = None,
    column: ColumnOption = None,
    array: ArrayOption = "X",
    delimiter: DelimiterOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
    header: HeaderOption = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="Family of the model; 'fedlatent model list' names all. By default gaussian, "
            "or molecule where records are molecules.",
            show_default=False,
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(min=0, help="Cover the bundle by this epsilon for each client; none without."),
    ] = None,
    absent: Annotated[
        int, typer.Option(min=0, help="Clients left out of training, to see how new ones fare.")
    ] = 0,
    signing_key: Annotated[
        Path | None,
        typer.Option(help="Key that signs; by default publisher.pem beside the bundle, made new."),
    ] = None,
    seed: SeedOption = 0,
    accept: AcceptOption = False,
    json: JsonOption = False,
) -> None:
    """Train a detector on one file: a signed bundle, and a report beside simple baselines."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from fedlatent.shared.data.dialect import Dialect
    from fedlatent.simulations.own_data import clients_of_file
    from fedlatent.simulations.train import leave_out, run_of, worry
    from fedlatent.simulations.train import train as trained_on

    federation = clients_of_file(
        file,
        schema=schema,
        seed=seed,
        records_key=array,
        columns=column,
        label_key=label,
        normal_label=label_of(normal_label),
        client_key=client,
        dialect=Dialect(**dialect_of(delimiter, decimal, encoding, header)),
    )
    judge(federation.check, accept=accept, quiet=json)
    present, away = leave_out(federation, absent, seed)
    run = run_of(present, family=family, epsilon=epsilon, seed=seed)
    if text := worry(run, present):
        err.print(styled("yellow", "warning", f": {text}"))
    with progress(quiet=json) as stages, tempfile.TemporaryDirectory() as work:
        done = trained_on(
            present,
            target,
            run=run,
            away=away,
            signing_key=signing_key,
            work=Path(work),
            watch=_watch(stages),
        )
    if json:
        print_json(done.to_json())
    else:
        _print(done)


def _watch(stages: "Stages") -> "Callable[[Progress], None]":
    def watch(news: "Progress") -> None:
        loss = "" if news.loss is None else f", loss {news.loss:.4g}"
        stages(f"training: phase {news.phase} of {news.phases}{loss}", news.share)

    return watch


def _print(done: "Trained") -> None:
    found = done.report
    out.print(found.note)
    if found.rated:
        rows = table(
            "AUROC, one threshold for all clients", "detector", *map("#{}".format, found.auroc)
        )
        for name in found.detectors.index:
            style = "bold" if name == "fedlatent" else None
            rows.add_row(name, *(_cell(row[name]) for row in found.auroc.values()), style=style)
        out.print(rows)
        if beaten := found.beaten_by:
            best = next(iter(beaten))
            told = f" {', '.join(beaten)} rated these records better than the bundle did; {best}"
            err.print(styled("yellow", "warning:", f"{told} needs no network"))
    else:
        out.print("no anomalies are known here, so no detector can be rated; name them by --label")
    rows = table(
        "clients",
        *("client", "part", "#trained on", "#tested", "#anomalies", "#false alarms", "#found"),
        "#AUROC",
    )
    for one in found.clients:
        counts = map(str, (one.trained, one.tested, one.anomalies))
        shares = map(_cell, (one.false_alarms, one.found, one.auroc["fedlatent"]))
        rows.add_row(one.name, "yes" if one.took_part else "absent", *counts, *shares)
    out.print(rows)
    if found.epsilon is None:
        out.print(
            "no privacy: the bundle holds statistics of the records; keep it where they may be"
        )
    else:
        out.print(f"epsilon {figure(found.epsilon)} at delta {done.run.privacy.delta:g} per client")
    out.print(f"bundle {done.bundle.path} ({size(done.bundle.size)}), key {done.public_key}")
    out.print(f"report {done.page}")
    out.print(f"next: fedlatent edge score {done.bundle.path} FILE --key {done.public_key}")


def _cell(value: float | None) -> str:
    return "-" if value is None else figure(value)
