"""Discrete latents on MNIST: use of the codes, reconstruction, code length and likelihood.

Two experiments in one. First, an autoencoder whose numbers are rounded (finite scalar
quantisation; Mentzer et al., 2023) against one with a learned codebook that gradients alone move
(van den Oord et al., 2017, without running averages and restarts, which private training forbids).
Both have the same networks, number of codes, numbers of a code and tokens of a record. The code
length of the token prior stands beside that of uniform tokens, which is the logarithm of the
number of codes. Mentzer et al. (figure 3) find that rounding keeps using all codes where a
codebook falls behind as it grows.

Second, on binarised images, a VAE with categorical latents (Jang et al., 2017) against a Gaussian
VAE with the same hidden layers and latent dimensions; the likelihood is the importance-weighted
bound of `fedlatent.simulations.zoo.likelihood` over 200 draws, of hard draws for the categorical
one.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlatent.shared.data.catalog import paths
from fedlatent.shared.models.tokens import code_use
from fedlatent.shared.models.vq import VQVAE
from fedlatent.simulations.zoo.images import binarised, grey, png
from fedlatent.simulations.zoo.likelihood import bounds
from fedlatent.simulations.zoo.training import Watch, fit, run_for

LEVELS = (8, 5, 5, 5)
_POSITIONS = 16
_BOUNDED, _DRAWS = 500, 200  # images whose likelihood is bounded, draws of each
_CHUNK = 1_000  # images of one pass
_SHOWN = 12  # columns of the picture
_QUANTISERS: dict[str, dict[str, object]] = {
    "rounded (fsq)": {"quantiser": "fsq", "levels": LEVELS},
    "codebook": {"quantiser": "codebook", "codes": math.prod(LEVELS), "code_dim": len(LEVELS)},
}
_LATENTS: dict[str, dict[str, object]] = {
    "categorical": {"family": "gumbel", "groups": 16, "categories": 4},
    "Gaussian": {"family": "gaussian", "latent_dim": 64},
}


def experiment(
    data: Path, *, epsilon: float | None, seed: int, quick: bool, watch: Watch
) -> dict[str, Any]:
    """Train two models with tokens and two with latents, and measure them on test images.

    Args:
        data: folder of the data sets.
        epsilon: of each training, or None.
        seed: of weights, samples, noise and binarisations.
        quick: few images and steps.
        watch: told about the progress.
    """
    first, second = paths(data, "mnist")
    train = grey(first, 300 if quick else None)
    test = grey(second, 100 if quick else None)
    options, training, sample_rate = _settings(epsilon, quick=quick)
    found: dict[str, dict[str, float]] = {}
    shown: dict[str, NDArray[np.float32]] = {"originals": test[:_SHOWN]}
    for name, quantiser in _QUANTISERS.items():
        tokens = {"positions": _POSITIONS, "prior_width": 32, "prior_depth": 2}
        watch(name)
        run = run_for(
            "vq",
            {**options, **tokens, **quantiser},
            (28, 28),
            training=training,
            epsilon=epsilon,
            sample_rate=sample_rate,
            seed=seed,
        )
        model = fit(run, train, watch=watch)
        assert isinstance(model, VQVAE)
        found[name] = measure(model, torch.from_numpy(test))
        watch(f"{name}: {found[name]}")
        with torch.no_grad():
            copies = model.reconstruct_tokens(model.tokens(torch.from_numpy(test[:_SHOWN])))
            drawn = model.draw(_SHOWN, torch.Generator().manual_seed(seed))
        shown |= {f"{name}, copies": copies.numpy(), f"{name}, draws": drawn.numpy()}
    nats, draws = _latents(train, test, epsilon=epsilon, seed=seed, quick=quick, watch=watch)
    return {
        "tokens": found,
        "nats, binarised": nats,
        "settings": {**options, **training, "sample_rate": sample_rate, "images": len(train)},
        "picture": shown | draws,
    }


def measure(model: VQVAE, images: torch.Tensor) -> dict[str, float]:
    """Use of codes, reconstruction and code length of images [N, H, W] in [0, 1].

    Returns:
        ``used`` share of the codes and their ``perplexity``; ``mse`` of a pixel and its ``psnr``
        in decibels; ``nll``, nats of a record given its tokens; ``bits`` of a record's tokens
        under the token prior and ``uniform_bits`` without one; ``total_nats``, the code length of
        the whole record.
    """
    tokens, error, nll, rate = [], 0.0, 0.0, 0.0
    with torch.no_grad():
        for x in torch.split(images, _CHUNK):
            eps = torch.zeros(len(x), model.noise_dim)
            terms = model(x, eps)
            tokens.append(model.tokens(x))
            error += float((model.reconstruct_tokens(tokens[-1]) - x).square().sum())
            nll += float(terms.distortion.sum())
            rate += float(terms.rate.sum())
    use, count, mse = code_use(torch.cat(tokens), model.codes), len(images), error / images.numel()
    return {
        "used": use.used,
        "perplexity": use.perplexity,
        "mse": mse,
        "psnr": -10.0 * math.log10(mse),
        "nll": nll / count,
        "bits": rate / count / math.log(2.0),
        "uniform_bits": model.config.positions * math.log2(model.codes),
        "total_nats": (nll + rate) / count,
    }


def picture(found: Mapping[str, NDArray[np.float32]]) -> bytes:
    """One row of images for each name: a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 1.0 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axes, (name, images) in zip(rows, found.items(), strict=True):
        axes.imshow(np.concatenate(list(images), 1), cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(name, fontsize=8, loc="left")
        axes.set_axis_off()
    return png(figure)


def _latents(
    train: NDArray[np.float32],
    test: NDArray[np.float32],
    *,
    epsilon: float | None,
    seed: int,
    quick: bool,
    watch: Watch,
) -> tuple[dict[str, dict[str, float]], dict[str, NDArray[np.float32]]]:
    """Bounds of the likelihood with categorical and with Gaussian latents, and draws of both."""
    options, training, sample_rate = _settings(epsilon, quick=quick)
    images = binarised(test[: 20 if quick else _BOUNDED], np.random.default_rng(0))
    found, draws = {}, {}

    def augment(grey: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        return binarised(grey, np.random.default_rng((seed, number)))

    for name, latents in _LATENTS.items():
        own = {key: value for key, value in latents.items() if key != "family"}
        run = run_for(
            str(latents["family"]),
            {**options, **own},
            (28, 28),
            training=training,
            epsilon=epsilon,
            sample_rate=sample_rate,
            seed=seed,
        )
        watch(name)
        model = fit(run, train, augment=augment, watch=watch)
        found[name] = bounds(model, images, 20 if quick else _DRAWS)
        watch(f"{name}: {found[name]}")
        with torch.no_grad():
            drawn = model.draw(_SHOWN, torch.Generator().manual_seed(seed))
        draws[f"{name}, draws"] = drawn.numpy()
    return found, draws


def _settings(
    epsilon: float | None, *, quick: bool
) -> tuple[dict[str, object], dict[str, object], float]:
    """Options of all models, fields of the training, and the sample rate."""
    options: dict[str, object] = {"likelihood": "bernoulli", "activation": "relu"}
    training: dict[str, object] = {"schedule": "cosine", "ema": 0.8}
    if epsilon is None:
        options |= {"hidden": [512, 256]}
        training |= {"rounds": 40, "steps_per_round": 50, "learning_rate": 1e-3}
        sample_rate = 0.01
    else:
        options |= {"hidden": [256]}
        training |= {"rounds": 10, "steps_per_round": 10, "learning_rate": 3e-3}
        sample_rate = 0.02
    if quick:
        options |= {"hidden": [32]}
        training |= {"rounds": 2, "steps_per_round": 5}
        sample_rate = 0.1
    return options, training, sample_rate
