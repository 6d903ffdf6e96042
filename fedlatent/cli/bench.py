"""``fedlatent simulate bench`` and ``check``: what the code costs, and whether it holds."""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedlatent.cli.console import figure, out, print_json, progress, styled, table
from fedlatent.cli.options import JsonOption

EXAMPLES = (
    "Examples: fedlatent simulate bench --quick | fedlatent simulate bench --conv --out bench.json "
    "| fedlatent simulate bench --peers plain_loop,pfl --no-growth "
    "| fedlatent simulate bench gpu --set clients=1000"
)


_HERE = "fedlatent.simulations"
#: Further benchmarks, and checks of the whole system: module and function by name.
BENCHES = {
    "accountants": (f"{_HERE}.bench.accountants", "accountants"),
    "clipping": (f"{_HERE}.bench.clipping", "clipping"),
    "edge": (f"{_HERE}.bench.edge", "edge"),
    "gpu": (f"{_HERE}.bench.gpu", "gpu"),
    "aarch64": (f"{_HERE}.bench.aarch64", "aarch64"),
}
CHECKS = {
    "offline": (f"{_HERE}.offline", "offline"),
    "chaos": (f"{_HERE}.chaos.weather", "chaos"),
}
CHECK_EXAMPLES = (
    "Examples: fedlatent simulate check offline --set out=runs/offline | "
    "fedlatent simulate check chaos --set faults=40 --set out=chaos.json"
)
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE of a named one; a key that does not exist names those."),
]


def check(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(CHECKS)}.")],
    values: SetOption = None,
) -> None:
    """Check a whole system: that no command calls home, or that no fault loses a charge."""
    run_named(CHECKS, name, values or [])


def run_named(table: Mapping[str, tuple[str, str]], name: str, values: Sequence[str]) -> None:
    """Call a function of a table with values in words, and exit with the status it gives.

    Raises:
        ConfigError: there is no such function, or a value does not fit it.
    """
    from fedlatent.shared.errors import ConfigError
    from fedlatent.simulations.study.tables import Mistake, near, parameters_of

    if name not in table:
        hint = near(name, list(table)) or f"; known are {', '.join(table)}."
        raise ConfigError(f"Expected the name of a benchmark or check, got {name!r}{hint}")
    module, function = table[name]
    chosen = getattr(importlib.import_module(module), function)
    parts = [value.partition("=") for value in values]
    try:
        known = parameters_of(chosen, {key: value for key, _, value in parts})
    except Mistake as error:
        raise error.said(f"{name} --set", {}) from None
    raise typer.Exit(chosen(**known))


def bench(
    name: Annotated[
        str, typer.Argument(help=f"peers, or one of {', '.join(BENCHES)}, which take --set alone.")
    ] = "peers",
    values: SetOption = None,
    clients: Annotated[
        int | None,
        typer.Option(min=1, help="Clients of a round; default 100, with --quick 16."),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Turns of each system; the median counts.")
    ] = 5,
    peers: Annotated[
        str,
        typer.Option(
            help="all, none, or some of plain_loop, opacus_hooks, opacus_ghost, pfl, flower; "
            "--quick has its own."
        ),
    ] = "all",
    conv: Annotated[
        bool, typer.Option("--conv", help="Compare the trainers on a convolutional model too.")
    ] = False,
    growth: Annotated[bool, typer.Option(help="Measure 100, 1,000 and 10,000 clients too.")] = True,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Under a minute, in this process; no pfl, no Flower."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the report with hardware and commit as JSON."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure CPU time, throughput, start-up and memory; systems take turns on one thread."""
    if name != "peers":
        run_named(BENCHES, name, values or [])
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    import torch

    from fedlatent.shared.errors import ConfigError
    from fedlatent.shared.files import write_json
    from fedlatent.simulations.bench.measure import circumstances
    from fedlatent.simulations.bench.peers import choose
    from fedlatent.simulations.bench.report import Choice, measure_all

    chosen = choose(peers)
    if quick and conv:
        raise ConfigError("Expected --quick or --conv, got both; --conv takes minutes.")
    torch.set_num_threads(1)
    report: dict[str, Any]
    with progress(quiet=json) as stages:
        if quick:
            from fedlatent.simulations.bench.quick import measure_quick

            report = measure_quick(clients or 16, repeats, stages)
        else:
            choice = Choice(
                clients=clients or 100, turns=repeats, peers=chosen, conv=conv, grow=growth
            )
            report = measure_all(choice, stages)
    if output is not None:
        write_json(output, {"circumstances": circumstances()} | report)
    if json:
        print_json(report)
    else:
        show(report)


def show(report: Mapping[str, Any]) -> None:
    """Print a report as tables."""
    if "systems" in report:
        _print_systems("MLP-VAE 784-256-32", report)
    else:
        shown = table("a client's round", "system", "#CPU ms")
        for name, value in report["cpu_ms"].items():
            shown.add_row(name, figure(value))
        out.print(shown)
    _print_ratios("ratios of CPU time", report["ratio"])
    gemm = report["gemm"]
    out.print(
        f"matrix products: {gemm['gflops']:.0f} GFLOP/s on one thread, so no less than "
        f"{gemm['limit_cpu_ms']:.2f} CPU ms for a client of this model"
    )
    if "conv" in report:
        _print_systems("convolutional VAE 28x28", report["conv"])
        _print_ratios("convolutional: ratios of CPU time", report["conv"]["ratio"])
    if "growth" in report:
        _print_growth(report["growth"])
    for name, why in report.get("missing", {}).items():
        out.print(styled("yellow", name, f": {why}"))
    out.print(report["note"])


def _print_systems(title: str, report: Mapping[str, Any]) -> None:
    shown = table(
        f"{title}: a client's round",
        "system",
        "#CPU ms",
        "#clients/s",
        "#start-up CPU s",
        "#start-up s",
        "#peak MB",
    )
    for name, facts in report["systems"].items():
        shown.add_row(
            name,
            figure(facts["cpu_ms"], 2),
            figure(facts["clients_per_s"], 0),
            figure(facts["start_cpu_s"], 1),
            figure(facts["start_wall_s"], 1),
            figure(facts["peak_mb"], 0),
        )
    out.print(shown)


def _print_ratios(title: str, found: Mapping[str, float]) -> None:
    shown = table(title, "ratio", "#value")
    for name, value in found.items():
        shown.add_row(name.replace("_", " "), figure(value, 2))
    out.print(shown)


def _print_growth(growth: Mapping[str, Any]) -> None:
    shown = table("growth", "system", "#clients", "#CPU ms a client", "#peak MB")
    for name, facts in growth.items():
        for size, costs in facts["sizes"].items():
            shown.add_row(name, size, figure(costs["cpu_ms"], 2), figure(costs["peak_mb"], 0))
    out.print(shown)
    for name, facts in growth.items():
        out.print(f"{name}: 10,000 over 100 clients {facts['flat_10000_over_100']:.2f}")
