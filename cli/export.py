"""``fedlatent export``: signed ONNX bundles from a finished run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import JsonOption, err, figure, out, print_json, size, table

if TYPE_CHECKING:
    from shared.export.bundling import BundleReport

app = typer.Typer(no_args_is_help=True, help="Make a signed ONNX bundle of a finished run.")

RunOption = Annotated[
    str | None, typer.Option("--run", help="Which run; by default the latest finished one.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Target file; by default in the home's bundles.")
]


@app.command("global", epilog="Example: fedlatent export global --home server -o hearts.fedlatent")
def global_(
    home: Annotated[Path | None, typer.Option(help="The server's home.")] = None,
    run: RunOption = None,
    target: OutOption = None,
    json: JsonOption = False,
) -> None:
    """Encoder, released latent density and threshold: for devices anywhere."""
    from server.export import export_global
    from server.home import ServerHome

    with err.status("exporting and checking against torch"):
        report = export_global(ServerHome.find(home), run, target)
    _print(report, as_json=json)


@app.command(epilog="Example: fedlatent export site --home node --decoder")
def site(
    home: Annotated[Path | None, typer.Option(help="The node's home.")] = None,
    run: RunOption = None,
    target: OutOption = None,
    decoder: Annotated[
        bool, typer.Option("--decoder", help="Ship the decoder as well, for reconstructions.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Global encoder with this site's own decoder: for this site's devices only."""
    from client.export import export_site
    from client.home import ClientHome

    with err.status("exporting and checking against torch"):
        report = export_site(ClientHome.find(home), run, target, decoder=decoder)
    _print(report, as_json=json)
    if not json:
        err.print("[yellow]This bundle holds unreleased statistics: keep it within the site.[/]")


def _print(report: "BundleReport", *, as_json: bool) -> None:
    manifest = report.manifest
    if as_json:
        print_json(
            {
                "path": str(report.path),
                "bytes": report.size,
                "kind": manifest.kind,
                "version": manifest.version,
                "epsilon": manifest.privacy.epsilon if manifest.privacy else None,
                "parity": {name: one.max_rel for name, one in report.parity.items()},
            }
        )
        return
    rows = table(f"{report.path} ({size(report.size)})", "graph", "#max relative error", "#cases")
    for name, one in report.parity.items():
        rows.add_row(name, f"{one.max_rel:.1e}", str(one.cases))
    out.print(rows)
    spent = figure(manifest.privacy.epsilon) if manifest.privacy else "none (not private)"
    out.print(f"{manifest.kind} bundle, version {manifest.version}, epsilon {spent}")
