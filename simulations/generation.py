"""Synthetic data from a decoder trained under privacy, judged by a classifier that learns from it.

A record is an image with its label beside it, so that one model draws pairs of both and a label is
as private as its image. Whole models leave the clients (``sharing = "full"``), trained under
DP-SGD; latents are drawn from the released Gaussian, the released mixture, or N(0, I). All that
happens after the run is free of privacy cost.

The rate weighs little (beta 0.25): reconstructions are sharper, and the latents leave N(0, I), so
that it takes a released density to draw where the decoder was trained.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedlatent.client.compute import load_weights, run_model
from fedlatent.server.results import RunResult
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.data.readers import read_npz
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.files import write_atomic, write_json
from fedlatent.shared.models.priors import GaussianPrior, MixturePrior, Prior, StandardNormal
from fedlatent.simulations.federation import Progress, simulate

CLASSES = 10
PIXELS = 28 * 28
#: How often a record repeats its label, so that it counts beside 784 pixels.
REPEATS = 6
DELTA = 1e-5
#: Accuracies that others report at epsilon 10, trained in one place on more MNIST images than the
#: 20,000 here and with classifiers of their own (DPImageBench and the papers themselves).
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
_RECORDS = 20_000
_EPOCHS = 8  # of the classifier
_SHOWN = 10  # images of each class in the picture


@dataclass(frozen=True, kw_only=True)
class Rating:
    """How good synthetic records are, by where their latents came from.

    Attributes:
        prior: "N(0, I)", "gaussian", "mixture"; or "real data" for comparison.
        accuracy: share of real test images that a classifier which learnt from the synthetic
            records names right.
        agreement: share of synthetic images that a classifier which learnt from real records names
            as their label says; of real data, its accuracy.
    """

    prior: str
    accuracy: float
    agreement: float


def generation_run(epsilon: float, seed: int, clients: int) -> RunConfig:
    """The run: a Bernoulli VAE of images with labels, whole models shared."""
    return RunConfig.parse(
        {
            "name": "generation",
            "seed": seed,
            "sharing": "full",
            "data": _SCHEMA.to_dict(),
            "model": {
                "options": {
                    "hidden": [256],
                    "latent_dim": 16,
                    "likelihood": "bernoulli",
                    "activation": "relu",
                },
            },
            "privacy": {
                "rng": "simulation",
                "epsilon": epsilon,
                "delta": min(DELTA, clients / (10 * _RECORDS)),
                "sample_rate": 0.1,
                "clip": 1.0,
                "mixture_share": 0.04,
                "moments_share": 0.02,
                "threshold_share": 0.01,
            },
            "training": {
                "rounds": 100,
                "steps_per_round": 10,
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "beta": 0.25,
            },
            "summaries": {"components": 50, "em_rounds": 4},
            "scoring": {"radius": 12.0},
            "federation": {"nodes": clients, "quorum": clients},
        },
        "generation",
    )


def labelled(images: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images [N, 28, 28] with one-hot labels, repeated, as records [N, 784 + 60] in [0, 1]."""
    pixels = images.reshape(len(images), PIXELS).astype(np.float32) / 255.0
    labels = np.tile(np.eye(CLASSES, dtype=np.float32)[classes], REPEATS)
    return np.concatenate([pixels, labels], axis=1)


def priors_of(result: RunResult) -> dict[str, Prior]:
    """What latents can be drawn from after a run."""
    priors: dict[str, Prior] = {
        "N(0, I)": StandardNormal(),
        "gaussian": GaussianPrior.of(result.released.density),
    }
    if result.released.mixture is not None:
        priors["mixture"] = MixturePrior.of(result.released.mixture)
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
    return separated(records.numpy())


