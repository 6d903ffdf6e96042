"""The experiment on early exits in its quick form."""

import json
from pathlib import Path

import pytest

from fedlatent.simulations.zoo import early_exit


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_quick_figures(data_dir: Path, epsilon: float | None) -> None:
    """Skipped work rises with the threshold, from nothing to the whole trunk; areas are shares."""
    found = early_exit.experiment(
        data_dir, epsilon=epsilon, seed=0, quick=True, watch=lambda line: None
    )
    assert early_exit.picture(found.pop("picture")).startswith(b"\x89PNG")
    json.dumps(found, allow_nan=False)
    rows = list(found["thresholds"].values())
    skipped = [row["skipped on normal beats"] for row in rows]
    assert skipped == sorted(skipped)
    assert skipped[0] == 0.0
    assert skipped[-1] == found["multiply-adds"]["of it skipped on an easy beat"] > 0.8
    assert rows[0]["lost auroc"] == 0.0
    assert all(0.0 <= row["auroc"] <= 1.0 for row in rows)
    assert found["best"]["lost auroc"] <= 0.01
    assert all(times["median"] > 0 for times in found["microseconds a normal beat"].values())


def test_best_skips_most_within_the_allowed_loss() -> None:
    """A threshold that loses more than 0.01 of the area is not chosen."""
    found = {
        "0": {"skipped on normal beats": 0.0, "lost auroc": 0.0},
        "0.5": {"skipped on normal beats": 0.8, "lost auroc": 0.009},
        "1": {"skipped on normal beats": 0.99, "lost auroc": 0.02},
    }
    assert early_exit.best(found)["threshold"] == 0.5
