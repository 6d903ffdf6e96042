"""Synthetic data from a decoder trained under privacy, judged by a classifier that learns from it.

A record is an image with its label beside it, so that one model draws pairs of both. The decoder
leaves the clients (``sharing = "full"``), trained under DP-SGD; latents are drawn from the released
Gaussian, the released mixture, or N(0, I). All that happens after the run is free of privacy cost.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.compute import load_weights, run_model
from server.results import RunResult
from shared.config import RunConfig
from shared.data.dataset import Dataset
from shared.data.readers import read_npz
from shared.data.schema import Schema
from shared.errors import ConfigError
from shared.files import write_atomic, write_json
from shared.models.priors import GaussianPrior, MixturePrior, Prior, StandardNormal
from simulations.federation import simulate

CLASSES = 10
PIXELS = 28 * 28
#: How often a record repeats its label, so that it counts beside 784 pixels.
REPEATS = 10
DELTA = 1e-5
#: Accuracies that others report at epsilon 10, for the same classifier task (DPImageBench and the
#: papers themselves).
REPORTED = {"DP-MERF": 0.813, "DP-GAN": 0.927, "DP-FETA": 0.981}

_SCHEMA = Schema(
    name="digit-and-label",
    shape=(PIXELS + REPEATS * CLASSES,),
    unit="ink",
    scale=1.0,
    center="none",
    lower=0.0,
    upper=1.0,
)
_SHOWN = 10  # images of each class in the picture


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Of a classifier on real test images, by what it learnt from.

    Attributes:
        prior: "N(0, I)", "gaussian", "mixture" or "real data".
        accuracy: share of real test images that are named right.
    """

    prior: str
    accuracy: float


def generation_run(epsilon: float, seed: int, clients: int) -> RunConfig:
    """The run: a Bernoulli VAE of images with labels, whole models shared."""
    return RunConfig.parse(
        {
            "name": "generation",
            "seed": seed,
            "sharing": "full",
            "data": _SCHEMA.to_dict(),
            "model": {
                "options": {"hidden": [256], "latent_dim": 16, "likelihood": "bernoulli"},
            },
            "privacy": {
                "rng": "simulation",
                "epsilon": epsilon,
                "delta": min(DELTA, clients / 200_000),
                "sample_rate": 0.2,
                "clip": 1.0,
                "mixture_share": 0.1,
                "moments_share": 0.05,
                "threshold_share": 0.01,
            },
            "training": {"rounds": 40, "steps_per_round": 10, "learning_rate": 4e-3, "ema": 0.5},
            "summaries": {"components": 30, "em_rounds": 4},
            "federation": {"nodes": clients, "quorum": clients},
        },
        "generation",
    )


