"""Binarisation, shifts, bounds, and the experiment in its quick form."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedlatent.shared.models import build
from fedlatent.simulations.zoo import likelihood
from fedlatent.simulations.zoo.images import binarised, shifted
from fedlatent.simulations.zoo.likelihood import bounds


def test_binarisation_has_the_grey_value_for_its_mean() -> None:
    """Pixels are 0 or 1, 1 as often as their grey value says, and black and white stay."""
    grey = np.tile(np.array([0.0, 0.25, 1.0], dtype=np.float32), (20_000, 1))
    drawn = binarised(grey, np.random.default_rng(0))
    assert drawn.dtype == np.float32
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert drawn.mean(0) == pytest.approx([0.0, 0.25, 1.0], abs=0.02)


def test_shifts_move_each_image_by_itself() -> None:
    """Every move by up to one pixel occurs equally often, and what comes in is 0."""
    images = np.zeros((9_000, 4, 4), dtype=np.float32)
    images[:, 1, 2] = 1.0
    moved = shifted(images, np.random.default_rng(0))
    assert moved.sum((1, 2)).tolist() == [1.0] * len(images)
    assert moved.mean(0)[:3, 1:] == pytest.approx(np.full((3, 3), 1 / 9), abs=0.02)
    edge = np.zeros((100, 4, 4), dtype=np.float32)
    edge[:, 0] = 1.0
    assert set(shifted(edge, np.random.default_rng(0)).sum((1, 2)).tolist()) == {0.0, 3.0, 4.0}


def test_bounds_are_exact_where_the_decoder_ignores_its_latent() -> None:
    """Logits of 0 make each of 36 pixels cost log 2, whatever the posterior."""
    model = build("gaussian", {"likelihood": "bernoulli", "hidden": [5]}, (6, 6), seed=0)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
    images = binarised(np.full((20, 6, 6), 0.5, dtype=np.float32), np.random.default_rng(0))
    found = bounds(model, images, 2_000)
    assert found["distortion"] == pytest.approx(36 * np.log(2.0), rel=1e-5)
    assert found["nll"] == pytest.approx(36 * np.log(2.0), abs=0.3)
    assert found["elbo"] > found["nll"]


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_experiment_runs_in_its_quick_form(epsilon: float | None, data_dir: Path) -> None:
    """Both objectives are trained and bounded, and their draws make a picture."""
    lines: list[str] = []
    found = likelihood.experiment(data_dir, epsilon=epsilon, seed=0, quick=True, watch=lines.append)
    assert list(found["nats"]) == ["VAE", "IWAE, 5 draws"]
    for rated in found["nats"].values():
        assert 0.0 < rated["nll"] < rated["elbo"]
        assert rated["elbo"] == pytest.approx(rated["distortion"] + rated["rate"])
    assert lines
    assert likelihood.picture(found["picture"]).startswith(b"\x89PNG")
