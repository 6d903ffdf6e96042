"""Training and evaluation objectives: pure functions of a model's per-record terms.

An autoencoder, a VAE and a beta-VAE are one model under different objectives.
"""

import math

import torch
from torch import Tensor

from shared.models.base import VAE, Terms


def elbo(terms: Terms, beta: float = 1.0, free_bits: float = 0.0) -> Tensor:
    """Negative evidence lower bound per record, `[B]` in nats, to be minimised.

    Args:
        terms: What the model's forward pass returned.
        beta: Weight of the rate (Higgins et al., 2017, "beta-VAE", equation 4).
        free_bits: Rate in nats below which a record pays nothing more, per record and never per
            batch, so that records stay independent (Kingma et al., 2016, appendix C.8).
    """
    rate = terms.rate.clamp(min=free_bits) if free_bits > 0 else terms.rate
    return terms.distortion + beta * rate


def iwae(model: VAE, x: Tensor, eps_KBk: Tensor) -> Tensor:
    """Importance-weighted estimate of the negative log likelihood per record, `[B]` in nats.

    Burda et al., 2016, "Importance Weighted Autoencoders", equation 8, with K proposals.

    Args:
        model: A model with a Gaussian posterior; its `prior` is that of the evidence.
        x: Records `[B, *shape]`.
        eps_KBk: Standard normal noise.
    """
    draws, batch, _ = eps_KBk.shape
    mu_Bk, logvar_Bk = model.encode(x)
    z_KBk = mu_Bk + (0.5 * logvar_Bk).exp() * eps_KBk
    log_p_KB = model.prior.log_prob(z_KBk.flatten(0, 1)).view(draws, batch)
    log_q_KB = -0.5 * (eps_KBk.square() + logvar_Bk + math.log(2.0 * math.pi)).sum(2)
    repeated = x.expand(draws, *x.shape).flatten(0, 1)
    distortion_KB = model.distortion(repeated, model.decode(z_KBk.flatten(0, 1)))
    log_weight_KB = log_p_KB - log_q_KB - distortion_KB.view(draws, batch)
    return math.log(draws) - torch.logsumexp(log_weight_KB, 0)
