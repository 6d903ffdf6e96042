"""Which form of a scorer graph a device should get: every form is made, measured and compared.

All forms are scored on the same records as the float32 graph. Thresholds are carried over to each
form, so that a record is flagged by it when it was flagged before. A form is eligible when it
keeps the ranking (AUROC) and the flags; a form of integer arithmetic only when enough records lie
on both sides of every threshold to tell. `pick` then chooses among the eligible ones.

What is written into a bundle from here (ranges of static int8, thresholds) depends on the records,
so they must be public or synthetic, never private.

Shape suffixes: N records, k latent dimensions, `*shape` the shape of one record.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime

from fedlatent.shared.bundle.graphs import CHUNK, Graph
from fedlatent.shared.bundle.manifest import RECENTRED, SCORE, Precision, Thresholds
from fedlatent.shared.detection.metrics import auroc
from fedlatent.shared.errors import BundleError
from fedlatent.shared.export.compact import (
    optimise,
    shrink,
    to_fp16,
    to_int8_dynamic,
    to_int8_static,
    to_int8_weights,
)
from fedlatent.shared.export.timing import CALLS, ROUNDS, Latency, measure

Target = Literal["auto", "smallest", "fastest", "arm", "web"]
TARGETS: tuple[Target, ...] = ("auto", "smallest", "fastest", "arm", "web")

MAX_AUROC_LOSS = 0.002
MAX_FLIPS = 0.005
#: p50 within this share of the best counts as equally fast (`fastest`), or as fast enough (`auto`).
TIE, SLACK = 0.03, 0.10
#: A static int8 form is taken for ARM when it is faster than float32 arithmetic by this share.
ARM_GAIN = 0.10
#: How far golden outputs may be off on another machine, relative to max(|expected|, 1). Weight-only
#: forms compute in float32, so they get its tolerance. Integer kernels round and saturate in ways
#: of their own: the same file differed by 0.035 between two kernels of one machine.
TOLERANCES: Mapping[Precision, float] = {
    "fp32": 1e-4,
    "fp16": 1e-4,
    "int8-weights": 1e-4,
    "int8-dynamic": 0.1,
    "int8-static": 0.1,
}
#: Forms whose arithmetic is float32, so scores agree between ONNX Runtime on x86, ARM and WASM.
NEUTRAL: tuple[Precision, ...] = ("fp32", "fp16", "int8-weights")

_FEW = 16  # flagged or unflagged records; below, records at the threshold are made
_TOGETHER, _ROUNDING = 64, 1e-4  # records that are scored together and alone; relative
_BOUNDARY_PAIRS = 64
_BISECTIONS = 16
_STRETCH = (0.0, 0.25, 2.0, 4.0, 16.0)  # of records about their mean, when all have one flag
_CALIBRATION = 128


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One form of the graph, measured.

    Attributes:
        name: Its form, unique in a table; "fp32-optimised" is of precision "fp32".
        precision: As the manifest names it.
        bytes: Size of the graph; 0 when it could not be made.
        ratio: Of the bytes to those of the float32 graph.
        p50: Median wall time of one record on one thread, in microseconds.
        p99: 99th percentile of it.
        max_drift: Largest change of a score, relative to max(|score|, 1), over all records.
        median_drift: Median of it.
        auroc: Of `score`; None without labels.
        auroc_loss: Float32's AUROC minus this one's, the worse of all scores with a threshold.
        flips: Share of records whose flag differs, the worse of both thresholds.
        eligible: Whether it may be chosen.
        reason: Why, or why not, in words.
    """

    name: str
    precision: Precision
    bytes: int
    ratio: float
    p50: float
    p99: float
    max_drift: float
    median_drift: float
    auroc: float | None
    auroc_loss: float | None
    flips: float
    eligible: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The form for a target, and what the manifest says about it.

    Attributes:
        target: What it was chosen for.
        chosen: Its row of the table.
        data: The graph.
        thresholds: Carried over to it.
        tolerance: Of golden outputs.
        table: Every form, the float32 graph first.
        boundary: How many records were made at thresholds to carry these over.
        hardware: Where it was measured and what that means for the target, in words.
    """

    target: Target
    chosen: Candidate
    data: bytes
    thresholds: Thresholds
    tolerance: float
    table: tuple[Candidate, ...]
    boundary: int
    hardware: str

    @property
    def precision(self) -> Precision:
        """Of the chosen form."""
        return self.chosen.precision


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What all forms are compared on: scores are by output name, [N] or, at the boundary, [M].

    `judged` says whether enough records lie on both sides of every threshold.
    """

    records: np.ndarray
    center: np.ndarray
    labels: np.ndarray | None
    levels: Mapping[str, float]
    edges: Mapping[str, np.ndarray]
    base: Mapping[str, np.ndarray]
    base_edges: Mapping[str, np.ndarray]
    judged: bool


