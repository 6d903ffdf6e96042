"""Discrete codes: their numbers, how many are used, and an autoregressive prior over them.

Shape suffixes: B records, P positions, D digits of a token, w width, h heads.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedlatent.shared.models.layers import initialise

_HEADS = 4  # of attention
_OUTPUT_GAIN = 0.1  # nearly uniform at the start


class CodeUse(NamedTuple):
    """How evenly a data set uses the codes.

    Attributes:
        used: Share of the codes that occur at least once.
        perplexity: Exponential of the entropy of the codes' frequencies, 1 to the number of codes.
    """

    used: float
    perplexity: float


def code_use(tokens: Tensor, codes: int) -> CodeUse:
    """Use of `codes` codes by tokens of any shape, all positions together; at least one token."""
    counts = torch.bincount(tokens.flatten(), minlength=codes).double()
    share = counts / counts.sum()
    entropy = -(share * share.clamp(min=1e-300).log()).sum()
    used = (counts > 0).double().mean()
    return CodeUse(used=float(used), perplexity=float(entropy.exp()))


def digits_of(tokens: Tensor, levels: Sequence[int]) -> Tensor:
    """Digits `[..., D]` of tokens `[...]`; the first digit counts least."""
    digits = []
    for level in levels:
        digits.append(tokens % level)
        tokens = tokens // level
    return torch.stack(digits, -1)


def tokens_of(digits: Tensor, levels: Sequence[int]) -> Tensor:
    """Tokens `[...]` of digits `[..., D]`, the inverse of `digits_of`."""
    basis = [math.prod(levels[:place]) for place in range(len(levels))]
    return (digits * digits.new_tensor(basis)).sum(-1)


class TokenPrior(nn.Module):
    """An autoregressive model of a record's tokens.

    Causal attention runs over the positions (Vaswani et al., 2017, "Attention Is All You Need",
    section 3.2), and small networks over the digits within a position. Their product is the chain
    rule over all digits, so the negative log likelihood is a code length.

    Args:
        levels: Values of each digit of a token; their product is the number of codes.
        positions: Tokens of a record.
        width: Of the layers, a multiple of 4.
        depth: Attention blocks.
        generator: Where initial weights come from.
    """

    def __init__(
        self,
        levels: Sequence[int],
        positions: int,
        *,
        width: int,
        depth: int,
        generator: torch.Generator,
    ) -> None:
        """Build the layers and draw their weights."""
        super().__init__()
        self.levels, self.positions, self.width = tuple(levels), positions, width
        with torch.device("meta"):
            self.places = nn.Embedding(positions, width)
            self.before = nn.Embedding(sum(levels), width) if positions > 1 else None
            self.within = nn.Embedding(sum(levels[:-1]), width) if len(levels) > 1 else None
            self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
            self.heads = nn.ModuleList(
                nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, level))
                for level in levels
            )
        self.to_empty(device="cpu")
        for table in (self.places, self.before, self.within):
            if table is not None:
                with torch.no_grad():
                    table.weight.normal_(0.0, len(levels) ** -0.5, generator=generator)
        for block in self.blocks:
            initialise(block, "gelu", generator, (2 * depth) ** -0.5)
        for head in self.heads:
            initialise(head, "gelu", generator, _OUTPUT_GAIN)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log probability `[B]` in nats, never positive, of tokens `[B, P]`."""
        digits_BPD = digits_of(tokens, self.levels)
        state_BPw, total = self._states(digits_BPD), []
        inner = self._within(digits_BPD)
        for place, head in enumerate(self.heads):
            logits = head(state_BPw if place == 0 else state_BPw + inner[place - 1])
            chosen = digits_BPD[..., place, None]
            total.append(torch.log_softmax(logits, -1).gather(-1, chosen)[..., 0].sum(1))
        return torch.stack(total).sum(0)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw tokens `[count, P]`, one position after another."""
        digits = torch.zeros(count, self.positions, len(self.levels), dtype=torch.int64)
        for position in range(self.positions):
            state_Bw = self._states(digits)[:, position]
            for place, head in enumerate(self.heads):
                inner = self._within(digits[:, position, None])
                known = state_Bw if place == 0 else state_Bw + inner[place - 1][:, 0]
                odds = torch.softmax(head(known), -1)
                drawn = torch.multinomial(odds, 1, generator=generator)[:, 0]
                digits[:, position, place] = drawn
        return tokens_of(digits, self.levels)

    def _states(self, digits_BPD: Tensor) -> Tensor:
        """What is known at each position from all earlier ones, `[B, P, w]`."""
        batch = digits_BPD.shape[0]
        places = torch.arange(self.positions, device=digits_BPD.device)
        state_BPw: Tensor = self.places(places.repeat(batch, 1))
        if self.before is not None:
            starts = [sum(self.levels[:place]) for place in range(len(self.levels))]
            summed = self.before(digits_BPD + digits_BPD.new_tensor(starts)).sum(2)
            shifted = torch.cat([torch.zeros_like(summed[:, :1]), summed[:, :-1]], 1)
            state_BPw = state_BPw + shifted
        for block in self.blocks:
            state_BPw = block(state_BPw)
        return _normalised(state_BPw)

    def _within(self, digits_BPD: Tensor) -> list[Tensor]:
        """Sums over the first 1, 2, ... digits of each position, `[B, P, w]` each."""
        if self.within is None:
            return []
        starts = [sum(self.levels[:place]) for place in range(len(self.levels) - 1)]
        inner = self.within(digits_BPD[..., :-1] + digits_BPD.new_tensor(starts))
        return list(inner.cumsum(2).unbind(2))


class _Block(nn.Module):
    """Causal attention and a pointwise network, each added to what came in, `[B, P, w]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x_BPw: Tensor) -> Tensor:
        batch, positions, width = x_BPw.shape
        parts = self.inputs(_normalised(x_BPw))
        parts = parts.reshape(batch, positions, 3, _HEADS, width // _HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-1, -2) * (width // _HEADS) ** -0.5
        order = torch.arange(positions, device=x_BPw.device)
        later = order[None, :] > order[:, None]
        weights = torch.softmax(scores.masked_fill(later, -math.inf), -1)
        mixed = (weights @ value).permute(0, 2, 1, 3).reshape(batch, positions, width)
        x_BPw = x_BPw + self.mix(mixed)
        wide = nn.functional.gelu(self.widen(_normalised(x_BPw)))
        narrow: Tensor = self.narrow(wide)
        return x_BPw + narrow


def _normalised(x_BPw: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the width, without weights."""
    return nn.functional.layer_norm(x_BPw, x_BPw.shape[-1:])
