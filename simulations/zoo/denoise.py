"""Denoising of photographs and heart signals by the denoising family, against classical filters.

Images: luminance of 12 Kodak crops of 256x384 pixels with white Gaussian noise of 15 and 25 grey
levels out of 255. Patches of 8x8, less their mean, are denoised one by one, in eight
orientations, and averaged where they overlap. Training patches come from other photographs, those
that scikit-image, scikit-learn and PyWavelets bring. Against BM3D (Dabov et al., 2007; package
`bm3d`) and the best Gaussian blur, by peak signal-to-noise ratio (PSNR) in dB.

Signals: lead MLII of MIT-BIH, 360 samples a second, with white noise and a wandering baseline.
The reference is the recording less its own baseline (two median filters, de Chazal et al., 2004).
Training and test patients differ. Against wavelet shrinkage (Donoho and Johnstone, 1994) with sym8
and the coarsest approximation set to zero, the threshold chosen on the training patients, by the
gain of the signal-to-noise ratio (SNR) in dB.

Every method is told the noise level. With a privacy budget the unit is one patch or one window, and
training ones do not overlap: this protects a patch, not a photograph, and 0.7 s, not a patient.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedlatent.shared.data.archives import read_npz
from fedlatent.shared.data.catalog import paths
from fedlatent.shared.models.denoising import DenoisingVAE
from fedlatent.simulations.zoo.denoise_data import (
    RATE,
    Array,
    assembled,
    best_blur,
    bm3d_of,
    corrupted_strips,
    cut,
    luminance,
    normal,
    photographs,
    psnr,
    reference,
    shrink,
    snr,
)
from fedlatent.simulations.zoo.images import png
from fedlatent.simulations.zoo.training import Watch, fit, run_for

Denoise = Callable[[Array, float], Array]

TURNS = 8  # orientations of a patch
SIDE, STEP = 8, 3  # pixels of a patch, pixels between patches
SIGMAS = (15 / 255, 25 / 255)
WINDOW, HOP = 256, 32  # samples of a window, samples between windows
LEVEL = 0.1  # millivolts, of the noise and of the wander each
_AT_ONCE = 8192
_FACTORS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)  # of the universal threshold
_ROUNDS = 40


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How one of the two models is made and trained.

    Attributes:
        options: Of the denoising family.
        bounds: Of the records' values.
        batch: Records of a step, on average.
        steps: Of the training.
        learning_rate: Of Adam, falling along a cosine.
        beta: Weight of the rate.
    """

    options: dict[str, object]
    bounds: tuple[float, float]
    batch: int
    steps: int
    learning_rate: float
    beta: float


IMAGES = Setting(
    options={
        "preset": "base",
        "shortcut": True,
        "hidden": [512, 512],
        "latent_dim": 64,
        "max_level": 30 / 255,
        "variance": 0.0015,
    },
    bounds=(-1.0, 1.0),
    batch=256,
    steps=8000,
    learning_rate=2e-3,
    beta=0.01,
)
SIGNALS = Setting(
    options={
        "preset": "base",
        "shortcut": True,
        "hidden": [512, 512],
        "latent_dim": 64,
        "corruptions": ["gaussian", "wander"],
        "max_level": 0.15,
        "variance": 0.0015,
    },
    bounds=(-5.0, 5.0),
    batch=256,
    steps=3000,
    learning_rate=2e-3,
    beta=0.01,
)
#: Under a budget: small networks and large samples, for noise grows with the number of weights.
PRIVATE_IMAGES = replace(IMAGES, options={**IMAGES.options, "hidden": [128]}, batch=8192, steps=500)
PRIVATE_SIGNALS = replace(
    SIGNALS,
    options={**SIGNALS.options, "hidden": [32]},
    batch=900,
    steps=300,
    learning_rate=5e-4,
)


def experiment(
    data: Path, *, epsilon: float | None, seed: int, quick: bool, watch: Watch | None = None
) -> dict[str, Any]:
    """Train both models and measure them.

    Args:
        data: Folder of the real data.
        epsilon: Of each training, or None for none.
        seed: Of weights, samples and noise.
        quick: A form of seconds, whose figures mean nothing.
        watch: Gets lines about the progress.
    """
    images, shown = of_images(data, epsilon, seed, quick, watch)
    signals, strip = of_signals(data, epsilon, seed, quick, watch)
    return {"images": images, "signals": signals, "picture": {**shown, "strip": strip}}


