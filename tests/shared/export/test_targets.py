"""Choosing a form: rules of choice, thresholds carried over, and whole choices at tiny size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedlatent.shared.bundle.graphs import Graph
from fedlatent.shared.bundle.manifest import MAX_TOLERANCE, Precision, Thresholds
from fedlatent.shared.errors import BundleError
from fedlatent.shared.export.targets import (
    MAX_FLIPS,
    NEUTRAL,
    TARGETS,
    TOLERANCES,
    Candidate,
    Choice,
    boundary_records,
    choose,
    describe_hardware,
    has_dot_product,
    pick,
    rederive,
)
from fedlatent.shared.export.timing import measure
from tests.shared.export.conftest import Exported, exported

SCORES = arrays.arrays(np.float32, 12, elements=st.integers(-4, 4).map(lambda n: np.float32(n / 2)))


def candidate(precision: Precision, size: int, p50: float, *, eligible: bool = True) -> Candidate:
    """A row of a table."""
    return Candidate(
        name=precision,
        precision=precision,
        bytes=size,
        ratio=size / 100,
        p50=p50,
        p99=p50,
        max_drift=0.0,
        median_drift=0.0,
        auroc=None,
        auroc_loss=None,
        flips=0.0,
        eligible=eligible,
        reason="made up",
    )


TABLE = (
    candidate("fp32", 100, 10.0),
    candidate("fp16", 50, 10.2),
    candidate("int8-weights", 27, 10.9),
    candidate("int8-dynamic", 25, 12.0),
    candidate("int8-static", 30, 8.0),
)


def chosen(target: str, *rows: Candidate, dot_product: bool = False) -> str:
    """Name of the form that is picked."""
    wanted = next(name for name in TARGETS if name == target)
    return pick(rows, wanted, dot_product=dot_product).name


def test_smallest_has_the_fewest_bytes() -> None:
    """Whatever the time."""
    assert chosen("smallest", *TABLE) == "int8-dynamic"


def test_fastest_breaks_ties_by_size() -> None:
    """Within 3 per cent of the least time the smaller form wins; beyond it does not."""
    assert chosen("fastest", *TABLE) == "int8-static"
    assert chosen("fastest", *TABLE[:3]) == "fp16"


def test_auto_takes_the_smallest_fast_form() -> None:
    """Up to 10 per cent of time are given for bytes, not more."""
    assert chosen("auto", *TABLE[:4]) == "int8-weights"
    assert chosen("auto", *TABLE) == "int8-static"
    assert chosen("auto", *TABLE[:2], replace(TABLE[2], p50=11.1)) == "fp16"


def test_web_takes_float32_arithmetic_only() -> None:
    """Integer forms are never for browsers, however small."""
    assert chosen("web", *TABLE) == "int8-weights"
    assert chosen("web", *TABLE[:2], *TABLE[3:]) == "fp16"


def test_arm_needs_a_measured_dot_product() -> None:
    """Static int8 is for ARM only when measured there and faster; else as web."""
    assert chosen("arm", *TABLE) == "int8-weights"
    assert chosen("arm", *TABLE, dot_product=True) == "int8-static"
    slow = (*TABLE[:4], replace(TABLE[4], p50=9.5))
    assert chosen("arm", *slow, dot_product=True) == "int8-weights"


@pytest.mark.parametrize("target", TARGETS)
def test_forms_that_are_not_eligible_are_never_chosen(target: str) -> None:
    """Only eligible rows compete, and float32 alone is enough."""
    refused = [replace(row, eligible=False) for row in TABLE[1:]]
    assert chosen(target, TABLE[0], *refused, dot_product=True) == "fp32"
    with pytest.raises(BundleError, match="keeps its scores"):
        chosen(target, *refused)


def disagreements(threshold: float, level: float, old: np.ndarray, new: np.ndarray) -> int:
    """How many flags differ, compared in float32 as on a device."""
    return int(((old > np.float32(threshold)) != (new > np.float32(level))).sum())


@settings(max_examples=150, deadline=None)
@given(old=SCORES, new=SCORES, threshold=st.floats(-3, 3))
def test_rederived_thresholds_have_the_fewest_disagreements(
    old: np.ndarray, new: np.ndarray, threshold: float
) -> None:
    """No other threshold flags more records as before."""
    found = rederive(threshold, old, new)
    values = np.unique(new)
    tried = [values[0] - 1, *values, *((values[1:] + values[:-1]) / 2), values[-1] + 1]
    best = min(disagreements(threshold, float(level), old, new) for level in tried)
    assert disagreements(threshold, found, old, new) == best


@settings(max_examples=50, deadline=None)
@given(old=SCORES, threshold=st.floats(-3, 3))
def test_thresholds_of_equal_scores_stay(old: np.ndarray, threshold: float) -> None:
    """Scores that did not change keep the threshold to the bit."""
    assert rederive(threshold, old, old) == threshold


@settings(max_examples=50, deadline=None)
@given(
    old=arrays.arrays(np.float32, 20, elements=st.floats(0, 100, width=32)),
    threshold=st.floats(1, 99),
    scale=st.sampled_from([0.5, 0.97, 1.03, 2.0]),
)
def test_thresholds_follow_scaled_scores(old: np.ndarray, threshold: float, scale: float) -> None:
    """When every score is scaled no flag changes."""
    gap = np.abs(old - threshold) > 1e-3
    old = old[gap]
    new = (old * np.float32(scale)).astype(np.float32)
    found = rederive(threshold, old, new)
    assert disagreements(threshold, found, old, new) == 0


def test_rederived_threshold_of_neighbouring_floats() -> None:
    """A threshold between two neighbouring float32 values separates them."""
    low = np.float32(1.0)
    new = np.array([low, np.nextafter(low, np.float32(2))], np.float32)
    found = rederive(5.0, np.array([4, 6], np.float32), new)
    np.testing.assert_array_equal(new > np.float32(found), [False, True])


def test_rederived_threshold_takes_the_nearest_of_equals() -> None:
    """Of gaps that are equally good the one near the old threshold is used."""
    old = np.array([0, 10, 0, 10], np.float32)
    new = np.array([1, 2, 3, 4], np.float32)  # one disagreement at 1.5 and at 3.5
    assert rederive(5.0, old, new) == pytest.approx(3.5)
    assert rederive(0.5, old, new) == pytest.approx(1.5)


def test_rederived_threshold_without_records_stays() -> None:
    """Nothing is known, so nothing moves."""
    nothing = np.zeros(0, np.float32)
    assert rederive(2.5, nothing, nothing) == 2.5


def norm(rows: np.ndarray) -> np.ndarray:
    """A score: the mean square of a record."""
    value: np.ndarray = np.square(rows).reshape(len(rows), -1).mean(axis=1)
    return value


def test_boundary_records_bracket_the_threshold() -> None:
    """Half lie just above, half just below, and they are as many as asked for."""
    records = np.random.default_rng(0).normal(0, 1, (40, 3, 4)).astype(np.float32)
    made = boundary_records(norm, records, 1.0, 25)
    assert made.shape == (50, 3, 4)
    assert made.dtype == np.float32
    assert (norm(made[:25]) <= 1).all()
    assert (norm(made[25:]) > 1).all()
    np.testing.assert_allclose(norm(made), 1, rtol=2e-3)
    assert len(np.unique(made[:25], axis=0)) > 20


@pytest.mark.parametrize("threshold", [0.05, 30.0])
def test_boundary_records_stretch_records_of_one_flag(threshold: float) -> None:
    """When all records are flagged, or none is, copies about their mean take the other side."""
    records = np.random.default_rng(0).normal(0, 1, (40, 12)).astype(np.float32)
    made = boundary_records(norm, records, threshold, 8)
    np.testing.assert_allclose(norm(made), threshold, rtol=1e-2)


def test_boundary_records_may_not_exist() -> None:
    """A threshold that no record reaches gives none."""
    records = np.ones((4, 5), np.float32)
    assert boundary_records(norm, records, -1.0, 8).shape == (0, 5)


@pytest.mark.parametrize(
    ("machine", "features", "expected"),
    [
        ("aarch64", "fp asimd asimddp", True),
        ("aarch64", "fp asimd", False),
        ("x86_64", "asimddp", False),
    ],
)
def test_dot_products_are_read_from_the_processor(
    machine: str, features: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a 64-bit ARM that lists the feature has them; no list, none."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    listing = tmp_path / "cpuinfo"
    assert not has_dot_product(listing)
    listing.write_text(f"Features : {features}\n")
    assert has_dot_product(listing) is expected


def test_hardware_says_what_was_not_measured(tmp_path: Path) -> None:
    """The text names the processor, is printable, and owns up to ARM not being measured."""
    listing = tmp_path / "cpuinfo"
    listing.write_text("model name\t: Test CPU\x07 9000\n")
    text = describe_hardware("arm", dot_product=False, cpuinfo=listing)
    assert text.startswith("Test CPU 9000 (")
    assert "ARM was not measured" in text
    assert "ARM" not in describe_hardware("arm", dot_product=True, cpuinfo=listing)
    assert "WASM" in describe_hardware("web", dot_product=False, cpuinfo=listing)
    assert "processor" in describe_hardware("auto", dot_product=False, cpuinfo=tmp_path / "none")
    assert text.isprintable()


def whole(export: Exported, quantile: float, target: str = "smallest", count: int = 600) -> Choice:
    """A choice for a tiny model, with records of high reconstruction error as anomalies."""
    records = export.records[:count]
    center = export.density.mean.astype(np.float32)
    scores = Graph(export.scorer, "fp32").run({"x": records, "center": center})
    thresholds = Thresholds(
        quantile=0.9,
        absolute=float(np.quantile(scores["score"], quantile)),
        recentred=float(np.quantile(scores["recentred_distance"], quantile)),
    )
    labels = (scores["reconstruction_error"] > np.median(scores["reconstruction_error"])).astype(
        int
    )
    wanted = next(name for name in TARGETS if name == target)
    return choose(export.scorer, wanted, records, center, thresholds, labels, calls=5, rounds=1)


@pytest.fixture(scope="module")
def choice() -> Choice:
    """For the convolutional model of signals."""
    return whole(exported("conv1d"), 0.9)


def test_the_table_holds_every_form(choice: Choice) -> None:
    """Six forms, float32 first and without any change, all measured."""
    assert [row.name for row in choice.table] == [
        "fp32",
        "fp32-optimised",
        "fp16",
        "int8-weights",
        "int8-dynamic",
        "int8-static",
    ]
    first = choice.table[0]
    assert (first.ratio, first.max_drift, first.flips, first.auroc_loss) == (1.0, 0.0, 0.0, 0.0)
    for row in choice.table:
        assert 0 < row.p50 <= row.p99
        assert row.bytes > 0
        assert row.reason


def test_the_choice_is_the_row_that_was_picked(choice: Choice) -> None:
    """Graph, precision, tolerance and size are those of the chosen form."""
    assert choice.chosen == pick(choice.table, "smallest", dot_product=False)
    assert len(choice.data) == choice.chosen.bytes < choice.table[0].bytes
    assert choice.precision == choice.chosen.precision
    assert choice.tolerance == TOLERANCES[choice.precision]


def test_eligible_forms_keep_ranking_and_flags(choice: Choice) -> None:
    """Eligibility is what the figures of the row say."""
    for row in choice.table:
        assert row.auroc_loss is not None
        good = row.auroc_loss <= 0.002 and row.flips <= MAX_FLIPS and np.isfinite(row.max_drift)
        good = good and row.name != "int8-dynamic"
        assert row.eligible == good
        assert ("keeps" in row.reason) == good


def test_scores_that_depend_on_the_batch_are_not_chosen(choice: Choice) -> None:
    """Dynamic int8 finds its ranges in each batch, so neighbours change a score."""
    (dynamic,) = (row for row in choice.table if row.name == "int8-dynamic")
    assert "others in its batch" in dynamic.reason


def test_thresholds_flag_what_float32_flags(choice: Choice) -> None:
    """With the new thresholds at most the stated share of records changes its flag."""
    export = exported("conv1d")
    center = export.density.mean.astype(np.float32)
    feeds = {"x": export.records, "center": center}
    old = Graph(export.scorer, "old").run(feeds)
    new = Graph(choice.data, "new").run(feeds)
    assert choice.boundary == 0
    for name, moved in (
        ("score", choice.thresholds.absolute),
        ("recentred_distance", choice.thresholds.recentred),
    ):
        assert moved is not None
        level = float(np.quantile(old[name], 0.9))
        share = disagreements(level, moved, old[name], new[name]) / len(export.records)
        assert share <= choice.chosen.flips <= MAX_FLIPS


def test_thresholds_are_carried_over_without_records_near_them() -> None:
    """Records far below a threshold are enough: others are made at it, and the flags hold."""
    export = exported("conv2d")
    center = export.density.mean.astype(np.float32)
    old = Graph(export.scorer, "old").run({"x": export.records, "center": center})
    level = float(np.quantile(old["score"], 0.9))
    low = export.records[old["score"] < np.quantile(old["score"], 0.3)]
    found = choose(
        export.scorer,
        "web",
        low,
        center,
        Thresholds(quantile=0.9, absolute=level, recentred=None),
        calls=5,
        rounds=1,
    )
    assert found.boundary > 0
    assert found.thresholds.recentred is None
    assert found.thresholds.absolute is not None
    new = Graph(found.data, "new").run({"x": export.records, "center": center})
    flips = disagreements(level, found.thresholds.absolute, old["score"], new["score"])
    assert flips <= 0.01 * len(export.records)
    for row in found.table:
        if row.precision not in NEUTRAL:
            assert not row.eligible


def test_choices_of_browsers_agree_between_machines() -> None:
    """A form for the web gets the tolerance of float32."""
    found = whole(exported("mlp"), 0.9, "web", 200)
    assert found.precision in NEUTRAL
    assert found.tolerance == 1e-4
    assert all(0 < value <= MAX_TOLERANCE for value in TOLERANCES.values())


def test_records_and_labels_must_fit(small: Exported) -> None:
    """No record, or another number of labels, is refused."""
    center = small.density.mean.astype(np.float32)
    thresholds = Thresholds(quantile=0.9, absolute=1.0, recentred=None)
    with pytest.raises(ValueError, match="0 records"):
        choose(small.scorer, "auto", small.records[:0], center, thresholds)
    with pytest.raises(ValueError, match="3 labels"):
        choose(small.scorer, "auto", small.records[:4], center, thresholds, np.zeros(3))


def test_latency_takes_the_best_round(small: Exported) -> None:
    """Every graph gets positive figures from its own rounds, the 99th percentile the larger."""
    center = small.density.mean.astype(np.float32)
    graphs = {"one": small.scorer, "two": small.scorer}
    feeds = {"x": small.records[:1], "center": center}
    times = measure(graphs, feeds, calls=8, rounds=2)
    assert times.keys() == graphs.keys()
    assert all(0 < latency.p50 <= latency.p99 for latency in times.values())
    with pytest.raises(BundleError, match="two"):
        measure({"two": b"no graph"}, feeds, calls=1, rounds=1)


def test_equal_sizes_go_to_the_plainer_form() -> None:
    """A tie in bytes is broken by the order of the table, not by noise of timing."""
    assert chosen("web", TABLE[1], replace(TABLE[2], bytes=50, p50=5.0)) == "fp16"
