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

from fedlatent.shared.config import Training
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.models import VAE
from fedlatent.shared.models.objective import record_loss

_CHUNK = 16  # records whose gradients are in memory at a time


def synthetic_records(schema: Schema, count: int) -> NDArray[np.float64]:
    """Synthetic raw records [count, *raw_shape]: smooth random curves over the public range."""
    steps = np.random.default_rng(0).normal(size=(count, schema.raw_size))
    if schema.columns:
        rows = steps.reshape(count, *schema.raw_shape)
        length = 1 if schema.window is None else schema.window.length
        by_column = rows.reshape(count, -1, length).cumsum(axis=2) / math.sqrt(length)
        shares = np.clip(0.5 + by_column / 4, 0.0, 1.0)
        found = [one.raw_of(shares[:, at]) for at, one in enumerate(schema.columns)]
        return np.stack(found, axis=1).reshape(rows.shape)
    walk = np.cumsum(steps, axis=1) / math.sqrt(schema.size)
    low, high = schema.lower, schema.upper
    values = (low + high) / 2 + (high - low) / 4 * walk
    return (np.clip(values, low, high) / schema.scale).reshape(-1, *schema.shape)


def gradient_norms(model: VAE, records: Tensor, training: Training) -> Tensor:
    """L2 norm [N] of the gradient that each record has by itself, at the model's weights.

    Args:
        model: whose trained parameters count.
        records: preprocessed, [N, *shape].
        training: the objective; its latent draws are the same seeded ones at each call.
    """
    generator = torch.Generator().manual_seed(0)
    draws = training.multiplicity
    eps_NKn = torch.randn(len(records), draws, model.noise_dim, generator=generator)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: Mapping[str, Tensor], x: Tensor, eps_Kn: Tensor) -> Tensor:
        batch = x.expand(draws, *x.shape)
        terms = functional_call(model, dict(parameters), (batch, eps_Kn))
        return record_loss(terms, training, model.progress, draws).sum()

    def norm(x: Tensor, eps_Kn: Tensor) -> Tensor:
        parts = grad(loss)(trained, x, eps_Kn).values()
        return torch.stack([part.square().sum() for part in parts]).sum().sqrt()

    before, model.sampled = model.sampled, training.objective == "iwae"
    try:
        norms: Tensor = vmap(norm, chunk_size=_CHUNK)(records, eps_NKn)
    finally:
        model.sampled = before
    return norms


def calibrated_clip(
    model: VAE,
    records: Tensor,
    training: Training,
    quantile: float = 0.5,
) -> float:
    """The clipping norm at which a share ``quantile`` of public ``records`` stays unclipped.

    Args:
        model: with its first weights.
        records: public or synthetic, preprocessed, [N, *shape]; never private ones.
        training: the objective.
        quantile: of their gradient norms; the default is the median.

    Raises:
        ValueError: no record, a quantile outside (0, 1), or a gradient that is not finite.
    """
    if not len(records) or not 0 < quantile < 1:
        raise ValueError(
            f"Expected records and a quantile within (0, 1), got {len(records)} and {quantile}."
        )
    norms = gradient_norms(model, records, training)
    found = float(torch.quantile(norms.double(), quantile))
    if not math.isfinite(found):
        raise ValueError("Expected finite gradients at the first weights, got others.")
    return found
