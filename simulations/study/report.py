"""The report of one study as one HTML file, or its tables as Markdown."""

from collections.abc import Iterator, Sequence

from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.partition import Partition
from fedlatent.simulations.study import figures, layout, page
from fedlatent.simulations.study.results import (
    PICTURE,
    Results,
    Row,
    Spread,
    cell_folder,
)
from fedlatent.simulations.study.spec import label_of, text_of
from fedlatent.simulations.study.tables import Metric

_GRIDS = {
    "stacked": "stacked: all clients as one tensor program",
    "nodes": "nodes: real nodes in one process, one after another",
    "flower": "flower: Flower's own simulation engine",
    "deployed": "deployed: server and nodes as services over TLS",
}
_SHARING = {
    "full": "all weights, noisy summaries",
    "summary": "noisy summaries alone; no weights",
}


def report(results: Results) -> str:
    """The HTML report of a study; one that is not finished says so.

    Raises:
        ConfigError: no cell is done yet.
    """
    _check(results)
    study, cells, rows = results.study, results.cells, results.rows()
    plans = {label_of(cell["setting"]): cell["plan"] for cell in cells if "plan" in cell}
    private = [plan for plan in plans.values() if plan["private"]]
    facts = cells[0].get("data_facts", {})
    shown = [key for key in rows[0] if not key.endswith("_sites")]
    return page.render(
        "report.html",
        title=f"{study.name}: report",
        name=study.name,
        description=study.description,
        unfinished="" if results.complete else f"{len(cells)} of {len(study.cells)}",
        cards=list(_cards(results)),
        note=facts.get("note", ""),
        what=list(_what(results)),
        plans=[(label or "all cells", *_plan(plan)) for label, plan in plans.items()],
        private=bool(private),
        seeded=any(plan["rng"] == "simulation" for plan in private),
        reference=len(private) < len(plans),
        questions=any(cell["answers"] for cell in cells),
        tables=layout.tables(results),
        spread=layout.SPREAD,
        plots={
            "utility": page.svg(figures.utility_figure(results)),
            "curve": page.svg(figures.curve_figure(results)),
            "loss": page.svg(figures.loss_figure(results)),
            "spread": page.svg(figures.spread_figure(results)),
            "bytes": page.svg(figures.bytes_figure(results)),
        },
        curve_of="clients that took no part" if facts.get("absent") else "the participants",
        pictures=list(_pictures(results)),
        costs=[
            _costs(one.label, one.measures)
            for one in results.summaries()
            if "bytes_up" in one.measures
        ],
        cells={
            "columns": [key if key == "cell" else f"#{key}" for key in shown],
            "rows": [[layout.word_of(row[key]) for key in shown] for row in rows],
        },
        text=study.text,
        versions=", ".join(sorted({str(cell["version"]) for cell in cells})),
        digest=study.digest()[:16],
    )


def markdown(results: Results, metric: Metric = "auroc") -> str:
    """All tables of a study.

    Raises:
        ConfigError: no cell is done yet, or the study did not measure that.
    """
    _check(results)
    if metric not in results.study.evaluate.metrics:
        known = ", ".join(results.study.evaluate.metrics)
        raise ConfigError(f"Expected a metric of this study ({known}), got {metric!r}.")
    return page.render("tables.md", tables=layout.tables(results, metric), spread=layout.SPREAD)


