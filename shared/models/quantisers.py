"""Quantisers: from real numbers to tokens and back to codes.

Both have the same four methods. `bound` prepares what an encoder gives, `snap` finds tokens and
their codes, `lookup` the codes of tokens, and `loss` is what is trained beside the reconstruction.
Shape suffixes: B records, P positions, D numbers of a code, K codes.
"""

import math

import torch
from torch import Tensor, nn

from fedlatent.shared.models.functional import per_record
from fedlatent.shared.models.tokens import digits_of, tokens_of


class FiniteScalar(nn.Module):
    """Every number of a code is rounded to its own few levels; there is nothing to learn.

    Mentzer et al., 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", section 3.1 and
    appendix A.1. Codes lie on a grid in [-1, 1].
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        """Take the levels of each number."""
        super().__init__()
        self.levels, self.dims = levels, len(levels)

    def bound(self, h_BPD: Tensor) -> Tensor:
        """Squeeze real numbers into the range of the grid."""
        # A little wider than the grid, so that the outermost levels have a whole cell.
        half = [(level - 1) * 1.001 / 2.0 for level in self.levels]
        offset = [0.0 if level % 2 else 0.5 for level in self.levels]
        shift = [math.atanh(o / h) for o, h in zip(offset, half, strict=True)]
        inside = torch.tanh(h_BPD + h_BPD.new_tensor(shift)) * h_BPD.new_tensor(half)
        return (inside - h_BPD.new_tensor(offset)) / self._steps(h_BPD)

    def snap(self, z_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `[B, P]` and codes `[B, P, D]` nearest to any real numbers."""
        middle = self._steps(z_BPD)
        last = z_BPD.new_tensor([level - 1.0 for level in self.levels])
        digits = (torch.round(z_BPD * middle) + middle).clamp(min=0.0).minimum(last)
        return tokens_of(digits.to(torch.int64), self.levels), (digits - middle) / middle

    def lookup(self, tokens_BP: Tensor, like: Tensor) -> Tensor:
        """Grid points `[B, P, D]` of tokens, in the dtype of `like`."""
        digits = digits_of(tokens_BP, self.levels).to(like.dtype)
        middle = self._steps(like)
        return (digits - middle) / middle

    def loss(self, h_BPD: Tensor, code_BPD: Tensor) -> Tensor:
        """Zeros `[B]`: rounding has nothing to learn."""
        return per_record(torch.zeros_like(h_BPD))

    def _steps(self, like: Tensor) -> Tensor:
        return like.new_tensor([float(level // 2) for level in self.levels])


class Codebook(nn.Module):
    """The nearest of a table of codes, which gradients alone move.

    van den Oord et al., 2017, "Neural Discrete Representation Learning", equations 1 to 3. There
    are no running averages and no restart of unused codes: both carry raw data past the clipping.
    """

    def __init__(self, codes: int, dims: int, commitment: float) -> None:
        """Make the table."""
        super().__init__()
        self.levels, self.dims, self.commitment = (codes,), dims, commitment
        self.table = nn.Embedding(codes, dims)

    def bound(self, h_BPD: Tensor) -> Tensor:
        """The encoder's outputs as they are: a codebook has no bounds."""
        return h_BPD

    def snap(self, z_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `[B, P]` and codes `[B, P, D]` nearest to any real numbers."""
        # Detached: the table must give gradients through its own call alone.
        table_KD, z_BPD = self.table.weight.detach(), z_BPD.detach()
        distance_BPK = 0.5 * table_KD.square().sum(1) - z_BPD @ table_KD.T
        tokens_BP = distance_BPK.argmin(-1)
        return tokens_BP, self.lookup(tokens_BP, z_BPD)

    def lookup(self, tokens_BP: Tensor, like: Tensor) -> Tensor:
        """Codes `[B, P, D]` of tokens."""
        codes_BPD: Tensor = self.table(tokens_BP)
        return codes_BPD

    def loss(self, h_BPD: Tensor, code_BPD: Tensor) -> Tensor:
        """Pulls codes to the encoder and the encoder to its codes, `[B]`."""
        codes = (code_BPD - h_BPD.detach()).square()
        return per_record(codes + self.commitment * (h_BPD - code_BPD.detach()).square())
