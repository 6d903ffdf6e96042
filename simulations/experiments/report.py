"""The report of one experiment, and the comparison of several, as one HTML file each."""

from collections.abc import Sequence

from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.experiments import figures, page
from fedlatent.simulations.experiments.results import Results, Row, Spread, Summary
from fedlatent.simulations.experiments.spec import label_of, text_of

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
}
_QUESTIONS_SAID = (
    "Took part: each participant is scored with its own site bundle. Took no part: clients that "
    "the training never saw are scored with the global bundle as it comes. New: the same clients "
    "after re-centring on 10, 30 or 100 of their normal records."
)
_SPREAD_SAID = "Mean ± sample standard deviation over seeds."


def report(results: Results) -> str:
    """The HTML report of an experiment; one that is not finished says so.

    Raises:
        ConfigError: no cell is done yet.
    """
    if not results.cells:
        raise ConfigError(
            f"Expected results in {results.folder}, got no finished cell; run the experiment on."
        )
    experiment = results.experiment
    summaries = results.summaries()
    body = [
        f"<h1>{page.text(experiment.name)}</h1>",
        page.paragraph(experiment.description or "A simulated private federation.", "lead"),
        *_unfinished(results),
        _cards(results),
        page.heading("What was run"),
        *_what(results),
        page.heading("Privacy"),
        *_privacy(results),
        page.heading("Results"),
        *_answers(summaries),
        *_plots(results),
        page.heading("Cost"),
        _costs(summaries),
        page.folded("Every cell", _every_cell(results)),
        page.folded("The experiment file", page.code(experiment.text)),
        page.footer(_foot(results)),
    ]
    return page.document(f"{experiment.name}: report", body)


def value_text(spread: Spread | None, digits: int = 3) -> str:
    """A mean with its spread, for tables."""
    if spread is None:
        return "-"
    mean = f"{spread.mean:.{digits}f}"
    return mean if spread.deviation is None else f"{mean} ± {spread.deviation:.{digits}f}"


