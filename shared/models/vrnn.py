"""The step of a variational recurrent network: its networks and what goes through them.

Chung et al., 2015, "A recurrent latent variable model for sequential data", equations 5 to 9.

Shape suffixes: B records, C channels that are modelled, K channels known in advance, W samples of
a step (a patch), k latent dimensions of a step, n numbers of the state.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedlatent.shared.models.functional import per_record
from fedlatent.shared.models.layers import ACTIVATIONS, GRUCell, initialise, mlp
from fedlatent.shared.models.patches import Layout, Patch, SequenceConfig
from fedlatent.shared.models.topdown import Gaussian

LOG_SCALE_MIN, LOG_SCALE_START, LOG_SCALE_MAX = -5.0, -1.0, 3.0
#: Latents start on the scale of the prior; priors and forecasts start where they know nothing.
_POSTERIOR_GAIN, _PRIOR_GAIN, _OUTPUT_GAIN = 1.0, 0.1, 0.1


class Values(NamedTuple):
    """The Gaussian of a patch: mean and logarithm of the deviation, `[B, C, W]`."""

    mean: Tensor
    log_scale: Tensor

    def nll(self, patch: Patch) -> Tensor:
        """Negative log density of each value `[B, C, W]` in nats; 0 where missing."""
        square = ((patch.x - self.mean) * (-self.log_scale).exp()).square()
        return patch.mask * (0.5 * square + self.log_scale + 0.5 * math.log(2.0 * math.pi))


class Read(NamedTuple):
    """What a step makes of values that it sees.

    Attributes:
        context: What the step knew before, `[B, d]`.
        prior: Of its latent, before the values are seen.
        posterior: Of its latent, after.
        z: The draw `[B, k]` of the posterior.
        x: The values `[B, C, W]`, missing ones filled by what the prior expects.
        seen: Features `[B, hidden]` of the values.
    """

    context: Tensor
    prior: Gaussian
    posterior: Gaussian
    z: Tensor
    x: Tensor
    seen: Tensor


class Transition(nn.Module):
    """The learned prior p(z_t | h). As the prior of a single latent it is that of a first step."""

    def __init__(self, config: SequenceConfig, inputs: int) -> None:
        """Make the layers."""
        super().__init__()
        self.inputs = inputs
        widths = (inputs, config.hidden, 2 * config.latent_dim)
        self.head = nn.Sequential(*mlp(widths, config.activation))

    def forward(self, context_Bd: Tensor) -> Gaussian:
        """The Gaussian of the latent `[B, k]` in a context `[B, inputs]`."""
        return Gaussian.of(self.head(context_Bd))

    def rate(self, mu: Tensor, logvar: Tensor, z: Tensor) -> Tensor:
        """Divergence `[B]` in nats between two diagonal Gaussians, in closed form."""
        return Gaussian(mu, logvar).divergence(self._first(z))

    def log_prob(self, z: Tensor) -> Tensor:
        """Logarithm of the density `[B]` at latents `[B, k]`."""
        return self._first(z).log_prob(z)

    def sample(self, eps: Tensor, u: Tensor) -> Tensor:
        """Latents `[N, k]`; ``u`` is not needed."""
        return self._first(eps).at(eps)

    def _first(self, like: Tensor) -> Gaussian:
        first: Gaussian = self(like.new_zeros(like.shape[0], self.inputs))
        return first


class Reader(nn.Module):
    """What reads: features of the values, the posterior, and the recurrent cell."""

    def __init__(self, config: SequenceConfig, values: int, context: int) -> None:
        """Make the layers for so many values and numbers of context."""
        super().__init__()
        hidden, k = config.hidden, config.latent_dim
        self.values = nn.Linear((2 if config.masked else 1) * values, hidden)
        self.activation = ACTIVATIONS[config.activation][0]()
        self.cell = GRUCell(hidden + k + context - config.width, config.width)
        self.posterior = nn.Sequential(*mlp((hidden + context, hidden, 2 * k), config.activation))


class Writer(nn.Module):
    """What writes: mean and scale of the values; with a memory a linear path adds to the mean."""

    def __init__(self, config: SequenceConfig, values: int, context: int) -> None:
        """Make the layers for so many values and numbers of context."""
        super().__init__()
        widths = (config.latent_dim + context, config.hidden, 2 * values)
        self.body = nn.Sequential(*mlp(widths, config.activation))
        self.skip = nn.Linear(context, values, bias=False) if config.memory else None

    def forward(self, z_Bk: Tensor, context_Bd: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the deviation, `[B, C * W]` each."""
        mean, log_scale = self.body(torch.cat([z_Bk, context_Bd], 1)).chunk(2, 1)
        return (mean if self.skip is None else mean + self.skip(context_Bd)), log_scale


