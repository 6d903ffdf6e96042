"""First weights from draws of a released Gaussian."""

import copy
from typing import Any

import numpy as np
import torch

from fedlatent.client.compute import first_model
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.gaussian import (
    DataGaussian,
    data_features,
    feature_basis,
    feature_radius,
)
from fedlatent.shared.models import VAE, build_model
from fedlatent.shared.models.objective import elbo
from fedlatent.shared.models.warm_start import warm_start
from fedlatent.shared.privacy.summaries import moments
from tests.client.support import tiny_run


def run_of(steps: int = 60, **sections: Any) -> RunConfig:  # noqa: ANN401
    """A run with a warm start."""
    return tiny_run(
        summaries={"data": "gaussian", "features": 6},
        training={"warm_start_steps": steps},
        **sections,
    )


def gaussian_of(run: RunConfig, seed: int = 0) -> DataGaussian:
    """The exact Gaussian of records that vary along one wave."""
    rng = np.random.default_rng(seed)
    wave = np.cos(np.pi * (np.arange(12) + 0.5) / 12)
    records = (rng.normal(size=(400, 1)) * wave + 0.5).astype(np.float32)
    features = data_features(records, feature_basis(run), 0.0)
    return DataGaussian.pooled(run, [moments(features, feature_radius(run))], 0.0)


def trained(run: RunConfig, seed: int = 0) -> VAE:
    """The run's model after its warm start."""
    model = build_model(run)
    warm_start(model, run, gaussian_of(run, seed))
    return model


def same(one: VAE, two: VAE) -> bool:
    """Whether all weights are equal bit for bit."""
    state = two.state_dict()
    return all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


def loss_of(model: VAE, run: RunConfig) -> float:
    """Mean bound of fresh draws from the Gaussian."""
    rng = np.random.default_rng(99)
    draws = gaussian_of(run).draws(500, rng)
    eps = torch.from_numpy(rng.standard_normal((500, model.latent_dim)).astype(np.float32))
    with torch.no_grad():
        return float(elbo(model(torch.from_numpy(draws), eps)).mean())


def test_it_is_a_function_of_run_and_gaussian() -> None:
    """Equal seeds give equal weights; another seed or another Gaussian gives others."""
    run = run_of()
    first = trained(run)
    assert same(first, trained(run))
    assert not same(first, trained(run, seed=1))
    other = build_model(run)
    warm_start(other, run.model_copy(update={"seed": 5}), gaussian_of(run))
    assert not same(first, other)


def test_it_lowers_the_loss_on_fresh_draws() -> None:
    """The bound of unseen draws falls, and falls further with more steps."""
    run = run_of()
    before, after, later = (
        loss_of(m, run) for m in (build_model(run), trained(run), trained(run_of(300)))
    )
    assert after < before - 1.0
    assert later < after


def test_no_steps_leave_the_weights() -> None:
    """Zero steps change nothing."""
    run = run_of(0)
    assert same(trained(run), build_model(run))


def test_the_global_generator_is_left_alone() -> None:
    """Torch's generator is neither read nor moved."""
    run = run_of(3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = trained(run)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, trained(run))


def test_only_weights_change() -> None:
    """The prior and the keys of the state stay; the model comes back ready to be used."""
    run = run_of(3)
    model = build_model(run)
    prior, keys = model.prior, copy.copy(list(model.state_dict()))
    warm_start(model, run, gaussian_of(run))
    assert model.prior == prior
    assert list(model.state_dict()) == keys
    assert not model.training
    for name, value in model.named_parameters():
        assert not torch.equal(value, dict(build_model(run).named_parameters())[name]), name


def test_draws_are_clipped_to_the_public_bounds() -> None:
    """Of a Gaussian far wider than the bounds only signs are left, however wide it is."""
    run = run_of(20)
    density = gaussian_of(run).density

    def wide(factor: float) -> VAE:
        model = build_model(run)
        arrays = {**density.arrays(), "covariance": factor * density.covariance}
        warm_start(model, run, DataGaussian.from_arrays(run, arrays))
        return model

    first, second = wide(2.0**60), wide(2.0**62)
    assert same(first, second)
    assert not same(first, trained(run))


def test_a_client_begins_with_the_same_weights() -> None:
    """First weights of a client are those of the warm start where a run has one."""
    run = run_of()
    assert same(first_model(run, gaussian_of(run)), trained(run))
    assert same(first_model(run, None), build_model(run))
    bare = run_of(0)
    assert same(first_model(bare, gaussian_of(bare)), build_model(bare))
