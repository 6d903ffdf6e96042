"""Whether single latents follow single factors of sprites: VAE, beta-VAE and rising capacity.

The sprites are drawn here from four known factors: every combination of 3 shapes, 8 scales and
16 x 16 places, one image each. They are like dSprites (Higgins et al., 2017) without its rotation,
which looks alike at several levels for two of the shapes, and on a field that is wider than high:
where two factors weigh the same, nothing ties the latents to one rotation of them (Rolinek et al.,
2019, "Variational autoencoders pursue PCA directions (by accident)"). The measure is the mutual
information gap of the posterior means (Chen et al., 2018). Locatello et al. (2019, "Challenging
common assumptions") find that seeds matter as much as methods, so each setting is trained three
times.
"""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlatent.shared.models import VAE
from fedlatent.shared.models.disentanglement import information, mutual_information_gap
from fedlatent.simulations.zoo.images import png
from fedlatent.simulations.zoo.training import Watch, fit, run_for

FACTORS = ("shape", "scale", "x", "y")
HEIGHT, WIDTH = 22, 26  # pixels
LEVELS = (3, 8, 16, 16)
LATENTS = 6

_OBJECTIVES: dict[str, dict[str, object]] = {
    "beta 1": {},
    "beta 4": {"beta": 4.0},
    "beta 8": {"beta": 8.0},
    "beta 16": {"beta": 16.0},
    "capacity 8": {"beta": 30.0, "capacity": 8.0},
}
_PRIVATE = ("beta 1", "beta 8", "capacity 8")
_SEEDS = 3
_SHOWN = 9  # steps of a traversal


def experiment(
    data: Path, *, epsilon: float | None, seed: int, quick: bool, watch: Watch
) -> dict[str, Any]:
    """Train every setting on all sprites and measure the gap of its posterior means.

    Args:
        data: not read, for the sprites are drawn here.
        epsilon: of each training, or None.
        seed: of weights, samples and noise; each setting takes three seeds from it on, or one
            with a budget.
        quick: few sprites and steps, one seed, two settings.
        watch: told about the progress.
    """
    images, factors = sprites()
    names = list(_OBJECTIVES)
    seeds = [_SEEDS * seed + number for number in range(_SEEDS)]
    if epsilon is not None:
        names, seeds = list(_PRIVATE), seeds[:1]
    if quick:
        images, factors, names, seeds = images[::13], factors[::13], names[:2], seeds[:1]
    options, training, sample_rate = _settings(epsilon, quick=quick)
    found: dict[str, dict[str, object]] = {}
    told: dict[str, dict[str, float]] = {}
    walks: dict[str, NDArray[np.float32]] = {}
    for name in names:
        rated: list[dict[str, float]] = []
        for number in seeds:
            run = run_for(
                "gaussian",
                options,
                (HEIGHT, WIDTH),
                training={**training, **_OBJECTIVES[name]},
                epsilon=epsilon,
                sample_rate=sample_rate,
                seed=number,
            )
            model = fit(run, images)
            rated.append(_rate(model, images, factors))
            watch(f"{name}, seed {number}: {rated[-1]}")
            if number == seeds[0]:
                codes = _codes(model, images)
                best = information(codes, factors).max(0)
                told[name] = dict(zip(FACTORS, best.tolist(), strict=True))
                walks[name] = traversals(model, codes, factors)
        found[name] = _summary(rated)
    settings = {**options, **training, "sample_rate": sample_rate, "images": len(images)}
    return {
        "by setting": found,
        "share of a factor that one latent tells, first seed": told,
        "settings": settings,
        "picture": walks,
    }


