"""The comparison of priors for synthetic digits, in its seconds-long form."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedlatent.shared.models import build
from fedlatent.shared.models.priors import StandardNormal
from fedlatent.simulations.zoo import generate
from fedlatent.simulations.zoo.generation import PIXELS


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_every_prior_is_judged(data_dir: Path, epsilon: float | None) -> None:
    """Every model draws records, which two classifiers judge; the picture is a PNG."""
    told: list[str] = []
    found = generate.experiment(data_dir, epsilon=epsilon, seed=0, quick=True, watch=told.append)
    rows = found["generation"]
    variational = {"VAE, N(0, I)", "VAE, learned mixture"}
    variational |= {"VAE, VampPrior"} if epsilon is None else set()
    assert set(rows) == {
        "real data",
        "first stage, N(0, I)",
        "first stage, diffusion",
        *variational,
    }
    assert all(0.0 <= row[key] <= 1.0 for row in rows.values() for key in ("accuracy", "agreement"))
    assert {name for name, row in rows.items() if row.get("nll", 0.0) > 0.0} == variational
    assert rows["real data"]["accuracy"] > 0.5
    assert told
    assert generate.picture(found["picture"]).startswith(b"\x89PNG")


def test_synthetic_records_follow_from_the_seed() -> None:
    """The same seed gives the same images and labels; another gives others."""
    options = {"hidden": [8], "latent_dim": 2, "likelihood": "bernoulli"}
    model = build("gaussian", options, (PIXELS + 60,), 0)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(5.0)
    first, again, other = (generate.synthetic(model, StandardNormal(), 30, s) for s in (1, 1, 2))
    assert first[0].shape == (30, PIXELS)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
