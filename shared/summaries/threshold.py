"""Histograms of scores, and the thresholds read off them."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ProtocolError
from fedlatent.shared.privacy.summaries import (
    HISTOGRAMS_KEY,
    SummarySpec,
    client_mean,
    histograms,
    squared_distance,
    standard_density,
    threshold_spec,
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
from fedlatent.shared.summaries.scores import measures_of
from fedlatent.shared.summaries.state import Federated

#: Names of the thresholds, in the order of the histograms; the last only of combined scores.
THRESHOLDS = ("absolute", "recentred", "combined")
#: Of its records, that a site must be able to score.
_LEAST_SCORED = 0.5
_ROUNDING = 1e-6


class Threshold(Summary):
    """Counts of each score on public bins: about the common mean, the client's own, combined."""

    kind = "threshold"
    stream = 2
    keys = (HISTOGRAMS_KEY,)
    label = "histograms of scores"
    whole_model = True
    builds_on = "moments"
    closes = True

    def times(self, run: RunConfig, when: When) -> int:
        """Once, at the end of all."""
        return int(when == "end")

    def spec(self, run: RunConfig, latent_dim: int, state: Federated) -> SummarySpec:
        """Two or three histograms."""
        return threshold_spec(len(THRESHOLDS) if run.scoring.combined else 2)

    def exact(self, run: RunConfig, state: Federated, view: View) -> np.ndarray:
        """The counts; a record whose score overflows falls into the last bin."""
        if view.own is None:
            raise ProtocolError("Expected moments of this client before its threshold, got none.")
        density, latents = state.density, view.latents
        center = client_mean(view.own, latent_radius(run, latents.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):
            scores = [
                squared_distance(latents, density.mean, density.precision(recentred=False)),
                squared_distance(latents, center, density.precision(recentred=True)),
            ]
            if state.scores is not None:
                scores.append(state.scores(view.score_parts))
        # A density chosen so that one record's score overflows must not make its presence show.
        scores = [np.where(np.isnan(one), np.inf, one) for one in scores]
        null = ~np.isfinite(latents).all(axis=1)
        return histograms(*(np.where(null, np.nan, one) for one in scores))

    def needs(self, run: RunConfig) -> tuple[str, ...]:
        """What scores are made of."""
        combined = ("scores",) if run.scoring.combined else ()
        return (*measures_of(run), *combined, "density")

    def pool(
        self, run: RunConfig, latent_dim: int, state: Federated, replies: Replies
    ) -> Federated:
        """Thresholds of the federation, and of each client where the run wants them."""
        # scipy's optimisers take a while to load, which a process of one message has not got.
        from fedlatent.shared.privacy.threshold import threshold_from_histogram, threshold_of_sites

        counts, records, quantile = replies.sums, replies.records, run.scoring.quantile
        deviation = threshold_spec(len(counts[0])).sensitivity * replies.sigma

        def read_off(histogram: np.ndarray, total: int, noise: float) -> dict[str, float]:
            return {
                name: threshold_from_histogram(one, quantile, total=total, noise_deviation=noise)
                for name, one in zip(THRESHOLDS, histogram, strict=False)
            }

        if replies.weights is None:
            noise_of_all = deviation * math.sqrt(len(counts))
            thresholds = read_off(np.sum(counts, axis=0), sum(records), noise_of_all)
        else:
            thresholds = {
                name: threshold_of_sites(
                    one,
                    quantile,
                    records=records,
                    weights=replies.weights,
                    noise_deviation=deviation,
                )
                for name, one in zip(THRESHOLDS, np.stack(counts, axis=1), strict=False)
            }
        sites = zip(replies.sites, counts, records, strict=True) if run.scoring.per_client else ()
        own = {site: read_off(one, number, deviation) for site, one, number in sites}
        return replace(state, thresholds=thresholds, site_thresholds=own)

    def fault(self, released: np.ndarray, records: int, reach: float) -> str | None:
        """Each record but null ones falls into one bin of each histogram [scores, bins]."""
        totals, reach_of_total = released.sum(axis=1), reach * math.sqrt(released.shape[1])
        least, most = _LEAST_SCORED * records - reach_of_total, records + reach_of_total
        wrong = totals[(totals < least) | (totals > most + _ROUNDING)]
        if len(wrong):
            return (
                f"Expected histograms of {records} records with {max(least, 0.0):.0f} to "
                f"{most:.0f} counts each, got {wrong[0]:.0f}."
            )
        if float(released.min()) < -reach:
            return f"Expected no count below {-reach:.4g} in a histogram, got {released.min():.4g}."
        return None

    def worst_cases(
        self, run: RunConfig, latent_dim: int, rng: np.random.Generator
    ) -> Iterator[WorstCase]:
        """A latent far out, about a centre at the origin."""
        state = Federated().having("density", standard_density(latent_dim))
        case = latent_case(run, rng, "histograms of scores", state)
        own = np.zeros((latent_dim + 1, latent_dim + 1))
        present, absent = (replace(view, own=own) for view in (case.present, case.absent))
        yield replace(case, present=present, absent=absent)
