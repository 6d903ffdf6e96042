"""Priors: their rates, densities and draws, and that they are no part of a model's state."""

import copy
import warnings

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.func import functional_call, grad, vmap

from fedlatent.client.trainer import gradient_sums
from fedlatent.shared.models import VAE, Terms, build_model
from fedlatent.shared.models.functional import kl_standard_normal
from fedlatent.shared.models.objective import elbo
from fedlatent.shared.models.priors import GaussianPrior, MixturePrior, Prior, StandardNormal
from fedlatent.shared.privacy.mixture import LatentMixture
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import latent_density, moments
from fedlatent.testing import noise, records
from tests.client.support import tiny_records, tiny_run
from tests.shared.models.cases import CASES

K = 3
CASE = CASES["mlp"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Seeded standard normal float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gaussian() -> GaussianPrior:
    """A correlated Gaussian off the origin, as released moments give it."""
    rows = np.random.default_rng(0).normal(size=(500, K)) @ [[1, 0.5, 0], [0, 0.7, 0.2], [0, 0, 2]]
    return GaussianPrior.of(
        latent_density([moments(rows + np.array([1.0, -0.5, 0.3]), 20.0)], 20.0, 0.0)
    )


def latent_mixture() -> LatentMixture:
    """Two correlated components that overlap."""
    factors = np.random.default_rng(1).normal(size=(2, K, K))
    return LatentMixture(
        weights=np.array([0.3, 0.7]),
        means=np.array([[1.5, 0.0, -1.0], [-1.0, 0.5, 0.5]]),
        covariances=factors @ factors.swapaxes(1, 2) + 0.2 * np.eye(K),
    )


def mixture() -> MixturePrior:
    """The same as a prior."""
    return MixturePrior.of(latent_mixture())


def lone(prior: GaussianPrior) -> MixturePrior:
    """A mixture whose one component is a Gaussian prior."""
    return MixturePrior(
        weights=torch.ones(1, dtype=torch.float64),
        means=prior.mean[None],
        covariances=prior.covariance[None],
    )


PRIORS: dict[str, Prior] = {"normal": StandardNormal(), "gaussian": gaussian(), "mix": mixture()}
every_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS.keys())


def posterior(batch: int = 6) -> tuple[Tensor, Tensor]:
    """Posterior means and log variances."""
    return 2.0 * normal(batch, K, seed=1), normal(batch, K, seed=2) - 0.5


def test_standard_normal_rate_is_the_closed_form_bit_for_bit() -> None:
    """The default path computes what it always did."""
    mu, logvar = posterior()
    for dtype in (torch.float32, torch.float64):
        m, v = mu.to(dtype), logvar.to(dtype)
        assert torch.equal(StandardNormal().rate(m, v, normal(6, K)), kl_standard_normal(m, v))
    model, x, eps = CASE.model(), records(CASE, 5), noise(CASE, 5)
    assert model.prior == StandardNormal()
    assert torch.equal(model(x, eps).rate, kl_standard_normal(*model.encode(x)))


def test_gaussian_rate_is_the_divergence_of_torch() -> None:
    """The rate equals torch's divergence of two Gaussians, and does not look at the draw."""
    mu, logvar = posterior()
    prior = gaussian()
    got = prior.rate(mu, logvar, normal(6, K))
    wanted = kl_divergence(
        MultivariateNormal(mu, torch.diag_embed(logvar.exp())),
        MultivariateNormal(prior.mean, prior.covariance),
    )
    torch.testing.assert_close(got, wanted)
    assert torch.equal(got, prior.rate(mu, logvar, normal(6, K, seed=9)))


def test_gaussian_prior_of_identity_is_the_standard_normal() -> None:
    """N(0, I) written as a Gaussian has the standard rate; a point on the prior has none."""
    mu, logvar = posterior()
    plain = GaussianPrior(
        mean=torch.zeros(K, dtype=torch.float64), covariance=torch.eye(K, dtype=torch.float64)
    )
    torch.testing.assert_close(plain.rate(mu, logvar, mu), kl_standard_normal(mu, logvar))
    own = GaussianPrior(mean=mu[0], covariance=torch.diag(logvar[0].exp()))
    assert own.rate(mu[:1], logvar[:1], mu[:1]).abs().item() < 1e-12


def _draws(mu: Tensor, logvar: Tensor, count: int) -> Tensor:
    """Draws [count * B, k] of posteriors [B, k], draw by draw."""
    eps = normal(count, *mu.shape, seed=5)
    return (mu + (0.5 * logvar).exp() * eps).flatten(0, 1)


