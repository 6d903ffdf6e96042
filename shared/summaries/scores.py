"""A density of the parts of the combined score."""

from collections.abc import Iterator, Mapping

import numpy as np

from fedlatent.shared.config import RunConfig
from fedlatent.shared.detection.density import (
    ScoreDensity,
    pool_scores,
    score_centres,
    score_names,
    score_radius,
    statistics,
)
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.privacy.summaries import (
    MOMENTS_KEY,
    SummarySpec,
    moments,
    moments_spec,
    standard_density,
)
from fedlatent.shared.summaries.base import (
    OTHERS,
    Replies,
    Summary,
    View,
    When,
    WorstCase,
    scaling_of,
)
from fedlatent.shared.summaries.state import Federated


class Scores(Summary):
    """Moments of the score's parts, each mapped to a bounded range."""

    kind = "scores"
    stream = 5
    keys = (MOMENTS_KEY,)
    label = "moments of the score's parts"
    pooled = "scores"
    whole_model = True

    def times(self, run: RunConfig, when: When) -> int:
        """Once at the end, of runs with a combined score."""
        return int(when == "end" and run.scoring.combined)

    def spec(self, run: RunConfig, latent_dim: int, state: Federated) -> SummarySpec:
        """A symmetric matrix over the parts."""
        return moments_spec(len(score_names(run)))

    def exact(self, run: RunConfig, state: Federated, view: View) -> np.ndarray:
        """The sums over mapped parts."""
        if not view.score_parts:
            raise ProtocolError(
                f"Expected a request that {self.kind!r} can answer, got another one."
            )
        names, k = score_names(run), view.latents.shape[1]
        mapped = statistics(view.score_parts, names, score_centres(run, k))
        mapped[~np.isfinite(view.latents).all(axis=1)] = np.nan
        return moments(mapped, score_radius(len(names)))

    def read(
        self, run: RunConfig, latent_dim: int, arrays: Mapping[str, np.ndarray]
    ) -> ScoreDensity:
        """A density of the run's parts."""
        return ScoreDensity.of(run, latent_dim, arrays)

    def needs(self, run: RunConfig) -> tuple[str, ...]:
        """What the parts are measured against."""
        return (*measures_of(run), "density")

    def pool(
        self, run: RunConfig, latent_dim: int, state: Federated, replies: Replies
    ) -> Federated:
        """The density of all records' parts."""
        names, centres = score_names(run), score_centres(run, latent_dim)
        pooled = pool_scores(replies.sums, names, centres, replies.sigma, replies.weights)
        return state.having("scores", pooled)

    def example(self, run: RunConfig, latent_dim: int) -> ScoreDensity:
        """A standard normal law of the parts."""
        density = standard_density(len(score_names(run)))
        return ScoreDensity.of(run, latent_dim, density.arrays())

    def worst_cases(
        self, run: RunConfig, latent_dim: int, rng: np.random.Generator
    ) -> Iterator[WorstCase]:
        """Parts so large that all of them map to the end of the scale."""
        canary = np.append(np.zeros(OTHERS), np.inf)
        parts = {name: rng.uniform(0.5, 2.0, OTHERS + 1) + canary for name in score_names(run)}
        records = np.zeros((OTHERS + 1, *run.data.shape), np.float32)
        latents = np.zeros((OTHERS + 1, latent_dim))
        missing = latents.copy()
        missing[-1] = np.nan
        present, absent = (
            View(records=records, latents=seen, score_parts=parts) for seen in (latents, missing)
        )
        yield WorstCase(
            name="parts of the score", run=run, state=Federated(), present=present, absent=absent
        )


def measures_of(run: RunConfig) -> tuple[str, ...]:
    """The parts about records that a score looks at."""
    return ("data",) if run.summaries.data == "gaussian" else scaling_of(run)
