"""The privacy plan: one frozen object that makes the sampler, the noise and the accounting entry.

The parameters of a guarantee travel together, so that no caller can sample with one rate and
account with another. Server and nodes derive the same plan from the same run configuration.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from fedlatent.shared.config import RunConfig
from fedlatent.shared.privacy.accounting import GaussianEvent, calibrate, epsilon_of, pld_epsilon_of
from fedlatent.shared.privacy.noise import NoiseSource, RngName
from fedlatent.shared.schedule import Kind, phases
from fedlatent.shared.summaries import SUMMARIES, Federated

#: Records over the deviation of a pooled bin's noise below which a threshold is of no use: of
#: gamma distributed scores, that for 0.95 is within a third of its place nine times of ten from 20
#: on, and anywhere below 12.
_DROWNED = 12.0


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """How a whole run is noised and what it costs each client.

    Attributes:
        private: False for a run without differential privacy (every multiplier is then 0).
        delta: delta of every epsilon of this plan.
        clip: L2 bound C of one record's gradient.
        sample_rate: Poisson sampling rate q of one step.
        noise_multiplier: sigma of DP-SGD; the noise on the summed gradient has deviation sigma * C.
        steps_per_round: DP-SGD steps of one round.
        rounds: training rounds.
        summaries: kind, number of releases and sigma of each kind of summary that the run has.
        rng: which random numbers the noise comes from.
    """

    private: bool
    delta: float
    clip: float
    sample_rate: float
    noise_multiplier: float
    steps_per_round: int
    rounds: int
    summaries: tuple[tuple[Kind, int, float], ...]
    rng: RngName

    @classmethod
    def from_config(cls, run: RunConfig) -> Self:
        """Solve for the noise that spends exactly the run's epsilon; deterministic.

        The shares are of ``sum 1/sigma^2`` of a single Gaussian release at (epsilon, delta), for
        all releases of a kind together; what they leave goes to DP-SGD. Without training they are
        proportions. Multipliers are rounded up to four decimals.

        Raises:
            ValueError: the epsilon cannot be reached, or the shares leave nothing for training.
        """
        privacy, training = run.privacy, run.training
        counts = Counter(phase.kind for phase in phases(run))
        rounds = counts.pop("train", 0)
        multipliers, sgd = dict.fromkeys(counts, 0.0), 0.0
        if privacy.mechanism == "dp-sgd":
            multipliers = _summary_multipliers(run, counts, training=rounds > 0)
            if rounds:
                fixed = [
                    GaussianEvent(noise_multiplier=sigma, steps=counts[kind])
                    for kind, sigma in multipliers.items()
                ]
                sgd = _training_multiplier(run, rounds * training.steps_per_round, fixed)
        return cls(
            private=privacy.mechanism == "dp-sgd",
            delta=privacy.delta,
            clip=privacy.clip,
            sample_rate=privacy.sample_rate,
            noise_multiplier=sgd,
            steps_per_round=training.steps_per_round,
            rounds=rounds,
            summaries=tuple((kind, counts[kind], multipliers[kind]) for kind in counts),
            rng=privacy.rng,
        )

    def sample(self, records: int, noise: NoiseSource) -> np.ndarray:
        """Poisson sample of one step: the sorted indices of the chosen records, maybe none."""
        return np.flatnonzero(noise.uniform(records) < self.sample_rate)

    def gradient_noise(self, size: int, noise: NoiseSource) -> np.ndarray:
        """Noise for the sum of clipped gradients, deviation sigma * C; float64 [size]."""
        if not self.private:
            return np.zeros(size)
        return noise.normal(size) * (self.noise_multiplier * self.clip)

    def multiplier(self, kind: Kind) -> float:
        """Sigma of one release of a kind; 0 without privacy.

        Raises:
            KeyError: the run has no such phase.
        """
        if kind == "train":
            return self.noise_multiplier
        return {name: sigma for name, _, sigma in self.summaries}[kind]

    def event(self, kind: Kind) -> GaussianEvent | None:
        """Accounting entry of one phase of a kind; None without privacy."""
        if not self.private:
            return None
        if kind == "train":
            return GaussianEvent(
                noise_multiplier=self.noise_multiplier,
                sample_rate=self.sample_rate,
                steps=self.steps_per_round,
            )
        return GaussianEvent(noise_multiplier=self.multiplier(kind))

    def required(self, kind: Kind) -> GaussianEvent:
        """Accounting entry of one phase of a kind of a private run.

        Raises:
            ValueError: the run is not private.
        """
        event = self.event(kind)
        if event is None:
            raise ValueError("Expected a private run, got one without noise.")
        return event

    def epsilon_of_one(self, kind: Kind) -> float | None:
        """Epsilon of one phase of a kind by itself; None without privacy."""
        event = self.event(kind)
        return None if event is None else epsilon_of([event], self.delta)

    def events(self) -> list[GaussianEvent]:
        """Everything the whole run releases about one client; empty when not private."""
        counts: list[tuple[Kind, int]] = [("train", self.rounds)] if self.rounds else []
        counts += [(kind, count) for kind, count, _ in self.summaries]
        return [
            event
            for kind, count in counts
            for event in [self.event(kind)] * count
            if event is not None
        ]

    def epsilon(self) -> float:
        """Epsilon of the whole run for one client; infinity when not private."""
        return epsilon_of(self.events(), self.delta) if self.private else math.inf

    def pld_epsilon(self) -> float:
        """The same by privacy loss distribution: tighter, and valid since a plan is fixed."""
        return pld_epsilon_of(self.events(), self.delta) if self.private else math.inf


def shares_of(run: RunConfig) -> dict[Kind, float]:
    """Share of the budget of each kind of phase that the run has; they add up to 1.

    Raises:
        ValueError: the summaries leave nothing for training.
    """
    kinds = dict.fromkeys(phase.kind for phase in phases(run))
    shares = {kind: SUMMARIES[kind].share(run) for kind in kinds if kind != "train"}
    total = sum(shares.values())
    if "train" not in kinds:
        return {kind: share / total for kind, share in shares.items()}
    if total >= 1:
        raise ValueError(
            f"Expected shares of the summaries with a sum below 1, got {total:g}; lower them."
        )
    return shares | {"train": 1.0 - total}


def _summary_multipliers(
    run: RunConfig, counts: Counter[Kind], *, training: bool
) -> dict[Kind, float]:
    """Sigma of each kind of summary. Without training the composition fills the whole epsilon."""
    epsilon, delta = run.privacy.epsilon, run.privacy.delta
    # A release that got all of the budget would have sigma 1 here; shares widen that.
    widths = {
        kind: math.sqrt(counts[kind] / share)
        for kind, share in shares_of(run).items()
        if kind in counts
    }
    one = calibrate(
        epsilon,
        delta,
        lambda s: (
            [GaussianEvent(noise_multiplier=s)]
            if training
            else [
                GaussianEvent(noise_multiplier=s * width, steps=counts[kind])
                for kind, width in widths.items()
            ]
        ),
    )
    return {kind: _round_up(one * width) for kind, width in widths.items()}


def _training_multiplier(run: RunConfig, steps: int, fixed: list[GaussianEvent]) -> float:
    """Sigma of DP-SGD that spends what the summaries ``fixed`` leave."""
    privacy = run.privacy
    scale = calibrate(
        privacy.epsilon,
        privacy.delta,
        lambda s: [
            GaussianEvent(noise_multiplier=s, sample_rate=privacy.sample_rate, steps=steps),
            *fixed,
        ],
    )
    return _round_up(scale)


def _round_up(value: float) -> float:
    return math.ceil(value * 1e4) / 1e4


def drowned(run: RunConfig, plan: PrivacyPlan, records: Sequence[int]) -> str | None:
    """What to know before a run whose noise, rather than its records, would place the threshold.

    Args:
        run: The configuration.
        plan: Of the run.
        records: Of each client.

    Returns:
        One sentence, or None where there is nothing to say.
    """
    if "threshold" not in (kind for kind, _, _ in plan.summaries):
        return None
    spec = SUMMARIES["threshold"].spec(run, 0, Federated())
    noise = spec.sensitivity * plan.multiplier("threshold") * math.sqrt(len(records))
    if sum(records) >= _DROWNED * noise:
        return None
    return (
        f"{sum(records)} records of {len(records)} clients are less than {_DROWNED:g} times the "
        f"noise of their histograms of scores ({noise:.3g}): noise would place the threshold, or "
        "leave none at all; take more records, more clients, a larger epsilon or a larger "
        "summaries.threshold_share"
    )
