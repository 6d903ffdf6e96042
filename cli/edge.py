"""``fedlatent edge``: verify, look into and score with a bundle; needs no PyTorch."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import JsonOption, figure, out, print_json, size, table

if TYPE_CHECKING:
    import numpy as np

    from client.edge.runtime import EdgeModel, ScoreTable

app = typer.Typer(no_args_is_help=True, help="Verify, inspect and score with a signed bundle.")

BundleArgument = Annotated[Path, typer.Argument(help="The bundle file.", show_default=False)]
KeyOption = Annotated[
    list[Path],
    typer.Option(
        "--key",
        "-k",
        help="Public key whose signature is trusted; repeat for more.",
        show_default=False,
    ),
]

_CHUNK = 512


def load(bundle: Path, keys: list[Path]) -> "EdgeModel":
    """Verify and load a bundle."""
    from client.edge.runtime import EdgeModel
    from shared.keys import VerifyKey

    return EdgeModel.load(bundle, [VerifyKey.load(path) for path in keys])


@app.command(epilog="Example: fedlatent edge verify hearts-1.fedlatent --key publisher.pub")
def verify(bundle: BundleArgument, key: KeyOption, json: JsonOption = False) -> None:
    """Check signature, hashes and golden vectors; exit 0 only when all hold."""
    model = load(bundle, key)
    facts = {"ok": True, "signed_by": model.bundle.key_id, "golden_error": model.golden_error}
    if json:
        print_json(facts)
    else:
        out.print(
            f"[green]good[/]: signed by {model.bundle.key_id}, every hash matches, golden vectors "
            f"within {model.golden_error:.1e} on this machine"
        )


@app.command(epilog="Example: fedlatent edge info hearts-1.fedlatent --key publisher.pub")
def info(bundle: BundleArgument, key: KeyOption, json: JsonOption = False) -> None:
    """Show what a bundle is: model, privacy, schema, thresholds, size."""
    facts = load(bundle, key).info()
    if json:
        print_json(facts)
        return
    rows = table(str(bundle), "fact", "value")
    for name, value in facts.items():
        shown = size(value) if name == "model_bytes" and isinstance(value, int) else str(value)
        rows.add_row(name.replace("_", " "), shown)
    out.print(rows)


@app.command(
    epilog="Examples: fedlatent edge score hearts-1.fedlatent beats.csv --key publisher.pub | "
    "with re-centring: ... --normals my-normal-beats.npz --save-center center.json"
)
def score(
    bundle: BundleArgument,
    records: Annotated[Path, typer.Argument(help="CSV (.csv, .csv.gz) or NPZ of raw records.")],
    key: KeyOption,
    array: Annotated[str, typer.Option(help="Array of an NPZ that holds the records.")] = "X",
    normals: Annotated[
        Path | None, typer.Option(help="A few normal records to re-centre on.")
    ] = None,
    center: Annotated[Path | None, typer.Option(help="A centre saved before.")] = None,
    save_center: Annotated[Path | None, typer.Option(help="Where to save the new centre.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write all scores to this CSV.")] = None,
    json: JsonOption = False,
) -> None:
    """Score records; a record above the threshold is flagged."""
    from client.edge.footprint import edge_footprint
    from client.edge.reader import read_records
    from shared.errors import ConfigError

    if normals is not None and center is not None:
        raise ConfigError("Expected --normals or --center, got both; choose one.")
    model = load(bundle, key)
    schema = model.bundle.manifest.schema
    rows = read_records(records, schema, key=array)
    if normals is not None:
        model = model.recentre(read_records(normals, schema, key=array))
    elif center is not None:
        model = model.load_center(center)
    if save_center is not None:
        model.save_center(save_center)
    if len(rows):
        model.score(rows[:1])
    first = edge_footprint()
    tables = list(_chunks(model, rows))
    last = edge_footprint()
    if output is not None:
        _write_scores(output, tables)
    _print_scores(model, tables, first.seconds, last.peak_mb, as_json=json)


def _chunks(model: "EdgeModel", rows: "np.ndarray") -> Iterator["ScoreTable"]:
    for start in range(0, len(rows), _CHUNK):
        yield model.score(rows[start : start + _CHUNK])


def _write_scores(path: Path, tables: list["ScoreTable"]) -> None:
    import io

    from shared.files import write_atomic

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(tables[0].parts) if tables else []
    writer.writerow(["record", "score", "flag", *(name for name in names if name != "score")])
    number = 0
    for made in tables:
        for i, value in enumerate(made.score):
            parts = [f"{made.parts[n][i]:.9g}" for n in names if n != "score"]
            writer.writerow([number, f"{value:.9g}", int(made.flag[i]), *parts])
            number += 1
    write_atomic(path, text.getvalue().encode())


def _print_scores(
    model: "EdgeModel",
    tables: list["ScoreTable"],
    first_score_s: float,
    peak_mb: float,
    *,
    as_json: bool,
) -> None:
    scores = [float(value) for made in tables for value in made.score]
    flags = [bool(value) for made in tables for value in made.flag]
    if as_json:
        print_json(
            {
                "records": len(scores),
                "flagged": sum(flags),
                "threshold": model.threshold,
                "recentred_on": None if model.center is None else model.center.records,
                "scores": scores,
                "flags": flags,
                "process": {"first_score_s": first_score_s, "peak_rss_mb": peak_mb},
            }
        )
        return
    shown = table(f"{len(scores)} records, {sum(flags)} flagged", "#record", "#score", "flag")
    highest = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:10]
    for number in highest:
        shown.add_row(str(number), figure(scores[number]), "flagged" if flags[number] else "")
    out.print(shown)
    out.print(
        f"the ten highest; threshold {model.threshold:.4g}; first score {first_score_s:.2f} s "
        f"after start, peak memory {peak_mb:.0f} MB"
    )
