"""The attack on a whole federated run."""

from pathlib import Path

import numpy as np

from fedlatent.shared.arrays import Arrays
from fedlatent.simulations.audit.one_run import federated_run, plant
from fedlatent.simulations.audit.run import CANARY_EPSILON, QUICK, Audit
from fedlatent.simulations.audit.transcript import record
from fedlatent.simulations.federation import simulate


def test_bound_stays_below_the_claim_but_finds_something(audit: Audit) -> None:
    """The run spends its epsilon; guesses are far better than chance, and prove less than it."""
    found = audit.canaries
    assert CANARY_EPSILON * 0.999 < found.finding.claimed <= CANARY_EPSILON
    assert found.guesses == QUICK.canaries // 5
    assert found.correct > 0.75 * found.guesses
    assert 0.5 < found.finding.lower < found.finding.claimed


def test_planting_leaves_the_number_of_records_alone() -> None:
    """A canary that is out is a record of NaN: N tells nothing about which canaries are in."""
    run = federated_run(0, 8.0, 1)
    planted, sites = plant(run, 60)
    for site, data in sites.items():
        own = planted[site]
        missing = np.isnan(data.records[-len(own.present) :]).all(axis=1)
        np.testing.assert_array_equal(missing, ~own.present)
    shares = np.concatenate([one.present for one in planted.values()])
    assert 0.2 < shares.mean() < 0.8


def test_transcript_is_that_of_a_simulation(tmp_path: Path) -> None:
    """The overheard run is the run that ``simulate`` does, and each client answers each phase."""
    run = federated_run(0, 8.0, 2)
    _, sites = plant(run, 30)
    rounds: list[Arrays] = []
    expected = simulate(
        run,
        sites,
        tmp_path / "simulated",
        engine="stacked",
        after_round=lambda number, arrays: rounds.append(arrays),
    )
    got = record(run, sites, tmp_path / "overheard")
    for key, value in expected.result.arrays.items():
        np.testing.assert_array_equal(got.result.arrays[key], value)
    kinds = [one.kind for one in got.heard if one.site == next(iter(sites))]
    assert kinds == ["train", "train", "moments", "threshold"]
    assert len(got.heard) == len(kinds) * len(sites)
    assert len(rounds) == 2
