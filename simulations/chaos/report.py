"""What a storm has shown, as one JSON object and as a table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]


def make(
    *,
    seed: int,
    seconds: float,
    deadline_s: float,
    struck: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    refusals: Sequence[Mapping[str, Any]],
    violations: Sequence[str],
    lacking: Mapping[str, str],
    litter: int,
    tracebacks: Sequence[str],
) -> Report:
    """All that is worth keeping of a storm."""
    times: dict[str, list[float]] = {}
    for one in struck:
        for name in (one["kind"], one["group"]):
            times.setdefault(name, []).append(one["recovery_s"])
        times.setdefault("all", []).append(one["recovery_s"])
    recovery = {
        name: {"faults": len(all_s), "median_s": statistics.median(all_s), "worst_s": max(all_s)}
        for name, all_s in sorted(times.items())
    }
    return {
        "seed": seed,
        "seconds": seconds,
        "deadline_s": deadline_s,
        "faults": len(struck),
        "violations": list(violations),
        "runs": list(runs),
        "pauses": sum(len(run["pauses"]) for run in runs),
        "refusals": list(refusals),
        "left_out": dict(lacking),
        "temporary_files": litter,
        "tracebacks": list(tracebacks),
        "recovery": recovery,
        "struck": list(struck),
    }


def table(report: Report) -> str:
    """Recovery times by kind of fault, worst last, and what did not hold, in Markdown."""
    rows = sorted(report["recovery"].items(), key=lambda one: one[1]["worst_s"])
    lines = ["| fault | struck | median s | worst s |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {name} | {one['faults']} | {one['median_s']:.1f} | {one['worst_s']:.1f} |"
        for name, one in rows
    ]
    lines += [
        "",
        f"Seed {report['seed']}: {report['faults']} faults in {report['seconds']:.0f} s, "
        f"phases of at most {report['deadline_s']:.0f} s, "
        f"{len(report['runs'])} runs with {report['pauses']} pauses, "
        f"{len(report['refusals'])} damages refused in words, "
        f"{report['temporary_files']} temporary files left, "
        f"{len(report['violations'])} invariants violated.",
    ]
    lines += [f"Left out: {kind}, since {why}." for kind, why in report["left_out"].items()]
    lines += [f"- violated: {one}" for one in report["violations"]]
    lines += [f"- no sentence: {one}" for one in report["tracebacks"]]
    return "\n".join(lines)