class Network(NamedTuple):
    """The parts of one step; a view of a model's modules, so that it holds nothing itself.

    The state `[B, n]` is that of the cell, then the last samples of each channel. The context of a
    step is that state and what is known.
    """

    config: SequenceConfig
    channels: int
    reader: Reader
    transition: Transition
    writer: Writer

    def start(self, like: Tensor) -> Tensor:
        """The state `[B, n]` before the first step of as many records as in `like`."""
        size = self.config.width + self.channels * self.config.held
        return like.new_zeros(like.shape[0], size)

    def context(self, state: Tensor, known: Tensor) -> Tensor:
        """What every head reads, `[B, d]`."""
        return torch.cat([state, known], 1)

    def write(self, z: Tensor, context: Tensor) -> Values:
        """The Gaussian of the values given the latent `[B, k]`."""
        shape = (z.shape[0], self.channels, self.config.patch)
        mean, log_scale = (part.reshape(shape) for part in self.writer(z, context))
        if self.config.season:
            first = self.config.held - self.config.season
            mean = mean + self._past(context)[:, :, first : first + self.config.patch]
        log_scale = log_scale + LOG_SCALE_START
        return Values(mean, log_scale.clamp(LOG_SCALE_MIN, LOG_SCALE_MAX))

    def read(self, patch: Patch, state: Tensor, eps: Tensor | None) -> Read:
        """See values and draw their latent with noise `[B, k]`; the posterior's mean without."""
        context = self.context(state, patch.known)
        prior, x = self.transition(context), patch.x
        if self.config.masked:
            expected = self.write(prior.mean, context).mean
            x = torch.where(patch.mask > 0, x, expected)
        seen = self.features(x, patch.mask)
        posterior = Gaussian.of(self.reader.posterior(torch.cat([seen, context], 1)))
        return Read(context, prior, posterior, posterior.at(eps), x, seen)

    def features(self, x: Tensor, mask: Tensor) -> Tensor:
        """Features `[B, hidden]` of values `[B, C, W]`."""
        parts = [x, mask] if self.config.masked else [x]
        found: Tensor = self.reader.activation(self.reader.values(torch.cat(parts, 1).flatten(1)))
        return found

    def advance(self, step: Read) -> Tensor:
        """The state after values that were seen."""
        return self._next(step.context, step.z, step.x, step.seen)

    def follow(self, context: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """The state after values `[B, C, W]` that the model made itself from a latent."""
        return self._next(context, z, x, self.features(x, torch.ones_like(x)))

    def _next(self, context: Tensor, z: Tensor, x: Tensor, seen: Tensor) -> Tensor:
        width = self.config.width
        given = torch.cat([seen, z, context[:, width:]], 1)
        own: Tensor = self.reader.cell(given, context[:, :width])
        if not self.config.held:
            return own
        kept = torch.cat([self._past(context)[:, :, self.config.patch :], x], 2)
        return torch.cat([own, kept.flatten(1)], 1)

    def imagine(self, state: Tensor, known: Tensor, eps: Tensor) -> tuple[Tensor, Values, Tensor]:
        """Draw a step: values `[B, C, W]`, their Gaussian, and the state after them.

        Args:
            state: `[B, n]`.
            known: `[B, K]`.
            eps: Standard normal noise `[B, k + C * W]`, of the latent first.
        """
        k, context = self.config.latent_dim, self.context(state, known)
        z = self.transition(context).at(eps[:, :k])
        values = self.write(z, context)
        x = values.mean + values.log_scale.exp() * eps[:, k:].reshape(values.mean.shape)
        return x, values, self.follow(context, z, x)

    def _past(self, context: Tensor) -> Tensor:
        """The samples `[B, C, held]` that the state holds."""
        size, held = self.config.width, self.config.held
        past = context[:, size : size + self.channels * held]
        return past.reshape(context.shape[0], self.channels, held)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights."""
        activation = self.config.activation
        initialise(self.reader, activation, generator, _POSTERIOR_GAIN)
        initialise(self.transition, activation, generator, _PRIOR_GAIN)
        initialise(self.writer.body, activation, generator, _OUTPUT_GAIN)
        if self.writer.skip is not None:
            initialise(self.writer.skip, activation, generator, _OUTPUT_GAIN)


class Streaming(nn.Module):
    """One step of a stream, for export; no noise."""

    def __init__(self, network: Network, layout: Layout) -> None:
        """Hold the modules."""
        super().__init__()
        self.parts = nn.ModuleList([network.reader, network.transition, network.writer])
        self.network, self.layout = network, layout

    def forward(self, x_BMW: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values `[B, M, W]` and a state give forecast, deviation, surprise `[B]`, next state."""
        (patch,) = self.layout.patches(x_BMW)
        step = self.network.read(patch, state, None)
        values = self.network.write(step.prior.mean, step.context)
        score = per_record(values.nll(patch))
        return values.mean, values.log_scale.exp(), score, self.network.advance(step)


class Imagining(nn.Module):
    """One step of a forecast, for export; its noise comes from outside."""

    def __init__(self, network: Network) -> None:
        """Hold the modules."""
        super().__init__()
        self.parts = nn.ModuleList([network.reader, network.transition, network.writer])
        self.network = network

    def forward(
        self, state: Tensor, eps: Tensor, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A state, noise and `[B, K]` known give a draw, mean, deviation and the next state."""
        if known is None:
            known = state[:, :0]
        x, values, following = self.network.imagine(state, known, eps)
        return x, values.mean, values.log_scale.exp(), following
