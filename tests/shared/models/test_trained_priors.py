"""Priors that are trained with a model, on known answers and inside their models."""

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import VAE, build
from fedlatent.shared.models.base import encoder_state, use_prior
from fedlatent.shared.models.objective import iwae
from fedlatent.shared.models.priors import StandardNormal
from fedlatent.shared.models.trained_priors import Components, MixtureOfGaussians, VampPrior

SHAPE = (4, 3)
TRAINED = pytest.mark.parametrize("prior", ["mixture", "vamp"])


def model_of(prior: str, seed: int = 0, **options: object) -> VAE:
    """A small model in float64."""
    chosen = {"latent_dim": 2, "hidden": [6], "components": 5, **options}
    return build("gaussian", {**chosen, "prior": prior}, SHAPE, seed).double()


def parts_of(model: VAE) -> Components:
    """The mixture that the model's prior is."""
    prior = model.prior
    if isinstance(prior, MixtureOfGaussians):
        return prior.components(1)
    assert isinstance(prior, VampPrior)
    return prior.components()


def reference(parts: Components) -> MixtureSameFamily:
    """The same mixture of torch's own."""
    normals = Normal(parts.means_RKk[0], (0.5 * parts.logvars_RKk[0]).exp())
    return MixtureSameFamily(Categorical(logits=parts.logits_RK[0]), Independent(normals, 1))


def normal(*size: int, seed: int = 1) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@TRAINED
def test_log_prob_is_that_of_the_mixture(prior: str) -> None:
    """Densities equal those of torch's mixture with the same components."""
    model = model_of(prior)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * normal(*parameter.shape, seed=3))
        z = normal(7, 2)
        wanted = reference(parts_of(model)).log_prob(z)
        torch.testing.assert_close(model.prior.log_prob(z), wanted)


@TRAINED
def test_samples_have_the_moments_of_the_mixture(prior: str) -> None:
    """Mean and variance of many draws are those of the mixture."""
    model, count = model_of(prior), 40_000
    with torch.no_grad():
        u = torch.rand(count, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        z, wanted = model.prior.sample(normal(count, 2), u), reference(parts_of(model))
    error = 5 * (wanted.variance / count).sqrt()
    assert ((z.mean(0) - wanted.mean).abs() < error).all()
    torch.testing.assert_close(z.var(0), wanted.variance, rtol=0.05, atol=0.0)


@TRAINED
def test_rate_is_a_log_ratio_with_and_without_gradients(prior: str) -> None:
    """The rate is log q(z|x) - log p(z) at the draw, the same in training and in evaluation."""
    model, eps = model_of(prior), normal(3, 2)
    x = normal(3, *SHAPE, seed=2)
    with torch.no_grad():
        mu, logvar = model.encode(x)
        z = mu + (0.5 * logvar).exp() * eps
        posterior = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
        wanted = posterior.log_prob(z) - reference(parts_of(model)).log_prob(z)
        torch.testing.assert_close(model(x, eps).rate, wanted)
    torch.testing.assert_close(model(x, eps).rate.detach(), wanted)


@TRAINED
def test_iwae_bound_is_tighter_with_more_draws(prior: str) -> None:
    """The importance-weighted bound falls with the draws, and one draw gives the plain bound."""
    model, x = model_of(prior), normal(4, *SHAPE, seed=2)
    eps = normal(500, 4, 2)
    with torch.no_grad():
        one = torch.stack([iwae(model, x, part[None]) for part in eps]).mean(0)
        terms = model(x.repeat(500, 1, 1), eps.flatten(0, 1))
        many = iwae(model, x, eps)
    plain = (terms.distortion + terms.rate).view(500, 4).mean(0)
    torch.testing.assert_close(one, plain)
    assert (many < one).all()


def test_vamp_components_are_posteriors_of_its_inputs() -> None:
    """The mixture's means are what the model's encoder gives for the pseudo-inputs."""
    model = model_of("vamp")
    prior = model.prior
    assert isinstance(prior, VampPrior)
    mu, logvar = model.encode(prior.inputs.weight.view(5, *SHAPE))
    torch.testing.assert_close(prior.components().means_RKk[0], mu)
    torch.testing.assert_close(prior.components().logvars_RKk[0], logvar)


def test_a_copy_of_a_vamp_prior_asks_the_copied_encoder() -> None:
    """A copy of a model does not change with the original's encoder."""
    model, z = model_of("vamp"), normal(3, 2)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        before = copied.prior.log_prob(z)
        model.encoder.get_submodule("1").weight.mul_(2.0)
        assert torch.equal(copied.prior.log_prob(z), before)
        assert not torch.allclose(model.prior.log_prob(z), before)


@TRAINED
def test_prior_is_trained_and_stays_at_the_site(prior: str) -> None:
    """Its weights are parameters of the model, and none of them is under `encoder.`."""
    model = model_of(prior)
    own = [name for name, _ in model.named_parameters() if name.startswith("prior.")]
    assert len(own) == 1
    assert not any("prior" in key for key in encoder_state(model))
    assert encoder_state(model).keys() == encoder_state(model_of("standard")).keys()


@TRAINED
def test_broadcast_prior_is_refused(prior: str) -> None:
    """A model that trains a prior takes no other."""
    with pytest.raises(ConfigError, match="prior of its own"):
        use_prior(model_of(prior), StandardNormal())


def test_standard_prior_takes_a_broadcast_one() -> None:
    """A model without a prior of its own measures against the one it is given."""
    model = model_of("standard")
    given = MixtureOfGaussians(2, 2, torch.Generator()).components(1)
    use_prior(model, given)
    assert model.prior is given


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prior": "flow"}, "Expected prior as one of"),
        ({"prior": "vamp", "network": "conv1d", "hidden": [3]}, "Expected network 'mlp'"),
        ({"prior": "mixture", "stochastic": False}, "plain autoencoder"),
        ({"prior": "mixture", "components": 0}, "Expected components between"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], match: str) -> None:
    """A combination that cannot be trained says so."""
    with pytest.raises(ConfigError, match=match):
        build("gaussian", options, SHAPE, 0)


def test_mixture_finds_two_clusters() -> None:
    """Maximum likelihood on latents of two clusters reaches their entropy."""
    prior = MixtureOfGaussians(4, 2, torch.Generator().manual_seed(0)).double()
    side = torch.where(torch.arange(400) % 2 == 0, 3.0, -3.0).double()
    z = 0.5 * normal(400, 2) + side[:, None]
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for _ in range(300):
        loss = -prior.log_prob(z).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    entropy = math.log(2.0) + math.log(2.0 * math.pi * math.e * 0.25)
    assert abs(loss.item() - entropy) < 0.1
