"""Negative log likelihood of binarised MNIST: a VAE against the same network trained as IWAE.

A pixel is 1 with the probability of its grey value, drawn anew every round of training
("dynamic" binarisation; Salakhutdinov and Murray, 2008); test images are binarised once, from a
fixed seed. The likelihood is the importance-weighted bound of 500 draws (Burda et al., 2016,
equation 8). Literature, one layer of 50 latents and 60,000 images instead of the 20,000 here: VAE
87.8 and IWAE with 50 draws 84.6 nats (Burda et al., 2016, table 1, bound of 5,000 draws). With a
third of the images the network overfits, so that without privacy training images are moved by up
to one pixel in most rounds; the last ones see them as they are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlatent.shared.data.catalog import paths
from fedlatent.shared.models import VAE
from fedlatent.shared.models.objective import iwae
from fedlatent.simulations.zoo.images import binarised, grey, png, sheet, shifted
from fedlatent.simulations.zoo.training import Watch, fit, run_for

#: In nats, of others, trained on 60,000 images (Burda et al., 2016, table 1).
REPORTED = {"VAE": 87.8, "IWAE, 50 draws": 84.6}

_TEST, _TRAIN_TEST = 2_000, 500  # images whose likelihood is bounded
_DRAWS = 500
_AT_ONCE = 8  # images of one pass
_SHOWN = 64  # draws in the picture
_MOVED = 0.7  # share of the rounds in which training images are moved
_OBJECTIVES: dict[str, dict[str, object]] = {
    "VAE": {},
    "IWAE, 5 draws": {"objective": "iwae", "multiplicity": 5},
}


def experiment(
    data: Path, *, epsilon: float | None, seed: int, quick: bool, watch: Watch
) -> dict[str, Any]:
    """Train under both objectives and bound the likelihood of test images.

    Args:
        data: folder of the data sets.
        epsilon: of each training, or None.
        seed: of weights, binarisations, samples and noise.
        quick: few images and steps.
        watch: told about the progress.
    """
    first, second = paths(data, "mnist")
    train = grey(first, 500 if quick else None)
    test = binarised(grey(second, 40 if quick else _TEST), _rng(0))
    known = binarised(train[: 40 if quick else _TRAIN_TEST], _rng(1))
    options, training, sample_rate = _settings(epsilon, quick=quick)
    draws, training_rounds = 20 if quick else _DRAWS, int(str(training["rounds"]))
    found: dict[str, dict[str, float]] = {}
    drawn: dict[str, NDArray[np.float32]] = {}

    def augment(images: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        rng, moving = _rng(seed, number), epsilon is None and number < _MOVED * training_rounds
        return binarised(shifted(images, rng) if moving else images, rng)

    for name, objective in _OBJECTIVES.items():
        run = run_for(
            "gaussian",
            options,
            (28, 28),
            training={**training, **objective},
            epsilon=epsilon,
            sample_rate=sample_rate,
            seed=seed,
        )
        watch(name)
        model = fit(run, train, augment=augment, watch=watch)
        found[name] = {
            **bounds(model, test, draws),
            "train_nll": bounds(model, known, draws)["nll"],
        }
        watch(f"{name}: {found[name]}")
        with torch.no_grad():
            drawn[name] = model.draw(_SHOWN, torch.Generator().manual_seed(seed)).numpy()
    return {
        "nats": found,
        "reported, 60,000 images": {name: {"nll": value} for name, value in REPORTED.items()},
        "settings": {**options, **training, "sample_rate": sample_rate, "images": len(train)},
        "picture": drawn,
    }


def bounds(model: VAE, images: NDArray[np.float32], draws: int) -> dict[str, float]:
    """Means over binary images [N, H, W], in nats: the bound of many draws, and of one.

    Args:
        model: whose rate is a logarithm of densities.
        images: binary.
        draws: of each image; their noise has a fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    sums = np.zeros(3)
    with torch.no_grad():
        for x in torch.split(torch.from_numpy(images), _AT_ONCE):
            eps = torch.randn(draws, len(x), model.noise_dim, generator=generator)
            terms = model(x, eps[0])
            parts = iwae(model, x, eps), terms.distortion, terms.rate
            sums += [float(part.sum()) for part in parts]
    nll, distortion, rate = (sums / len(images)).tolist()
    return {"nll": nll, "elbo": distortion + rate, "distortion": distortion, "rate": rate}


def picture(found: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Draws of each model, side by side: a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(found), 3.9), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, images) in zip(panels, found.items(), strict=True):
        axes.imshow(sheet(images), cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(name)
        axes.set_axis_off()
    return png(figure)


def _settings(
    epsilon: float | None, *, quick: bool
) -> tuple[dict[str, object], dict[str, object], float]:
    """Options of the model, fields of the training, and the sample rate."""
    options: dict[str, object] = {"likelihood": "bernoulli", "activation": "relu"}
    training: dict[str, object] = {"schedule": "cosine", "ema": 0.9}
    if epsilon is None:
        options |= {"hidden": [500, 300], "latent_dim": 40}
        training |= {"rounds": 100, "steps_per_round": 200, "learning_rate": 2e-3}
        sample_rate = 0.005
    else:
        options |= {"hidden": [256], "latent_dim": 16}
        training |= {"rounds": 40, "steps_per_round": 10, "learning_rate": 3e-3}
        sample_rate = 0.1
    if quick:
        options |= {"hidden": [32], "latent_dim": 8}
        training |= {"rounds": 2, "steps_per_round": 5}
        sample_rate = 0.1
    return options, training, sample_rate


def _rng(*seeds: int) -> np.random.Generator:
    return np.random.default_rng(seeds)
