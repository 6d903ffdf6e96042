"""Synthetic data from a decoder trained under privacy, judged by a classifier that learns from it.

A record is an image with its label beside it, so that one model draws pairs of both and a label is
as private as its image. Whole models leave the clients (``sharing = "full"``), trained under
DP-SGD; latents are drawn from the released Gaussian, the released mixture, or N(0, I). All that
happens after the run is free of privacy cost.

The rate weighs little (beta 0.25): reconstructions are sharper, and the latents leave N(0, I), so
that it takes a released density to draw where the decoder was trained.
"""

from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fedlatent.client.compute import load_weights, run_model
from fedlatent.server.results import RunFolder
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.archives import read_npz
from fedlatent.shared.data.catalog import paths
from fedlatent.shared.data.dataset import Dataset
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models.priors import GaussianPrior, MixturePrior, Prior, StandardNormal
from fedlatent.simulations.federation import simulate
from fedlatent.simulations.study.job import Found, Job
from fedlatent.simulations.study.spec import Cell, Study, bind
from fedlatent.simulations.zoo.images import png

CLASSES = 10
PIXELS = 28 * 28
RECORDS = 20_000  # of the training images
#: How often a record repeats its label, so that it counts beside 784 pixels.
REPEATS = 6
#: Accuracies that others report at epsilon 10, trained in one place on more MNIST images than the
#: 20,000 here and with classifiers of their own (DPImageBench and the papers themselves).
REPORTED = {"DP-MERF": 0.813, "DP-GAN": 0.927, "DP-FETA": 0.981}

SCHEMA = Schema(
    name="digit-and-label",
    shape=(PIXELS + REPEATS * CLASSES,),
    unit="ink",
    scale=1.0,
    center="none",
    lower=0.0,
    upper=1.0,
)
_EPOCHS = 8  # of the classifier
_SHOWN = 10  # images of each class in the picture


def labelled(images: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images [N, 28, 28] with one-hot labels, repeated, as records [N, 784 + 60] in [0, 1]."""
    pixels = images.reshape(len(images), PIXELS).astype(np.float32) / 255.0
    labels = np.tile(np.eye(CLASSES, dtype=np.float32)[classes], REPEATS)
    return np.concatenate([pixels, labels], axis=1)


def priors_of(result: RunFolder) -> dict[str, Prior]:
    """What latents can be drawn from after a run."""
    priors: dict[str, Prior] = {
        "N(0, I)": StandardNormal(),
        "gaussian": GaussianPrior.of(result.released.density),
    }
    if result.released.mixture is not None:
        priors["mixture"] = MixturePrior.of(result.released.mixture)
    return priors


def synthetic(
    result: RunFolder, prior: Prior, count: int, seed: int
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


def generation_run(study: Study, cell: Cell, clients: int) -> RunConfig:
    """The cell's run, with a delta no larger than a tenth of a record's share of a client's."""
    run = bind(study, cell, SCHEMA, clients)
    delta = min(run.privacy.delta, clients / (10 * RECORDS))
    return run.model_copy(update={"privacy": run.privacy.model_copy(update={"delta": delta})})


def generation(job: Job, *, clients: Annotated[int, Field(ge=1)] = 1) -> Found:
    """Train on digits with labels; rate records drawn from each prior, and real ones beside.

    For each prior, ``accuracy`` is the share of real test images that a classifier which learnt
    from the synthetic records names right, and ``agreement`` the share of synthetic images that
    one which learnt from real records names as their label says. Of real data, both are that of
    the latter.

    Args:
        job: whose data folder holds the data set mnist.
        clients: that the 20,000 records are shared among; one is training in one place.
    """
    seed, data = job.cell.seed, job.data_dir
    train, test = (read_npz(path, ["X", "y"]) for path in paths(data, "mnist"))
    records = labelled(train["X"], train["y"])
    sites = {
        f"client-{i}": Dataset(records=records[i::clients], schema=SCHEMA) for i in range(clients)
    }
    run = generation_run(job.study, job.cell, clients)
    simulation = simulate(
        run, sites, job.folder / "simulation", resume=True, engine="stacked", watch=job.tell
    )
    result = simulation.result
    real = labelled(test["X"], test["y"])[:, :PIXELS], test["y"].astype(np.int64)
    judge = classifier(records[:, :PIXELS], train["y"].astype(np.int64), seed)
    found = {}
    for name, prior in priors_of(result).items():
        made = synthetic(result, prior, len(records), seed)
        learnt = accuracy(classifier(*made, seed), *real)
        found[name] = {"accuracy": learnt, "agreement": accuracy(judge, *made)}
    own = accuracy(judge, *real)
    found["real data"] = {"accuracy": own, "agreement": own}
    reported = {name: {"accuracy": value} for name, value in REPORTED.items()}
    return Found(
        figures={"latents from": found, "reported at epsilon 10, elsewhere": reported},
        run=run,
        history=simulation.history,
        picture=picture(result, seed),
    )


def picture(result: RunFolder, seed: int) -> bytes:
    """Draws from each prior, sorted by their label: a PNG."""
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
    return png(figure)
