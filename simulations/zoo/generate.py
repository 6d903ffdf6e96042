"""Synthetic MNIST from latents of N(0, I), of a learned prior, and of a latent diffusion model.

A record is an image with its label beside it, as in `fedlatent.simulations.zoo.generation`; a
classifier learns from synthetic records and names real test images. One model with a diffusion
prior serves twice: its decoder gets latents of N(0, I), or those of its diffusion model. Its first
stage weighs the divergence little, so that reconstructions are sharp and N(0, I) misses where
latents lie. Beside it stand models of their own, trained on the evidence bound: a standard prior, a
learned mixture and a VampPrior. They have a likelihood, too: a bound of 200 draws, of test records
whose pixels are drawn as 0 or 1 from their grey values (Burda et al., 2016, equation 8), comparable
among themselves alone, for a record holds a label. Others report at epsilon 10, trained on all of
MNIST and with their own classifiers: DP-MERF 0.813, DP-GAN 0.927, DP-FETA 0.981 (DPImageBench and
the papers themselves).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlatent.shared.data.archives import read_npz
from fedlatent.shared.data.catalog import paths
from fedlatent.shared.models import VAE
from fedlatent.shared.models.diffusion import LatentDiffusion
from fedlatent.shared.models.priors import Prior, StandardNormal
from fedlatent.simulations.zoo.generation import (
    PIXELS,
    REPORTED,
    accuracy,
    classifier,
    labelled,
    separated,
    sheet,
)
from fedlatent.simulations.zoo.images import binarised, png
from fedlatent.simulations.zoo.likelihood import bounds
from fedlatent.simulations.zoo.training import Watch, fit, run_for

_AT_ONCE = 2_000  # records of one draw
_BOUNDED, _DRAWS = 500, 200  # test records with a likelihood, and latent draws of each
_NETWORK: dict[str, object] = {
    "hidden": [256],
    "latent_dim": 16,
    "activation": "relu",
    "likelihood": "bernoulli",
}
_DIFFUSION: dict[str, object] = {
    "kl_weight": 0.05,
    "width": 128,
    "blocks": 3,
    "levels": 4,
    "steps": 40,
}
#: Models beside the diffusion model, by name: options of family "gaussian".
_OTHERS: dict[str, dict[str, object]] = {
    "VAE, N(0, I)": {},
    "VAE, learned mixture": {"prior": "mixture", "components": 30},
    "VAE, VampPrior": {"prior": "vamp", "components": 5},
}


def experiment(
    data: Path, *, epsilon: float | None, seed: int, quick: bool, watch: Watch
) -> dict[str, Any]:
    """Train each model, draw as many records as it learnt from, and judge them.

    Args:
        data: folder of the data sets.
        epsilon: of each training, or None.
        seed: of weights, samples, noise and draws.
        quick: few images and steps.
        watch: told about the progress.
    """
    train, test = (read_npz(path, ["X", "y"]) for path in paths(data, "mnist"))
    count = 300 if quick else len(train["X"])
    images, classes = train["X"][:count], train["y"][:count].astype(np.int64)
    records = labelled(images, train["y"][:count])
    held_out = labelled(test["X"], test["y"])
    real = held_out[:, :PIXELS], test["y"].astype(np.int64)
    binary = binarised(held_out[: 20 if quick else _BOUNDED], np.random.default_rng(0))
    judge = classifier(records[:, :PIXELS], classes, seed)
    own = accuracy(judge, *real)
    found = {"real data": {"accuracy": own, "agreement": own}}
    drawn: dict[str, NDArray[np.float32]] = {}
    for name, model, prior in _models(records, epsilon, seed, quick=quick, watch=watch):
        made = synthetic(model, prior, count, seed)
        found[name] = {
            "accuracy": accuracy(classifier(*made, seed), *real),
            "agreement": accuracy(judge, *made),
        }
        if not isinstance(model, LatentDiffusion):
            found[name]["nll"] = bounds(model, binary, 10 if quick else _DRAWS)["nll"]
        drawn[name] = sheet(*made)
        watch(f"{name}: {found[name]}")
    return {
        "generation": found,
        "accuracy at epsilon 10, reported": dict(REPORTED),
        "settings": _settings(epsilon, quick=quick) | {"records": count},
        "picture": drawn,
    }


def synthetic(
    model: VAE, prior: Prior, count: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images [count, 784] in [0, 1] and their labels [count], decoded from latents of ``prior``."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    with torch.no_grad():
        for start in range(0, count, _AT_ONCE):
            size = min(_AT_ONCE, count - start)
            eps = torch.randn(size, model.latent_dim, generator=generator)
            uniform = torch.rand(size, generator=generator)
            parts.append(model.reconstruct(prior.sample(eps, uniform)))
    return separated(torch.cat(parts).numpy())


def picture(found: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Draws of every model, one class a line: a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0 * len(found), 3.4), layout="constrained")
    for axes, (name, drawn) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        axes.imshow(drawn, cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(name)
        axes.set_axis_off()
    return png(figure)


def _models(
    records: NDArray[np.float32], epsilon: float | None, seed: int, *, quick: bool, watch: Watch
) -> Iterator[tuple[str, VAE, Prior]]:
    """Each trained model with the prior that its latents come from."""
    settings = _settings(epsilon, quick=quick)

    def trained(family: str, options: Mapping[str, object]) -> VAE:
        run = run_for(
            family,
            {**settings["model"], **options},
            records.shape[1:],
            training=settings["training"],
            epsilon=epsilon,
            sample_rate=settings["sample_rate"],
            seed=seed,
        )
        return fit(run, records, watch=watch)

    watch("latent diffusion")
    model = trained("diffusion", settings["diffusion"])
    yield "first stage, N(0, I)", model, StandardNormal()
    yield "first stage, diffusion", model, model.prior
    for name, options in _OTHERS.items():
        if epsilon is not None and options.get("prior") == "vamp":
            continue  # per-record gradients beside pseudo-inputs take as long as all the others
        watch(name)
        model = trained("gaussian", options)
        yield name, model, model.prior


def _settings(epsilon: float | None, *, quick: bool) -> dict[str, Any]:
    """Options of all models and of the diffusion model, the training and the sample rate."""
    training: dict[str, object] = {"schedule": "cosine", "ema": 0.9}
    diffusion = dict(_DIFFUSION)
    if epsilon is None:
        training |= {"rounds": 45, "steps_per_round": 100, "learning_rate": 1e-3}
    else:
        training |= {"rounds": 80, "steps_per_round": 10, "learning_rate": 3e-3}
        # Fewer weights take less noise; of one record's clipped gradient, the denoiser gets about
        # two thirds with a weight of 4, a fifth with 1.
        diffusion |= {"width": 64, "diffusion_weight": 4.0}
    found: dict[str, Any] = {
        "model": dict(_NETWORK),
        "diffusion": diffusion,
        "training": training,
        "sample_rate": 0.01 if epsilon is None else 0.1,
    }
    if quick:
        found["model"]["hidden"] = [32]
        found["diffusion"] |= {"width": 16, "blocks": 1, "steps": 3}
        training |= {"rounds": 2, "steps_per_round": 5}
        found["sample_rate"] = 0.1
    return found
