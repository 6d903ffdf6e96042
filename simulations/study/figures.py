"""The plots of a report, as SVG text that stands inside an HTML page.

Colours are those of Okabe and Ito, which people with colour blindness tell apart; lines differ in
marker as well. Bands and bars are one sample standard deviation over seeds.
"""

import io
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedlatent.shared.summaries import SUMMARIES
from fedlatent.simulations.study.results import Results, Row, Spread, Summary
from fedlatent.simulations.study.spec import label_of, text_of

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MARKERS = "osD^vPX*"
GREY, INK = "#6b7280", "#1f2933"
BASELINES = {"pca": ("PCA, pooled", "--"), "mahalanobis": ("Mahalanobis, pooled", ":")}
MOST_PANELS, MOST_LINES = 6, 8
LEAST_SPAN = 0.05  # of an axis of AUROC; less would make noise look large
WIDTH = 9.4  # inches, of every plot, so that letters are equally large on the page

#: Panels of the utility plot: title, and questions with their names in the legend.
PANELS = (
    ("clients that took part", {"seen": "site bundle"}),
    ("clients that took no part", {"absent": "global bundle"}),
    (
        "new clients, re-centred",
        {"new10": "10 normals", "new30": "30 normals", "new100": "100 normals"},
    ),
)

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "grid.color": "#e4e7eb",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "path",
    "text.parse_math": False,
}


def loss_figure(results: Results) -> str | None:
    """Training loss per round, a line a setting; None without losses."""
    return _lines(results, "loss", "loss, nats a record", "loss")


def curve_figure(results: Results) -> str | None:
    """AUROC per round, a line a setting, with the baselines; None without a curve."""
    question = "absent" if _has(results, "auroc_pca_absent") else "seen"

    def baselines(axes: Axes) -> None:
        for name, (label, style) in BASELINES.items():
            if spread := _over(results.rows(), f"auroc_{name}_{question}"):
                axes.axhline(spread.mean, color=GREY, linestyle=style, label=label, linewidth=1.4)
        _below_one(axes)

    return _lines(results, "auroc", "AUROC, one threshold for all", "curve", baselines)


def utility_figure(results: Results) -> str | None:
    """AUROC of the final questions against epsilon, or by setting; None without questions."""
    summaries = results.summaries()
    panels = [
        (title, {key: name for key, name in names.items() if _has(results, f"auroc_{key}")})
        for title, names in PANELS
    ]
    panels = [(title, names) for title, names in panels if names]
    if not panels:
        return None
    swept = list(results.study.sweeps)
    along = "epsilon" if "epsilon" in swept else (swept[0] if len(swept) == 1 else None)
    with _drawing(3.9) as (figure, done):
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, names) in zip(grid, panels, strict=True):
            _utility_panel(axes, summaries, names, along)
            axes.set_title(title, loc="left")
        grid[0].set_ylabel("AUROC, one threshold for all")
        _below_one(grid[0])
        return done("utility")


