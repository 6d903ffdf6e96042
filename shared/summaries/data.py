"""Summaries of the records themselves, before any model: feature scaling, or a Gaussian."""

from collections.abc import Iterator, Mapping

import numpy as np

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.gaussian import (
    DataGaussian,
    data_features,
    feature_basis,
    feature_radius,
)
from fedlatent.shared.data.scaling import Scaling, bounded_values, features_of, pool_scaling
from fedlatent.shared.privacy.summaries import (
    MOMENTS_KEY,
    SCALING_KEY,
    SummarySpec,
    moments,
    moments_spec,
    scaling_spec,
    scaling_sums,
    standard_density,
)
from fedlatent.shared.summaries.base import OTHERS, Replies, Summary, View, When, WorstCase
from fedlatent.shared.summaries.state import Federated, Part

#: Features of a Gaussian in its worst case.
_FEATURES = 3


class Data(Summary):
    """Mean and deviation of each feature, or a Gaussian of the records' lowest frequencies."""

    kind = "data"
    stream = 3
    keys = (SCALING_KEY, MOMENTS_KEY)
    label = "sums over features"
    sees_model = False

    def times(self, run: RunConfig, when: When) -> int:
        """Once, first of all, so that a model can be given scaled records."""
        return int(when == "start" and run.summaries.data != "none")

    def spec(self, run: RunConfig, latent_dim: int, state: Federated) -> SummarySpec:
        """Sums of first and second moments of features."""
        if run.summaries.data == "scaling":
            return scaling_spec(features_of(run.data))
        return moments_spec(len(feature_basis(run)))

    def exact(self, run: RunConfig, state: Federated, view: View) -> np.ndarray:
        """The sums over preprocessed records."""
        if run.summaries.data == "scaling":
            return scaling_sums(bounded_values(view.records, run.data))
        middle = (run.data.lower + run.data.upper) / 2
        features = data_features(view.records, feature_basis(run), middle)
        return moments(features, feature_radius(run))

    def part(self, run: RunConfig) -> str:
        """Either "scaling", or "data" for a Gaussian."""
        return "scaling" if run.summaries.data == "scaling" else "data"

    def read(self, run: RunConfig, latent_dim: int, arrays: Mapping[str, np.ndarray]) -> Part:
        """A :class:`Scaling` or a :class:`DataGaussian`."""
        if run.summaries.data == "scaling":
            return Scaling.from_arrays(arrays, run.data)
        return DataGaussian.from_arrays(run, arrays)

    def needs(self, run: RunConfig) -> tuple[str, ...]:
        """Nothing: it comes first."""
        return ()

    def pool(
        self, run: RunConfig, latent_dim: int, state: Federated, replies: Replies
    ) -> Federated:
        """The scaling or the Gaussian of all records."""
        pooled: Part
        if run.summaries.data == "scaling":
            pooled = pool_scaling(replies.sums, run.data, replies.sigma, replies.weights)
        else:
            pooled = DataGaussian.pooled(run, replies.sums, replies.sigma, replies.weights)
        return state.having(self.part(run), pooled)

    def example(self, run: RunConfig, latent_dim: int) -> Part:
        """A scaling that changes nothing, or a standard normal law."""
        if run.summaries.data == "scaling":
            features = features_of(run.data)
            return Scaling(mean=np.zeros(features), deviation=np.ones(features))
        density = standard_density(len(feature_basis(run)))
        return DataGaussian.from_arrays(run, density.arrays())

    def worst_cases(
        self, run: RunConfig, latent_dim: int, rng: np.random.Generator
    ) -> Iterator[WorstCase]:
        """A record on its bounds everywhere, under both forms."""
        forms = (("scaling", 1, "feature scaling"), ("gaussian", _FEATURES, "Gaussian of the data"))
        for data, features, name in forms:
            update = {"data": data, "features": features}
            chosen = run.model_copy(update={"summaries": run.summaries.model_copy(update=update)})
            others = rng.normal(0, 1, (OTHERS, *run.data.shape)).astype(np.float32)
            canary = np.full((1, *run.data.shape), run.data.upper, dtype=np.float32)
            present, absent = (
                View(records=np.vstack([others, last]), latents=np.zeros((OTHERS + 1, 0)))
                for last in (canary, np.full_like(canary, np.nan))
            )
            state = Federated()
            yield WorstCase(name=name, run=chosen, state=state, present=present, absent=absent)