def test_mixture_rate_is_unbiased() -> None:
    """Its mean over draws is the divergence that integration on a grid gives."""
    mu, logvar = torch.tensor([[0.4], [-2.0]]).double(), torch.tensor([[-1.0], [0.3]]).double()
    prior = MixturePrior(
        weights=torch.tensor([0.3, 0.7]).double(),
        means=torch.tensor([[-1.5], [1.0]]).double(),
        covariances=torch.tensor([[[0.4]], [[0.8]]]).double(),
    )
    grid = torch.linspace(-14, 14, 40_001).double()[:, None]
    log_p: Tensor = prior.log_prob(grid)
    count = 40_000
    z = _draws(mu, logvar, count)
    got = prior.rate(mu.repeat(count, 1), logvar.repeat(count, 1), z).view(count, 2)
    for record in range(2):
        own = torch.distributions.Normal(mu[record], (0.5 * logvar[record]).exp())
        log_q: Tensor = own.log_prob(grid)  # type: ignore[no-untyped-call]
        exact = torch.trapezoid(log_q[:, 0].exp() * (log_q[:, 0] - log_p), grid[:, 0])
        error = 5 * got[:, record].std() / count**0.5
        assert abs(got[:, record].mean() - exact) < error
    assert got.min() < 0  # one draw alone may be negative


def test_a_mixture_of_one_agrees_with_the_gaussian() -> None:
    """Its rate has the mean of the closed form, and its density is that of the Gaussian."""
    mu, logvar = posterior(2)
    prior, count = gaussian(), 40_000
    z = _draws(mu, logvar, count)
    got = lone(prior).rate(mu.repeat(count, 1), logvar.repeat(count, 1), z).view(count, 2)
    error = 5 * got.std(0) / count**0.5
    assert ((got.mean(0) - prior.rate(mu, logvar, mu)).abs() < error).all()
    torch.testing.assert_close(lone(prior).log_prob(z[:9]), prior.log_prob(z[:9]))


def test_the_bound_with_a_mixture_is_unbiased_near_the_prior() -> None:
    """Training on one draw follows the true rate in the mean, where single draws are negative."""
    mu, logvar = torch.zeros(1, K).double(), torch.zeros(1, K).double()
    prior, count = lone(GaussianPrior(mean=mu[0] + 0.5, covariance=torch.eye(K).double())), 40_000
    z = _draws(mu, logvar, count)
    rate = prior.rate(mu.expand(count, K), logvar.expand(count, K), z)
    loss = elbo(Terms(torch.zeros(count).double(), rate))
    exact = 0.5 * K * 0.5**2
    assert abs(loss.mean().item() - exact) < 5 * loss.std().item() / count**0.5


def test_log_densities_equal_scipy() -> None:
    """Log density of every prior is scipy's."""
    z = 2.0 * normal(8, K, seed=4)
    points, one, two = z.numpy(), gaussian(), latent_mixture()
    wanted = {
        "normal": multivariate_normal(np.zeros(K)).logpdf(points),
        "gaussian": multivariate_normal(one.mean.numpy(), one.covariance.numpy()).logpdf(points),
        "mix": two.log_density(points),
    }
    for name, prior in PRIORS.items():
        torch.testing.assert_close(prior.log_prob(z), torch.from_numpy(wanted[name]))


@every_prior
def test_draws_have_the_moments_of_the_density(prior: Prior) -> None:
    """Mean and covariance of draws are those of the prior."""
    count = 60_000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    drawn = prior.sample(normal(count, K, seed=7), uniform)
    mean, covariance = torch.zeros(K).double(), torch.eye(K).double()
    if isinstance(prior, GaussianPrior):
        mean, covariance = prior.mean, prior.covariance
    if isinstance(prior, MixturePrior):
        mean = prior.weights @ prior.means
        offset = prior.means - mean
        within = torch.einsum("K,Kij->ij", prior.weights, prior.covariances)
        covariance = within + torch.einsum("K,Ki,Kj->ij", prior.weights, offset, offset)
    assert drawn.shape == (count, K)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), covariance, atol=0.1, rtol=0.05)


def test_the_uniform_number_chooses_the_component() -> None:
    """Below the first weight the first component, from there on the next; 1 is within."""
    prior = mixture()
    drawn = prior.sample(torch.zeros(4, K).double(), torch.tensor([0.0, 0.29, 0.31, 1.0]).double())
    assert torch.equal(drawn, prior.means[[0, 0, 1, 1]])


def _with(prior: Prior) -> VAE:
    model = CASE.model()
    model.prior = prior
    return model


@every_prior
def test_a_prior_is_no_state(prior: Prior) -> None:
    """Setting a prior changes no parameter, buffer or state-dict key, and training leaves it."""
    plain, model = CASE.model(), _with(prior)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.state_dict().items())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert not list(model.buffers())
    before = copy.deepcopy(prior)
    terms = model(records(CASE, 4), noise(CASE, 4))
    (terms.distortion + terms.rate).sum().backward()
    for name, value in vars(before).items():
        assert torch.equal(value, getattr(prior, name))
        assert getattr(prior, name).grad is None
    assert CASE.model().prior == StandardNormal()  # nor does it stay with the class


