"""The privacy plan: one frozen object that makes the sampler, the noise and the accounting entry.

The parameters of a guarantee travel together, so that no caller can sample with one rate and
account with another. Server and nodes derive the same plan from the same run configuration.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from shared.config import RunConfig
from shared.privacy.accounting import GaussianEvent, calibrate, epsilon_of
from shared.privacy.noise import NoiseSource, RngName


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
        moments_multiplier: sigma of the latent moments release.
        threshold_multiplier: sigma of the score histogram release.
        rng: which random numbers the noise comes from.
    """

    private: bool
    delta: float
    clip: float
    sample_rate: float
    noise_multiplier: float
    steps_per_round: int
    rounds: int
    moments_multiplier: float
    threshold_multiplier: float
    rng: RngName

    @classmethod
    def from_config(cls, run: RunConfig) -> Self:
        """Solve for the noise that spends exactly the run's epsilon; deterministic.

        The shares are of ``sum 1/sigma^2`` of a single Gaussian release at (epsilon, delta); what
        they leave goes to DP-SGD. Multipliers are rounded up to four decimals.
        """
        privacy, training = run.privacy, run.training
        private = privacy.mechanism == "dp-sgd"
        sgd = moments = threshold = 0.0
        if private:
            one = calibrate(
                privacy.epsilon,
                privacy.delta,
                lambda s: [GaussianEvent(noise_multiplier=s)],
            )
            moments = _round_up(one / math.sqrt(privacy.moments_share))
            threshold = _round_up(one / math.sqrt(privacy.threshold_share))
            fixed = [
                GaussianEvent(noise_multiplier=moments),
                GaussianEvent(noise_multiplier=threshold),
            ]
            steps = training.rounds * training.steps_per_round
            sgd = _round_up(
                calibrate(
                    privacy.epsilon,
                    privacy.delta,
                    lambda s: [
                        GaussianEvent(
                            noise_multiplier=s,
                            sample_rate=privacy.sample_rate,
                            steps=steps,
                        ),
                        *fixed,
                    ],
                )
            )
        return cls(
            private=private,
            delta=privacy.delta,
            clip=privacy.clip,
            sample_rate=privacy.sample_rate,
            noise_multiplier=sgd,
            steps_per_round=training.steps_per_round,
            rounds=training.rounds,
            moments_multiplier=moments,
            threshold_multiplier=threshold,
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

    def round_event(self) -> GaussianEvent:
        """Accounting entry of one training round."""
        return GaussianEvent(
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=self.steps_per_round,
        )

    def moments_event(self) -> GaussianEvent:
        """Accounting entry of the latent moments release."""
        return GaussianEvent(noise_multiplier=self.moments_multiplier)

    def threshold_event(self) -> GaussianEvent:
        """Accounting entry of the score histogram release."""
        return GaussianEvent(noise_multiplier=self.threshold_multiplier)

    def events(self) -> list[GaussianEvent]:
        """Everything the whole run releases about one client; empty when not private."""
        if not self.private:
            return []
        return [
            *[self.round_event()] * self.rounds,
            self.moments_event(),
            self.threshold_event(),
        ]

    def epsilon(self) -> float:
        """Epsilon of the whole run for one client; infinity when not private."""
        return epsilon_of(self.events(), self.delta) if self.private else math.inf


def _round_up(value: float) -> float:
    return math.ceil(value * 1e4) / 1e4