def of_images(
    data: Path, epsilon: float | None, seed: int, quick: bool, watch: Watch | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """PSNR in dB by noise level and method, with seconds for all images; and crops to show."""
    step = SIDE if epsilon is not None or quick else 4
    patches = np.concatenate([cut(photo, (SIDE, SIDE), (step, step)) for photo in photographs()])
    patches -= patches.mean((1, 2), keepdims=True)
    setting = IMAGES if epsilon is None else PRIVATE_IMAGES
    model = _train(setting, patches, epsilon, seed, quick, _oriented, watch)
    clean = luminance(read_npz(paths(data, "kodak")[0], ["X"])["X"])[: 1 if quick else None]
    if quick:
        clean = clean[:, :48, :64]
    filters: dict[str, Denoise] = {
        "noisy": lambda noisy, sigma: noisy,
        "blur": lambda noisy, sigma: best_blur(noisy, clean),
        "bm3d": bm3d_of,
        "vae": lambda noisy, sigma: denoise_images(model, noisy, sigma),
    }
    found: dict[str, Any] = {"patches": len(patches), "images": len(clean)}
    shown: dict[str, Any] = {}
    for sigma in SIGMAS:
        noisy = clean + np.float32(sigma) * normal(clean.shape, seed)
        scores, shown = {}, {"clean": clean[-1]}
        for name, denoise in filters.items():
            began = time.perf_counter()
            estimate = np.clip(denoise(noisy, sigma), 0.0, 1.0) if name != "noisy" else noisy
            scores[name] = {
                "psnr_db": psnr(estimate, clean),
                "seconds": time.perf_counter() - began,
            }
            shown[name] = estimate[-1]
        found[f"sigma_{255 * sigma:.0f}"] = scores
    return found, shown


def of_signals(
    data: Path, epsilon: float | None, seed: int, quick: bool, watch: Watch | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """SNR in dB before and after, averaged over test patients; and a strip to show."""
    stored = read_npz(paths(data, "mitbih_strips")[0], ["X"])["X"].astype(np.float32)
    strips = reference(stored[: 6 if quick else None] / np.float32(1000.0))
    held_out = np.arange(len(strips)) % 3 == 2
    train, clean = strips[~held_out], strips[held_out][:, : 20 * WINDOW if quick else None]
    hop = WINDOW if epsilon is not None or quick else HOP
    windows = np.concatenate([cut(strip[None], (1, WINDOW), (1, hop))[:, 0] for strip in train])
    setting = SIGNALS if epsilon is None else PRIVATE_SIGNALS
    model = _train(setting, windows, epsilon, seed, quick, _scaled, watch)
    noisy = corrupted_strips(clean, LEVEL, seed + 1)
    tuned = corrupted_strips(train, LEVEL, seed + 2)
    factor = max(_FACTORS, key=lambda factor: snr(shrink(tuned, LEVEL, factor), train))
    estimates = {
        "noisy": noisy,
        "wavelet": shrink(noisy, LEVEL, factor),
        "vae": denoise_strips(model, noisy, LEVEL),
    }
    ratios = {name: snr(estimate, clean) for name, estimate in estimates.items()}
    found = {
        "windows": len(windows),
        "patients": len(clean),
        "snr_db": ratios,
        "gain_db": {name: ratios[name] - ratios["noisy"] for name in ("wavelet", "vae")},
        "wavelet_factor": factor,
    }
    part = slice(0, 3 * RATE)
    return found, {"clean": clean[1, part], **{k: v[1, part] for k, v in estimates.items()}}


def denoise_images(model: DenoisingVAE, noisy: Array, sigma: float) -> Array:
    """Overlapping patches `[N, H, W]` less their mean, in eight orientations, averaged."""
    found = []
    for image in noisy:
        patches = cut(image, (SIDE, SIDE), (STEP, STEP))
        mean = patches.mean((1, 2), keepdims=True)
        estimate = np.zeros_like(patches)
        for turn in range(TURNS):
            turned = _turned(patches - mean, turn)
            estimate += _turned_back(_apply(model, turned, sigma), turn) / np.float32(TURNS)
        found.append(assembled(estimate + mean, image.shape, (STEP, STEP)))
    return np.stack(found)


def denoise_strips(model: DenoisingVAE, noisy: Array, level: float) -> Array:
    """Overlapping windows of strips `[N, T]`, averaged."""
    found = []
    for strip in noisy:
        windows = cut(strip[None], (1, WINDOW), (1, HOP))
        estimate = _apply(model, windows[:, 0], level)[:, None]
        found.append(assembled(estimate, (1, len(strip)), (1, HOP))[0])
    return np.stack(found)


def _train(
    setting: Setting,
    records: Array,
    epsilon: float | None,
    seed: int,
    quick: bool,
    augment: Callable[[Array, int], Array],
    watch: Watch | None,
) -> DenoisingVAE:
    if quick:
        setting, records = replace(setting, batch=32, steps=5), records[:1000]
    rounds = min(_ROUNDS, setting.steps)
    run = run_for(
        "denoising",
        setting.options,
        records.shape[1:],
        training={
            "rounds": rounds,
            "steps_per_round": setting.steps // rounds,
            "learning_rate": setting.learning_rate,
            "schedule": "cosine",
            "beta": setting.beta,
        },
        epsilon=epsilon,
        sample_rate=min(setting.batch / len(records), 1.0),
        seed=seed,
        bounds=setting.bounds,
    )
    model = fit(run, records, augment=augment, watch=watch)
    if not isinstance(model, DenoisingVAE):
        raise TypeError(f"Expected a DenoisingVAE, got {type(model).__name__}.")
    return model


def _oriented(patches: Array, number: int) -> Array:
    """Each patch in an orientation drawn by itself."""
    turns = np.random.default_rng(number).integers(0, TURNS, len(patches))
    found = np.empty_like(patches)
    for turn in range(TURNS):
        found[turns == turn] = _turned(patches[turns == turn], turn)
    return found


def _scaled(windows: Array, number: int) -> Array:
    """Each window times a factor of 0.5 to 1.5 and a sign, drawn by themselves."""
    generator = np.random.default_rng(number)
    factor = generator.uniform(0.5, 1.5, (len(windows), 1)) * generator.choice(
        [-1, 1], (len(windows), 1)
    )
    scaled: Array = (windows * factor).astype(np.float32)
    return scaled


def _turned(patches: Array, turn: int) -> Array:
    flipped = patches[:, :, ::-1] if turn >= 4 else patches
    turned: Array = np.rot90(flipped, turn % 4, (1, 2))
    return turned


def _turned_back(patches: Array, turn: int) -> Array:
    turned = np.rot90(patches, -(turn % 4), (1, 2))
    back: Array = turned[:, :, ::-1] if turn >= 4 else turned
    return back


def _apply(model: DenoisingVAE, records: Array, level: float) -> Array:
    with torch.no_grad():
        parts = [
            model.denoise(x, x.new_full((len(x),), level))
            for x in torch.split(torch.from_numpy(np.ascontiguousarray(records)), _AT_ONCE)
        ]
    found: Array = torch.cat(parts).numpy()
    return found


def picture(found: Any) -> bytes | None:  # noqa: ANN401
    """Crops side by side over a strip of three seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    names = {"noisy": "noisy, sigma 25", "vae": "denoising VAE", "bm3d": "BM3D", "clean": "clean"}
    grid = figure.add_gridspec(2, len(names), height_ratios=(3, 2))
    for column, (name, label) in enumerate(names.items()):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(found[name][:160, :160], cmap="gray", vmin=0, vmax=1)
        axes.set_title(label)
        axes.set_axis_off()
    axes, strip = figure.add_subplot(grid[1, :]), found["strip"]
    seconds = np.arange(len(strip["clean"])) / RATE
    for height, name in enumerate(("noisy", "wavelet", "vae", "clean")):
        axes.plot(seconds, strip[name] - 1.5 * height, lw=0.8, label=name)
    axes.set_xlabel("seconds")
    axes.set_ylabel("mV, shifted")
    axes.legend(loc="upper right", ncols=4, frameon=False)
    return png(figure)