def labelled(images: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images [N, 28, 28] with one-hot labels, repeated, as records [N, 884] in [0, 1]."""
    pixels = images.reshape(len(images), PIXELS).astype(np.float32) / 255.0
    labels = np.tile(np.eye(CLASSES, dtype=np.float32)[classes], REPEATS)
    return np.concatenate([pixels, labels], axis=1)


def priors_of(result: RunResult) -> dict[str, Prior]:
    """What latents can be drawn from after a run."""
    priors: dict[str, Prior] = {
        "N(0, I)": StandardNormal(),
        "gaussian": GaussianPrior.of(result.density),
    }
    if result.mixture is not None:
        priors["mixture"] = MixturePrior.of(result.mixture)
    return priors


def synthetic(
    result: RunResult, prior: Prior, count: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images [count, 784] in [0, 1] and labels [count] from the released decoder.

    Raises:
        ConfigError: the run kept its decoders.
    """
    run = result.config
    if not run.shares_decoder:
        raise ConfigError(
            f"Expected a run that shares whole models for new data, got sharing {run.sharing!r}; "
            "set sharing to 'full'."
        )
    model = run_model(run)
    load_weights(model, result.arrays, whole=True)
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(count, model.latent_dim, generator=generator)
    with torch.no_grad():
        records = model.reconstruct(prior.sample(eps, torch.rand(count, generator=generator)))
    values = records.numpy()
    labels = values[:, PIXELS:].reshape(count, REPEATS, CLASSES).mean(axis=1)
    return values[:, :PIXELS], labels.argmax(axis=1)


def classifier_accuracy(
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    test: NDArray[np.float32],
    truth: NDArray[np.uint8],
    seed: int,
) -> float:
    """Accuracy on real images [M, 784] of a small network that learnt from ``images`` [N, 784]."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Linear(PIXELS, 256),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.3),
        torch.nn.Linear(256, CLASSES),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-5)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(8):
        for part in torch.split(torch.randperm(len(x)), 256):
            loss = torch.nn.functional.cross_entropy(network(x[part]), y[part])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    network.eval()
    with torch.no_grad():
        guess = network(torch.from_numpy(test)).argmax(1).numpy()
    return float((guess == truth).mean())


def evaluate(
    data_dir: Path, epsilon: float, seed: int, clients: int, count: int = 20_000
) -> tuple[list[Accuracy], RunResult]:
    """Train at one epsilon and rate each prior, and real training data beside.

    Args:
        data_dir: folder of ``mnist_train20k.npz`` and ``mnist_test10k.npz``.
        epsilon: of the whole run, for each client.
        seed: of weights, noise and draws.
        clients: that the 20,000 records are shared among; one is training in one place.
        count: synthetic records.
    """
    train = read_npz(data_dir / "mnist_train20k.npz", ["X", "y"])
    test = read_npz(data_dir / "mnist_test10k.npz", ["X", "y"])
    records = labelled(train["X"], train["y"])
    sites = {
        f"client-{i}": Dataset(records=records[i::clients], schema=_SCHEMA) for i in range(clients)
    }
    with tempfile.TemporaryDirectory() as folder:
        run = generation_run(epsilon, seed, clients)
        result = simulate(run, sites, Path(folder), engine="stacked").result
    real, truth = labelled(test["X"], test["y"])[:, :PIXELS], test["y"]
    found = []
    for name, prior in priors_of(result).items():
        images, labels = synthetic(result, prior, count, seed)
        rated = classifier_accuracy(images, labels, real, truth, seed)
        found.append(Accuracy(prior=name, accuracy=rated))
    own, names = records[:, :PIXELS], train["y"].astype(np.int64)
    rated = classifier_accuracy(own, names, real, truth, seed)
    return [*found, Accuracy(prior="real data", accuracy=rated)], result


def picture(result: RunResult, seed: int) -> bytes:
    """Draws from each prior, sorted by their label: a PNG."""
    import io

    from matplotlib.figure import Figure

    priors = priors_of(result)
    figure = Figure(figsize=(3.4 * len(priors), 3.8), layout="constrained")
    for axes, (name, prior) in zip(
        figure.subplots(1, len(priors), squeeze=False)[0], priors.items(), strict=True
    ):
        images, labels = synthetic(result, prior, 2_000, seed)
        sheet = np.zeros((CLASSES * 28, _SHOWN * 28), dtype=np.float32)
        for label in range(CLASSES):
            for place, image in enumerate(images[labels == label][:_SHOWN]):
                top, left = label * 28, place * 28
                sheet[top : top + 28, left : left + 28] = image.reshape(28, 28)
        axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(f"latents from {name}")
        axes.set_axis_off()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def main() -> None:
    """``python -m simulations.generation``: train, draw, classify; a table, JSON and a picture."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.generation",
        description="Classifier accuracy on real MNIST after training on synthetic records.",
        epilog="Example: python -m simulations.generation --out runs/generation --seeds 3",
    )
    parser.add_argument("--data", type=Path, help="Folder of the data; default $FEDLATENT_DATA.")
    parser.add_argument("--out", type=Path, default=Path("runs/generation"))
    parser.add_argument("--epsilon", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=10, help="That share the records.")
    parsed = parser.parse_args()
    data = parsed.data or Path(os.environ.get("FEDLATENT_DATA", "../shared/data"))
    values: dict[str, list[float]] = {}
    for seed in range(parsed.seeds):
        print(f"seed {seed + 1} of {parsed.seeds}", file=sys.stderr, flush=True)
        found, result = evaluate(data, parsed.epsilon, seed, parsed.clients)
        for one in found:
            values.setdefault(one.prior, []).append(one.accuracy)
        if seed == 0:
            write_atomic(parsed.out / "samples.png", picture(result, seed))
    facts = {
        "epsilon": parsed.epsilon,
        "clients": parsed.clients,
        "delta": DELTA,
        "accuracy": values,
        "reported": REPORTED,
    }
    write_json(parsed.out / "generation.json", facts)
    for name, rated in values.items():
        spread = statistics.stdev(rated) if len(rated) > 1 else 0.0
        print(f"{name:10s} {statistics.fmean(rated):.3f} ± {spread:.3f}")
    print(json.dumps({"reported at epsilon 10": REPORTED}))


if __name__ == "__main__":
    main()