def spread_figure(results: Results) -> str | None:
    """Loss of the 10th, 50th and 90th percentile of clients per round, a panel a setting."""
    groups = [(label, rows) for label, rows in _groups(results) if _values(rows, "loss_p50")]
    if not groups:
        return None
    groups = groups[:MOST_PANELS]
    columns = max(2, min(3, len(groups)))
    lines = math.ceil(len(groups) / columns)
    with _drawing(2.5 * lines + 0.3) as (figure, done):
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(groups) :]:
            axes.set_visible(False)
        for number, (axes, (label, rows)) in enumerate(zip(grid.flat, groups, strict=False)):
            rounds = _rounds(rows, "loss_p50")
            low, middle, high = (
                [_mean(rows, number, key) for number in rounds]
                for key in ("loss_p10", "loss_p50", "loss_p90")
            )
            axes.fill_between(rounds, low, high, color=COLOURS[0], alpha=0.22, linewidth=0)
            axes.plot(rounds, middle, color=COLOURS[0], marker="o", markersize=3.5)
            axes.set_title(label or "all cells", loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            if number >= len(groups) - columns:
                axes.set_xlabel("round")
                axes.tick_params(labelbottom=True)
            if number % columns == 0:
                axes.set_ylabel("loss, nats a record")
        return done("spread")


def bytes_figure(results: Results) -> str | None:
    """Bytes up and down: of one client by phase, or of whole runs where settings differ."""
    totals = {
        label: tuple(sum(row[key] for row in rows) for key in ("bytes_up", "bytes_down"))
        for label, rows in _groups(results)
    }
    if not any(sum(pair) for pair in totals.values()):
        return None
    cells = max(1, len(results.cells) // max(1, len(totals)))
    if len(set(totals.values())) == 1:
        rows = [row for row in results.rounds() if row["good"]]
        names = {"train": "one training round", **{kind: kind for kind in SUMMARIES}}
        bars = {
            name: tuple(
                statistics.fmean(row[key] / row["good"] for row in rows if row["kind"] == kind)
                for key in ("bytes_up", "bytes_down")
            )
            for kind, name in names.items()
            if any(row["kind"] == kind for row in rows)
        }
        unit = "a client that answered"
    else:
        bars = {label: tuple(one / cells for one in pair) for label, pair in totals.items()}
        unit = "all clients, whole run"
    return _bars(bars, unit)


def comparison_figure(
    parts: Sequence[Results], names: Sequence[str], questions: Mapping[str, str]
) -> str | None:
    """A panel a question, a line a study, against epsilon or by setting.

    Args:
        parts: the studies.
        names: their names, in the same order.
        questions: titles of the panels by question.
    """
    asked = [q for q in questions if any(_has(part, f"auroc_{q}") for part in parts)]
    if not asked:
        return None
    along = "epsilon" if all("epsilon" in part.study.sweeps for part in parts) else None
    ticks = _ticks([one for part in parts for one in part.summaries()], along)
    columns = min(3, len(asked))
    lines = math.ceil(len(asked) / columns)
    with _drawing(3.2 * lines + 0.5) as (figure, done):
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for axes in grid.flat[len(asked) :]:
            axes.set_visible(False)
        for axes, question in zip(grid.flat, asked, strict=False):
            number = 0
            for part, name in zip(parts, names, strict=True):
                for rest, summaries in _apart(part.summaries(), along):
                    points = _points(summaries, f"auroc_{question}", ticks, along)
                    label = f"{name}, {rest}" if rest else name
                    _errorbar(axes, points, label, number, shift=0.06)
                    number += 1
            _category_axis(axes, ticks, along)
            axes.set_title(questions[question], loc="left")
        for row in grid:
            row[0].set_ylabel("AUROC, one threshold for all")
        _below_one(grid[0][0])
        handles = grid[0][0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3)
        return done("compare")


@contextmanager
def _drawing(height: float) -> Iterator[tuple[Figure, Callable[[str], str]]]:
    """A figure, and the function that makes it text under a name."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, lambda name: _svg(figure, name)


def _svg(figure: Figure, name: str) -> str:
    """SVG for the inside of a page: no prolog, no addresses, identifiers of its own."""
    stream = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'data-plot="{name}"', text, count=1)
    for before in ('id="', 'href="#', "url(#"):
        text = text.replace(before, f"{before}{name}-")
    return text.replace("xlink:href", "href")


def _lines(
    results: Results,
    key: str,
    unit: str,
    name: str,
    more: Callable[[Axes], None] = lambda axes: None,
) -> str | None:
    groups = [(label, rows) for label, rows in _groups(results) if _values(rows, key)]
    if not groups:
        return None
    with _drawing(3.9) as (figure, done):
        axes = figure.subplots()
        for number, (label, rows) in enumerate(groups[:MOST_LINES]):
            rounds = _rounds(rows, key)
            spreads = [_at(rows, number, key) for number in rounds]
            means = [spread.mean for spread in spreads]
            colour = COLOURS[number % len(COLOURS)]
            low = [spread.mean - (spread.deviation or 0) for spread in spreads]
            high = [spread.mean + (spread.deviation or 0) for spread in spreads]
            axes.fill_between(rounds, low, high, color=colour, alpha=0.13, linewidth=0)
            axes.plot(
                rounds,
                means,
                color=colour,
                marker=MARKERS[number % len(MARKERS)],
                markersize=4.5,
                label=label or results.study.name,
            )
        more(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("round")
        axes.set_ylabel(unit)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
        return done(name)


def _utility_panel(
    axes: Axes, summaries: Sequence[Summary], names: dict[str, str], along: str | None
) -> None:
    ticks = _ticks(summaries, along)
    number = 0
    for rest, members in _apart(summaries, along):
        for key, name in names.items():
            points = _points(members, f"auroc_{key}", ticks, along)
            label = f"{name}, {rest}" if rest else name
            _errorbar(axes, points, label, number, shift=0.05)
            number += 1
    for name, (label, style) in BASELINES.items():
        for key in names:
            values = [one.measures.get(f"auroc_{name}_{key}") for one in summaries]
            found = [value.mean for value in values if value]
            if found:
                level = statistics.fmean(found)
                axes.axhline(level, color=GREY, linestyle=style, linewidth=1.4, label=label)
    _category_axis(axes, ticks, along)
    handles, labels = axes.get_legend_handles_labels()
    ours = len(labels) - number  # matplotlib lists bars after lines
    axes.legend(handles[ours:] + handles[:ours], labels[ours:] + labels[:ours], loc="best")


def _points(
    summaries: Sequence[Summary], key: str, ticks: Sequence[str], along: str | None
) -> list[tuple[int, Spread]]:
    """Place on the axis and value of each setting that has the measure."""
    return [
        (ticks.index(_tick(one, along)), one.measures[key])
        for one in summaries
        if key in one.measures
    ]


def _errorbar(
    axes: Axes, points: Sequence[tuple[int, Spread]], label: str, number: int, shift: float
) -> None:
    axes.errorbar(
        [at + shift * number for at, _ in points],
        [spread.mean for _, spread in points],
        yerr=[spread.deviation or 0.0 for _, spread in points],
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=5,
        capsize=3,
        linewidth=1.5,
        label=label,
    )


def _category_axis(axes: Axes, ticks: Sequence[str], along: str | None) -> None:
    shown = ["no\nnoise" if tick == "none" and along == "epsilon" else tick for tick in ticks]
    tilted = along is None and sum(map(len, shown)) > 40
    axes.set_xticks(
        range(len(ticks)), shown, rotation=25 if tilted else 0, ha="right" if tilted else "center"
    )
    axes.set_xlim(-0.4, len(ticks) - 0.6 + 0.2)
    axes.set_xlabel("epsilon of the whole run" if along == "epsilon" else along or "")


def _below_one(axes: Axes) -> None:
    """No AUROC is above 1, whatever a band of one deviation says."""
    low, high = axes.get_ylim()
    if high > 1.0:
        low = min(low, 1.0 - LEAST_SPAN)
        axes.set_ylim(low, 1.0 + 0.02 * (1.0 - low))


def _bars(bars: dict[str, tuple[float, ...]], unit: str) -> str:
    largest = max(max(pair) for pair in bars.values())
    scale, word = next((s, w) for s, w in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
                       if largest >= s or s == 1)  # fmt: skip
    with _drawing(0.75 + 0.72 * len(bars)) as (figure, done):
        axes = figure.subplots()
        for number, name in enumerate(("up, to the server", "down, to the clients")):
            values = [pair[number] / scale for pair in bars.values()]
            drawn = axes.barh(
                [at + 0.19 - 0.38 * (1 - number) for at in range(len(bars))],
                values,
                height=0.34,
                color=COLOURS[number],
                label=name,
            )
            axes.bar_label(drawn, [f"{value:.3g}" for value in values], padding=3, fontsize=9)
        axes.set_yticks(range(len(bars)), list(bars))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.1)
        axes.set_xlabel(f"{word}, {unit}")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
        return done("bytes")


def _groups(results: Results) -> list[tuple[str, list[Row]]]:
    """Rows of the rounds by setting, in the order of the file."""
    labels = {cell["id"]: label_of(cell["setting"]) for cell in results.cells}
    groups: dict[str, list[Row]] = {label_of(cell.setting): [] for cell in results.study.cells}
    for row in results.rounds():
        groups[labels[row["cell"]]].append(row)
    return [(label, rows) for label, rows in groups.items() if rows]


def _apart(summaries: Sequence[Summary], along: str | None) -> Iterator[tuple[str, list[Summary]]]:
    """Lines of a plot: the summaries that differ only in ``along``, by the rest in words."""
    lines: dict[str, list[Summary]] = {}
    for one in summaries:
        rest = {k: v for k, v in one.setting.items() if k != along} if along else {}
        lines.setdefault(label_of(rest), []).append(one)
    yield from lines.items()


def _ticks(summaries: Sequence[Summary], along: str | None) -> list[str]:
    """Labels along the axis; numbers in order, "none" last."""
    ticks = list(dict.fromkeys(_tick(one, along) for one in summaries))
    if along is None:
        return ticks

    def order(tick: str) -> tuple[int, float]:
        try:
            return 0, float(tick)
        except ValueError:
            return 1, ticks.index(tick)

    return sorted(ticks, key=order)


def _tick(summary: Summary, along: str | None) -> str:
    return summary.label or "all cells" if along is None else text_of(summary.setting[along])


def _has(results: Results, column: str) -> bool:
    return bool(_values(results.rows(), column))


def _over(rows: Sequence[Row], key: str) -> Spread | None:
    return Spread.of(row.get(key) for row in rows)


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _rounds(rows: Sequence[Row], key: str) -> list[int]:
    return sorted({row["round"] for row in rows if row.get(key) is not None})


def _at(rows: Sequence[Row], number: int, key: str) -> Spread:
    spread = Spread.of(row[key] for row in rows if row["round"] == number)
    if spread is None:
        raise ValueError(f"Expected a value of {key} in round {number}, got none.")
    return spread


def _mean(rows: Sequence[Row], number: int, key: str) -> float:
    return _at(rows, number, key).mean
