"""Training and evaluation objectives: pure functions of a model's per-record terms.

An autoencoder, a VAE and a beta-VAE are one model under different objectives. Schedules are
functions of the share of the training that is done.
"""

import math

import torch
from torch import Tensor

from fedlatent.shared.config import Training
from fedlatent.shared.models.base import VAE, Terms

_TOGETHER = 4096  # rows of one pass of `iwae`


def elbo(terms: Terms, beta: float = 1.0, free_bits: float = 0.0, capacity: float = 0.0) -> Tensor:
    """Negative evidence lower bound per record, `[B]` in nats, to be minimised.

    Args:
        terms: What the model's forward pass returned.
        beta: Weight of the rate (Higgins et al., 2017, "beta-VAE", equation 4).
        free_bits: Rate in nats below which a record pays nothing more, per record and never per
            batch, so that records stay independent (Kingma et al., 2016, appendix C.8).
        capacity: Rate in nats that every record is led to, where above 0 (Burgess et al., 2018,
            "Understanding disentangling in beta-VAE", equation 8).
    """
    rate = terms.rate.clamp(min=free_bits) if free_bits > 0 else terms.rate
    if capacity > 0:
        rate = (rate - capacity).abs()
    return terms.distortion + beta * rate


def record_loss(terms: Terms, training: Training, progress: float, draws: int) -> Tensor:
    """What training minimises: one number for each record, `[N]` in nats.

    Args:
        terms: Of N records with their draws side by side, `[N * draws]`.
        training: The objective and its weights.
        progress: Share of the training that is done.
        draws: Latent draws of a record.
    """
    if training.objective == "iwae":
        each = (terms.distortion + terms.rate).view(-1, draws)
        return math.log(draws) - torch.logsumexp(-each, 1)
    beta = training.beta
    if training.beta_warmup > 0:
        beta *= min(progress / training.beta_warmup, 1.0)
    each = elbo(terms, beta, training.free_bits, training.capacity * progress)
    return each if draws == 1 else each.view(-1, draws).mean(1)


def iwae(model: VAE, x: Tensor, eps_KBn: Tensor) -> Tensor:
    """Importance-weighted estimate of the negative log likelihood per record, `[B]` in nats.

    Burda et al., 2016, "Importance Weighted Autoencoders", equation 8, with K proposals.

    Args:
        model: A model whose rate is a logarithm of densities; its `prior` is that of the evidence.
        x: Records `[B, *shape]`.
        eps_KBn: Standard normal noise.
    """
    draws, batch, _ = eps_KBn.shape
    before, model.sampled = model.sampled, True
    at_once = max(_TOGETHER // max(batch, 1), 1)
    found = []
    try:
        for eps in torch.split(eps_KBn, at_once):
            terms = model(x.expand(len(eps), *x.shape).flatten(0, 1), eps.flatten(0, 1))
            found.append((terms.distortion + terms.rate).view(len(eps), batch))
    finally:
        model.sampled = before
    return math.log(draws) - torch.logsumexp(-torch.cat(found), 0)
