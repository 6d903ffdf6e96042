"""Figures of an experiment as tables: for a terminal, and as Markdown over several seeds.

An experiment returns any nesting of dictionaries, lists and numbers. A dictionary of plain values
is a table of two columns; a list or a dictionary of such dictionaries is a table with a row each.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

#: Of one experiment: cells by column by row.
Rows = dict[str, dict[str, object]]
_LISTED = 6  # values of a list that are printed


def plain(value: object) -> Any:  # noqa: ANN401
    """``value`` as JSON carries it: numpy's numbers and arrays unpacked, no NaN or infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def tables_of(figures: Mapping[str, Any], title: str = "") -> Iterator[tuple[str, Rows]]:
    """Every table in ``figures`` with its title; the plain values come first."""
    single = {key: value for key, value in figures.items() if not _nested(value)}
    if single:
        yield title, {key: {"value": value} for key, value in single.items()}
    for key, value in figures.items():
        if not _nested(value) or not value:
            continue
        name = f"{title}: {key}" if title else key
        parts = value if isinstance(value, Mapping) else dict(enumerate(value))
        rows = {str(row): cells for row, cells in parts.items() if isinstance(cells, Mapping)}
        if len(rows) == len(parts) and not any(map(_deep, rows.values())):
            yield name, {row: dict(cells) for row, cells in rows.items()}
        elif isinstance(value, Mapping):
            yield from tables_of(value, name)
        else:
            yield from tables_of({str(row): cells for row, cells in parts.items()}, name)


def text(figures: Mapping[str, Any]) -> str:
    """All tables with aligned columns."""
    parts = []
    for title, rows in tables_of(figures):
        lines = _cells([rows])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        parts.append("\n".join(([title] if title else []) + aligned))
    return "\n\n".join(parts)


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Tables of the runner's results, by topic and epsilon, means over seeds."""

    def group(one: Mapping[str, Any]) -> tuple[str, float]:
        return one["topic"], math.inf if one["epsilon"] is None else one["epsilon"]

    parts = []
    for _, members in groupby(sorted(results, key=group), group):
        same = sorted(members, key=lambda one: one["seed"])
        parts.append(f"### {same[0]['title']}, {epsilon_words(same[0]['epsilon'])}")
        parts.append(_origin(same))
        merged: dict[str, list[Rows]] = {}
        for one in same:
            for title, rows in tables_of(one["figures"]):
                merged.setdefault(title, []).append(rows)
        for title, seeds in merged.items():
            header, *lines = _cells(seeds)
            table = [_row(header), _row(["---"] * len(header)), *map(_row, lines)]
            parts.append("\n".join(([f"*{title}*", ""] if title else []) + table))
    return "\n\n".join(parts) + "\n"


def epsilon_words(epsilon: float | None) -> str:
    """For headings."""
    return "without privacy" if epsilon is None else f"epsilon {epsilon:g}"


def _origin(same: Sequence[Mapping[str, Any]]) -> str:
    seeds = ", ".join(str(one["seed"]) for one in same)
    seconds = statistics.fmean(one["seconds"] for one in same)
    first = same[0]["circumstances"]
    return f"`{first['command']}`, seeds {seeds}, {seconds:.0f} s each, commit {first['commit']}."


def _cells(seeds: Sequence[Rows]) -> list[list[str]]:
    """A header and lines of equal length; several values of a cell become mean and deviation."""
    rows = list(dict.fromkeys(row for one in seeds for row in one))
    columns = list(dict.fromkeys(c for one in seeds for cells in one.values() for c in cells))
    lines = [["", *columns]]
    for row in rows:
        found = [[one[row][c] for one in seeds if c in one.get(row, {})] for c in columns]
        lines.append([row, *map(_spread, found)])
    return lines


def _spread(values: Sequence[object]) -> str:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(values) > 1 and len(numbers) == len(values) and len(set(numbers)) > 1:
        return f"{_word(statistics.fmean(numbers))} ± {_word(statistics.stdev(numbers))}"
    return _word(values[0]) if values else ""


def _word(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    if isinstance(value, list):
        more = " ..." if len(value) > _LISTED else ""
        return ", ".join(map(_word, value[:_LISTED])) + more
    return str(value)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _nested(value: object) -> bool:
    """Whether it is or holds a dictionary; a list of plain values is one value."""
    if isinstance(value, list):
        return any(isinstance(part, Mapping) for part in value)
    return isinstance(value, Mapping)


def _deep(cells: Mapping[str, Any]) -> bool:
    return any(map(_nested, cells.values()))
