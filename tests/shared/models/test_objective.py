"""Objectives against hand-computed values and exact evidences."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from fedlatent.shared.config import Training
from fedlatent.shared.models import Terms
from fedlatent.shared.models.functional import gaussian_nll
from fedlatent.shared.models.objective import elbo, iwae, record_loss
from fedlatent.shared.models.priors import GaussianPrior, MixturePrior, Prior
from fedlatent.testing import noise, records
from tests.shared.models.cases import CASES


def test_elbo_weighs_the_rate() -> None:
    """The loss is distortion plus beta times rate, record by record."""
    terms = Terms(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0]))
    assert elbo(terms).tolist() == [1.5, 6.0]
    assert elbo(terms, beta=0.0).tolist() == [1.0, 2.0]
    assert elbo(terms, beta=2.0, free_bits=1.0).tolist() == [3.0, 10.0]


def test_free_bits_stop_the_gradient_per_record() -> None:
    """A record under its free bits has no rate gradient while another record keeps its own."""
    rate = torch.tensor([0.5, 4.0], requires_grad=True)
    elbo(Terms(torch.zeros(2), rate), free_bits=1.0).sum().backward()
    assert rate.grad is not None
    assert rate.grad.tolist() == [0.0, 1.0]


def test_capacity_leads_the_rate_to_a_target() -> None:
    """The rate pays its distance from the capacity, from both sides."""
    rate = torch.tensor([1.0, 4.0], requires_grad=True)
    loss = elbo(Terms(torch.zeros(2), rate), beta=2.0, capacity=3.0)
    assert loss.tolist() == [4.0, 2.0]
    loss.sum().backward()
    assert rate.grad is not None
    assert rate.grad.tolist() == [-2.0, 2.0]


def test_capacity_grows_with_the_training() -> None:
    """At the start the rate pays in full, half-way its distance from half of the capacity."""
    training = Training(capacity=4.0, beta=10.0)
    terms = Terms(torch.tensor([1.0]), torch.tensor([3.0]))
    found = [record_loss(terms, training, share, 1).item() for share in (0.0, 0.5, 1.0)]
    assert found == [31.0, 11.0, 11.0]


def test_beta_warms_up_and_stays() -> None:
    """The weight of the rate rises from 0 to beta in the stated share of the run."""
    training = Training(beta=2.0, beta_warmup=0.5)
    terms = Terms(torch.tensor([1.0]), torch.tensor([3.0]))
    found = [record_loss(terms, training, share, 1).item() for share in (0.0, 0.25, 0.5, 1.0)]
    assert found == [1.0, 4.0, 7.0, 7.0]


def test_several_draws_of_a_record_are_averaged_or_bounded() -> None:
    """Draws lie side by side: one objective averages their losses, the other bounds by them."""
    terms = Terms(torch.tensor([1.0, 3.0, 5.0, 5.0]), torch.tensor([1.0, 1.0, 0.0, 2.0]))
    assert record_loss(terms, Training(), 1.0, 2).tolist() == [3.0, 6.0]
    bound = record_loss(terms, Training(objective="iwae"), 1.0, 2).tolist()
    exact = [-math.log((math.exp(-a) + math.exp(-b)) / 2) for a, b in [(2, 4), (5, 7)]]
    assert bound == pytest.approx(exact)
    assert bound < [3.0, 6.0]


def test_importance_loss_is_the_bound_that_evaluation_gives() -> None:
    """With equal noise, the loss of K draws is `iwae` of K draws."""
    case = CASES["mlp"]
    model, x = case.model(), records(case, 3)
    model.sampled = True
    eps_BK = torch.stack([noise(case, 3, seed) for seed in range(5)], 1)
    terms = model(x.repeat_interleave(5, 0), eps_BK.flatten(0, 1))
    loss = record_loss(terms, Training(objective="iwae"), 1.0, 5)
    torch.testing.assert_close(loss, iwae(model, x, eps_BK.transpose(0, 1)))


@pytest.mark.parametrize(
    "field", [{"beta": 0.5}, {"beta_warmup": 0.1}, {"capacity": 1.0}, {"free_bits": 1.0}]
)
def test_importance_bound_takes_no_weights(field: dict[str, float]) -> None:
    """A weighed rate is no importance-weighted bound, so the combination is refused."""
    with pytest.raises(ValueError, match="iwae"):
        Training(objective="iwae", **field)


def test_iwae_is_exact_where_the_evidence_is_known() -> None:
    """With a decoder that ignores its latent, a wrong posterior still gives the right evidence."""
    case = CASES["mlp"]
    model = case.model()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
    x = records(case, 3)
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(200_000, 3, 3, generator=generator, dtype=x.dtype)
    exact = gaussian_nll(x, torch.zeros_like(x), model.config.variance)
    assert (exact - iwae(model, x, eps)).abs().max() < 0.05
    assert (elbo(model(x, eps[0])) > exact).all()


def test_iwae_tightens_with_draws() -> None:
    """One draw averages to the evidence lower bound, and more draws give a tighter bound."""
    case = CASES["mlp-2d"]
    model = case.model()
    x, draws = 3.0 * records(case, 3), 1_000
    eps = torch.randn(draws, 3, 3, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    single = torch.stack([iwae(model, x, eps[i : i + 1]) for i in range(draws)])
    bound = torch.stack([elbo(model(x, eps[i])) for i in range(draws)])
    error = 5 * (single - bound).std(0) / draws**0.5
    assert ((single.mean(0) - bound.mean(0)).abs() < error).all()
    assert (iwae(model, x, eps) < single.mean(0)).all()


def test_iwae_is_per_record() -> None:
    """The estimate of a record does not depend on the others in its batch."""
    case = CASES["conv1d"]
    model, x = case.model(), records(case, 4)
    eps = torch.stack([noise(case, 4, seed) for seed in range(5)])
    alone = torch.cat([iwae(model, x[i : i + 1], eps[:, i : i + 1]) for i in range(4)])
    torch.testing.assert_close(iwae(model, x, eps), alone)


def _gaussian() -> GaussianPrior:
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.7, 0.0], [-0.4, 0.3, 0.8]]).double()
    return GaussianPrior(mean=torch.tensor([0.5, -1.0, 0.2]).double(), covariance=factor @ factor.T)


def _mixture() -> MixturePrior:
    one = _gaussian()
    return MixturePrior(
        weights=torch.tensor([0.3, 0.7]).double(),
        means=torch.stack([one.mean, -one.mean]),
        covariances=torch.stack([one.covariance, torch.eye(3).double()]),
    )


@pytest.mark.parametrize("prior", [_gaussian(), _mixture()], ids=["gaussian", "mixture"])
def test_iwae_of_a_linear_decoder_under_a_prior_is_exact(prior: Prior) -> None:
    """A linear decoder has a Gaussian evidence, or a mixture of them, under the model's prior."""
    case = CASES["mlp"]
    model, decoder = case.model(), torch.nn.Linear(3, 12).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        decoder.weight.normal_(generator=generator).mul_(0.1)
        decoder.bias.normal_(generator=generator).mul_(0.1)
        # A proposal that covers the prior; a narrow one would need many more draws.
        *_, head = model.encoder.parameters()
        for parameter in model.encoder.parameters():
            parameter.zero_()
        head[3:] = 0.7
    model.decoder, model.prior = decoder, prior
    x, weight, bias = records(case, 3), decoder.weight.detach(), decoder.bias.detach()
    eps = torch.randn(100_000, 3, 3, generator=generator, dtype=x.dtype)

    def evidence(mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
        spread = weight @ covariance @ weight.T
        noise = model.config.variance * torch.eye(12, dtype=x.dtype)
        return MultivariateNormal(weight @ mean + bias, spread + noise).log_prob(x)

    if isinstance(prior, MixturePrior):
        parts = torch.stack(
            [evidence(m, c) for m, c in zip(prior.means, prior.covariances, strict=True)]
        )
        exact = -torch.logsumexp(parts + prior.weights.log()[:, None], 0)
    else:
        exact = -evidence(prior.mean, prior.covariance)
    with torch.no_grad():
        got = iwae(model, x, eps)
        model.prior = case.model().prior
        plain = iwae(model, x, eps)
    assert (exact - got).abs().max() < 0.05
    assert (exact - plain).abs().max() > 0.1
