"""Autoencoders with discrete latents: each record becomes a few tokens.

Shape suffixes: B records, P positions, D numbers of a code, K codes, k = P * D latent dimensions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedlatent.shared.models.base import LOGVAR_MIN, Graph, Terms
from fedlatent.shared.models.layers import initialise
from fedlatent.shared.models.likelihoods import LikelihoodVAE
from fedlatent.shared.models.networks import (
    DECODER_GAIN,
    ENCODER_GAIN,
    MAX_DEPTH,
    MAX_WIDTH,
    NetworkOptions,
    check_whole,
    choice,
    decoder_layers,
    encoder_layers,
    positive,
    whole,
    wholes,
)
from fedlatent.shared.models.quantisers import Codebook, FiniteScalar
from fedlatent.shared.models.tokens import TokenPrior

QUANTISERS = ("fsq", "codebook")
PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"hidden": (64,), "positions": 4, "levels": (5, 5, 5), "prior_width": 16},
    "small": {"hidden": (256,), "positions": 8, "levels": (8, 6, 5), "prior_width": 32},
    "base": {"hidden": (512, 256), "positions": 16, "levels": (8, 5, 5, 5), "prior_width": 64},
}


@dataclass(frozen=True, kw_only=True)
class VQConfig(NetworkOptions):
    """What a `VQVAE` is made of, beside its networks.

    Attributes:
        quantiser: "fsq" rounds each number by itself, "codebook" takes the nearest of learned
            codes.
        positions: Tokens of a record.
        levels: Steps of each number of a code, of "fsq"; their product is the number of codes.
        codes: Number of codes, of "codebook".
        code_dim: Numbers of a code, of "codebook".
        commitment: Weight of the pull of the encoder to its codes, of "codebook".
        prior_width: Of the token prior, a multiple of 4; 0 for uniform tokens.
        prior_depth: Attention blocks of the token prior.
    """

    quantiser: str = choice("fsq", QUANTISERS)
    positions: int = whole(4, 1, 1024)
    levels: tuple[int, ...] = wholes((8, 5, 5, 5), 3, 64)
    codes: int = whole(512, 2)
    code_dim: int = whole(4)
    commitment: float = positive(0.25)
    prior_width: int = whole(32, 0)
    prior_depth: int = whole(1, 1, MAX_DEPTH)

    def __post_init__(self) -> None:
        """Check every field, and that they go together.

        Raises:
            ConfigError: A field has the wrong type or lies outside its range.
        """
        super().__post_init__()
        check_whole("remainder of prior_width by 4", self.prior_width % 4, 0, 0)
        # A record's numbers are brought to one scale together, which leaves nothing of very few.
        check_whole("positions times the numbers of a code", self.latent_dim, 4, MAX_WIDTH)

    @property
    def latent_dim(self) -> int:
        """As many numbers as all tokens of a record have."""
        return self.positions * (len(self.levels) if self.quantiser == "fsq" else self.code_dim)


class _Encoder(nn.Module):
    """Network and quantiser; tokens have one meaning only where both are shared."""

    network: nn.Sequential
    quantiser: FiniteScalar | Codebook

    def __init__(self, network: nn.Sequential, quantiser: FiniteScalar | Codebook) -> None:
        super().__init__()
        self.network, self.quantiser = network, quantiser


class VQVAE(LikelihoodVAE[VQConfig]):
    """Records as `positions` tokens, with an autoregressive prior that is trained beside them.

    The rate is the code length of the tokens under `token_prior`. Its gradient stops at the
    tokens: its weight in the loss and the prior's size change nothing in encoder and decoder,
    except that clipping takes the gradients of both together.
    """

    encoder: _Encoder

    def _build(self, generator: torch.Generator) -> None:
        config, input_shape = self.config, self.input_shape
        with torch.device("meta"):
            quantiser = _quantiser(config)
            network = encoder_layers(config, input_shape, self.latent_dim)
            self.encoder = _Encoder(nn.Sequential(*network), quantiser)
            self.decoder = nn.Sequential(*decoder_layers(config, self.latent_dim, input_shape))
        self.to_empty(device="cpu")
        initialise(self.encoder.network, config.activation, generator, ENCODER_GAIN)
        initialise(self.decoder, config.activation, generator, DECODER_GAIN)
        if isinstance(quantiser, Codebook):
            with torch.no_grad():
                quantiser.table.weight.normal_(0.0, 1.0, generator=generator)
        self.token_prior: TokenPrior | None = None
        if config.prior_width > 0:
            self.token_prior = TokenPrior(
                quantiser.levels,
                config.positions,
                width=config.prior_width,
                depth=config.prior_depth,
                generator=generator,
            )

    @property
    def codes(self) -> int:
        """Number of different tokens."""
        return math.prod(self.encoder.quantiser.levels)

    def tokens(self, x: Tensor) -> Tensor:
        """Tokens `[B, P]` int64 of records `[B, *shape]`."""
        return self.encoder.quantiser.snap(self._continuous(x))[0]

    def reconstruct_tokens(self, tokens: Tensor) -> Tensor:
        """Mean records `[B, *shape]` of tokens `[B, P]`."""
        like = next(self.decoder.parameters())
        code_BPD = self.encoder.quantiser.lookup(tokens, like)
        return self.likelihood.mean(self._decoded(code_BPD))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes `[B, k]`; a point posterior has the lower bound as its log variance."""
        mu_Bk = self._snap(self._continuous(x))[0].flatten(1)
        return mu_Bk, torch.full_like(mu_Bk, LOGVAR_MIN)

    def decode(self, z: Tensor) -> Tensor:
        """Likelihood parameters `[B, parameters, *shape]` of the codes nearest to `z`."""
        z_BPD = z.reshape(-1, self.config.positions, self.encoder.quantiser.dims)
        return self._decoded(self._snap(z_BPD)[0])

    def forward(self, x: Tensor, eps: Tensor) -> Terms:
        """Terms `[B]`; nothing is drawn, so `eps` is not read.

        In training the distortion holds the codebook's own loss too.
        """
        h_BPD = self._continuous(x)
        code_BPD, tokens_BP, exact_BPD = self._snap(h_BPD)
        distortion_B = self.distortion(x, self._decoded(code_BPD))
        if self.training:
            distortion_B = distortion_B + self.encoder.quantiser.loss(h_BPD, exact_BPD)
        return Terms(distortion_B, self._rate(tokens_BP, distortion_B))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """New records `[count, *shape]` of tokens of the token prior."""
        if self.token_prior is None:
            size = (count, self.config.positions)
            return self.reconstruct_tokens(torch.randint(self.codes, size, generator=generator))
        return self.reconstruct_tokens(self.token_prior.sample(count, generator))

    def graphs(self) -> dict[str, Graph]:
        """Records to tokens, and tokens to records."""
        size = (2, self.config.positions)
        x, tokens = torch.zeros(2, *self.input_shape), torch.zeros(size, dtype=torch.int64)
        return {
            "tokens": Graph(module=_Call(self, "tokens"), inputs={"x": x}, outputs=("tokens",)),
            "detokens": Graph(
                module=_Call(self, "reconstruct_tokens"),
                inputs={"tokens": tokens},
                outputs=("reconstruction",),
            ),
        }

    def _continuous(self, x: Tensor) -> Tensor:
        h_Bk: Tensor = self.encoder.network(x)
        # Each record on the scale of the codes: without it MNIST reached 6 % of 1,000 codes, for
        # the outputs start between two levels and, once trained, saturate beyond the last.
        scale_B1 = (h_Bk.square().mean(1, keepdim=True) + 1e-5).rsqrt()
        quantiser = self.encoder.quantiser
        shape = (-1, self.config.positions, quantiser.dims)
        return quantiser.bound((h_Bk * scale_B1).reshape(shape))

    def _snap(self, h_BPD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes with the gradient of `h_BPD`, their tokens, and codes with their own gradient."""
        tokens_BP, exact_BPD = self.encoder.quantiser.snap(h_BPD)
        # Straight through: the difference is 0 and has gradient 1.
        return exact_BPD.detach() + (h_BPD - h_BPD.detach()), tokens_BP, exact_BPD

    def _decoded(self, code_BPD: Tensor) -> Tensor:
        return self.shaped(self.decoder(code_BPD.flatten(1)))

    def _rate(self, tokens_BP: Tensor, like: Tensor) -> Tensor:
        if self.token_prior is None:
            return torch.full_like(like, self.config.positions * math.log(self.codes))
        return -self.token_prior.log_prob(tokens_BP)


def _quantiser(config: VQConfig) -> FiniteScalar | Codebook:
    if config.quantiser == "fsq":
        return FiniteScalar(config.levels)
    return Codebook(config.codes, config.code_dim, config.commitment)


class _Call(nn.Module):
    """One method of a model as a module, for export."""

    def __init__(self, model: VQVAE, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = getattr(self.model, self.method)(x)
        return found
