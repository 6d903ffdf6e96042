"""``fedlatent privacy``: what a run would cost, before anything runs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlatent.cli.console import err, figure, out, print_json, size, styled, table
from fedlatent.cli.options import JsonOption, RunFileArgument

if TYPE_CHECKING:
    pass

app = typer.Typer(no_args_is_help=True, help="Plan the privacy budget of a run.")

_CLIP_RECORDS = 256
_EMPTY_EPSILON = 10.0  # from here on a guarantee says next to nothing


@app.callback()
def privacy() -> None:
    """Plan the privacy budget of a run."""


@app.command(
    epilog="Examples: fedlatent privacy plan run.toml | "
    "fedlatent privacy plan run.toml --records 2000 --person-cap 50 | "
    "fedlatent privacy plan run.toml --json"
)
def plan(
    config: RunFileArgument,
    records: Annotated[
        int | None,
        typer.Option(min=1, help="Records of one client; checks batch, delta and moments."),
    ] = None,
    person_records: Annotated[
        int | None,
        typer.Option(
            "--person-cap", min=1, help="Most records of one person; gives the person's epsilon."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what leaves each client, with which noise and for how much of the budget."""
    from fedlatent.api.privacy import plan_facts
    from fedlatent.shared.config import RunConfig

    run = RunConfig.load(config)
    facts = plan_facts(run, records, person_records, str(config))
    if json:
        print_json(facts)
    else:
        _print(facts)


def _print(facts: dict[str, Any]) -> None:
    releases = facts["releases"]
    left = table(
        f"what leaves each client of {facts['name']}", "kind", "#times", "what", "#size of one"
    )
    for one in releases:
        steps = f" ({one['steps']} steps)" if one["kind"] == "train" else ""
        cells = (one["kind"], f"{one['releases']}{steps}", one["leaves"])
        left.add_row(*cells, size(one["bytes"]))
    noise = table(
        "its noise", "kind", "#L2 sensitivity", "#share", "#sigma", "#deviation", "#epsilon alone"
    )
    for one in releases:
        share = "-" if one["share"] is None else f"{100 * one['share']:.1f} %"
        found = (one["kind"], figure(one["sensitivity"]), share, figure(one["noise_multiplier"]))
        noise.add_row(*found, figure(one["noise_deviation"]), figure(one["epsilon_alone"]))
    out.print(left)
    if facts["private"]:
        out.print(noise)
    for line in _lines(facts):
        out.print(line)
    for warning in facts["warnings"]:
        err.print(styled("yellow", "warning", f": {warning}"))


def _lines(facts: dict[str, Any]) -> list[str]:
    """The totals in words."""
    found = []
    if facts["private"]:
        found.append(
            f"total: epsilon {facts['epsilon']:.4f} at delta {facts['delta']:g} by "
            f"RDP, the guard; {facts['epsilon_pld']:.4f} by PLD ({facts['adjacency']} adjacency, "
            f"one {facts['unit']}); {facts['rng']} random numbers"
        )
    if facts["steps"]:
        batch = facts["expected_batch"]
        known = "" if batch is None else f"; expected batch {batch:g} of {facts['records']}"
        signal = facts["signal_to_noise"]
        known += "" if signal is None else f", signal-to-noise of a step {signal:.3g}"
        found.append(f"training: q {facts['sample_rate']:g}, {facts['steps']} steps{known}")
    if facts["clip"] is not None:
        found.append(f"clip: {facts['clip']:g}; {_clip_words(facts['largest_clip'])}")
    found.append(f"moments: {facts['moments']} ({facts['moments_because']})")
    person = facts["person"]
    if person is not None:
        found.append(
            f"person with at most {person['records']} records: epsilon "
            f"{figure(person['epsilon'], 3)} at delta {person['delta']:g} by PLD "
            f"({facts['adjacency']} adjacency, all records of one person)"
        )
    return found


def _clip_words(largest: float | None) -> str:
    if largest is None:
        return "gradient norms are unknown before the release that scales records"
    return (
        f"the largest worth trying is {largest:.3g}, the median gradient norm of public synthetic "
        "records at the first weights; smaller ones have done as well or better"
    )