def choose(
    fp32: bytes,
    target: Target,
    records: np.ndarray,
    center: np.ndarray,
    thresholds: Thresholds,
    labels: np.ndarray | None = None,
    *,
    calls: int = CALLS,
    rounds: int = ROUNDS,
) -> Choice:
    """Make every form of a scorer graph, measure it on this machine, and choose one.

    Args:
        fp32: The stripped float32 graph.
        target: What it is for; see `pick`.
        records: Preprocessed records float32 [N, *shape], N > 0, public or synthetic. With fewer
            than 16 of them on one side of a threshold, more are made at the threshold.
        center: Latent center float32 [k].
        thresholds: Of the float32 graph.
        labels: 0 for normal and 1 for anomalous records [N], or None; then no AUROC is judged.
        calls: Timed calls of each form per round.
        rounds: Of timing.

    Raises:
        BundleError: The float32 graph does not load, run or give finite scores.
        ValueError: No record, or another number of labels.
    """
    if not len(records) or (labels is not None and len(labels) != len(records)):
        raise ValueError(
            f"Expected records and as many labels, got {len(records)} records and "
            f"{'no' if labels is None else len(labels)} labels."
        )
    records, center = np.asarray(records, np.float32), np.asarray(center, np.float32)
    bench = _bench(fp32, records, center, thresholds, labels)
    forms, refused = _forms(fp32, records, center)
    graphs = {name: Graph(data, name) for name, data in forms.items()}
    times = measure(forms, {"x": records[:1], "center": center}, calls=calls, rounds=rounds)
    rows, levels = [], {}
    for name, data in forms.items():
        row, levels[name] = _judge(name, data, graphs[name], times[name], bench, len(fp32))
        rows.append(row)
    dot = has_dot_product()
    chosen = pick(rows, target, dot_product=dot)
    moved = levels[chosen.name]
    return Choice(
        target=target,
        chosen=chosen,
        data=forms[chosen.name],
        thresholds=replace(
            thresholds,
            absolute=moved.get(SCORE, thresholds.absolute),
            recentred=moved.get(RECENTRED, thresholds.recentred),
        ),
        tolerance=TOLERANCES[chosen.precision],
        table=(*rows, *(_missing(name, why) for name, why in refused.items())),
        boundary=sum(len(edge) for edge in bench.edges.values()),
        hardware=describe_hardware(target, dot_product=dot),
    )