def size_text(count: float) -> str:
    """A number of bytes for people."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def _check(results: Results) -> None:
    if not results.cells:
        raise ConfigError(
            f"Expected results in {results.folder}, got no finished cell; run the study on."
        )


def _cards(results: Results) -> Iterator[tuple[str, str]]:
    """Short facts, each a value with what it is."""
    first, rows = results.cells[0].get("data_facts"), results.rows()
    if first is not None:
        yield first["name"], "synthetic data" if first["synthetic"] else "real data"
        yield f"{first['participants']:,}", "clients take part"
        yield f"{first['absent']:,}", "clients take no part"
        yield f"{first['records']:,}", "training records"
    spent = [row["epsilon_spent"] for row in rows if row.get("epsilon_spent") is not None]
    if spent:
        low, high = f"{min(spent):.2g}", f"{max(spent):.2g}"
        yield low if low == high else f"{low} to {high}", "epsilon spent"
    elif any("plan" in cell for cell in results.cells):
        yield "none", "epsilon spent"
    seeds = len(results.study.seeds)
    yield f"{len(rows)}", f"runs, {seeds} seed{'s' * (seeds > 1)} a setting"
    seconds = sum(cell["wall_seconds"] for cell in results.cells)
    yield f"{seconds:,.0f} s", "of work"


def _what(results: Results) -> Iterator[tuple[str, str]]:
    """What was run: of the first cell, but for what is swept."""
    cell, study = results.cells[0], results.study
    rows = [*_what_data(cell), *_what_run(cell)]
    rows += [
        ("Work", cell.get("work", "federated"), ("work",)),
        (
            "Parameters",
            text_of(cell["parameters"]) if cell.get("parameters") else "",
            ("parameters",),
        ),
        ("Device", str(cell["device"]), ()),
        ("Seeds", ", ".join(map(str, study.seeds)), ()),
        ("Data sets", "", ("datasets",)),
        ("Methods", "", ("methods",)),
    ]
    for name, said, keys in rows:
        swept = _swept_text(results, keys)
        if swept or said:
            yield name, swept or said


def _what_data(cell: Row) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    data, facts = cell["data"], cell.get("data_facts")
    if not data or not facts:
        return
    low, middle, high = facts["records_spread"]
    keys = ("partition", "clients", "alpha", "shards", "strength")
    own = {key: data[key] for key in keys if key != "partition"}
    shared = Partition(kind=data["partition"], **own).text()
    yield "Data", f"{facts['name']}, {facts['records']:,} training records", ("data.source",)
    yield (
        "Shared among clients",
        f"{data['partition']}: {shared}; {low:,} to {high:,} records a client (median {middle:,})",
        tuple(f"data.{key}" for key in keys),
    )
    yield (
        "Clients",
        f"{facts['participants']:,} take part, {facts['absent']:,} do not{_named(facts)}",
        ("data.absent", "data.clients"),
    )


def _named(facts: Row) -> str:
    """Who took no part, by name; results of earlier releases do not say it."""
    names = facts.get("absent_names", [])
    return f": {', '.join(names)}" if names else ""


def _what_run(cell: Row) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    if "config" not in cell:
        return
    run = RunConfig.parse(cell["config"], "cell.json")
    options = ", ".join(f"{key} {text_of(value)}" for key, value in run.model.options.items())
    training, privacy, away = run.training, run.privacy, cell["availability"]
    yield "Model", f"{run.model.family}; {options or 'default options'}", ("run.model",)
    yield (
        "Training",
        f"{training.rounds} rounds of {training.steps_per_round} steps, {training.optimizer}, "
        f"learning rate {training.learning_rate:g}, beta {training.beta:g}",
        ("run.training",),
    )
    said = f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g}"
    yield "Privacy", said if privacy.mechanism == "dp-sgd" else "none", ("run.privacy",)
    kept = "encoder weights and noisy summaries; decoders stay"
    yield "Shared by clients", _SHARING.get(run.sharing, kept), ("run.sharing",)
    yield (
        "Availability",
        f"away in a phase {away['dropout']:.0%}, late {away['late']:.0%}; quorum "
        f"{run.federation.quorum}",
        ("availability",),
    )
    yield "Grid", _GRIDS[cell["grid"]], ("grid",)


def _swept_text(results: Results, keys: Sequence[str]) -> str:
    """What is swept of ``keys``, in words; empty for nothing."""
    study = results.study
    found = [
        f"swept: {name} {', '.join(map(text_of, study.sweeps[name]))}"
        for name, path in study.keys.items()
        if any(path == key or path.startswith(f"{key}.") for key in keys)
    ]
    return "; ".join(found)


def _plan(plan: Row) -> tuple[str, ...]:
    rate, steps = f"{plan['sample_rate']:g}", f"{plan['rounds'] * plan['steps_per_round']:,}"
    if not plan["private"]:
        return ("none", "-", "0", rate, steps, "-", "-", "-")
    summaries = ", ".join(
        f"{kind} {one['releases']} x {one['noise_multiplier']:.1f}"
        for kind, one in plan["summaries"].items()
    )
    return (
        f"{plan['epsilon']:.3f}",
        f"{plan['delta']:g}",
        f"{plan['noise_multiplier']:.3f}",
        rate,
        steps,
        f"{plan['clip']:g}",
        summaries,
        plan["rng"],
    )


def _pictures(results: Results) -> Iterator[tuple[str, bytes]]:
    """What cells have drawn, those of the first seed."""
    for cell in results.study.cells:
        path = cell_folder(results.folder, cell) / PICTURE
        if cell.seed == results.study.seeds[0] and path.is_file():
            yield cell.label or results.study.name, path.read_bytes()


def _costs(label: str, measures: dict[str, Spread]) -> list[str]:
    def text(key: str, digits: int) -> str:
        return measures[key].text(digits) if key in measures else "-"

    return [
        label or "this run",
        text("loss", 2),
        text("epsilon_spent", 3),
        *(size_text(measures[key].mean) for key in ("bytes_up", "bytes_down")),
        text("seconds", 1),
        text("clients_per_second", 1),
    ]