def size_text(count: float) -> str:
    """A number of bytes for people."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def _unfinished(results: Results) -> list[str]:
    if results.complete:
        return []
    done, cells = len(results.cells), len(results.experiment.cells)
    sentence = (
        f"Not finished: {done} of {cells} cells are done. Means and spreads below are over those; "
        "the same command goes on with the others."
    )
    return [page.paragraph(sentence, "warn")]


def _cards(results: Results) -> str:
    first = results.cells[0]["data_facts"]
    rows = results.rows()
    spent = [row["epsilon_spent"] for row in rows if row["epsilon_spent"] is not None]
    span = "none"
    if spent:
        low, high = min(spent), max(spent)
        span = f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"
    seconds = sum(row["seconds"] for row in rows)
    seeds = len(results.experiment.seeds)
    kind = "synthetic" if first["synthetic"] else "real"
    return page.cards(
        [
            (f"{first['name']}", f"{kind} data"),
            (f"{first['participants']:,}", "clients take part"),
            (f"{first['absent']:,}", "clients take no part"),
            (f"{first['records']:,}", "training records"),
            (span, "epsilon spent"),
            (f"{len(results.cells)}", f"runs, {seeds} seed{'s' * (seeds > 1)} a setting"),
            (f"{seconds:,.0f} s", "of simulated training"),
        ]
    )


def _what(results: Results) -> list[str]:
    cell = results.cells[0]
    facts, run = cell["data_facts"], RunConfig.parse(cell["config"], "cell.json")
    low, middle, high = facts["records_spread"]
    options = ", ".join(f"{key} {text_of(value)}" for key, value in run.model.options.items())
    data, away = cell["data"], cell["availability"]
    rows: list[tuple[str, str, tuple[str, ...]]] = [
        ("Data", f"{facts['name']}, {facts['records']:,} training records", ("data.source",)),
        (
            "Shared among clients",
            f"{_partition(data)}; {low:,} to {high:,} records a client (median {middle:,})",
            tuple(f"data.{key}" for key in ("partition", "clients", "alpha", "shards", "strength")),
        ),
        (
            "Clients",
            f"{facts['participants']:,} take part, {facts['absent']:,} do not",
            ("data.absent", "data.clients"),
        ),
        ("Model", f"{run.model.family}; {options or 'default options'}", ("run.model",)),
        (
            "Training",
            f"{run.training.rounds} rounds of {run.training.steps_per_round} steps, "
            f"{run.training.optimizer}, learning rate {run.training.learning_rate:g}, "
            f"beta {run.training.beta:g}",
            ("run.training",),
        ),
        (
            "Privacy",
            f"epsilon {run.privacy.epsilon:g} at delta {run.privacy.delta:g}"
            if run.privacy.mechanism == "dp-sgd"
            else "none",
            ("run.privacy",),
        ),
        ("Shared by clients", _sharing(run), ("run.sharing",)),
        (
            "Availability",
            f"away in a phase {away['dropout']:.0%}, late {away['late']:.0%}; quorum "
            f"{run.federation.quorum}",
            ("availability",),
        ),
        ("Grid", _GRIDS[cell["grid"]], ("grid",)),
        ("Device", str(cell["device"]), ()),
        ("Seeds", ", ".join(map(str, results.experiment.seeds)), ()),
    ]
    table = [(name, _swept_text(results, keys) or said) for name, said, keys in rows]
    return [page.paragraph(facts["note"]), page.table(["", ""], table)]


_GRIDS = {
    "stacked": "stacked: all clients as one tensor program",
    "nodes": "nodes: real nodes in one process, one after another",
    "flower": "flower: Flower's own simulation engine",
    "deployed": "deployed: server and nodes as services over TLS",
}


def _sharing(run: RunConfig) -> str:
    if run.sharing == "full":
        return "all weights, noisy summaries"
    if run.sharing == "summary":
        return "noisy summaries alone; no weights"
    return "encoder weights and noisy summaries; decoders stay"


def _partition(data: Row) -> str:
    kind = data["partition"]
    details = {
        "natural": "as the data have them",
        "iid": "at random, even sizes",
        "dirichlet": f"label skew, Dirichlet with concentration {data['alpha']:g}",
        "shards": f"{data['shards']} shards of sorted labels a client",
        "quantity": f"sizes differ, Dirichlet with concentration {data['alpha']:g}",
        "feature-shift": f"at random, each client's records transformed, strength "
        f"{data['strength']:g}",
    }
    return f"{kind}: {details[kind]}"


def _swept_text(results: Results, keys: Sequence[str]) -> str:
    """What is swept of ``keys``, in words; empty for nothing."""
    experiment = results.experiment
    found = [
        f"swept: {name} {', '.join(map(text_of, experiment.sweeps[name]))}"
        for name, path in experiment.keys.items()
        if any(path == key or path.startswith(f"{key}.") for key in keys)
    ]
    return "; ".join(found)


def _privacy(results: Results) -> list[str]:
    plans: dict[str, Row] = {}
    for cell in results.cells:
        plans.setdefault(label_of(cell["setting"]), cell["plan"])
    private = [plan for plan in plans.values() if plan["private"]]
    sentences = []
    if private:
        sentences.append(
            "The guarantee is for one record of one client, over the whole run: training, latent "
            "moments and threshold together. Adjacency is zero-out (one record replaced by a null "
            "record); the number of records is public. Each client trains with DP-SGD (Poisson "
            "sampling, per-record clipping, Gaussian noise), and its epsilon covers all it "
            "releases. Clients do not share a budget: each has its own."
        )
    if any(plan["rng"] == "simulation" for plan in private):
        sentences.append(
            "Noise was drawn from seeded simulation random numbers, so that runs can be "
            "repeated. It has the stated distribution, but it protects nobody: whoever knows the "
            "seed can take it off. Deployed nodes draw from the operating system."
        )
    if len(private) < len(plans):
        sentences.append("Rows without epsilon were trained without privacy, as a reference.")
    rows = [
        (
            label or "all cells",
            *(
                (
                    f"{plan['epsilon']:.3f}",
                    f"{plan['delta']:g}",
                    f"{plan['noise_multiplier']:.3f}",
                    f"{plan['sample_rate']:g}",
                    f"{plan['rounds'] * plan['steps_per_round']:,}",
                    f"{plan['clip']:g}",
                    ", ".join(
                        f"{kind} {one['releases']} x {one['noise_multiplier']:.1f}"
                        for kind, one in plan["summaries"].items()
                    ),
                    plan["rng"],
                )
                if plan["private"]
                else ("none", "-", "0", f"{plan['sample_rate']:g}",
                      f"{plan['rounds'] * plan['steps_per_round']:,}", "-", "-", "-")
            ),
        )
        for label, plan in plans.items()
    ]  # fmt: skip
    columns = ["setting", "#epsilon", "#delta", "#sigma", "#q", "#steps", "#clip C"]
    return [
        *map(page.paragraph, sentences),
        page.table([*columns, "#sigma of moments, threshold", "rng"], rows),
        page.paragraph(
            "sigma: noise deviation divided by the clipping norm; q: probability that a record is "
            "in a step; steps: of the whole run."
        ),
    ]


def _answers(summaries: Sequence[Summary]) -> list[str]:
    asked = [q for q in QUESTION_TITLES if any(f"auroc_{q}" in one.measures for one in summaries)]
    if not asked:
        return [page.paragraph("No final question was asked.")]
    rows: list[list[object]] = []
    for one in summaries:
        rows.append([one.label or "this run", *(_pair(one, f"auroc_{q}") for q in asked)])
    count = len(rows)
    for name, title in BASELINE_TITLES.items():
        seen = set()
        for one in summaries:
            row = tuple(_pair(one, f"auroc_{name}_{q}") for q in asked)
            if any(cell[0] != "-" for cell in row) and row not in seen:
                seen.add(row)
                rows.append([title if len(seen) == 1 else f"{title} ({one.label})", *row])
    columns = ["AUROC", *(f"#{QUESTION_TITLES[q]}" for q in asked)]
    return [
        page.paragraph(_QUESTIONS_SAID),
        page.table(columns, rows, plain=range(count, len(rows))),
        page.paragraph(
            f"{_SPREAD_SAID} Upper line: all clients under one threshold; lower line: mean of the "
            "clients' own AUROC. The baselines see all participants' records in one place, so "
            "they are no private alternative; they say what the data give without a network."
        ),
    ]


def _pair(one: Summary, key: str) -> tuple[str, str]:
    spread = one.measures.get(key)
    if spread is None:
        return "-", ""
    return value_text(spread), value_text(one.measures.get(f"{key}_sites"))


def _plots(results: Results) -> list[str]:
    curve_of = "clients that took no part" if results.cells[0]["data_facts"]["absent"] else (
        "the participants"
    )  # fmt: skip
    shown = [
        (
            figures.utility_figure(results),
            "Privacy against utility. Further right is less privacy; higher is better. Bars are "
            "one standard deviation over seeds. Grey lines are baselines without privacy. Look "
            "for the epsilon from which a line stays level: more epsilon buys nothing there.",
        ),
        (
            figures.curve_figure(results),
            f"AUROC per round on {curve_of}, with that round's encoder and an exact density of "
            "the participants' records. This curve is the simulator's own observation and not a "
            "release: no plan pays for it, so no deployed run could show it.",
        ),
        (
            figures.loss_figure(results),
            "Training loss per round (negative evidence bound), mean over clients; bands are one "
            "standard deviation over seeds. Also the simulator's observation: clients never "
            "release losses. With a continuous likelihood it may fall below zero. Under noise a "
            "curve may rise again when training goes on too long.",
        ),
        (
            figures.spread_figure(results),
            "Spread of the loss over clients: the line is the median client, the band reaches "
            "from the 10th to the 90th percentile. A band that stays wide means that some "
            "clients' records fit the shared encoder badly.",
        ),
        (
            figures.bytes_figure(results),
            "Communication. Up is what clients send (all of it leaves through the release door), "
            "down is what the server sends.",
        ),
    ]
    made = [page.figure(svg, caption) if svg else "" for svg, caption in shown]
    return [made[0], page.heading("Round by round"), *made[1:]]


def _costs(summaries: Sequence[Summary]) -> str:
    def mean(one: Summary, key: str) -> float | None:
        spread = one.measures.get(key)
        return spread.mean if spread else None

    rows = []
    for one in summaries:
        up, down = mean(one, "bytes_up") or 0.0, mean(one, "bytes_down") or 0.0
        rows.append(
            [
                one.label or "this run",
                value_text(one.measures.get("loss"), 2),
                value_text(one.measures.get("epsilon_spent"), 3),
                size_text(up),
                size_text(down),
                value_text(one.measures.get("seconds"), 1),
                value_text(one.measures.get("clients_per_second"), 1),
            ]
        )
    columns = ["a run", "#last loss, nats", "#epsilon spent", "#up", "#down", "#seconds"]
    return page.table([*columns, "#client-rounds a second"], rows)


def _every_cell(results: Results) -> str:
    rows = results.rows()
    shown = [key for key in rows[0] if not key.endswith("_sites")]
    return page.table(
        [key if key == "cell" else f"#{key}" for key in shown],
        [[_plain(row[key]) for key in shown] for row in rows],
    )


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def _foot(results: Results) -> str:
    versions = sorted({str(cell["version"]) for cell in results.cells})
    return (
        f"fedlatent {', '.join(versions)}; experiment {results.experiment.digest()[:16]}; data of "
        "all plots: results.parquet, rounds.parquet and results.json beside the experiment."
    )