def pick(candidates: Sequence[Candidate], target: Target, *, dot_product: bool) -> Candidate:
    """Choose among the eligible forms.

    - smallest: fewest bytes.
    - fastest: least p50; of those within 3 % of it, the smallest.
    - auto: the smallest of those within 10 % of the least p50.
    - web: the smallest whose arithmetic is float32; integer kernels of WASM give other scores.
    - arm: as web; but static int8 when this machine is an ARM with integer dot products, and it is
      at least 10 % faster here.

    Args:
        candidates: At least one eligible form of float32 arithmetic.
        target: What it is for.
        dot_product: Whether this machine is such an ARM.

    Raises:
        BundleError: No form is eligible.
    """
    eligible = [row for row in candidates if row.eligible]
    neutral = [row for row in eligible if row.precision in NEUTRAL]
    if not neutral:
        raise BundleError(
            "Expected a form of the graph that keeps its scores, got none; export the model again."
        )
    if target == "smallest":
        return _smallest(eligible)
    if target in ("fastest", "auto"):
        limit = (1 + (TIE if target == "fastest" else SLACK)) * min(row.p50 for row in eligible)
        return _smallest([row for row in eligible if row.p50 <= limit])
    chosen = _smallest(neutral)
    static = [row for row in eligible if row.precision == "int8-static"]
    if target == "arm" and dot_product and static:
        fast = min(static, key=lambda row: row.p50)
        return fast if fast.p50 <= (1 - ARM_GAIN) * min(r.p50 for r in neutral) else chosen
    return chosen


def rederive(threshold: float, scores_fp32: np.ndarray, scores_new: np.ndarray) -> float:
    """The threshold of another form by which flags agree best with the float32 ones.

    A record is flagged when its float32 score lies above the threshold, compared in float32 as on
    a device. Of the gaps between new scores with the fewest disagreements the one nearest to the
    old threshold is taken; the result is the old threshold when that lies inside, else the middle.

    Args:
        threshold: Of the float32 graph.
        scores_fp32: Its scores [N].
        scores_new: The other form's scores of the same records [N].
    """
    flags = np.asarray(scores_fp32, np.float32) > np.float32(threshold)
    new = np.asarray(scores_new, np.float32)
    order = np.argsort(new, kind="stable")
    values, flags = new[order], flags[order]
    rises = 1 + np.flatnonzero(values[1:] > values[:-1])
    below = np.unique([0, *rises, len(values)])  # how many records are not above, for every gap
    passed = np.concatenate([[0], np.cumsum(flags)])
    wrong = passed[below] + (len(flags) - below) - (passed[-1] - passed[below])
    gaps = [
        (
            float(values[count - 1]) if count else -np.inf,
            float(values[count]) if count < len(values) else np.inf,
        )
        for count in below[wrong == wrong.min()]
    ]
    return min(
        (_inside(low, high, threshold) for low, high in gaps), key=lambda t: abs(t - threshold)
    )


