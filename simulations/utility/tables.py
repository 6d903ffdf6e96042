"""Tables of the study in Markdown: mean and spread over seeds."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from fedlatent.simulations.utility.methods import FEDERATED, LEVERS, PUBLIC, QUESTIONS

Key = tuple[str, str, str, float | None, float, str, str]  # table ... question
Values = dict[Key, list[float]]

MEASURE = "pooled"


def collect(rows: Iterable[Mapping[str, Mapping[str, object]]], measure: str = MEASURE) -> Values:
    """Values over seeds of one measure by table, data, method, epsilon, contamination and so on."""
    found: Values = defaultdict(list)
    for row in rows:
        job, answers = row["job"], row["answers"]
        each: list[dict[str, object]] = answers if isinstance(answers, list) else []
        for one in each:
            key = (
                str(job["table"]),
                str(job["data"]),
                str(job["method"]),
                None if job["epsilon"] is None else float(str(job["epsilon"])),
                float(str(job["contamination"])),
                str(one["score"]),
                str(one["question"]),
            )
            found[key].append(float(str(one[measure])))
    return found


def methods_of(found: Values, table: str, data: str) -> list[tuple[str, str]]:
    """Method and score of the rows of a table, in a fixed order."""
    order = [*PUBLIC, "dp-mahalanobis", "pooled", *FEDERATED, *LEVERS]
    present = {(key[2], key[5]) for key in found if key[0] == table and key[1] == data}
    return sorted(present, key=lambda one: (order.index(one[0]), one[1] == "combined"))


def main_table(found: Values, data: str, question: str, epsilons: Sequence[float | None]) -> str:
    """One question on one data set: a row a method, a column an epsilon."""
    lines = [_row("method", *(_epsilon(one) for one in epsilons)), _rule(len(epsilons) + 1)]
    for method, score in methods_of(found, "main", data):
        cells = [
            spread(found.get(("main", data, method, one, 0.0, score, question))) for one in epsilons
        ]
        if any(cell != "-" for cell in cells):
            lines.append(_row(label(method, score), *cells))
    return "\n".join(lines)


def mean_table(
    found: Values, sets: Sequence[str], questions: Sequence[str], epsilon: float | None
) -> str:
    """Means over data sets at one epsilon: a row a method, a column a question."""
    lines = [_row("method", *questions), _rule(len(questions) + 1)]
    for method, score in methods_of(found, "main", sets[0]):
        own = None if method in PUBLIC else epsilon
        cells = []
        for question in questions:
            values = [
                found.get(("main", data, method, own, 0.0, score, question), []) for data in sets
            ]
            whole = all(values)
            mean = statistics.fmean(statistics.fmean(one) for one in values) if whole else None
            cells.append("-" if mean is None else f"{mean:.3f}")
        lines.append(_row(label(method, score), *cells))
    return "\n".join(lines)


def lever_table(found: Values, data: str, epsilon: float) -> str:
    """Levers beside plain averaging: a column a question."""
    lines = [_row("lever", *QUESTIONS), _rule(len(QUESTIONS) + 1)]
    base = [("main", "fedavg", "score")]
    rows = base + [("levers", method, "score") for method in LEVERS]
    for table, method, score in rows:
        cells = [
            spread(found.get((table, data, method, epsilon, 0.0, score, question)))
            for question in QUESTIONS
        ]
        lines.append(_row("none (fedavg)" if method == "fedavg" else method, *cells))
    return "\n".join(lines)


def contamination_table(found: Values, data: str, question: str) -> str:
    """A row a method and epsilon, a column a share of anomalies in training."""
    shares = sorted({key[4] for key in found if key[0] == "contamination"})
    lines = [_row("method", *(f"{share:.0%}" for share in shares)), _rule(len(shares) + 1)]
    for method, score in methods_of(found, "contamination", data):
        for epsilon in (4.0, None):
            cells = [
                spread(found.get(("contamination", data, method, epsilon, one, score, question)))
                for one in shares
            ]
            if any(cell != "-" for cell in cells):
                lines.append(_row(f"{label(method, score)}, {_epsilon(epsilon)}", *cells))
    return "\n".join(lines)


def label(method: str, score: str) -> str:
    """A row's name."""
    return f"{method}, combined score" if score == "combined" else method


def spread(values: Sequence[float] | None) -> str:
    """Mean and sample deviation; a dash for none."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {deviation:.3f}"


def _epsilon(value: float | None) -> str:
    return "no privacy" if value is None else f"epsilon {value:g}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return f"|{' --- |' * columns}"
