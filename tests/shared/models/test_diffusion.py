"""The diffusion prior on latents whose answer is known, and what latent diffusion refuses."""

import pytest
import torch
from torch import Tensor

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import build
from fedlatent.shared.models.base import use_prior
from fedlatent.shared.models.diffusion import DiffusionConfig, DiffusionPrior, LatentDiffusion
from fedlatent.shared.models.objective import iwae
from fedlatent.shared.models.priors import StandardNormal

OPTIONS = {"latent_dim": 3, "hidden": [7], "width": 6, "blocks": 1, "levels": 2, "steps": 5}


def model_of(**options: object) -> LatentDiffusion:
    """A small model in float64."""
    model = build("diffusion", {**OPTIONS, **options}, (12,), 0).double()
    assert isinstance(model, LatentDiffusion)
    return model


def normal(*size: int, seed: int = 1) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Exact(DiffusionPrior):
    """The best denoiser of latents from N(mean, deviation^2 I)."""

    mean, deviation = 2.0, 0.5

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        """Conditional mean of v given the noisy latent."""
        angle = 0.5 * torch.pi * t[..., None]
        signal, noise = angle.cos(), angle.sin()
        total = (signal * self.deviation).square() + noise.square()
        offset = noisy - signal * self.mean
        clean = self.mean + signal * self.deviation**2 * offset / total
        return signal * (noise * offset / total) - noise * clean


def test_sampling_reaches_the_density_of_an_exact_denoiser() -> None:
    """With the best denoiser of a Gaussian, draws have its mean and deviation, scaled back."""
    prior = Exact(DiffusionConfig(latent_dim=2, steps=200, scale=3.0), torch.Generator())
    drawn = prior.sample(normal(4_000, 2), torch.zeros(4_000))
    torch.testing.assert_close(drawn.mean(0), torch.full((2,), 6.0).double(), atol=0.15, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((2,), 1.5).double(), atol=0.15, rtol=0)


def test_training_beats_a_standard_normal_on_two_clusters() -> None:
    """After training on two clusters, nearly every draw lies in one of them, half in each."""
    prior = DiffusionPrior(
        DiffusionConfig(latent_dim=2, width=64, blocks=2, levels=4),
        torch.Generator().manual_seed(0),
    )
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    for _ in range(400):
        side = torch.randint(0, 2, (256, 1), generator=generator) * 4.0 - 2.0
        z = side + 0.2 * torch.randn(256, 2, generator=generator)
        noise = torch.randn(256, 4, 2, generator=generator)
        loss = prior.loss(z, noise, torch.rand(256, 4, generator=generator)).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        drawn = prior.sample(torch.randn(1_000, 2, generator=generator), torch.zeros(1_000))
    near = ((drawn - 2.0).abs() < 0.8).all(1), ((drawn + 2.0).abs() < 0.8).all(1)
    assert (near[0] | near[1]).float().mean() > 0.9
    assert 0.35 < near[0].float().mean() < 0.65


def test_diffusion_never_moves_the_first_stage() -> None:
    """Encoder and decoder get the same gradient whatever the denoiser is."""
    found = []
    for seed in (0, 1):
        model = model_of()
        with torch.no_grad():
            for parameter in model.denoiser.parameters():
                parameter.copy_(normal(*parameter.shape, seed=seed))
        terms = model(normal(4, 12), normal(4, model.noise_dim, seed=2))
        (terms.distortion + terms.rate).sum().backward()
        found.append([p.grad for part in (model.encoder, model.decoder) for p in part.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_more_levels_keep_the_mean_of_the_loss() -> None:
    """The record's loss over several noise levels is the mean of their single losses."""
    model = model_of()
    z, noise, t = normal(3, 3), normal(3, 4, 3, seed=2), torch.rand(3, 4).double()
    whole = model.denoiser.loss(z, noise, t)
    parts = [model.denoiser.loss(z, noise[:, [i]], t[:, [i]]) for i in range(4)]
    torch.testing.assert_close(whole, torch.stack(parts).mean(0))


def test_draws_follow_from_the_prior() -> None:
    """New records are decoded latents of the diffusion prior, not of N(0, I)."""
    model = model_of().float()
    with torch.no_grad():
        drawn = model.draw(4, torch.Generator().manual_seed(3))
        eps = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
        wanted = model.reconstruct(model.denoiser.sample(eps, torch.zeros(4)))
    torch.testing.assert_close(drawn, wanted)


def test_likelihood_bounds_are_refused() -> None:
    """There is no density of latents, so bounds and log ratios say so."""
    model, x = model_of(), normal(2, 12)
    mu, logvar = model.encode(x)
    with pytest.raises(ConfigError, match="a likelihood bound"):
        iwae(model, x, normal(5, 2, model.noise_dim))
    with pytest.raises(ConfigError, match="a likelihood bound"):
        model.prior.log_prob(mu)
    with pytest.raises(ConfigError, match="a likelihood bound"):
        model.rate(mu, logvar, mu)


def test_broadcast_prior_is_refused() -> None:
    """A model with a diffusion prior takes no other."""
    with pytest.raises(ConfigError, match="prior of its own"):
        use_prior(model_of(), StandardNormal())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"levels": 0}, "Expected levels between"),
        ({"steps": 0}, "Expected steps between"),
        ({"kl_weight": 0.0}, "Expected kl_weight as a positive"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], match: str) -> None:
    """A value out of range names its option."""
    with pytest.raises(ConfigError, match=match):
        model_of(**options)
