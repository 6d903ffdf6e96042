"""An outside package: a family, a kind of summary, a reader and a strategy."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.asked import Asked, Found
from fedlatent.shared.models import Family
from fedlatent.shared.models.gaussian import PRESETS, GaussianConfig, GaussianVAE
from fedlatent.shared.privacy.summaries import SummarySpec
from fedlatent.shared.summaries import Federated, Replies, View, When, WorstCase
from fedlatent.shared.summaries.base import FAR, OTHERS, Summary


class ShyVAE(GaussianVAE):
    """The Gaussian family with reconstructions that are drawn towards zero."""

    def decode(self, z: Tensor) -> Tensor:
        """Likelihood parameters `[B, parameters, *shape]`."""
        return 0.9 * super().decode(z)


FAMILY = Family(
    about="signals of which little is believed",
    config=GaussianConfig,
    model=ShyVAE,
    presets=PRESETS,
)


class Outside(Summary):
    """How many records have each latent beyond 3."""

    kind, stream, keys, label = "outside", 41, ("summary.outside",), "counts of far latents"

    def times(self, run: RunConfig, when: When) -> int:
        """Once, at the end."""
        return int(when == "end")

    def share(self, run: RunConfig) -> float:
        """A fiftieth of the budget."""
        return 0.02

    def spec(self, run: RunConfig, latent_dim: int, state: Federated) -> SummarySpec:
        """One record moves each count by one."""
        root = float(np.sqrt(latent_dim))
        return SummarySpec(key=self.keys[0], shape=(latent_dim,), sensitivity=root, symmetric=False)

    def exact(self, run: RunConfig, state: Federated, view: View) -> np.ndarray:
        """The counts."""
        counts: np.ndarray = (np.abs(view.latents) > 3.0).sum(axis=0, dtype=np.float64)
        return counts

    def pool(
        self, run: RunConfig, latent_dim: int, state: Federated, replies: Replies
    ) -> Federated:
        """Nothing: the registry's row is all."""
        return state

    def worst_cases(
        self, run: RunConfig, latent_dim: int, rng: np.random.Generator
    ) -> Iterator[WorstCase]:
        """A record far out in every latent."""
        records = np.zeros((OTHERS + 1, *run.data.shape), np.float32)
        latents = rng.normal(0, 1, (OTHERS, latent_dim))
        present, absent = (
            View(records=records, latents=np.vstack([latents, np.full((1, latent_dim), last)]))
            for last in (FAR, np.nan)
        )
        yield WorstCase(name=self.label, run=run, state=Federated(), present=present, absent=absent)


SUMMARY = Outside()


def read(path: Path, asked: Asked) -> Found:
    """A record a line, its numbers apart by bars."""
    return Found(np.loadtxt(path, delimiter="|", ndmin=2), [])


class Middle(FedAvg):
    """In each coordinate the middle between the smallest and the largest weight."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new weights, float64, of all replies' weights."""
        found = [one.content.array_records["arrays"] for one in replies]
        stacks = {key: np.stack([one[key].numpy() for one in found]) for key in found[0]}
        middle = {key: (each.min(axis=0) + each.max(axis=0)) / 2 for key, each in stacks.items()}
        return ArrayRecord({key: Array(value) for key, value in middle.items()}), None


def strategy(hostile: int, count: int) -> Strategy:
    """For so many hostile sites among so many good replies."""
    return Middle(min_train_nodes=1, min_available_nodes=1)
