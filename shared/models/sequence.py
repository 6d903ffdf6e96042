"""The sequence family: a recurrent latent variable model that trains, streams and forecasts.

Chung et al., 2015, "A recurrent latent variable model for sequential data": each step has a latent
with a learned prior p(z_t | h), h the recurrent state of all steps before; a posterior
q(z_t | x_t, h); and a Gaussian p(x_t | z_t, h). A step reads a patch of neighbouring samples.

Shape suffixes: B records, C channels that are modelled, M all channels of a record, K channels
known in advance, T samples, W samples of a step (a patch), S steps, k latent dimensions of a step,
n numbers of the state.
"""

from typing import cast

import torch
from torch import Tensor

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models.base import VAE, Graph, Terms
from fedlatent.shared.models.functional import per_record
from fedlatent.shared.models.patches import Layout, Patch, SequenceConfig
from fedlatent.shared.models.vrnn import (
    Imagining,
    Network,
    Read,
    Reader,
    Streaming,
    Transition,
    Values,
    Writer,
)

PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"width": 32, "hidden": 32, "latent_dim": 4},
    "small": {"width": 64, "hidden": 64, "latent_dim": 8},
    "base": {"width": 128, "hidden": 128, "latent_dim": 16},
}


class SequenceVAE(VAE):
    """A variational recurrent network (Chung et al., 2015).

    `encode` summarises a record by the mean over time of its posteriors, and `decode` unrolls one
    latent that stays the same in all steps. Training, `surprise`, `forecast` and both exported
    graphs take the same step.

    Args:
        config: The architecture.
        input_shape: `(T,)`, or `(M, T)` with the modelled channels first, then their masks where
            there are any, then the known ones.
        generator: Where initial weights come from.

    Raises:
        ConfigError: The options do not fit the shape.
    """

    def __init__(
        self, config: SequenceConfig, input_shape: tuple[int, ...], generator: torch.Generator
    ) -> None:
        """Build the layers and draw their weights."""
        super().__init__()
        self.config, self.input_shape = config, input_shape
        self.latent_dim = config.latent_dim
        self.layout = Layout.of(config, input_shape)
        self.steps = input_shape[-1] // config.patch
        values = self.layout.channels * config.patch
        context = config.width + self.layout.channels * config.held + config.known
        with torch.device("meta"):
            self.encoder = Reader(config, values, context)
            self.decoder = Writer(config, values, context)
            self.prior = Transition(config, context)
        self.to_empty(device="cpu")
        self.network.initialise(generator)

    @property
    def network(self) -> Network:
        """The parts of a step."""
        return Network(
            self.config,
            self.layout.channels,
            cast(Reader, self.encoder),
            cast(Transition, self.prior),
            cast(Writer, self.decoder),
        )

    @property
    def noise_dim(self) -> int:
        """One latent for each step."""
        return self.steps * self.latent_dim

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means over time of posterior mean and log variance, `[B, k]` each; no noise."""
        found = [step.posterior for step in self._read(self.layout.patches(x), None)]
        mean_BSk = torch.stack([one.mean for one in found], 1)
        return mean_BSk.mean(1), torch.stack([one.logvar for one in found], 1).mean(1)

    def decode(self, z: Tensor) -> Tensor:
        """Mean and log deviation `[B, 2, C, T]`, unrolled on means; known channels are 0."""
        network = self.network
        state, known = network.start(z), z.new_zeros(z.shape[0], self.config.known)
        found = []
        for _ in range(self.steps):
            context = network.context(state, known)
            values = network.write(z, context)
            found.append(torch.stack(values, 1))
            state = network.follow(context, z, values.mean)
        return torch.cat(found, 3)

    def reconstruct(self, z: Tensor) -> Tensor:
        """Mean record `[B, *shape]`, all observed; known channels are 0."""
        record = self.layout.record(self.decode(z)[:, 0])
        return record.reshape(-1, *self.input_shape)

    def distortion(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Negative log likelihood `[B]` in nats of the values observed."""
        return per_record(Values(decoded[:, 0], decoded[:, 1]).nll(self.layout.split(x)))

    def reconstruction_error(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Sum of squared errors of the values observed."""
        whole = self.layout.split(x)
        return per_record(whole.mask * (whole.x - decoded[:, 0]).square())

    def forward(self, x: Tensor, eps: Tensor) -> Terms:
        """Distortion and rate `[B]` of records `[B, *shape]` with noise `[B, S * k]`."""
        network, distortions, rates = self.network, [], []
        patches = self.layout.patches(x)
        for patch, step in zip(patches, self._read(patches, eps), strict=True):
            values = network.write(step.z, step.context)
            distortions.append(per_record(values.nll(patch)))
            if self.sampled:
                rates.append(step.posterior.log_prob(step.z) - step.prior.log_prob(step.z))
            else:
                rates.append(step.posterior.divergence(step.prior))
        return Terms(torch.stack(distortions, 1).sum(1), torch.stack(rates, 1).sum(1))

    def surprise(self, x: Tensor) -> Tensor:
        """How unexpected each sample is, `[B, T]`: its negative log density in nats.

        Summed over channels; each step is forecast from the steps before, with the prior's mean as
        its latent; missing values give 0.
        """
        found, patches = [], self.layout.patches(x)
        for patch, step in zip(patches, self._read(patches, None), strict=True):
            values = self.network.write(step.prior.mean, step.context)
            found.append(values.nll(patch).sum(1))
        return torch.cat(found, 1)

    def forecast(
        self,
        history: Tensor,
        horizon: int,
        samples: int,
        generator: torch.Generator,
        known: Tensor | None = None,
    ) -> Tensor:
        """Draw what follows: `[B, samples, C, horizon]`.

        Args:
            history: `[B, M, L]`, or `[B, L]`, of any length from one patch on; what is over of
                whole patches is cut at the beginning.
            horizon: Samples to draw.
            samples: Paths of each record.
            generator: Of the draws.
            known: Channels known in advance `[B, K, horizon]`; 0 where not given.

        Raises:
            ConfigError: The history is shorter than a patch.
        """
        if history.shape[-1] < self.config.patch:
            raise ConfigError(
                f"Expected a history of at least {self.config.patch} samples, got "
                f"{history.shape[-1]}; give a longer one."
            )
        read = self._read(self.layout.patches(history), None)
        state = self.network.advance(read[-1]).repeat_interleave(samples, 0)
        if known is None:
            known = history.new_zeros(history.shape[0], self.config.known, horizon)
        x = self._imagine(state, known.repeat_interleave(samples, 0), generator)
        return x.reshape(-1, samples, self.layout.channels, horizon)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """New records `[count, *shape]`, step after step, noise of the values included."""
        like = next(self.parameters()).new_zeros(count, self.config.known, self._length)
        x = self._imagine(self.network.start(like), like, generator)
        return self.layout.record(x).reshape(count, *self.input_shape)

    def graphs(self) -> dict[str, Graph]:
        """One step of a stream, and one of a forecast."""
        config, network = self.config, self.network
        state = network.start(torch.zeros(2))
        noise = config.latent_dim + self.layout.channels * config.patch
        x = torch.zeros(2, self.layout.all, config.patch)
        known = {"known": torch.zeros(2, config.known)} if config.known else {}
        return {
            "step": Graph(
                module=Streaming(network, self.layout),
                inputs={"x": x, "state": state},
                outputs=("mean", "scale", "score", "next_state"),
            ),
            "imagine": Graph(
                module=Imagining(network),
                inputs={"state": state, "eps": torch.zeros(2, noise), **known},
                outputs=("x", "mean", "scale", "next_state"),
            ),
        }

    @property
    def _length(self) -> int:
        return self.steps * self.config.patch

    def _read(self, patches: list[Patch], eps: Tensor | None) -> list[Read]:
        """All steps."""
        network, k = self.network, self.latent_dim
        state, found = network.start(patches[0].x), list[Read]()
        for number, patch in enumerate(patches):
            # No layer is called whose result is not used: Opacus pairs calls with gradients.
            if number:
                state = network.advance(found[-1])
            noise = None if eps is None else eps[:, number * k : (number + 1) * k]
            found.append(network.read(patch, state, noise))
        return found

    def _imagine(self, state: Tensor, known: Tensor, generator: torch.Generator) -> Tensor:
        """Draw values `[B, C, T]` from a state on, with known channels `[B, K, T]`."""
        network, samples, found = self.network, known.shape[2], []
        size = self.latent_dim + self.layout.channels * self.config.patch
        for first in range(0, samples, self.config.patch):
            eps = torch.randn(state.shape[0], size, generator=generator).to(state)
            x, _, state = network.imagine(state, known[:, :, first], eps)
            found.append(x)
        return torch.cat(found, 2)[:, :, :samples]