def boundary_records(
    run: Callable[[np.ndarray], np.ndarray], records: np.ndarray, threshold: float, count: int
) -> np.ndarray:
    """Records whose scores lie close to a threshold, half of them above it.

    Pairs of one unflagged and one flagged record are blended by bisection. When all records have
    the same flag, copies of them that are stretched about their mean stand in for the others.

    Args:
        run: Scores [N] of records [N, *shape].
        records: Where blends start, float32 [N, *shape], N > 0.
        threshold: Of the scores of ``run``.
        count: How many pairs to make; fewer never come back, but none may.

    Returns:
        float32 [2 * count, *shape], unflagged ones first; [0, *shape] when no record of either flag
        could be found.
    """
    level = np.float32(threshold)
    flags = run(records) > level
    pool = records
    if flags.all() or not flags.any():
        mean = records.mean(axis=0, keepdims=True)
        pool = np.concatenate([records, *(mean + s * (records - mean) for s in _STRETCH)])
        flags = run(pool) > level
    if flags.all() or not flags.any():
        return records[:0]
    low, high = np.resize(pool[~flags], (count, *records.shape[1:])), pool[flags]
    high = np.resize(np.roll(high, len(high) // 2, axis=0), low.shape)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = (run(middle) > level).reshape(-1, *(1,) * (records.ndim - 1))
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.concatenate([low, high]).astype(np.float32)


def has_dot_product(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine is a 64-bit ARM whose cores have integer dot products."""
    if platform.machine() not in ("aarch64", "arm64"):
        return False
    try:
        return "asimddp" in cpuinfo.read_text("utf-8", "replace")
    except OSError:
        return False


def describe_hardware(
    target: Target, *, dot_product: bool, cpuinfo: Path = Path("/proc/cpuinfo")
) -> str:
    """Processor and ONNX Runtime of the measurement, and its bearing on the target."""
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = "".join(c for c in (models or ["processor"])[0] if c.isprintable())[:80]
    text = f"{name} ({platform.machine()}), ONNX Runtime {onnxruntime.__version__}, one thread"
    if target == "arm" and not dot_product:
        text += (
            "; ARM was not measured, so the smallest form that computes in float32, as fast as "
            "float32 itself, was chosen"
        )
    if target == "web":
        text += "; only forms whose scores agree between native code and WASM were considered"
    return text


def _forms(
    fp32: bytes, records: np.ndarray, center: np.ndarray
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Forms by name, and the reasons of those that could not be made."""
    forms = {"fp32": fp32}
    refused: dict[str, str] = {}
    try:
        start = forms["fp32-optimised"] = optimise(fp32)
    except BundleError as error:
        refused["fp32-optimised"] = str(error)
        start = shrink(fp32)
    spread = np.linspace(0, len(records) - 1, min(len(records), _CALIBRATION)).astype(int)
    makers: dict[str, Callable[[], bytes]] = {
        "fp16": lambda: to_fp16(start),
        "int8-weights": lambda: to_int8_weights(start),
        "int8-dynamic": lambda: to_int8_dynamic(start),
        "int8-static": lambda: to_int8_static(start, records[spread], center),
    }
    for name, make in makers.items():
        try:
            forms[name] = make()
        except BundleError as error:
            refused[name] = str(error)
    return forms, refused


def _bench(
    fp32: bytes,
    records: np.ndarray,
    center: np.ndarray,
    thresholds: Thresholds,
    labels: np.ndarray | None,
) -> _Bench:
    """Score the records with the float32 graph, and make records at thresholds where few are."""
    graph = Graph(fp32, "the float32 graph")
    given = {SCORE: thresholds.absolute, RECENTRED: thresholds.recentred}
    levels = {n: t for n, t in given.items() if t is not None and n in graph.outputs}
    base = _scores(graph, records, center, (SCORE, *levels))
    if not all(np.isfinite(values).all() for values in base.values()):
        raise BundleError(
            "Expected finite scores of the float32 graph, got NaN or infinity; export it again."
        )
    edges, base_edges, judged = {}, {}, True
    for name, level in levels.items():
        flagged = int((base[name] > np.float32(level)).sum())

        def run(rows: np.ndarray, name: str = name) -> np.ndarray:
            return _scores(graph, rows, center, (name,))[name]

        enough = min(flagged, len(records) - flagged) >= _FEW
        judged &= enough
        edges[name] = (
            records[:0] if enough else boundary_records(run, records, level, _BOUNDARY_PAIRS)
        )
        base_edges[name] = run(edges[name])
    return _Bench(
        records=records,
        center=center,
        labels=labels,
        levels=levels,
        edges=edges,
        base=base,
        base_edges=base_edges,
        judged=judged,
    )


def _scores(
    graph: Graph, records: np.ndarray, center: np.ndarray, names: Sequence[str], chunk: int = CHUNK
) -> dict[str, np.ndarray]:
    """Outputs [N] by name; the graph sees ``chunk`` records at a time."""
    if not len(records):
        return {name: np.zeros(0, np.float32) for name in names}
    parts = [
        graph.run({"x": records[start : start + chunk], "center": center})
        for start in range(0, len(records), chunk)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _judge(
    name: str, data: bytes, graph: Graph, latency: Latency, bench: _Bench, full: int
) -> tuple[Candidate, dict[str, float]]:
    """Measure one form against float32: its row, and its thresholds by output."""
    precision: Precision = "fp32" if name.startswith("fp32") else name  # type: ignore[assignment]
    chunk = 1 if precision == "int8-dynamic" else CHUNK  # its scores depend on the batch
    new = _scores(graph, bench.records, bench.center, tuple(bench.base), chunk)
    drift = np.concatenate(
        [np.abs(new[n] - b) / np.maximum(np.abs(b), 1.0) for n, b in bench.base.items()]
    )
    levels, flips = {}, [0.0]
    for output, level in bench.levels.items():
        edge = _scores(graph, bench.edges[output], bench.center, (output,), chunk)[output]
        levels[output] = moved = rederive(
            level,
            np.concatenate([bench.base[output], bench.base_edges[output]]),
            np.concatenate([new[output], edge]),
        )
        before = bench.base[output] > np.float32(level)
        flips.append(float(np.mean(before != (new[output] > np.float32(moved)))))
    area, loss = _auroc(bench, new)
    reason = _objection(drift, loss, max(flips))
    if not (reason or bench.judged or precision in NEUTRAL):
        reason = f"fewer than {_FEW} records on one side of a threshold to judge integers by"
    if not reason and _depends_on_batch(graph, bench):
        reason = "a record's score depends on the others in its batch"
    row = Candidate(
        name=name,
        precision=precision,
        bytes=len(data),
        ratio=len(data) / full,
        p50=latency.p50,
        p99=latency.p99,
        max_drift=float(drift.max()),
        median_drift=float(np.median(drift)),
        auroc=area,
        auroc_loss=loss,
        flips=max(flips),
        eligible=not reason,
        reason=reason or "keeps ranking and flags",
    )
    return row, levels


def _depends_on_batch(graph: Graph, bench: _Bench) -> bool:
    """Whether records score otherwise together than alone, beyond rounding."""
    few, names = bench.records[:_TOGETHER], tuple(bench.base)
    alone = _scores(graph, few, bench.center, names, 1)
    together = _scores(graph, few, bench.center, names)
    return any(
        bool(np.any(np.abs(together[n] - a) > _ROUNDING * np.maximum(np.abs(a), 1.0)))
        for n, a in alone.items()
    )


def _auroc(bench: _Bench, new: Mapping[str, np.ndarray]) -> tuple[float | None, float | None]:
    """AUROC of `score` and the worst loss of any score; None without two classes or finite."""
    labels = bench.labels
    finite = all(np.isfinite(values).all() for values in new.values())
    if labels is None or len(np.unique(labels)) < 2 or not finite:
        return None, None
    losses = [auroc(labels, bench.base[name]) - auroc(labels, new[name]) for name in bench.base]
    return auroc(labels, new[SCORE]), max(losses)


def _objection(drift: np.ndarray, loss: float | None, flips: float) -> str:
    """Why a form may not be chosen; empty when it may."""
    if not np.isfinite(drift).all():
        return "scores are not finite"
    if loss is not None and loss > MAX_AUROC_LOSS:
        return f"AUROC falls by {loss:.4f}, more than {MAX_AUROC_LOSS}"
    if flips > MAX_FLIPS:
        return f"{100 * flips:.2f} % of flags change, more than {100 * MAX_FLIPS:g} %"
    return ""


def _missing(name: str, why: str) -> Candidate:
    precision: Precision = "fp32" if name.startswith("fp32") else name  # type: ignore[assignment]
    nothing = float("nan")
    return Candidate(
        name=name,
        precision=precision,
        bytes=0,
        ratio=nothing,
        p50=nothing,
        p99=nothing,
        max_drift=nothing,
        median_drift=nothing,
        auroc=None,
        auroc_loss=None,
        flips=nothing,
        eligible=False,
        reason=why,
    )


def _smallest(rows: Sequence[Candidate]) -> Candidate:
    return min(rows, key=lambda row: row.bytes)  # of equals the first, which is the plainer form


def _inside(low: float, high: float, threshold: float) -> float:
    """A threshold t with low <= t < high, also when t is rounded to float32."""
    if low <= np.float32(threshold) < high:
        return threshold
    if low == -np.inf:
        return float(np.nextafter(np.float32(high), np.float32(-np.inf)))
    if high == np.inf:
        return low
    middle = float(np.float32((low + high) / 2))
    return middle if low <= middle < high else low