def separated(records: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Records [N, 784 + 60] as images [N, 784] and labels [N], the inverse of ``labelled``."""
    labels = records[:, PIXELS:].reshape(-1, REPEATS, CLASSES).mean(axis=1)
    return records[:, :PIXELS], labels.argmax(axis=1)


def sheet(images: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """The first images of each class side by side, a class a line: [280, 280]."""
    found = np.zeros((CLASSES * 28, _SHOWN * 28), dtype=np.float32)
    for label in range(CLASSES):
        for place, image in enumerate(images[labels == label][:_SHOWN]):
            top, left = label * 28, place * 28
            found[top : top + 28, left : left + 28] = image.reshape(28, 28)
    return found


def classifier(
    images: NDArray[np.float32], labels: NDArray[np.int64], seed: int
) -> torch.nn.Sequential:
    """A small network that learnt the labels [N] of ``images`` [N, 784]; torch's generator moves.

    Dropout draws from the global generator, which is seeded first.
    """
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Linear(PIXELS, 256),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.3),
        torch.nn.Linear(256, CLASSES),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(_EPOCHS):
        for part in torch.split(torch.randperm(len(x)), 256):
            loss = torch.nn.functional.cross_entropy(network(x[part]), y[part])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return network.eval()


def accuracy(
    network: torch.nn.Sequential, images: NDArray[np.float32], labels: NDArray[np.int64]
) -> float:
    """Share of ``images`` [M, 784] that ``network`` names as their labels [M] say."""
    with torch.no_grad():
        guess = network(torch.from_numpy(images)).argmax(1).numpy()
    return float((guess == labels).mean())


def evaluate(
    data_dir: Path,
    epsilon: float,
    seed: int,
    clients: int,
    watch: Callable[[Progress], None] | None = None,
) -> tuple[list[Rating], RunResult]:
    """Train at one epsilon and rate each prior, and real training data beside.

    Args:
        data_dir: folder of ``mnist_train20k.npz`` and ``mnist_test10k.npz``.
        epsilon: of the whole run, for each client.
        seed: of weights, noise and draws.
        clients: that the 20,000 records are shared among; one is training in one place.
        watch: told about the progress of the run.
    """
    train = read_npz(data_dir / "mnist_train20k.npz", ["X", "y"])
    test = read_npz(data_dir / "mnist_test10k.npz", ["X", "y"])
    records = labelled(train["X"], train["y"])
    sites = {
        f"client-{i}": Dataset(records=records[i::clients], schema=_SCHEMA) for i in range(clients)
    }
    with tempfile.TemporaryDirectory() as folder:
        run = generation_run(epsilon, seed, clients)
        result = simulate(run, sites, Path(folder), engine="stacked", watch=watch).result
    real = labelled(test["X"], test["y"])[:, :PIXELS], test["y"].astype(np.int64)
    judge = classifier(records[:, :PIXELS], train["y"].astype(np.int64), seed)
    found = []
    for name, prior in priors_of(result).items():
        made = synthetic(result, prior, _RECORDS, seed)
        learnt = accuracy(classifier(*made, seed), *real)
        found.append(Rating(prior=name, accuracy=learnt, agreement=accuracy(judge, *made)))
    own = accuracy(judge, *real)
    return [*found, Rating(prior="real data", accuracy=own, agreement=own)], result


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
        axes.imshow(sheet(images, labels), cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(f"latents from {name}")
        axes.set_axis_off()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def main() -> None:
    """Train, draw, classify; a table, JSON and a picture."""
    parser = argparse.ArgumentParser(
        prog="python -m fedlatent.simulations.generation",
        description="Classifier accuracy on real MNIST after training on synthetic records.",
        epilog="Example: python -m fedlatent.simulations.generation --out runs/gen --seeds 3",
    )
    parser.add_argument("--data", type=Path, help="Folder of the data; default $FEDLATENT_DATA.")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/generation"), help="Gets the figures and a picture."
    )
    parser.add_argument("--epsilon", type=float, default=10.0, help="Of each client.")
    parser.add_argument("--seeds", type=int, default=3, help="How often to repeat it all.")
    parser.add_argument("--clients", type=int, default=1, help="That share the records.")
    parsed = parser.parse_args()
    data = parsed.data or Path(os.environ.get("FEDLATENT_DATA", "../shared/data"))
    ratings: dict[str, list[Rating]] = {}
    plan: object = None
    for seed in range(parsed.seeds):
        found, result = evaluate(data, parsed.epsilon, seed, parsed.clients, _reporter(seed))
        plan = result.facts["plan"]
        for one in found:
            ratings.setdefault(one.prior, []).append(one)
        if seed == 0:
            write_atomic(parsed.out / "samples.png", picture(result, seed))
        write_json(parsed.out / "generation.json", _facts(ratings, parsed.clients, plan))
    print(f"{'latents from':14s}{'accuracy':>16s}{'agreement':>16s}")
    for name, rated in ratings.items():
        columns = [_spread([one.accuracy for one in rated])]
        columns.append(_spread([one.agreement for one in rated]))
        print(f"{name:14s}" + "".join(f"{column:>16s}" for column in columns))
    print(f"reported at epsilon 10, elsewhere: {REPORTED}")


def _facts(
    ratings: Mapping[str, Sequence[Rating]], clients: int, plan: object
) -> dict[str, object]:
    """What is written as JSON: every seed's figures with the plan that they were made under."""
    return {
        "clients": clients,
        "records": _RECORDS,
        "plan": plan,
        "accuracy": {name: [one.accuracy for one in rated] for name, rated in ratings.items()},
        "agreement": {name: [one.agreement for one in rated] for name, rated in ratings.items()},
        "reported": REPORTED,
    }


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {deviation:.3f}"


def _reporter(seed: int) -> Callable[[Progress], None]:
    """Writes a line to stderr after every tenth phase."""

    def report(progress: Progress) -> None:
        if progress.answered == progress.asked and progress.phase % 10 == 0:
            loss = "" if progress.loss is None else f", loss {progress.loss:.1f} nats"
            place = f"phase {progress.phase} of {progress.phases}"
            print(f"seed {seed}: {place}{loss}", file=sys.stderr, flush=True)

    return report


if __name__ == "__main__":
    main()