@every_prior
def test_rates_of_records_are_independent(prior: Prior) -> None:
    """Changing one record, or leaving others out, moves no other record's rate."""
    model = _with(prior)
    x, eps = records(CASE, 5), noise(CASE, 5)
    changed = x.clone()
    changed[2] = 1.0 - changed[2]
    others = [0, 1, 3, 4]
    before, after = model(x, eps).rate, model(changed, eps).rate
    torch.testing.assert_close(after[others], before[others], rtol=1e-12, atol=1e-12)
    assert after[2] != before[2]
    torch.testing.assert_close(model(x[:1], eps[:1]).rate, before[:1], rtol=1e-10, atol=1e-12)
    assert model(x[:0], eps[:0]).rate.shape == (0,)


@every_prior
def test_rates_work_in_single_precision(prior: Prior) -> None:
    """A float32 model keeps its dtype, with values near those of float64."""
    model, single = _with(prior), CASE.model().float()
    single.prior = prior
    x, eps = records(CASE, 5), noise(CASE, 5)
    rate = single(x.float(), eps.float()).rate
    assert rate.dtype == torch.float32
    torch.testing.assert_close(rate.double(), model(x, eps).rate, rtol=1e-4, atol=1e-4)


def loss_of_one(model: VAE, params: dict[str, Tensor], x: Tensor, eps: Tensor) -> Tensor:
    """Loss of a single record through a functional call."""
    terms = functional_call(model, params, (x[None], eps[None]))
    total: Tensor = (terms.distortion + terms.rate).sum()
    return total


def gradients(prior: Prior, x: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """Per-record gradients by autograd on batches of one."""
    rows: dict[str, list[Tensor]] = {}
    model = _with(prior)
    for record, draw in zip(x, eps, strict=True):
        model.zero_grad()
        terms = model(record[None], draw[None])
        (terms.distortion + terms.rate).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            rows.setdefault(name, []).append(parameter.grad.clone())
    return {name: torch.stack(values) for name, values in rows.items()}


@every_prior
def test_vmap_gradients_are_exact(prior: Prior) -> None:
    """Per-record gradients of vmap(grad) equal autograd on batches of one."""
    model, x, eps = _with(prior), records(CASE, 5), noise(CASE, 5)
    params = {name: value.detach() for name, value in model.named_parameters()}
    got = vmap(grad(lambda p, r, e: loss_of_one(model, p, r, e)), in_dims=(None, 0, 0))(
        params, x, eps
    )
    for name, wanted in gradients(prior, x, eps).items():
        torch.testing.assert_close(got[name], wanted, rtol=1e-9, atol=1e-9)


@every_prior
def test_opacus_gradients_and_norms_are_exact(prior: Prior) -> None:
    """Hooked gradients and ghost norms equal those of autograd on batches of one."""
    x, eps = records(CASE, 5), noise(CASE, 5)
    expected = gradients(prior, x, eps)
    hooked = GradSampleModule(_with(prior), loss_reduction="sum")
    ghost = GradSampleModuleFastGradientClipping(_with(prior), loss_reduction="sum")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        for wrapped in (hooked, ghost):
            terms = wrapped(x, eps)
            (terms.distortion + terms.rate).sum().backward()
    for name, parameter in hooked.named_parameters():
        wanted = expected[name.removeprefix("_module.")]
        torch.testing.assert_close(parameter.grad_sample, wanted, rtol=1e-9, atol=1e-9)
    norms = torch.cat([value.flatten(1) for value in expected.values()], 1).norm(dim=1)
    torch.testing.assert_close(ghost.get_norm_sample(), norms)


@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("kind", ["gaussian", "mix"])
def test_a_prior_that_overflows_for_one_record_leaves_no_trace(
    kind: str, multiplicity: int
) -> None:
    """A broadcast prior may be hostile: the record weighs nothing in the sum."""
    options = {"hidden": [6], "latent_dim": 2, "activation": "relu"}
    run = tiny_run(training={"multiplicity": multiplicity}, model={"options": options})
    plan, model = PrivacyPlan.from_config(run), build_model(run).train()
    batch = torch.from_numpy(tiny_records(20).astype(np.float32))
    batch[7] *= 1e15
    # The far record's loss passes float32, those of the others do not.
    tiny = 1e-15 * torch.eye(2, dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    one = GaussianPrior(mean=zero, covariance=tiny)
    model.prior = one if kind == "gaussian" else lone(one)
    others = torch.tensor([i for i in range(20) if i != 7])
    with gradient_sums(model, plan, run.training) as sums:
        present = sums(batch, torch.arange(20), SimulationNoise(1))
        # The draws of the other records are those that they had.
        absent = sums(batch, others, _Skipping(7, multiplicity))
    assert bool(torch.isfinite(present).all())
    assert float(present.norm()) > 0
    assert float((present - absent).norm()) < 1e-3 * plan.clip


class _Skipping(SimulationNoise):
    """Latent draws of twenty records without those of one."""

    def __init__(self, left_out: int, multiplicity: int) -> None:
        super().__init__(1)
        self._left_out, self._multiplicity = left_out, multiplicity

    def normal(self, size: int) -> np.ndarray:
        """Of the others; [size]."""
        whole = super().normal(20 * self._multiplicity * 2).reshape(20, -1)
        return np.delete(whole, self._left_out, axis=0).reshape(-1)[:size]
