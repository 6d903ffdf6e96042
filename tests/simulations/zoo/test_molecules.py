"""The molecule experiment in its quick form, and its search on a known surface."""

from pathlib import Path

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from fedlatent.simulations.zoo import molecules


def test_quick_form(data_dir: Path) -> None:
    """It gives figures of the model and of every comparison, and a PNG of its draws."""
    found = molecules.experiment(data_dir, epsilon=None, seed=0, quick=True, watch=lambda _: None)
    draws = found["draws"]
    assert draws.keys() == {"model", "pairs of tokens", "uniform tokens", "training molecules"}
    assert draws["training molecules"]["novel"] == 0.0
    assert draws["training molecules"]["FCD"] < draws["uniform tokens"]["FCD"]
    assert draws["uniform tokens"]["valid"] == 1.0
    assert found["search"].keys() == {"QED", "logP"}
    assert found["test"]["distortion, nats"] > 0.0
    image = molecules.picture(found["picture"])
    assert image is not None
    assert image.startswith(b"\x89PNG")


def test_the_search_goes_uphill_and_stays_near() -> None:
    """On a process of a linear property every point gains, none leaving its radius."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=(200, 3))
    kernel = ConstantKernel(1.0) * RBF(3.0) + WhiteKernel(0.01)
    process = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True)
    process.fit(known, known[:, 0])
    starts = rng.normal(size=(20, 3)).astype(np.float32)
    ends = molecules.uphill(process, known, starts, 0.8)
    gains = process.predict(ends) - process.predict(starts.astype(np.float64))
    assert (gains > 0.4).all()
    assert (np.linalg.norm(ends - starts, axis=1) <= 0.8 + 1e-9).all()


def test_diversity_of_equal_molecules_is_none() -> None:
    """Copies have similarity 1."""
    assert molecules.diversity(["CCO", "CCO"]) == 0.0
    assert molecules.diversity(["CCO", "c1ccccc1"]) > 0.4
