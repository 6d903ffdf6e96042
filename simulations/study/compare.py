"""Several studies side by side: means and spreads over seeds by setting."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.study import figures, page
from fedlatent.simulations.study.layout import QUESTION_TITLES, SPREAD
from fedlatent.simulations.study.results import Results, Spread
from fedlatent.simulations.study.tables import METRICS

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
    """One measure of several studies.

    Attributes:
        key: column of the result tables.
        title: in words.
        digits: after the point.
        rows: setting in words -> one spread for each study, None where it has none.
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
                f"Expected results in {part.folder}, got no finished cell; run the study on."
            )
    short = [part.folder.resolve().name for part in parts]
    return [
        name if short.count(name) == 1 else str(part.folder)
        for name, part in zip(short, parts, strict=True)
    ]


def compare(parts: Sequence[Results]) -> list[Comparison]:
    """All measures that at least one of the studies has."""
    found = []
    wanted = [(f"auroc_{q}", f"AUROC: {title}", 3) for q, title in QUESTION_TITLES.items()]
    summaries = [{one.label: one.measures for one in part.summaries()} for part in parts]
    labels = list(dict.fromkeys(label for part in summaries for label in part))
    known = (*METRICS, "delta", "sigma", "bytes_down", *(key for key, _, _ in COSTS))
    keys = dict.fromkeys(key for part in summaries for one in part.values() for key in one)
    others = [(key, key, 3) for key in keys if not key.startswith(known)]
    for key, title, digits in [*wanted, *COSTS, *others]:
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
                "experiment": part.study.name,
                "folder": str(part.folder),
                "complete": part.complete,
                "seeds": list(part.study.seeds),
            }
            for name, part in zip(names(parts), parts, strict=True)
        ],
        "measures": {
            one.key: [
                {"setting": label, "values": [spread and spread.to_json() for spread in row]}
                for label, row in one.rows.items()
            ]
            for one in compare(parts)
        },
    }


def comparison_report(parts: Sequence[Results]) -> str:
    """The HTML page of a comparison."""
    called = names(parts)
    title = " and ".join(called) if len(called) == 2 else f"{len(called)} studies"
    svg = figures.comparison_figure(parts, called, QUESTION_TITLES)
    return page.render(
        "comparison.html",
        title=f"Comparison: {title}",
        heading=title,
        parts=[_facts(name, part) for name, part in zip(called, parts, strict=True)],
        svg=page.svg(svg),
        spread=SPREAD,
        columns=["setting", *(f"#{name}" for name in called)],
        tables=[(one.title, table_rows(one)) for one in compare(parts)],
    )


def _facts(name: str, part: Results) -> tuple[object, ...]:
    """Name, what, data, clients, cells and seeds of a study."""
    facts, study = part.cells[0].get("data_facts", {}), part.study
    return (
        name,
        study.description or study.name,
        facts.get("name", "-"),
        facts.get("participants", "-"),
        f"{len(part.cells)} of {len(study.cells)}",
        len(study.seeds),
    )


def table_rows(one: Comparison) -> list[list[str]]:
    """The cells of a measure's table, the setting first."""
    return [
        [label, *(spread.text(one.digits) if spread else "-" for spread in row)]
        for label, row in one.rows.items()
    ]
