"""The molecule family: strings of tokens, read by convolutions and written by a recurrent decoder.

A record is a row of token indices as floats; index 0 ends the string. Whatever indices come, one
public grammar turns them into a molecule (`fedlatent.shared.data.selfies_tokens`).

Shape suffixes: B records, T tokens of a record, V vocabulary with the stop token, e embedding,
k latent dimensions, h state of the decoder.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import functional
from fedlatent.shared.models.base import LOGVAR_MAX, LOGVAR_MIN, VAE, Terms
from fedlatent.shared.models.layers import ACTIVATIONS, GRUCell, conv_encoder, initialise
from fedlatent.shared.models.networks import (
    Options,
    choice,
    whole,
    wholes,
    wrong_option,
)

PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"embedding": 16, "channels": (32, 32), "hidden": 64, "latent_dim": 16},
    "small": {"embedding": 32, "channels": (64, 64), "hidden": 128, "latent_dim": 32},
    "base": {"embedding": 48, "channels": (64, 128), "hidden": 256, "latent_dim": 48},
}


@dataclass(frozen=True, kw_only=True)
class MoleculeConfig(Options):
    """What a `MoleculeVAE` is made of.

    Attributes:
        vocabulary: Number V of tokens with the stop token; indices run from 0 to V - 1.
        first_atom: Least index that a molecule may begin with; those below lay out its structure.
        embedding: Width of a token's vector.
        channels: Of the encoder's strided convolutions over the tokens.
        hidden: Width of the decoder's state.
        latent_dim: Number of latent dimensions.
        activation: Of the encoder: "tanh", "relu", "gelu" or "silu".
    """

    vocabulary: int = whole(71, 2)
    first_atom: int = whole(17)
    embedding: int = whole(32)
    channels: tuple[int, ...] = wholes((64, 64))
    hidden: int = whole(128)
    latent_dim: int = whole(32)
    activation: str = choice("relu", ACTIVATIONS)

    def __post_init__(self) -> None:
        """Check every field, and that they go together.

        Raises:
            ConfigError: A field has the wrong type or lies outside its range.
        """
        super().__post_init__()
        if self.first_atom >= self.vocabulary:
            raise wrong_option(
                "first_atom",
                f"Expected first_atom below the vocabulary of {self.vocabulary}, got "
                f"{self.first_atom}; give the index of an atom.",
            )


class TokenEncoder(nn.Module):
    """One-hot tokens `[B, T, V]` to posterior parameters `[B, 2k]`."""

    def __init__(self, config: MoleculeConfig, length: int) -> None:
        """Make the layers for records of `length` tokens."""
        super().__init__()
        self.embed = nn.Linear(config.vocabulary, config.embedding)
        shape = (config.embedding, length)
        layers = conv_encoder(shape, config.channels, 2 * config.latent_dim, config.activation)
        self.network = nn.Sequential(*layers)

    def forward(self, tokens_BTV: Tensor) -> Tensor:
        """Posterior mean and log variance side by side, `[B, 2k]`."""
        out: Tensor = self.network(self.embed(tokens_BTV).transpose(1, 2))
        return out


class TokenDecoder(nn.Module):
    """Writes tokens one after another, each from the latent and all before it.

    The state starts from the latent, and the latent is read again at each step.
    """

    def __init__(self, config: MoleculeConfig) -> None:
        """Make the layers."""
        super().__init__()
        self.embed = nn.Linear(config.vocabulary, config.embedding)
        self.start = nn.Linear(config.latent_dim, config.hidden)
        self.cell = GRUCell(config.embedding + config.latent_dim, config.hidden)
        self.head = nn.Linear(config.hidden, config.vocabulary)

    def begin(self, z_Bk: Tensor) -> Tensor:
        """First state `[B, h]`."""
        state: Tensor = torch.tanh(self.start(z_Bk))
        return state

    def forced(self, z_Bk: Tensor, tokens_BTV: Tensor) -> Tensor:
        """Logits `[B, T, V]` of each token, given the latent and the true tokens before it."""
        length = tokens_BTV.shape[1]
        before_BTV = torch.cat([torch.zeros_like(tokens_BTV[:, :1]), tokens_BTV[:, :-1]], 1)
        latent_BTk = z_Bk[:, None, :].expand(-1, length, -1)
        inputs_BTi = torch.cat([self.embed(before_BTV), latent_BTk], 2)
        state_Bh, states = self.begin(z_Bk), []
        for step in range(length):
            state_Bh = self.cell(inputs_BTi[:, step], state_Bh)
            states.append(state_Bh)
        logits_BTV: Tensor = self.head(torch.stack(states, 1))
        return logits_BTV

    def free(self, z_Bk: Tensor, length: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits `[B, T, V]`, each step reading what `choose` made of the logits before.

        Args:
            z_Bk: Latents.
            length: Number T of steps.
            choose: From logits `[B, V]` to one-hot tokens `[B, V]`.
        """
        state_Bh, found = self.begin(z_Bk), []
        before_BV = z_Bk.new_zeros(z_Bk.shape[0], self.head.out_features)
        for _ in range(length):
            state_Bh = self.cell(torch.cat([self.embed(before_BV), z_Bk], 1), state_Bh)
            found.append(self.head(state_Bh))
            before_BV = choose(found[-1])
        return torch.stack(found, 1)


