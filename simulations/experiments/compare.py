"""Several experiments side by side: means and spreads over seeds by setting."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.experiments import figures, page
from fedlatent.simulations.experiments.report import QUESTION_TITLES, value_text
from fedlatent.simulations.experiments.results import Results, Spread

#: Measures beside the questions: column, title, digits.
COSTS = (
    ("epsilon_spent", "epsilon spent", 3),
    ("loss", "last loss, nats a record", 2),
    ("bytes_up", "bytes sent by all clients", 0),
    ("seconds", "seconds a run", 1),
    ("clients_per_second", "client-rounds a second", 1),
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measure of several experiments.

    Attributes:
        key: column of the result tables.
        title: in words.
        digits: after the point.
        rows: setting in words -> one spread for each experiment, None where it has none.
    """

    key: str
    title: str
    digits: int
    rows: dict[str, list[Spread | None]]


def names(parts: Sequence[Results]) -> list[str]:
    """A name for each folder: its last part, or its whole path where that is not unique.

    Raises:
        ConfigError: fewer than two folders, or one has no finished cell.
    """
    if len(parts) < 2:
        raise ConfigError(f"Expected at least two folders to compare, got {len(parts)}.")
    if len({part.folder.resolve() for part in parts}) < len(parts):
        raise ConfigError("Expected different folders to compare, got one of them twice.")
    for part in parts:
        if not part.cells:
            raise ConfigError(
                f"Expected results in {part.folder}, got no finished cell; run the experiment on."
            )
    short = [part.folder.resolve().name for part in parts]
    return [
        name if short.count(name) == 1 else str(part.folder)
        for name, part in zip(short, parts, strict=True)
    ]


def compare(parts: Sequence[Results]) -> list[Comparison]:
    """All measures that at least one of the experiments has."""
    found = []
    wanted = [(f"auroc_{q}", f"AUROC: {title}", 3) for q, title in QUESTION_TITLES.items()]
    summaries = [{one.label: one.measures for one in part.summaries()} for part in parts]
    labels = list(dict.fromkeys(label for part in summaries for label in part))
    for key, title, digits in [*wanted, *COSTS]:
        rows = {
            label or "all cells": [part.get(label, {}).get(key) for part in summaries]
            for label in labels
        }
        if any(spread for row in rows.values() for spread in row):
            found.append(Comparison(key=key, title=title, digits=digits, rows=rows))
    return found


def to_json(parts: Sequence[Results]) -> dict[str, object]:
    """Names, and for each measure the values by setting; ``sd`` is null for a single seed."""
    return {
        "experiments": [
            {
                "name": name,
                "experiment": part.experiment.name,
                "folder": str(part.folder),
                "complete": part.complete,
                "seeds": list(part.experiment.seeds),
            }
            for name, part in zip(names(parts), parts, strict=True)
        ],
        "measures": {
            one.key: [
                {"setting": label, "values": [_spread(spread) for spread in row]}
                for label, row in one.rows.items()
            ]
            for one in compare(parts)
        },
    }


def comparison_report(parts: Sequence[Results]) -> str:
    """The HTML page of a comparison."""
    called = names(parts)
    title = " and ".join(called) if len(called) == 2 else f"{len(called)} experiments"
    body = [
        f"<h1>{page.text(title)}</h1>",
        page.paragraph("Experiments side by side.", "lead"),
        page.table(
            ["experiment", "what", "data", "#clients", "#cells", "#seeds"],
            [
                (
                    name,
                    part.experiment.description or part.experiment.name,
                    part.cells[0]["data_facts"]["name"],
                    part.cells[0]["data_facts"]["participants"],
                    f"{len(part.cells)} of {len(part.experiment.cells)}",
                    len(part.experiment.seeds),
                )
                for name, part in zip(called, parts, strict=True)
            ],
        ),
        page.heading("Utility"),
    ]
    if svg := figures.comparison_figure(parts, called, QUESTION_TITLES):
        caption = "Higher is better; bars are one standard deviation over seeds."
        body.append(page.figure(svg, caption))
    body.append(page.heading("Tables"))
    body.append(page.paragraph("Mean ± sample standard deviation over seeds."))
    for one in compare(parts):
        body.append(f"<h3>{page.text(one.title)}</h3>")
        body.append(page.table(["setting", *(f"#{name}" for name in called)], table_rows(one)))
    return page.document(f"Comparison: {title}", body)


def table_rows(one: Comparison) -> list[list[str]]:
    """The cells of a measure's table, the setting first."""
    return [
        [label, *(value_text(spread, one.digits) for spread in row)]
        for label, row in one.rows.items()
    ]


def _spread(spread: Spread | None) -> dict[str, object] | None:
    if spread is None:
        return None
    return {"mean": spread.mean, "sd": spread.deviation, "n": spread.count}
