"""Checks of real nodes with secure noise, and the attack with hostile weights."""

from pathlib import Path

import numpy as np
import pytest

from fedlatent.shared.summaries import SUMMARIES
from fedlatent.simulations.audit.checks import MOST_CHECKS
from fedlatent.simulations.audit.hostile import hostile_records, hostile_run, search
from fedlatent.simulations.audit.node_checks import HOMES, OFTEN, training_run
from fedlatent.simulations.audit.nodes import training_rounds
from fedlatent.simulations.audit.run import Audit


def test_every_check_of_a_real_node_holds(audit: Audit) -> None:
    """Noise, samples and ledger of deployed nodes are as stated."""
    assert [one for one in audit.checks if not one.good] == []


def test_real_nodes_are_checked_in_all_they_release(audit: Audit) -> None:
    """Training and every kind of summary is among the checks, in no more than are allowed for."""
    names = [one.name for one in audit.checks]
    for what in ("training", *SUMMARIES):
        assert any(name.startswith(what) and name.endswith(": noise") for name in names)
    assert len(set(names)) == len(names) <= MOST_CHECKS


def test_hostile_weights_prove_nothing_on_a_real_node(audit: Audit) -> None:
    """Weights whose gradients cancel exactly do not tell whether the chosen record is there."""
    (found,) = [one for one in audit.claims if one.name == "real node, hostile weights"]
    assert found.lower < found.claimed < 0.6


@pytest.mark.slow
def test_no_constants_of_ten_thousand_push_a_record_past_its_clip() -> None:
    """The attacker's search on this processor finds nothing."""
    largest, constants = search(hostile_run(), hostile_records(0)[0], 10_000, 0)
    assert largest <= 1.0001, constants


def test_counts_can_be_read_off_a_round(tmp_path: Path) -> None:
    """Shares of records are whole numbers of steps, so that the checks of samples are exact."""
    found = training_rounds(tmp_path, training_run(OFTEN), 1, 1)
    steps = found.entries[0].steps
    assert np.abs(found.shares - found.counts).max() < 0.4
    assert found.counts.min() == 0
    assert found.counts.max() <= steps
    assert found.noise.shape[0] == 2
    assert HOMES > 1
