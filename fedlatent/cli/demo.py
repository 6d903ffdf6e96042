"""``fedlatent demo``: the whole loop on this machine."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlatent.cli.check import judge
from fedlatent.cli.console import figure, out, print_json, progress, size, styled, table
from fedlatent.cli.options import (
    SCHEMA,
    AcceptOption,
    ArrayOption,
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
    from fedlatent.shared.data.sources import Federation
    from fedlatent.simulations.demo import DemoResult
    from fedlatent.simulations.study.evaluation import Rating

EXAMPLES = (
    "Examples: fedlatent demo | fedlatent demo --data digits | "
    "fedlatent demo --data beats.npz --label y --client patient --json"
)


_NAMED = ("hearts", "digits", "mitbih")


def demo(
    data: Annotated[
        str,
        typer.Option(
            help="hearts (synthetic), digits (real), mitbih, or your CSV, Parquet, NPZ, folder of "
            "images and more."
        ),
    ] = "hearts",
    sites: Annotated[int, typer.Option(min=2, max=50, help="Sites that take part.")] = 5,
    absent: Annotated[int, typer.Option(min=1, max=50, help="Sites that do not.")] = 3,
    epsilon: Annotated[float, typer.Option(help="Epsilon of the whole run.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Exchanges of the encoder.")] = 3,
    seed: SeedOption = 0,
    label: LabelOption = None,
    normal_label: NormalLabelOption = None,
    client: Annotated[
        str | None,
        typer.Option(
            help="Column or array of clients; without it the file is cut into random parts."
        ),
    ] = None,
    array: ArrayOption = "X",
    delimiter: DelimiterOption = None,
    decimal: DecimalOption = None,
    encoding: EncodingOption = None,
    header: HeaderOption = None,
    schema: Annotated[Path | None, SCHEMA] = None,
    accept: AcceptOption = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Keep everything in this folder; default a temporary one."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train with real server and nodes over TLS, then score fresh records at the edge."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from fedlatent.shared.errors import ConfigError
    from fedlatent.simulations.demo import demo_run, run_demo
    from fedlatent.simulations.figures import demo_figure

    place = folder or Path(tempfile.mkdtemp(prefix="fedlatent-demo-"))
    if place.exists() and any(place.iterdir()):
        raise ConfigError(f"Expected an empty folder, got {place} with files; choose another.")
    place = place.resolve()
    if Path(data).suffix or (data not in _NAMED and Path(data).is_dir()):
        from fedlatent.shared.data.dialect import Dialect
        from fedlatent.simulations.own_data import federation_of_file

        federation = federation_of_file(
            Path(data),
            sites + absent,
            schema=schema,
            records_key=array,
            label_key=label,
            normal_label=label_of(normal_label),
            client_key=client,
            dialect=Dialect(**dialect_of(delimiter, decimal, encoding, header)),
        )
    else:
        federation = _named(data, sites + absent, seed)
    judge(federation.check, accept=accept, quiet=json)
    present, away = federation.hold_out(absent, seed)
    run = demo_run(present, nodes=len(present.sites), epsilon=epsilon, rounds=rounds)
    if not json:
        out.print(styled("bold", federation.note))
    with progress(quiet=json) as stages:
        result = run_demo(present, away, run, place, stages)
    picture = demo_figure(result, present, away, place / "demo.png")
    if json:
        found = federation.check
        told = {} if found is None else {"check": found.to_json()}
        print_json(result.to_json() | {"figure": str(picture)} | told)
        return
    _print(result, picture)


def _named(name: str, count: int, seed: int) -> "Federation":
    from dataclasses import replace

    from fedlatent.shared.data import sources
    from fedlatent.shared.data.catalog import data_folder
    from fedlatent.shared.errors import ConfigError

    if name == "hearts":
        return sources.hearts(count, seed)
    if name == "digits":
        return sources.digits(count, seed)
    if name == "mitbih":
        whole = sources.mitbih(data_folder(), seed)
        if count > len(whole.sites):
            raise ConfigError(f"Expected at most {len(whole.sites)} patients, got {count}.")
        if count == len(whole.sites):
            return whole
        return replace(whole, sites=whole.hold_out(count, seed)[1].sites)
    raise ConfigError(
        f"Expected --data to be {', '.join(_NAMED)}, or a file or folder of records, got {name!r}; "
        "check the path.",
        field="data",
    )


def _print(result: "DemoResult", picture: Path) -> None:
    sites = table("what each site gave", "site", "#records", "#epsilon", "#messages", "#left")
    for site in result.sites:
        sites.add_row(
            site.name,
            str(site.records),
            figure(site.epsilon),
            str(site.releases),
            size(site.bytes_left),
        )
    out.print(sites)
    delta = result.run.privacy.delta
    out.print(
        f"epsilon at delta {delta:g}, zero-out adjacency, one record; encoder weights, latent "
        "moments and a score histogram left, each through the ledger; decoders stayed\n"
    )
    ratings = result.ratings
    rows = table("AUROC", "detector", "clients", "#one threshold", "#mean of sites")
    names = {
        "seen": ("site bundle", "took part"),
        "local": ("local only, same epsilon", "took part"),
        "pooled_seen": ("pooled VAE, no privacy", "took part"),
        "pca_seen": ("pooled PCA, no privacy", "took part"),
        "absent": ("global bundle", "took no part"),
        "new10": ("re-centred on 10 normals", "took no part"),
        "new30": ("re-centred on 30 normals", "took no part"),
        "pooled": ("pooled VAE, no privacy", "took no part"),
        "pca": ("pooled PCA, no privacy", "took no part"),
        "mahalanobis": ("Mahalanobis, no privacy", "took no part"),
    }
    for key, (detector, clients) in names.items():
        value: Rating = ratings[key]
        style = "bold" if "bundle" in detector or "re-centred" in detector else None
        cells = (detector, clients, figure(value.pooled), figure(value.site_mean))
        rows.add_row(*cells, style=style)
    out.print(rows)
    out.print(
        f"\nglobal bundle {result.bundle} ({size(result.bundle_bytes)}), ONNX within "
        f"{result.parity:.1e} of PyTorch",
    )
    out.print(
        f"edge process without PyTorch: first score {result.cold_start_s:.2f} s after start, peak "
        f"memory {result.peak_rss_mb:.0f} MB"
    )
    out.print(f"figure {picture}")
    out.print(f"{result.seconds:.0f} s; everything is in {result.folder}")
