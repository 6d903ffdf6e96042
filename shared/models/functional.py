"""Pure per-record terms of a variational autoencoder: divergences and likelihoods.

Shape suffixes: B records, k latent dimensions, `...` the shape of one record. Every function sums
over one record and never over the batch, so that clipping, `vmap` and scoring see single records.
Logits go through `softplus`, never `logsigmoid`: the latter exports to an ONNX graph that is
infinite below about -18.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_SCALE_MIN, LOG_SCALE_MAX = -7.0, 0.0  # of the discretised logistic, data in [0, 1]


def per_record(values: Tensor) -> Tensor:
    """Sum `[B, ...]` over everything but the batch, giving `[B]`."""
    return values.flatten(1).sum(1)


def kl_standard_normal(mu_Bk: Tensor, logvar_Bk: Tensor) -> Tensor:
    """KL of N(mu, diag exp(logvar)) from N(0, I) in nats, `[B]`.

    Kingma and Welling, 2014, "Auto-Encoding Variational Bayes", appendix B.
    """
    return 0.5 * (mu_Bk.square() + logvar_Bk.exp() - 1.0 - logvar_Bk).sum(1)


def gaussian_log_density(z_Bk: Tensor, mu_Bk: Tensor, logvar_Bk: Tensor) -> Tensor:
    """Logarithm of the density of N(mu, diag exp(logvar)) at z in nats, `[B]`."""
    square = (z_Bk - mu_Bk).square() * (-logvar_Bk).exp()
    return -0.5 * (square + logvar_Bk + math.log(2.0 * math.pi)).sum(1)


def gaussian_nll(x: Tensor, mean: Tensor, variance: float) -> Tensor:
    """Negative log density of N(mean, variance I) in nats, `[B]`; it may be negative."""
    constant = 0.5 * math.log(2.0 * math.pi * variance)
    return per_record((x - mean).square() / (2.0 * variance) + constant)


def squared_error(x: Tensor, mean: Tensor) -> Tensor:
    """Sum of squared differences in squared data units, `[B]`."""
    return per_record((x - mean).square())


def bernoulli_nll(x: Tensor, logits: Tensor) -> Tensor:
    """Cross entropy of values in [0, 1] under Bernoulli logits in nats, `[B]`, never negative."""
    return per_record(F.softplus(logits) - logits * x)


def discretised_logistic_nll(
    x: Tensor, mean: Tensor, log_scale: Tensor, levels: int = 256
) -> Tensor:
    """Negative log mass of the bin of `x` under a logistic, in nats, `[B]`, never negative.

    Values lie in [0, 1] on `levels` equidistant points; the first and last bin own the tails.
    With a, b the standardised upper and lower edge, the mass of an inner bin is
    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), evaluated in logarithms so
    that it neither underflows nor cancels. Kingma et al., 2016, "Improved Variational Inference
    with Inverse Autoregressive Flow", section 4.1 (the likelihood, not this form of it).
    """
    width = 1.0 / (levels - 1)
    inverse_scale = torch.exp(-log_scale.clamp(LOG_SCALE_MIN, LOG_SCALE_MAX))
    upper = (x - mean + 0.5 * width) * inverse_scale
    lower = (x - mean - 0.5 * width) * inverse_scale
    half = 0.5 * width * inverse_scale
    # log(1 - exp(-2h)) = log(2 sinh h) - h, which loses no digits for small h.
    log_span = torch.log(2.0 * torch.sinh(half)) - half
    below, above = F.softplus(-upper), F.softplus(lower)
    inner = below + above - log_span
    first, last = x < 0.5 * width, x > 1.0 - 0.5 * width
    return per_record(torch.where(first, below, torch.where(last, above, inner)))
