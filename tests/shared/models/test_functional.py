"""Closed forms against independent computations, and their behaviour at extremes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy

from fedlatent.shared.models import functional

finite = st.floats(-50, 50, allow_nan=False)


def tensor(seed: int, *size: int) -> Tensor:
    """Standard normal values in float64."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kl_equals_torch() -> None:
    """The rate equals torch's divergence between the two distributions."""
    mu, logvar = tensor(0, 6, 3), tensor(1, 6, 3)
    posterior = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mu), torch.ones_like(mu)), 1)
    expected = kl_divergence(posterior, prior)
    torch.testing.assert_close(functional.kl_standard_normal(mu, logvar), expected)


@given(mu=finite, logvar=st.floats(-8, 4))
def test_kl_is_never_negative(mu: float, logvar: float) -> None:
    """The rate is at least zero up to rounding, and zero for the prior itself."""
    rate = functional.kl_standard_normal(torch.tensor([[mu]]), torch.tensor([[logvar]]))
    assert rate.item() >= -1e-6
    assert functional.kl_standard_normal(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_gaussian_nll_equals_torch() -> None:
    """The Gaussian distortion is the negative log density, constants included."""
    x, mean = tensor(0, 5, 2, 3), tensor(1, 5, 2, 3)
    expected = -Independent(Normal(mean, math.sqrt(0.3)), 2).log_prob(x)
    torch.testing.assert_close(functional.gaussian_nll(x, mean, 0.3), expected)


def test_bernoulli_nll_equals_cross_entropy() -> None:
    """At moderate logits the Bernoulli distortion is the binary cross entropy."""
    x, logits = tensor(0, 5, 6).sigmoid(), 3 * tensor(1, 5, 6)
    expected = binary_cross_entropy(logits.sigmoid(), x, reduction="none").sum(1)
    torch.testing.assert_close(functional.bernoulli_nll(x, logits), expected)


@pytest.mark.parametrize("logit", [-1e4, -200.0, -18.0, 18.0, 200.0, 1e4])
def test_bernoulli_nll_is_exact_at_extremes(logit: float) -> None:
    """A wrong and certain logit costs its own size, a right one nothing, in float32."""
    x = torch.tensor([[0.0], [1.0]])
    cost = functional.bernoulli_nll(x, torch.full((2, 1), logit))
    wrong, right = (cost[0], cost[1]) if logit > 0 else (cost[1], cost[0])
    assert wrong.item() == pytest.approx(abs(logit), rel=1e-6)
    assert 0 <= right.item() < 1e-6 + math.exp(-abs(logit))


@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.37, 1.0, 1.7])
@pytest.mark.parametrize("log_scale", [-20.0, -6.0, -3.0, 0.0, 5.0])
@pytest.mark.parametrize("levels", [2, 16, 256])
def test_discretised_logistic_is_a_distribution(mean: float, log_scale: float, levels: int) -> None:
    """The masses of all levels sum to one, whatever the mean and the scale."""
    grid = torch.linspace(0, 1, levels, dtype=torch.float64)[:, None]
    cost = functional.discretised_logistic_nll(
        grid, torch.full_like(grid, mean), torch.full_like(grid, log_scale), levels
    )
    assert (cost >= -1e-12).all()
    assert (-cost).exp().sum().item() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("log_scale", [-7.0, -3.5, 0.0])
def test_discretised_logistic_keeps_digits_in_float32(log_scale: float) -> None:
    """Single precision agrees with double precision, far tails included."""
    grid = torch.linspace(0, 1, 256, dtype=torch.float64)[:, None]
    arguments = (grid, torch.full_like(grid, 0.3), torch.full_like(grid, log_scale))
    exact = functional.discretised_logistic_nll(*arguments)
    single = functional.discretised_logistic_nll(*(value.float() for value in arguments))
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)


def test_sums_stay_within_a_record() -> None:
    """Every likelihood of a batch is that of its records one by one."""
    x = tensor(0, 4, 2, 3).sigmoid()
    out = tensor(1, 4, 2, 3)
    for likelihood in (
        lambda a, b: functional.gaussian_nll(a, b, 0.1),
        functional.squared_error,
        functional.bernoulli_nll,
        lambda a, b: functional.discretised_logistic_nll(a, b, b - 3),
    ):
        alone = torch.cat([likelihood(x[i : i + 1], out[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(likelihood(x, out), alone)
