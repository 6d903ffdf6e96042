"""The largest clipping norm worth trying, from public synthetic records alone.

The norm C bounds what one record adds to a summed gradient, and the noise grows with it. Andrew et
al. 2021 ("Differentially private learning with adaptive clipping") clip at the median norm; here
it is that of made-up records at the first weights, where gradients are largest, so that it costs
no privacy. It is an upper end and no optimum: Adam does not see the scale of a gradient, and small
norms have served it best (synthetic heart beats at epsilon 4: the same loss from 0.1 to 30, a
worse one from 200 on, where the median is 650).
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, grad, vmap

from shared.data.schema import Schema
from shared.models import VAE
from shared.models.objective import elbo

_CHUNK = 16  # records whose gradients are in memory at a time


def synthetic_records(schema: Schema, count: int) -> NDArray[np.float64]:
    """Synthetic raw records [count, *shape]: smooth random curves over the public range."""
    steps = np.random.default_rng(0).normal(size=(count, schema.size))
    walk = np.cumsum(steps, axis=1) / math.sqrt(schema.size)
    low, high = schema.lower, schema.upper
    values = (low + high) / 2 + (high - low) / 4 * walk
    return (np.clip(values, low, high) / schema.scale).reshape(-1, *schema.shape)


def gradient_norms(
    model: VAE, records: Tensor, *, beta: float = 1.0, free_bits: float = 0.0, draws: int = 1
) -> Tensor:
    """L2 norm [N] of the gradient that each record has by itself, at the model's weights.

    Args:
        model: whose trained parameters count.
        records: preprocessed, [N, *shape].
        beta: weight of the rate.
        free_bits: nats of rate that cost nothing.
        draws: of latents, whose gradients are averaged; the same seeded ones at each call.
    """
    generator = torch.Generator().manual_seed(0)
    eps_NKk = torch.randn(len(records), draws, model.latent_dim, generator=generator)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: Mapping[str, Tensor], x: Tensor, eps_Kk: Tensor) -> Tensor:
        batch = x.expand(draws, *x.shape)
        terms = functional_call(model, dict(parameters), (batch, eps_Kk))
        return elbo(terms, beta, free_bits).mean()

    def norm(x: Tensor, eps_Kk: Tensor) -> Tensor:
        parts = grad(loss)(trained, x, eps_Kk).values()
        return torch.stack([part.square().sum() for part in parts]).sum().sqrt()

    norms: Tensor = vmap(norm, chunk_size=_CHUNK)(records, eps_NKk)
    return norms


def calibrated_clip(
    model: VAE,
    records: Tensor,
    quantile: float = 0.5,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    draws: int = 1,
) -> float:
    """The clipping norm at which a share ``quantile`` of public ``records`` stays unclipped.

    Args:
        model: with its first weights.
        records: public or synthetic, preprocessed, [N, *shape]; never private ones.
        quantile: of their gradient norms; the default is the median.
        beta: see ``gradient_norms``, as are the others.
        free_bits: see there.
        draws: see there.

    Raises:
        ValueError: no record, a quantile outside (0, 1), or a gradient that is not finite.
    """
    if not len(records) or not 0 < quantile < 1:
        raise ValueError(
            f"Expected records and a quantile within (0, 1), got {len(records)} and {quantile}."
        )
    norms = gradient_norms(model, records, beta=beta, free_bits=free_bits, draws=draws)
    found = float(torch.quantile(norms.double(), quantile))
    if not math.isfinite(found):
        raise ValueError("Expected finite gradients at the first weights, got others.")
    return found
