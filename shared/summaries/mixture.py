"""Steps of federated expectation maximisation of a latent mixture."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.privacy.em import next_mixture
from fedlatent.shared.privacy.mixture import LatentMixture
from fedlatent.shared.privacy.robust import LEAST_SITES, temper_stacks
from fedlatent.shared.privacy.summaries import (
    MIXTURE_KEY,
    SummarySpec,
    mixture_moments,
    mixture_spec,
    standard_density,
)
from fedlatent.shared.summaries.base import (
    FAR,
    Replies,
    Summary,
    View,
    When,
    WorstCase,
    latent_case,
    latent_radius,
    scaling_of,
)
from fedlatent.shared.summaries.state import Federated


class Mixture(Summary):
    """Moments of the latents, shared out over the components of the mixture so far."""

    kind = "mixture"
    stream = 4
    keys = (MIXTURE_KEY,)
    label = "moments of each component"
    pooled = "mixture"

    def times(self, run: RunConfig, when: When) -> int:
        """After each release of moments that it starts from anew."""
        summaries = run.summaries
        wanted = when == "end" or (when == "between" and summaries.prior == "mixture")
        return summaries.em_rounds if wanted and summaries.components else 0

    def spec(self, run: RunConfig, latent_dim: int, state: Federated) -> SummarySpec:
        """A symmetric matrix for each component that is left."""
        return mixture_spec(len(_mixture(state).weights), latent_dim)

    def exact(self, run: RunConfig, state: Federated, view: View) -> np.ndarray:
        """The sums of one expectation step."""
        radius = latent_radius(run, view.latents.shape[1])
        return mixture_moments(view.latents, radius, _mixture(state))

    def read(
        self, run: RunConfig, latent_dim: int, arrays: Mapping[str, np.ndarray]
    ) -> LatentMixture:
        """A mixture of so many dimensions."""
        return LatentMixture.checked(arrays, latent_dim)

    def needs(self, run: RunConfig) -> tuple[str, ...]:
        """The mixture so far."""
        return (*scaling_of(run), "mixture")

    def pool(
        self, run: RunConfig, latent_dim: int, state: Federated, replies: Replies
    ) -> Federated:
        """One maximisation step."""
        stacks, sigma = list(replies.sums), replies.sigma
        if replies.weights is not None and len(stacks) >= LEAST_SITES:
            tempered = temper_stacks(stacks, replies.records, replies.weights)
            stacks, sigma = tempered.sums, sigma * math.sqrt(np.square(tempered.factors).mean())
        mixture = next_mixture(
            _mixture(state),
            np.sum(stacks, axis=0),
            radius=latent_radius(run, latent_dim),
            clients=len(stacks),
            noise_multiplier=sigma,
            epsilon=1.0 if replies.epsilon is None else replies.epsilon,
            density=state.density,
        )
        return state.having("mixture", mixture)

    def example(self, run: RunConfig, latent_dim: int) -> LatentMixture:
        """Components so far apart on one axis that a record belongs to one, or to two alike."""
        count = run.summaries.components or 2
        means = np.zeros((count, latent_dim))
        means[:, 0] = [FAR * (1 + place // 2) * (-1) ** place for place in range(count)]
        return LatentMixture(
            weights=np.full(count, 1.0 / count),
            means=means,
            covariances=np.repeat(np.eye(latent_dim)[None], count, axis=0),
        )

    def worst_cases(
        self, run: RunConfig, latent_dim: int, rng: np.random.Generator
    ) -> Iterator[WorstCase]:
        """A latent far out that one component takes whole: shares have no larger norm."""
        state = Federated().having("density", standard_density(latent_dim))
        state = state.having("mixture", self.example(run, latent_dim))
        yield latent_case(run, rng, "moments of a mixture", state)


def _mixture(state: Federated) -> LatentMixture:
    if state.mixture is None:
        raise ProtocolError("Expected a mixture to go on from, got none; ask for moments first.")
    return state.mixture
