"""The experiment on ladders in its quick form."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedlatent.simulations.zoo import ladder


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_quick_figures(data_dir: Path, epsilon: float | None) -> None:
    """The bound of many draws is below that of one; every group counts; there is a picture."""
    found = ladder.experiment(
        data_dir, epsilon=epsilon, seed=0, quick=True, watch=lambda line: None
    )
    assert ladder.picture(found.pop("picture")).startswith(b"\x89PNG")
    json.dumps(found, allow_nan=False)
    figures = found["nats"]["ladder"]
    assert 0 < figures["nll"] < figures["elbo"] < 28 * 28
    assert figures["elbo"] == pytest.approx(figures["distortion"] + figures["rate"])
    assert 0 <= figures["active groups"] <= figures["groups"] == 3


def test_full_runs_have_what_they_promise() -> None:
    """Without privacy there is a deep model of 24 blocks and 32 groups; with it, a ladder."""
    free, private = (ladder.settings(epsilon, quick=False) for epsilon in (None, 8.0))
    assert set(free) == {"ladder", "deep"}
    assert set(private) == {"ladder"}
    assert sum(free["deep"].options["groups"]) == 32  # type: ignore[arg-type]
    assert free["ladder"].draws >= 200
    assert not private["ladder"].deformed


def test_deformed_images_keep_place_and_range() -> None:
    """Deforming moves no image away from its centre and leaves values in [0, 1]."""
    images = np.zeros((50, 28, 28), dtype=np.float32)
    images[:, 10:18, 12:16] = 1.0
    moved = ladder.deformed(images, np.random.default_rng(0))
    assert moved.shape == images.shape
    assert moved.dtype == np.float32
    assert moved.min() >= 0.0
    assert moved.max() <= 1.0
    assert not np.allclose(moved, images, atol=0.05)
    places = np.arange(28) + 0.5
    centre = (moved.sum(1) @ places) / moved.sum((1, 2))
    np.testing.assert_allclose(centre, 14.0, atol=0.3)
