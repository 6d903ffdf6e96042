"""The sprites and the experiment on them."""

from pathlib import Path

import numpy as np
import pytest

from fedlatent.simulations.zoo import disentangle
from fedlatent.simulations.zoo.disentangle import FACTORS, HEIGHT, LEVELS, WIDTH, sprites


def test_sprites_are_every_combination_once() -> None:
    """Images differ pairwise, lie in [0, 1], and no shape covers the border."""
    images, factors = sprites()
    assert images.shape == (np.prod(LEVELS), HEIGHT, WIDTH)
    assert len(np.unique(factors, axis=0)) == len(factors)
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    assert images.min() == 0.0
    assert images.max() == 1.0
    border = np.ones((HEIGHT, WIDTH), dtype=bool)
    border[1:-1, 1:-1] = False
    assert images[:, border].max() < 0.9


def test_factors_say_what_is_drawn() -> None:
    """The centre of ink follows x and y, and ink grows with the scale."""
    images, factors = sprites()
    ink = images.sum((1, 2))
    across = (images.sum(1) * np.arange(WIDTH)).sum(1) / ink
    along = (images.sum(2) * np.arange(HEIGHT)).sum(1) / ink
    for place, column in ((across, 2), (along, 3)):
        assert np.corrcoef(place, factors[:, column])[0, 1] > 0.99
    for shape in range(LEVELS[0]):
        mine = factors[:, 0] == shape
        means = [ink[mine & (factors[:, 1] == scale)].mean() for scale in range(LEVELS[1])]
        assert means == sorted(means)


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_experiment_runs_in_its_quick_form(epsilon: float | None, tmp_path: Path) -> None:
    """Every setting gets a gap in [0, 1] and traversals of each factor, which make a picture."""
    lines: list[str] = []
    found = disentangle.experiment(
        tmp_path, epsilon=epsilon, seed=0, quick=True, watch=lines.append
    )
    for rated in found["by setting"].values():
        assert 0.0 <= rated["gap"] <= 1.0
        assert rated["distortion"] > 0.0
    walks = found["picture"]
    assert all(walk.shape[0] == len(FACTORS) for walk in walks.values())
    assert len(lines) == len(walks)
    assert disentangle.picture(walks).startswith(b"\x89PNG")
