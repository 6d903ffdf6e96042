"""The report of a storm: recovery times by kind, and every word on what went wrong."""

from fedlatent.simulations.chaos.report import make, table


def test_a_report_has_median_and_worst_and_every_violation() -> None:
    """Times are gathered by kind and by combination; nothing that went wrong is left out."""
    struck = [
        {"kind": "signal", "group": "KILL resident (node)", "recovery_s": seconds}
        for seconds in (1.0, 2.0, 9.0)
    ]
    report = make(
        seed=4,
        seconds=60.0,
        deadline_s=8.0,
        struck=struck,
        runs=[{"run": "chaos-1", "pauses": ["too few nodes"], "state": "completed"}],
        refusals=[],
        violations=["ward-1: charge 3 is lost"],
        lacking={"clock": "there is no C compiler"},
        litter=2,
        tracebacks=["ward-1.log: KeyError"],
    )
    assert report["recovery"]["KILL resident (node)"] == {
        "faults": 3,
        "median_s": 2.0,
        "worst_s": 9.0,
    }
    assert report["pauses"] == 1
    text = table(report)
    assert "| KILL resident (node) | 3 | 2.0 | 9.0 |" in text
    for words in (
        "Seed 4: 3 faults in 60 s",
        "1 invariants violated",
        "charge 3 is lost",
        "KeyError",
        "C compiler",
    ):
        assert words in text