class MoleculeVAE(VAE):
    """Gaussian latent of a token string, autoregressive decoder with teacher forcing.

    The shape of Gomez-Bombarelli et al., 2018, "Automatic Chemical Design Using a Data-Driven
    Continuous Representation of Molecules"; as in MOSES's VAE, the decoder is a gated recurrent
    network that reads the latent at each step (Polykovskiy et al., 2020).

    Args:
        config: The architecture.
        input_shape: `(T,)`, the greatest number of tokens.
        generator: Where initial weights come from.

    Raises:
        ConfigError: Records are no rows of tokens.
    """

    encoder: TokenEncoder
    decoder: TokenDecoder

    def __init__(
        self,
        config: MoleculeConfig,
        input_shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> None:
        """Build the layers and draw their weights."""
        super().__init__()
        if len(input_shape) != 1:
            raise ConfigError(
                f"Expected records (T,) of token indices, got shape {input_shape}; "
                "choose another family."
            )
        self.config = config
        self.latent_dim = config.latent_dim
        self.input_shape = input_shape
        # On "meta" the layers draw nothing from torch's global generator.
        with torch.device("meta"):
            self.encoder = TokenEncoder(config, input_shape[0])
            self.decoder = TokenDecoder(config)
        self.to_empty(device="cpu")
        initialise(self.encoder, config.activation, generator, 1.0)
        # Gains of 1 keep the recurrent state inside tanh's slope; small logits start near uniform.
        for layer in (self.decoder.embed, self.decoder.start):
            initialise(layer, "tanh", generator, 1.0)
        for layer in (self.decoder.cell.reads, self.decoder.cell.recurs):
            initialise(layer, "tanh", generator, 1.0)
        initialise(self.decoder.head, "tanh", generator, 0.1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log variance, `[B, k]` each."""
        mu_Bk, logvar_Bk = self.encoder(self._one_hot(x)).chunk(2, 1)
        return mu_Bk, logvar_Bk.clamp(LOGVAR_MIN, LOGVAR_MAX)

    def decode(self, z: Tensor) -> Tensor:
        """Logits `[B, T, V]` of the decoder that reads its own likeliest tokens."""
        return self.decoder.free(z, self.input_shape[0], self._likeliest)

    def reconstruct(self, z: Tensor) -> Tensor:
        """Likeliest token indices `[B, T]` as floats, 0 from the first stop on."""
        indices_BT = self.decode(z).argmax(2).to(z.dtype)
        return indices_BT * _until_stop(indices_BT)

    def distortion(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Negative log likelihood `[B]` in nats of the tokens up to the first stop.

        The stop counts as a token; what stands behind it costs nothing.
        """
        tokens_BTV = self._one_hot(x)
        picked_BT = (tokens_BTV * decoded).sum(2)
        nll_BT = torch.logsumexp(decoded, 2) - picked_BT
        return functional.per_record(nll_BT * _until_stop(self._indices(x)))

    def reconstruction_error(self, x: Tensor, decoded: Tensor) -> Tensor:
        """The negative log likelihood; that of tokens is never negative."""
        return self.distortion(x, decoded)

    def forward(self, x: Tensor, eps: Tensor) -> Terms:
        """Distortion under the true tokens before, and rate, `[B]`; noise `eps` `[B, k]`."""
        mu_Bk, logvar_Bk = self.encode(x)
        z_Bk = mu_Bk + (0.5 * logvar_Bk).exp() * eps
        logits_BTV = self.decoder.forced(z_Bk, self._one_hot(x))
        return Terms(self.distortion(x, logits_BTV), self.rate(mu_Bk, logvar_Bk, z_Bk))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """New records `[count, T]`: latents of the prior, and each token drawn from its odds."""
        eps = torch.randn(count, self.latent_dim, generator=generator)
        z_Bk = self.prior.sample(eps, torch.rand(count, generator=generator))
        return self.write(z_Bk, generator)

    def write(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Token indices `[B, T]` drawn for latents `[B, k]`, 0 from the first stop on."""
        chosen: list[Tensor] = []

        def choose(logits_BV: Tensor) -> Tensor:
            odds_BV = torch.softmax(logits_BV, 1)
            if not chosen:  # a molecule begins with an atom
                odds_BV = odds_BV * (self._every(odds_BV) >= self.config.first_atom)
            chosen.append(torch.multinomial(odds_BV, 1, generator=generator)[:, 0])
            return self._as_one_hot(chosen[-1], logits_BV)

        self.decoder.free(z, self.input_shape[0], choose)
        indices_BT = torch.stack(chosen, 1).to(z.dtype)
        return indices_BT * _until_stop(indices_BT)

    def _likeliest(self, logits_BV: Tensor) -> Tensor:
        return self._as_one_hot(logits_BV.argmax(1), logits_BV)

    def _indices(self, x: Tensor) -> Tensor:
        """Indices `[B, T]` within the vocabulary, whatever numbers come."""
        return x.round().clamp(0, self.config.vocabulary - 1)

    def _one_hot(self, x: Tensor) -> Tensor:
        return self._as_one_hot(self._indices(x), x)

    def _as_one_hot(self, indices: Tensor, like: Tensor) -> Tensor:
        """Indices `[...]` as one-hot `[..., V]` in the dtype of `like`."""
        return (indices[..., None] == self._every(indices)).to(like.dtype)

    def _every(self, like: Tensor) -> Tensor:
        """All indices `[V]`."""
        return torch.arange(self.config.vocabulary, device=like.device)


def _until_stop(indices_BT: Tensor) -> Tensor:
    """1 for every token up to the first stop, that one included, and 0 behind it: `[B, T]`."""
    stops_BT = (indices_BT == 0).to(indices_BT.dtype)
    return (torch.cumsum(stops_BT, 1) - stops_BT == 0).to(indices_BT.dtype)
