"""``fedlatent server sites``: what released moments tell of the sites of a run."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlatent.cli.console import err, figure, out, print_csv, print_json, styled, table
from fedlatent.cli.options import CsvOption, JsonOption, RunArgument, ServerHomeOption

if TYPE_CHECKING:
    from fedlatent.server.insight import Drift, RunSites

EXAMPLES = (
    "Examples: fedlatent server sites RUN | fedlatent server sites JANUARY --against FEBRUARY | "
    "fedlatent server sites RUN --home server --json"
)


def sites(
    run_id: RunArgument,
    home: ServerHomeOption = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="A later run with the same encoder: sites whose data moved between the two.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    csv: CsvOption = False,
) -> None:
    """Compare sites by their released moments: distances, groups of like sites, drift.

    The last release of moments of a run counts. Free of privacy cost: only what was released is
    looked at, and its noise is taken into account.
    """
    from fedlatent.server.home import ServerHome
    from fedlatent.server.insight import LEVEL, RunSites

    place = ServerHome.made(home)
    found = RunSites.load(place, run_id)
    alarms = found.drifts_to(RunSites.load(place, against)) if against is not None else None
    rows = _rows(found, alarms)
    if csv:
        print_csv(rows)
        return
    facts = {"run_id": run_id, "against": against, "level": LEVEL, "sites": rows}
    if json:
        print_json(facts)
        return
    _print(facts)


def _rows(found: "RunSites", alarms: "list[Drift] | None") -> list[dict[str, Any]]:
    from fedlatent.server.insight import clusters, distances_to_all

    far = distances_to_all(found.sites, found.within)
    groups = clusters(found.sites, found.within)
    drift = {one.name: one for one in alarms or ()}
    rows: list[dict[str, Any]] = []
    for site, distance, group in zip(found.sites, far, groups, strict=True):
        facts = found.state.sites[site.name]
        row: dict[str, Any] = {
            "site": site.name,
            "records": site.records,
            "epsilon": facts["epsilon"],
            "delta": facts["delta"],
            "distance": float(distance) ** 0.5,
            "cluster": group,
            "thresholds": facts.get("thresholds"),
        }
        if alarms is not None:
            moved = drift.get(site.name)
            row["drift"] = None if moved is None else {"p": moved.p_value, "alarm": moved.alarm}
        rows.append(row)
    return rows


def _print(facts: dict[str, Any]) -> None:
    rows, drift = facts["sites"], facts["against"] is not None
    columns = ["site", "#records", "#epsilon", "#distance", "#group"]
    shown = table(f"sites of {facts['run_id']}", *columns, *(["#p", "drift"] if drift else []))
    for one in rows:
        moved = one.get("drift")
        cells = [one["site"], str(one["records"]), figure(one["epsilon"])]
        cells += [figure(one["distance"]), str(one["cluster"])]
        cells += _drift_cells(moved) if drift else []
        shown.add_row(*cells, style="bold red" if moved and moved["alarm"] else None)
    out.print(shown)
    _print_thresholds(rows)
    out.print(
        "distance: of the site's mean from that of all records, in deviations within sites, less "
        f"what noise adds; groups{' and alarms' if drift else ''} at level {facts['level']:g} for "
        "all sites together",
    )
    for one in rows:
        if (one.get("drift") or {}).get("alarm"):
            err.print(
                styled(
                    "bold red",
                    "drift",
                    f": {one['site']} moved against the other sites by more than noise explains; "
                    "look at its data",
                )
            )


def _print_thresholds(rows: list[dict[str, Any]]) -> None:
    own = [one for one in rows if one["thresholds"]]
    if own:
        names = list(own[0]["thresholds"])
        shown = table("thresholds of their own", "site", *(f"#{name}" for name in names))
        for one in own:
            shown.add_row(one["site"], *(figure(one["thresholds"].get(name)) for name in names))
        out.print(shown)


def _drift_cells(moved: dict[str, Any] | None) -> list[str]:
    if moved is None:
        return ["-", "not in both runs"]
    return [f"{moved['p']:.2g}", "ALARM" if moved["alarm"] else "none"]
