"""Tables of a study's results: which settings are rows and which are columns, as the file says.

Every number is a mean over seeds with the sample deviation. Where a study holds its settings
against one of them, a second table gives the change seed by seed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd

from fedlatent.simulations.study.results import Results, Row, Spread, is_nested
from fedlatent.simulations.study.spec import label_of, value_text
from fedlatent.simulations.study.tables import QUESTIONS

SPREAD = "Mean ± sample standard deviation (n - 1) over seeds; a single seed has no ±."
QUESTION_TITLES = {
    "seen": "took part",
    "absent": "took no part",
    "new10": "new, 10 normals",
    "new30": "new, 30 normals",
    "new100": "new, 100 normals",
}
BASELINE_TITLES = {
    "pca": "PCA, pooled, no privacy",
    "mahalanobis": "Mahalanobis, pooled, no privacy",
    "knn": "nearest neighbours, pooled, no privacy",
    "isolation-forest": "isolation forest, pooled, no privacy",
    "one-class-svm": "one-class SVM, pooled, no privacy",
}
_COMBINED = "combined score"
_LISTED = 6  # values of a list that are shown
_DIGITS = 3

#: A value, or a value over a smaller one.
Cell = str | tuple[str, str]
#: Of nested figures: values by column by row.
Cells = dict[str, dict[str, object]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of text.

    Attributes:
        title: empty for the only one.
        columns: titles; one that starts with # holds numbers.
        rows: cells; a pair is a value over a smaller one.
        plain: numbers of the rows that are baselines.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    plain: list[int] = field(default_factory=list)


def tables(results: Results, metric: str = "auroc") -> list[Table]:
    """All tables of a study: answers and flat figures as laid out, and figures that are nested.

    Args:
        results: with at least one cell.
        metric: of the answers.
    """
    return [*_settings_tables(results, metric), *_figure_tables(results)]


def _long(results: Results, metric: str) -> pd.DataFrame:
    """A row a cell and measure: axes in words, seed, score, measure, value and that of sites.

    The score is "" for the cell's own, and the title of a baseline, which is there once for all
    cells with the same data.
    """
    axes = list(results.study.sweeps)
    rows: list[Row] = []
    for cell in results.cells:
        setting = cell["setting"]
        names = {axis: value_text(axis, setting[axis]) if axis in setting else "" for axis in axes}
        base = {**names, "seed": cell["seed"]}
        for question, rating in cell["answers"].items():
            own = question.removeprefix("combined_")
            score = "" if own == question else _COMBINED
            rows.append({**base, "score": score, "measure": own, **_values(rating, metric)})
        for name, ratings in cell.get("baselines", {}).items():
            title = BASELINE_TITLES[name]
            rows += [
                {**base, "score": title, "measure": question, **_values(rating, metric)}
                for question, rating in ratings.items()
            ]
        for key, value in cell.get("figures", {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                rows.append({**base, "score": "", "measure": key, "value": value})
    return pd.DataFrame(rows, columns=[*axes, "seed", "score", "measure", "value", "sites"])


def _values(rating: Mapping[str, float], metric: str) -> Row:
    if metric == "auroc":
        return {"value": rating["pooled"], "sites": rating["site_mean"]}
    return {"value": rating[metric], "sites": None}


def _settings_tables(results: Results, metric: str) -> Iterator[Table]:
    long, asked = _long(results, metric), results.study.report
    if long.empty:
        return
    axes = list(results.study.sweeps)
    words = long[axes].itertuples(index=False)
    long["setting"] = [", ".join(filter(None, row)) or "this run" for row in words]
    rows, columns = asked.rows or "setting", asked.columns or "measure"
    rest = [axis for axis in axes if asked.rows and axis not in (rows, columns)]
    yield from _blocks(long, rows, columns, rest, _spread)
    if asked.over:
        means = _means(long, asked.over, axes)
        rest = [axis for axis in axes if axis not in (rows, asked.over)]
        yield from _blocks(means, rows, "measure", rest, _spread, f"mean over {asked.over}")
    for axis, value in asked.against.items():
        word = value_text(axis, value)
        changes = _changes(long, axis, word, axes)
        rest = [one for one in axes if one != axis]
        change = partial(_change, accepted=asked.accepted)
        yield from _blocks(changes, axis, "measure", rest, change, f"change from {word}")


def _blocks(
    long: pd.DataFrame,
    rows: str,
    columns: str,
    rest: Sequence[str],
    text: Callable[[pd.DataFrame], Cell],
    title: str = "",
) -> Iterator[Table]:
    """A table for each value of ``rest``, and for each measure unless measures are columns."""
    by = [*rest, *(["measure"] if columns != "measure" else [])]
    for key, block in long.groupby(by, sort=False) if by else [((), long)]:
        words = [QUESTION_TITLES.get(str(word), str(word)) for word in key]
        yield _table(block, rows, columns, text, ", ".join(filter(None, [title, *words])))


def _table(
    block: pd.DataFrame, rows: str, columns: str, text: Callable[[pd.DataFrame], Cell], title: str
) -> Table:
    across = sorted(block[columns].unique(), key=_order)
    made = Table(
        title=title,
        columns=[rows, *(f"#{QUESTION_TITLES.get(str(one), one)}" for one in across)],
        rows=[],
    )
    baselines: dict[str, list[list[Cell]]] = {}
    for key, part in block.groupby(["score", rows], sort=False):
        score, row = map(str, key)
        by = dict(list(part.groupby(columns)))
        cells = [text(by[one]) if one in by else "-" for one in across]
        if score in BASELINE_TITLES.values():
            known = baselines.setdefault(score, [])
            if cells not in known:  # a line for each of the different data
                known.append(cells)
                made.rows.append([f"{score} ({row})" if len(known) > 1 else score, *cells])
        else:
            made.rows.append([f"{row}, {score}" if score else row, *cells])
    made.rows.sort(key=lambda row: str(row[0]).startswith(tuple(BASELINE_TITLES.values())))
    first = len(made.rows) - sum(map(len, baselines.values()))
    made.plain.extend(range(first, len(made.rows)))
    return made


def _order(column: object) -> int:
    """Questions in their order; anything else as it came."""
    return QUESTIONS.index(column) if column in QUESTIONS else len(QUESTIONS)


def _spread(part: pd.DataFrame) -> Cell:
    spread, sites = Spread.of(part["value"]), Spread.of(part["sites"])
    text = spread.text(_DIGITS) if spread else "-"
    return (text, sites.text(_DIGITS)) if sites else text


def _change(part: pd.DataFrame, accepted: Mapping[str, float]) -> Cell:
    """Mean change and the lowest; marked where more is lost than is accepted."""
    mean, worst = part["value"].mean(), part["value"].min()
    if pd.isna(mean):
        return "-"
    bound = accepted.get(part["measure"].iloc[0])
    mark = " !" if bound is not None and mean < -bound else ""
    return f"{mean:+.{_DIGITS}f} (worst {worst:+.{_DIGITS}f}){mark}"


def _means(long: pd.DataFrame, over: str, axes: Sequence[str]) -> pd.DataFrame:
    """Means over the values of an axis, of what is there for all of them."""
    rest = [*(axis for axis in axes if axis != over), "score", "measure"]
    each = long.groupby([over, *rest], sort=False)["value"].mean().reset_index()
    grouped = each.groupby(rest, sort=False)["value"]
    whole = grouped.count() == long[over].nunique()
    found = grouped.mean()[whole].reset_index()
    return found.assign(sites=None)


def _changes(long: pd.DataFrame, axis: str, word: str, axes: Sequence[str]) -> pd.DataFrame:
    """Differences from one value of an axis, seed by seed."""
    keys = [*(one for one in axes if one != axis), "seed", "score", "measure"]
    own = long[~long["score"].isin(BASELINE_TITLES.values())]
    reference = own.loc[own[axis] == word, [*keys, "value"]]
    found = own[own[axis] != word].merge(reference, on=keys, suffixes=("", "_reference"))
    return found.assign(value=found["value"] - found["value_reference"])


def _figure_tables(results: Results) -> Iterator[Table]:
    """Nested figures: tables by setting, means over seeds."""
    groups: dict[str, list[Row]] = {}
    for cell in results.cells:
        nested = {key: part for key, part in cell.get("figures", {}).items() if is_nested(part)}
        flat = {k: v for k, v in cell.get("figures", {}).items() if not is_nested(v)}
        if nested:
            groups.setdefault(label_of(cell["setting"]), []).append(flat | nested)
    for label, seeds in groups.items():
        found: dict[str, list[Cells]] = {}
        for figures in seeds:
            for title, rows in tables_of(figures):
                found.setdefault(title, []).append(rows)
        for title, same in found.items():
            yield _cells(same, ", ".join(filter(None, [label, title])))


def tables_of(figures: Mapping[str, Any], title: str = "") -> Iterator[tuple[str, Cells]]:
    """Every table in nested ``figures`` with its title; the plain values come first.

    A dictionary of plain values is a table of two columns; a list or a dictionary of such
    dictionaries is a table with a row each.
    """
    single = {key: value for key, value in figures.items() if not is_nested(value)}
    if single:
        yield title, {key: {"value": value} for key, value in single.items()}
    for key, value in figures.items():
        if not is_nested(value) or not value:
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


def _deep(cells: Mapping[str, Any]) -> bool:
    return any(map(is_nested, cells.values()))


def _cells(seeds: Sequence[Cells], title: str) -> Table:
    rows = list(dict.fromkeys(row for one in seeds for row in one))
    columns = list(dict.fromkeys(c for one in seeds for cells in one.values() for c in cells))
    made = Table(title=title, columns=["", *(f"#{name}" for name in columns)], rows=[])
    for row in rows:
        found = [[one[row][c] for one in seeds if c in one.get(row, {})] for c in columns]
        made.rows.append([row, *map(_over_seeds, found)])
    return made


def _over_seeds(values: Sequence[object]) -> str:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    spread = Spread.of(numbers) if len(numbers) == len(values) else None
    if spread is not None and spread.deviation is not None:
        return f"{word_of(spread.mean)} ± {word_of(spread.deviation)}"
    return word_of(values[0]) if values else ""


def word_of(value: object) -> str:
    """A figure for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    if isinstance(value, list):
        more = " ..." if len(value) > _LISTED else ""
        return ", ".join(map(word_of, value[:_LISTED])) + more
    return str(value)
