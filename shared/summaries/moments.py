"""Moments of the latents: the density by which everything is scored, and the prior in training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedlatent.shared.config import RunConfig
from fedlatent.shared.privacy.em import first_mixture
from fedlatent.shared.privacy.robust import pooled_density
from fedlatent.shared.privacy.summaries import (
    DIAGONAL_KEY,
    MOMENTS_KEY,
    Form,
    LatentDensity,
    SummarySpec,
    choose_form,
    diagonal_moments,
    diagonal_spec,
    moments,
    moments_spec,
    standard_density,
)
from fedlatent.shared.summaries.base import (
    Replies,
    Summary,
    View,
    When,
    WorstCase,
    latent_case,
    latent_radius,
)
from fedlatent.shared.summaries.state import Federated, form_of


class Moments(Summary):
    """First and second moments of the latents, with all products or each dimension by itself."""

    kind = "moments"
    stream = 1
    keys = (MOMENTS_KEY, DIAGONAL_KEY)
    label = "latent moments"
    pooled = "density"

    def times(self, run: RunConfig, when: When) -> int:
        """At the end, and between rounds where the run releases a prior."""
        return int(when != "start")

    def spec(self, run: RunConfig, latent_dim: int, state: Federated) -> SummarySpec:
        """A symmetric matrix, or two vectors in one."""
        return (moments_spec if state.form == "full" else diagonal_spec)(latent_dim)

    def exact(self, run: RunConfig, state: Federated, view: View) -> np.ndarray:
        """The sums over latents clipped to the public radius."""
        of_form = moments if state.form == "full" else diagonal_moments
        return of_form(view.latents, latent_radius(run, view.latents.shape[1]))

    def form(
        self,
        run: RunConfig,
        latent_dim: int,
        state: Federated,
        records: Sequence[float],
        clients: int,
        epsilon: float | None,
    ) -> Form:
        """As the run says, or by what the clients' records bear."""
        if run.summaries.moments != "auto":
            return run.summaries.moments
        if epsilon is None or not len(records):
            return "full"
        return choose_form(int(sum(records)), clients, epsilon, latent_dim)

    def read(
        self, run: RunConfig, latent_dim: int, arrays: Mapping[str, np.ndarray]
    ) -> LatentDensity:
        """A density of so many dimensions with positive covariances."""
        return LatentDensity.checked(arrays, latent_dim)

    def pool(
        self, run: RunConfig, latent_dim: int, state: Federated, replies: Replies
    ) -> Federated:
        """The density of all latents; a first mixture is spread over it."""
        radius = latent_radius(run, latent_dim)
        density = pooled_density(replies.sums, radius, replies.sigma, replies.weights)
        released = dict(zip(replies.nodes, replies.sums, strict=True))
        state = replace(state, form=form_of(released), moments=released)
        if run.summaries.components:
            mixture = first_mixture(density, run.summaries.components, run.seed)
            state = state.having("mixture", mixture)
        return state.having("density", density)

    def example(self, run: RunConfig, latent_dim: int) -> LatentDensity:
        """A standard normal law."""
        return standard_density(latent_dim)

    def worst_cases(
        self, run: RunConfig, latent_dim: int, rng: np.random.Generator
    ) -> Iterator[WorstCase]:
        """A latent far out on an axis, in both forms."""
        state = Federated().having("density", standard_density(latent_dim))
        forms: tuple[Form, ...] = ("full", "diagonal")
        for form in forms:
            yield latent_case(run, rng, f"moments, {form}", replace(state, form=form))
