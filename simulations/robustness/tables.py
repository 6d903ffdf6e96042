"""Tables of the study in Markdown: each attack beside the honest sites alone."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedlatent.simulations.robustness.study import ALL_ATTACKS, ALONE, DATA_SETS, HONEST, METHODS

#: Measures with the loss against the honest sites alone that is accepted.
MEASURES = {"auroc": 0.02, "flagged": 0.05, "recentred": 0.01}
COST = 0.005

_HEAD = ("attack", "AUROC", "flagged", "re-centred", "false alarms", "did not finish")

Seeds = Mapping[int, Mapping[str, Any]]
#: Outcomes by seed, by data set, number of sites and hostile ones, method and attack.
Found = dict[tuple[str, int, int, str, str], dict[int, Mapping[str, Any]]]


def collect(rows: Iterable[Mapping[str, Any]]) -> Found:
    """Outcomes by what was run; of a job that was run twice, the last."""
    found: Found = {}
    for row in rows:
        job = row["job"]
        key = (job["data"], job["sites"], job["hostile"], job["method"], job["attack"])
        found.setdefault(key, {})[job["seed"]] = row["answers"]
    return found


def tables(rows: Iterable[Mapping[str, Any]]) -> str:
    """All tables of the rows, and what honest sites pay for a rule."""
    found, parts = collect(rows), []
    for data in DATA_SETS:
        for sites, hostile in sorted({key[1:3] for key in found if key[0] == data}):
            for method in METHODS:
                group = {
                    key[4]: value
                    for key, value in found.items()
                    if key[:4] == (data, sites, hostile, method)
                }
                if group:
                    parts.append(f"#### {data}: {hostile} of {sites} hostile, {method}\n")
                    parts.append(attack_table(group))
            parts.append(f"#### {data}: {sites} honest sites, loss against plain averaging\n")
            parts.append(cost_table(found, data, sites, hostile))
    return "\n\n".join(part.rstrip("\n") for part in parts)


def attack_table(group: Mapping[str, Seeds]) -> str:
    """A row an attack: means over seeds, and in brackets the largest loss against ``ALONE``."""
    lines = [_row(*_HEAD), _rule(len(_HEAD))]
    alone = group.get(ALONE, {})
    for attack in (one for one in ALL_ATTACKS if one in group):
        seeds = group[attack]
        cells = [
            _cell(seeds, alone if attack not in (ALONE, HONEST) else {}, measure)
            for measure in MEASURES
        ]
        missing = sum(bool(one["problem"]) for one in seeds.values())
        cells += [_cell(seeds, {}, "false_alarms"), f"{missing} of {len(seeds)}"]
        lines.append(_row(attack, *cells))
    return "\n".join(lines)


def cost_table(found: Found, data: str, sites: int, hostile: int) -> str:
    """A row a method: mean loss of each measure against plain averaging, all sites honest."""
    lines = [_row("method", "AUROC", "flagged", "re-centred"), _rule(4)]
    plain = found.get((data, sites, hostile, "plain", HONEST), {})
    for method in METHODS:
        seeds = found.get((data, sites, hostile, method, HONEST), {})
        losses = [loss(seeds, plain, measure) for measure in MEASURES]
        if method != "plain" and all(losses):
            lines.append(_row(method, *(f"{statistics.fmean(one):+.4f}" for one in losses)))
    return "\n".join(lines)


def loss(seeds: Seeds, reference: Seeds, measure: str) -> list[float]:
    """By how much a measure is below that of the reference, seed by seed."""
    return [
        reference[seed][measure] - one[measure]
        for seed, one in sorted(seeds.items())
        if seed in reference and not one["problem"] and not reference[seed]["problem"]
    ]


def _cell(seeds: Seeds, reference: Seeds, measure: str) -> str:
    """Mean, and the largest loss or change against the reference; bold where it is too much."""
    values = [one[measure] for one in seeds.values() if not one["problem"]]
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.3f}"
    lost = loss(seeds, reference, measure)
    if not lost:
        return text
    mean = statistics.fmean(lost)
    worst = _worst(lost, measure)
    shown = f"{text} ({-mean:+.3f}; {-worst:+.3f})"
    bad = abs(mean) if measure == "flagged" else mean
    return f"**{shown}**" if bad > MEASURES[measure] else shown


def _worst(lost: Sequence[float], measure: str) -> float:
    return max(lost, key=abs) if measure == "flagged" else max(lost)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return f"|{' --- |' * columns}"
