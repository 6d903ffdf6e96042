"""``fedlatent audit``: attack the privacy claim, and see whether it stands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlatent.cli.console import err, out, print_json, progress, styled, table
from fedlatent.cli.options import JsonOption, SeedOption

if TYPE_CHECKING:
    from fedlatent.simulations.audit.run import Audit

EXAMPLES = (
    "Examples: fedlatent audit --quick | fedlatent audit --out runs/audit | "
    "fedlatent audit --quick --json"
)


def audit(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer draws: a minute or two, looser bounds.")
    ] = False,
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="The report and its pictures go into this folder.")
    ] = Path("runs/audit"),
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Attack every kind of release, and real nodes; exit 1 if a claim or a check breaks.

    Nodes answer through ledger, store and door, with secure noise and hostile weights.
    """
    import torch

    from fedlatent.simulations.audit.report import write_report
    from fedlatent.simulations.audit.run import FULL, QUICK, run_audit

    torch.set_num_threads(1)  # tensors are tiny, and sums keep their order
    with progress(quiet=json) as stages:
        found = run_audit(QUICK if quick else FULL, seed, stages)
    page = write_report(found, folder)
    if json:
        print_json(found.to_json() | {"report": str(page)})
    else:
        _print(found, page)
    if not found.good:
        raise typer.Exit(1)


def _print(found: "Audit", page: Path) -> None:
    from fedlatent.simulations.audit.report import check_row, row
    from fedlatent.simulations.audit.unit import DELTA

    columns = ("#claimed epsilon", "#exact", "#95 % lower bound", "#ratio", "verdict")
    for title, findings in (
        ("claims under attack", found.claims),
        ("negative controls", found.controls),
    ):
        rows = table(title, "release", *columns)
        for one in findings:
            rows.add_row(*row(one), style=None if one.good else "bold red")
        out.print(rows)
    out.print(
        f"epsilon at delta {DELTA:g}, zero-out adjacency, one record; ratio of the bound to the "
        "exact epsilon, or to the claim where no exact one is known"
    )
    broken = [one for one in found.checks if not one.good]
    if broken:
        rows = table(
            "checks of real nodes", "check", "#statistic", "#least", "#most", "#draws", "verdict"
        )
        for check in broken:
            rows.add_row(*check_row(check), style="bold red")
        out.print(rows)
    held = len(found.checks) - len(broken)
    out.print(f"{held} of {len(found.checks)} checks of real nodes hold; the report has them all")
    out.print(f"report {page}")
    if not found.good:
        err.print(styled("bold red", "the audit failed", ": see the verdicts above"))
