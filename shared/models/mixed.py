"""The mixed family: columns of numbers and of classes, any of which may be missing.

A record has two values for a column of numbers, the number in [0, 1] and whether it is there, and
one value per level for a column of classes, all zero where the class is missing
(`fedlatent.shared.data.columns`). What is missing costs no likelihood.

Shape suffixes: B records, D values of a record, C columns of numbers, G columns of classes, n
levels of one of them, k latent dimensions.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlatent.shared.models import functional
from fedlatent.shared.models.base import LOGVAR_MAX, LOGVAR_MIN, VAE, Terms
from fedlatent.shared.models.layers import ACTIVATIONS, initialise, mlp
from fedlatent.shared.models.networks import (
    DECODER_GAIN,
    ENCODER_GAIN,
    MAX_WIDTH,
    Options,
    choice,
    positive,
    switch,
    whole,
    wholes,
    wrong_option,
)

NUMBER = 0  # the entry of `columns` that stands for a column of numbers
PRESETS: dict[str, dict[str, object]] = {
    "tiny": {"hidden": (64,), "latent_dim": 8},
    "small": {"hidden": (128, 64), "latent_dim": 8},
    "base": {"hidden": (256, 128), "latent_dim": 16},
}


@dataclass(frozen=True, kw_only=True)
class MixedConfig(Options):
    """What a `MixedVAE` is made of.

    Attributes:
        columns: What each column is: 0 for numbers, else its number of levels, 2 or more. Empty
            stands for numbers throughout.
        hidden: Widths of the hidden layers from the data to the latent; the decoder mirrors them.
        latent_dim: Number of latent dimensions.
        variance: Of a number's Gaussian likelihood, numbers lying in [0, 1].
        activation: "tanh", "relu", "gelu" or "silu".
        presence: Whether the decoder also learns which values are missing, at the price of their
            Bernoulli likelihood; without it every drawn record is complete.
    """

    columns: tuple[int, ...] = ()
    hidden: tuple[int, ...] = wholes((64,))
    latent_dim: int = whole(8)
    variance: float = positive(0.01)
    activation: str = choice("tanh", ACTIVATIONS)
    presence: bool = switch(default=False)

    def __post_init__(self) -> None:
        """Check every field, and that they go together.

        Raises:
            ConfigError: A field has the wrong type or lies outside its range.
        """
        super().__post_init__()
        if not isinstance(self.columns, tuple) or not all(map(_is_column, self.columns)):
            raise wrong_option(
                "columns",
                f"Expected columns as a list of 0 (numbers) or 2 and more (levels), got "
                f"{self.columns!r}; correct it.",
            )


class Parts(NamedTuple):
    """A record, or what the decoder says about one, column by column.

    Attributes:
        numbers: `[B, C]`.
        classes: One-hot, logits or probabilities, `[B, n]` for each of the G columns.
        present: Of the C columns of numbers, then the G of classes, `[B, C + G]`; for a decoder
            their logits, and `[B, 0]` where it has none.
    """

    numbers: Tensor
    classes: tuple[Tensor, ...]
    present: Tensor


class MixedVAE(VAE):
    """Gaussian latent under a likelihood of its own for every column.

    The likelihood of what is there, as HI-VAE has it (Nazabal et al., 2020, "Handling Incomplete
    Heterogeneous Data using VAEs", equation 3), with one Gaussian latent and a fixed variance.

    Args:
        config: The architecture.
        input_shape: `(D,)`, as the columns need it.
        generator: Where initial weights come from.

    Raises:
        ConfigError: The columns do not fit the record.
    """

    def __init__(
        self,
        config: MixedConfig,
        input_shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> None:
        """Build the layers and draw their weights."""
        super().__init__()
        size = input_shape[0]
        self.columns = config.columns or (NUMBER,) * (size // 2)
        needed = sum(map(_width, self.columns))
        if input_shape != (needed,):
            raise wrong_option(
                "columns",
                f"Expected records ({needed},) for these columns, got shape {input_shape}; "
                "two values for numbers, one for each level.",
            )
        self.config = config
        self.latent_dim = config.latent_dim
        self.input_shape = input_shape
        starts = list(accumulate(map(_width, self.columns), initial=0))[:-1]
        pairs = list(zip(starts, self.columns, strict=True))
        self._numbers = [start for start, levels in pairs if levels == NUMBER]
        self._classes = [(start, levels) for start, levels in pairs if levels != NUMBER]
        self._levels = [levels for _, levels in self._classes]
        flags = len(self.columns) if config.presence else 0
        self._sizes = [len(self._numbers), *self._levels, flags]
        # On "meta" the layers draw nothing from torch's global generator.
        with torch.device("meta"):
            inner = (size, *config.hidden, 2 * config.latent_dim)
            self.encoder = nn.Sequential(*mlp(inner, config.activation))
            outer = (config.latent_dim, *reversed(config.hidden), sum(self._sizes))
            self.decoder = nn.Sequential(*mlp(outer, config.activation))
        self.to_empty(device="cpu")
        initialise(self.encoder, config.activation, generator, ENCODER_GAIN)
        initialise(self.decoder, config.activation, generator, DECODER_GAIN)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log variance, `[B, k]` each, of what is there."""
        mu_Bk, logvar_Bk = self.encoder(self._join(self.split(x))).chunk(2, 1)
        return mu_Bk, logvar_Bk.clamp(LOGVAR_MIN, LOGVAR_MAX)

    def decode(self, z: Tensor) -> Tensor:
        """Means of numbers, logits of classes, and logits of presence if it is learnt."""
        out: Tensor = self.decoder(z)
        return out

    def reconstruct(self, z: Tensor) -> Tensor:
        """Means and class probabilities `[B, D]`, present as likely as the decoder has it.

        A class probability is one of a class that is there, times that it is there.
        """
        numbers_BC, classes, present = self._said(self.decode(z))
        there = present.sigmoid() if self.config.presence else self._all(numbers_BC)
        odds = tuple(torch.softmax(logits, 1) for logits in classes)
        return self._join(Parts(numbers_BC, odds, there))

    def impute(self, x: Tensor) -> Tensor:
        """Records `[B, D]` with what is missing filled from the posterior mean.

        Numbers get their mean, classes their probabilities; what is there stays.
        """
        own = self.split(x)
        said = self._said(self.decode(self.encode(x)[0]))
        there = own.present > 0
        numbers_BC = torch.where(there[:, : len(self._numbers)], own.numbers, said.numbers)
        classes = tuple(
            torch.where(here[:, None], mine, torch.softmax(logits, 1))
            for here, mine, logits in zip(
                there[:, len(self._numbers) :].unbind(1), own.classes, said.classes, strict=True
            )
        )
        return self._join(Parts(numbers_BC, classes, self._all(numbers_BC)))

    def distortion(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Negative log likelihood `[B]` in nats of what is there, and of presence if learnt."""
        own = self.split(x)
        there_BC = own.present[:, : len(self._numbers)]
        variance = there_BC.new_tensor(2.0 * torch.pi * self.config.variance)
        constant_BC = 0.5 * variance.log() * there_BC
        return self.reconstruction_error(x, decoded) + functional.per_record(constant_BC)

    def reconstruction_error(self, x: Tensor, decoded: Tensor) -> Tensor:
        """The same without the Gaussians' constant, `[B]`, never negative."""
        own, said = self.split(x), self._said(decoded)
        there_BC = own.present[:, : len(self._numbers)]
        square_BC = (own.numbers - said.numbers).square() * there_BC
        error_B = functional.per_record(square_BC) / (2.0 * self.config.variance)
        for mine_Bn, logits_Bn in zip(own.classes, said.classes, strict=True):
            error_B = error_B - (mine_Bn * torch.log_softmax(logits_Bn, 1)).sum(1)
        if self.config.presence:
            cost = F.softplus(said.present) - said.present * own.present
            error_B = error_B + functional.per_record(cost)
        return error_B

    def forward(self, x: Tensor, eps: Tensor) -> Terms:
        """Distortion and rate `[B]` of records `[B, D]` with noise `eps` `[B, k]`."""
        mu_Bk, logvar_Bk = self.encode(x)
        z_Bk = mu_Bk + (0.5 * logvar_Bk).exp() * eps
        return Terms(self.distortion(x, self.decode(z_Bk)), self.rate(mu_Bk, logvar_Bk, z_Bk))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """New records `[count, D]` in the form of real ones, drawn from every likelihood."""
        eps = torch.randn(count, self.latent_dim, generator=generator)
        z_Bk = self.prior.sample(eps, torch.rand(count, generator=generator))
        numbers_BC, classes, present = self._said(self.decode(z_Bk))
        noise_BC = torch.randn(numbers_BC.shape, generator=generator)
        numbers_BC = (numbers_BC + self.config.variance**0.5 * noise_BC).clamp(0.0, 1.0)
        picked = tuple(_drawn(logits_Bn, generator) for logits_Bn in classes)
        there = self._all(numbers_BC)
        if self.config.presence:
            odds = torch.rand(present.shape, generator=generator)
            there = (odds < present.sigmoid()).to(numbers_BC.dtype)
        kept_BC = numbers_BC * there[:, : len(self._numbers)]
        return self._join(Parts(kept_BC, picked, there))

    def split(self, x: Tensor) -> Parts:
        """Records `[B, D]` by columns, missing numbers as 0, flags and classes as 0 or 1."""
        flags_BC = (x[:, [start + 1 for start in self._numbers]] > 0.5).to(x.dtype)
        numbers_BC = x[:, self._numbers] * flags_BC
        classes = tuple(_one_level(x[:, start : start + levels]) for start, levels in self._classes)
        there = [flags_BC, *(one_Bn.sum(1, keepdim=True) for one_Bn in classes)]
        return Parts(numbers_BC, classes, torch.cat(there, 1))

    def _said(self, decoded: Tensor) -> Parts:
        numbers_BC, *classes, present = torch.split(decoded, self._sizes, 1)
        return Parts(numbers_BC, tuple(classes), present)

    def _join(self, parts: Parts) -> Tensor:
        """Columns as records `[B, D]`, classes times their presence."""
        numbers, classes = iter(parts.numbers.unbind(1)), iter(parts.classes)
        flags = parts.present.unbind(1)
        of_numbers, of_classes = (
            iter(flags[: len(self._numbers)]),
            iter(flags[len(self._numbers) :]),
        )
        blocks = []
        for levels in self.columns:
            if levels == NUMBER:
                blocks.append(torch.stack([next(numbers), next(of_numbers)], 1))
            else:
                blocks.append(next(classes) * next(of_classes)[:, None])
        return torch.cat(blocks, 1)

    def _all(self, like: Tensor) -> Tensor:
        return like.new_ones(like.shape[0], len(self.columns))


def _one_level(block_Bn: Tensor) -> Tensor:
    """The greatest level above a half as one-hot, or zeros: `[B, n]`, whatever numbers come."""
    best_B = block_Bn.argmax(1)
    every = torch.arange(block_Bn.shape[1], device=block_Bn.device)
    return ((best_B[:, None] == every) & (block_Bn > 0.5)).to(block_Bn.dtype)


def _drawn(logits_Bn: Tensor, generator: torch.Generator) -> Tensor:
    picked_B = torch.multinomial(torch.softmax(logits_Bn, 1), 1, generator=generator)[:, 0]
    every = torch.arange(logits_Bn.shape[1])
    return (picked_B[:, None] == every).to(logits_Bn.dtype)


def _width(levels: int) -> int:
    return 2 if levels == NUMBER else levels


def _is_column(levels: object) -> bool:
    number = isinstance(levels, int) and not isinstance(levels, bool)
    return number and (levels == NUMBER or 2 <= levels <= MAX_WIDTH)  # type: ignore[operator]
