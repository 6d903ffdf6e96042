"""``fedlatent export``: signed ONNX bundles from a finished run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlatent.cli.console import err, figure, out, print_json, size, styled, table
from fedlatent.cli.options import JsonOption

if TYPE_CHECKING:
    import numpy as np

    from fedlatent.shared.export.bundling import BundleReport, Form
    from fedlatent.shared.export.targets import Choice

app = typer.Typer(no_args_is_help=True, help="Make a signed ONNX bundle of a finished run.")

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder of the server (global) or of the node (site); default as in their commands.",
    ),
]
RunOption = Annotated[
    str | None, typer.Option("--run", help="Which run; by default the latest finished one.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Target file; by default in the home's bundles.")
]
DecoderOption = Annotated[
    bool,
    typer.Option(
        "--decoder",
        help="Ship a decoder as well, for reconstructions: the site's own, or with 'global' the "
        "one that clients shared (sharing 'full').",
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Try smaller and faster forms here and keep the best for: auto, smallest, fastest, "
        "arm or web; by default the float32 graph as it is.",
    ),
]
PublicOption = Annotated[
    Path | None,
    typer.Option(
        "--public",
        help="CSV or NPZ of records that anyone may see, to judge forms on; by default synthetic.",
    ),
]
LabelsOption = Annotated[
    str | None,
    typer.Option("--label", help="Array of the public NPZ: 0 normal, 1 anomalous; judges AUROC."),
]
OrtOption = Annotated[
    bool,
    typer.Option("--ort", help="Store the graph for this very version of ONNX Runtime (.ort)."),
]
ExpiresOption = Annotated[
    int | None,
    typer.Option("--expires-days", min=1, help="After so many days no device installs it."),
]


def _bundle(
    context: typer.Context,
    home: HomeOption = None,
    run: RunOption = None,
    output: OutOption = None,
    decoder: DecoderOption = False,
    target: TargetOption = None,
    public: PublicOption = None,
    labels: LabelsOption = None,
    ort: OrtOption = False,
    expires_days: ExpiresOption = None,
    json: JsonOption = False,
) -> None:
    from fedlatent.client.export import export_site
    from fedlatent.client.home import ClientHome
    from fedlatent.server.export import export_global
    from fedlatent.server.home import ServerHome

    form, expires = _form(target, public, labels, ort=ort), _expires(expires_days)
    with err.status("exporting and checking against torch"):
        if context.command.name == "global":
            report = export_global(
                ServerHome.find(home), run, output, decoder=decoder, expires=expires, form=form
            )
        else:
            report = export_site(
                ClientHome.find(home), run, output, decoder=decoder, expires=expires, form=form
            )
    _print(report, as_json=json)


app.command(
    "global",
    help="Encoder, released latent density and threshold: for devices anywhere.",
    epilog="Examples: fedlatent export global --home server -o hearts.fedlatent | "
    "fedlatent export global --target smallest --public beats.npz --expires-days 90",
)(_bundle)
app.command(
    "site",
    help="Global encoder with this site's own decoder: for this site's devices only.",
    epilog="Example: fedlatent export site --home node --decoder --target auto",
)(_bundle)


def _form(target: str | None, public: Path | None, labels: str | None, *, ort: bool) -> "Form":
    from fedlatent.shared.data.archives import read_npz
    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.export.bundling import Form
    from fedlatent.shared.export.targets import TARGETS
    from fedlatent.shared.files import ending_of

    if target is not None and target not in TARGETS:
        raise ConfigError(
            f"Expected --target to be one of {', '.join(TARGETS)}, got {target!r}; choose one."
        )
    if target is None and public is not None:
        raise ConfigError(
            "Expected --target with --public, got no target; public records are used to choose."
        )
    if labels is not None and (public is None or not ending_of(public, [".npz"])):
        raise ConfigError("Expected an NPZ of public records for --label, got none; add it.")
    records = None
    if public is not None:
        records = _public(public)
    found = None if labels is None or public is None else read_npz(public, [labels])[labels]
    if found is not None and records is not None and found.shape != records.shape[:1]:
        raise ConfigError(
            f"Expected a label for each of {len(records)} public records, got shape "
            f"{list(found.shape)}; name another array."
        )
    return Form(target=target, public=records, labels=found, ort=ort)


def _public(path: Path) -> "np.ndarray":
    """Public raw records of a CSV without a schema's check, or array X of an NPZ."""
    from fedlatent.shared.data.archives import read_npz
    from fedlatent.shared.data.table import read_table
    from fedlatent.shared.files import ending_of

    return read_npz(path, ["X"])["X"] if ending_of(path, [".npz"]) else read_table(path)[0]


def _expires(days: int | None) -> str | None:
    import time

    from fedlatent.shared.files import utc_text

    return None if days is None else utc_text(time.time() + days * 86_400)


def _print(report: "BundleReport", *, as_json: bool) -> None:
    manifest, privacy = report.manifest, report.manifest.privacy
    own = manifest.kind == "site"
    if as_json:
        print_json(
            {
                "path": str(report.path),
                "bytes": report.size,
                "kind": manifest.kind,
                "version": manifest.version,
                "epsilon": privacy.epsilon if privacy and not own else None,
                "epsilon_released": privacy.epsilon if privacy else None,
                "parity": {name: one.max_rel for name, one in report.parity.items()},
                "precision": manifest.runtime.precision,
                "format": manifest.runtime.format,
                "expires": manifest.expires,
                "candidates": _candidates(report),
            }
        )
        return
    rows = table(f"{report.path} ({size(report.size)})", "graph", "#max relative error", "#cases")
    for name, one in report.parity.items():
        rows.add_row(name, f"{one.max_rel:.1e}", str(one.cases))
    out.print(rows)
    if report.choice is not None:
        _print_choice(report.choice)
    spent = f"epsilon {figure(privacy.epsilon)}" if privacy else "no epsilon (not private)"
    if privacy and privacy.rng == "simulation":
        spent += " (simulation random numbers)"
    if not own:
        out.print(f"global bundle, version {manifest.version}, {spent}")
        return
    out.print(f"site bundle, version {manifest.version}; what this site released cost {spent}")
    out.print(
        styled(
            "yellow",
            "No epsilon covers this bundle:",
            " it holds exact statistics of this site's records. It is for this site's own devices "
            "alone.",
        )
    )


def _candidates(report: "BundleReport") -> list[dict[str, object]]:
    """Every form that was compared; a figure that there is none of is null."""
    import math
    from dataclasses import asdict

    rows = () if report.choice is None else report.choice.table
    return [
        {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(row).items()
        }
        for row in rows
    ]


def _print_choice(choice: "Choice") -> None:
    names = ("form", "#bytes", "#ratio", "#p50 µs", "#p99 µs", "#drift", "#flips", "#AUROC loss")
    rows = table(f"forms for {choice.target}", *names)
    for row in choice.table:
        if row.bytes:
            rows.add_row(
                row.name,
                size(row.bytes),
                figure(row.ratio, 2),
                figure(row.p50, 0),
                figure(row.p99, 0),
                f"{row.max_drift:.0e}",
                f"{row.flips:.2%}",
                figure(row.auroc_loss, 4),
                style="green" if row.name == choice.chosen.name else None,
            )
    out.print(rows)
    for row in choice.table:
        if not row.eligible:
            out.print(f"not {row.name}: {row.reason}")
    out.print(f"chosen: {choice.chosen.name}; {choice.hardware}")