def sprites() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Every sprite [6144, 22, 26] in [0, 1] with its levels of `FACTORS` [6144, 4]."""
    grid = np.meshgrid(*map(np.arange, LEVELS), indexing="ij")
    factors = np.stack([axis.ravel() for axis in grid], axis=1)
    shape, scale, right, down = (factors[:, column, None, None] for column in range(4))
    radius = 3.5 + 2.5 * scale / (LEVELS[1] - 1)
    across = np.arange(WIDTH)[None, None, :] - _place(right / (LEVELS[2] - 1), WIDTH)
    along = np.arange(HEIGHT)[None, :, None] - _place(down / (LEVELS[3] - 1), HEIGHT)
    distance = np.select(
        [shape == 0, shape == 1],
        [_square(across, along, radius), _ellipse(across, along, radius)],
        _triangle(across, along, radius),
    )
    # The share of a pixel that the shape covers, near enough.
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32), factors


def traversals(
    model: VAE, codes: NDArray[np.float64], factors: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Reconstructions [F, 9, 22, 26] along the latent that tells each factor most.

    The other latents stay at those of the first image nearest the centre of all factors.

    Args:
        model: trained.
        codes: posterior means [N, k] of all sprites.
        factors: their levels [N, F].
    """
    middle = np.abs(factors / factors.max(0) - 0.5).sum(1).argmin()
    walks = []
    for latent in information(codes, factors).argmax(0):
        z = np.repeat(codes[middle, None], _SHOWN, axis=0)
        z[:, latent] = np.quantile(codes[:, latent], np.linspace(0.02, 0.98, _SHOWN))
        with torch.no_grad():
            walks.append(model.reconstruct(torch.from_numpy(z.astype(np.float32))).numpy())
    return np.stack(walks)


def picture(found: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Traversals of every setting: a PNG with a row for each factor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 1.9), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, walks) in zip(panels, found.items(), strict=True):
        sheet = walks.transpose(0, 2, 1, 3).reshape(len(walks) * HEIGHT, -1)
        axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(name, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks(HEIGHT * (np.arange(len(walks)) + 0.5), FACTORS, fontsize=7)
    return png(figure)


def _rate(model: VAE, images: NDArray[np.float32], factors: NDArray[np.int64]) -> dict[str, float]:
    """Gap, and mean distortion and rate in nats at one draw of fixed noise."""
    x = torch.from_numpy(images)
    eps = torch.randn(len(x), model.noise_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        terms = model(x, eps)
    return {
        "gap": mutual_information_gap(_codes(model, images), factors),
        "distortion": float(terms.distortion.mean()),
        "rate": float(terms.rate.mean()),
    }


def _codes(model: VAE, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Posterior means [N, k]."""
    with torch.no_grad():
        return model.encode(torch.from_numpy(images))[0].numpy().astype(np.float64)


def _summary(rated: list[dict[str, float]]) -> dict[str, object]:
    gaps = [one["gap"] for one in rated]
    means = {key: statistics.fmean(one[key] for one in rated) for key in rated[0]}
    return {**means, "gaps": gaps}


def _settings(
    epsilon: float | None, *, quick: bool
) -> tuple[dict[str, object], dict[str, object], float]:
    """Options of the model, fields of the training, and the sample rate."""
    options: dict[str, object] = {
        "likelihood": "bernoulli",
        "activation": "relu",
        "hidden": [128, 128],
        "latent_dim": LATENTS,
    }
    training: dict[str, object] = {"schedule": "cosine", "learning_rate": 1e-3}
    if epsilon is None:
        training |= {"rounds": 30, "steps_per_round": 100}
        sample_rate = 0.01
    else:
        options["hidden"] = [128]
        training |= {"rounds": 50, "steps_per_round": 20, "learning_rate": 3e-3}
        sample_rate = 0.1
    if quick:
        training |= {"rounds": 2, "steps_per_round": 5}
        sample_rate = 0.1
    return options, training, sample_rate


_Field = NDArray[Any]
_MARGIN = 7.0  # from the centre of a shape to the border


def _place(share: _Field, size: int) -> _Field:
    """Pixel of a centre that is so far from the first place to the last."""
    return _MARGIN + share * (size - 1 - 2 * _MARGIN)


def _square(across: _Field, along: _Field, radius: _Field) -> _Field:
    """Distance in pixels from the edge, below 0 inside; as the others."""
    distance: _Field = np.maximum(np.abs(across), np.abs(along)) - 0.9 * radius
    return distance


def _ellipse(across: _Field, along: _Field, radius: _Field) -> _Field:
    """Twice as wide as high; to first order near the edge."""
    place = np.hypot(across / radius, along / (0.5 * radius))
    slope = np.hypot(across / radius**2, along / (0.5 * radius) ** 2)
    distance: _Field = place * (place - 1.0) / np.maximum(slope, 1e-9)
    return distance


def _triangle(across: _Field, along: _Field, radius: _Field) -> _Field:
    """Equal sides, one of them at the bottom."""
    side = np.sqrt(0.75) * np.abs(across) - 0.5 * along
    distance: _Field = np.maximum(side, along) - 0.6 * radius
    return distance
