"""The experiment on tokens in its quick form."""

import json
import math
from pathlib import Path

import pytest

from fedlatent.simulations.zoo import tokens


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_quick_figures(data_dir: Path, epsilon: float | None) -> None:
    """Both quantisers and both kinds of latents give finite figures and one picture."""
    found = tokens.experiment(
        data_dir, epsilon=epsilon, seed=0, quick=True, watch=lambda line: None
    )
    image = tokens.picture(found.pop("picture"))
    assert image.startswith(b"\x89PNG")
    json.dumps(found, allow_nan=False)
    assert set(found["tokens"]) == {"rounded (fsq)", "codebook"}
    for figures in found["tokens"].values():
        assert 0 < figures["used"] <= 1
        assert 1 <= figures["perplexity"] <= math.prod(tokens.LEVELS)
        assert figures["total_nats"] == pytest.approx(
            figures["nll"] + figures["bits"] * math.log(2)
        )
    for figures in found["nats, binarised"].values():
        assert 0 < figures["nll"] < figures["elbo"] < 28 * 28
