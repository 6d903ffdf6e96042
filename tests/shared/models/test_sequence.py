"""What only the sequence family does: streams, forecasts, missing values."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedlatent.client.trainer import train_round
from fedlatent.shared.config import RunConfig, Training
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import build
from fedlatent.shared.models.base import use_prior
from fedlatent.shared.models.priors import StandardNormal
from fedlatent.shared.models.sequence import SequenceVAE
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan

SMALL = {"latent_dim": 2, "width": 6, "hidden": 5}


def made(shape: tuple[int, ...], **options: object) -> SequenceVAE:
    """A small model in float64."""
    model = build("sequence", {**SMALL, **options}, shape, 0).double().eval()
    assert isinstance(model, SequenceVAE)
    return model


def values(*shape: int) -> Tensor:
    """Standard normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def test_the_exported_step_is_surprise() -> None:
    """Streaming a record patch after patch gives the surprise of the whole record."""
    model = made((2, 12), patch=3, season=6, known=1)
    x = values(4, 2, 12)
    step = model.graphs()["step"]
    state, scores = step.inputs["state"].double()[:1].repeat(4, 1), []
    for first in range(0, 12, 3):
        _, _, score, state = step.module(x[:, :, first : first + 3], state)
        scores.append(score)
    whole = model.surprise(x)
    assert whole.shape == (4, 12)
    torch.testing.assert_close(torch.stack(scores, 1), whole.view(4, 4, 3).sum(2))


@torch.no_grad()
def test_surprise_does_not_look_ahead() -> None:
    """A change of the last patch leaves the surprise of all earlier samples as it was."""
    model = made((12,), patch=3)
    x = values(2, 12)
    changed = torch.cat([x[:, :9], x[:, 9:] + 5.0], 1)
    before, after = model.surprise(x), model.surprise(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).all()


@torch.no_grad()
def test_missing_values_count_for_nothing() -> None:
    """What stands under a mask of 0 moves no term, no latent and no surprise."""
    model = made((2, 12), patch=3, masked=True)
    mask = (values(3, 1, 12) > 0).double()
    x = torch.cat([values(3, 1, 12), mask], 1)
    other = torch.cat([torch.where(mask > 0, x[:, :1], 99.0), mask], 1)
    eps = values(3, model.noise_dim)
    for one, two in zip(model(x, eps), model(other, eps), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(model.encode(x)[0], model.encode(other)[0])
    assert torch.equal(model.surprise(x), model.surprise(other))
    assert (model.surprise(x)[mask[:, 0] == 0] == 0).all()


@torch.no_grad()
def test_a_masked_record_that_is_complete_costs_its_density() -> None:
    """A record with nothing observed costs no nats, and one with all observed costs some."""
    model = made((2, 6), patch=2, masked=True)
    x, eps = values(2, 1, 6), values(2, model.noise_dim)
    nothing = model(torch.cat([x, torch.zeros_like(x)], 1), eps)
    everything = model(torch.cat([x, torch.ones_like(x)], 1), eps)
    assert (nothing.distortion == 0).all()
    assert (everything.distortion > 0).all()


@torch.no_grad()
def test_a_forecast_has_the_asked_shape_and_follows_the_generator() -> None:
    """Paths have the horizon's length whatever the patch, and equal generators give equal ones."""
    model = made((3, 12), patch=4, season=8, known=1)
    history, ahead = values(2, 3, 14), values(2, 1, 6)
    draw = [
        model.forecast(history, 6, 5, torch.Generator().manual_seed(3), known=ahead)
        for _ in range(2)
    ]
    assert draw[0].shape == (2, 5, 2, 6)
    assert torch.equal(draw[0], draw[1])
    assert (draw[0][0, 0] != draw[0][0, 1]).all()


@torch.no_grad()
def test_a_season_is_repeated_before_any_training() -> None:
    """A fresh model with a season forecasts the season before, up to its noise."""
    model = made((24,), patch=4, season=8)
    wave = torch.sin(torch.arange(24.0, dtype=torch.float64) * 2 * torch.pi / 8)[None]
    paths = model.forecast(wave, 16, 2000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(paths.mean((0, 1, 2)), wave[0, :16], atol=0.25, rtol=0)


def test_training_makes_records_likelier() -> None:
    """A few steps on noisy waves lower the bound of others by nats, and forecasts follow them."""
    random = np.random.default_rng(0)
    phase = random.uniform(0, 2 * np.pi, (400, 1))
    waves = np.sin(phase + np.arange(24) * 2 * np.pi / 12) + random.normal(0, 0.05, (400, 24))
    x = torch.tensor(waves, dtype=torch.float32)
    model = build("sequence", {"preset": "tiny", "patch": 4}, (24,), 0)
    assert isinstance(model, SequenceVAE)
    eps = torch.randn(100, model.noise_dim, generator=torch.Generator().manual_seed(2))
    before = sum(term.mean() for term in model(x[300:], eps))
    plan = PrivacyPlan.from_config(
        RunConfig.parse(
            {
                "name": "waves",
                "data": {"name": "waves", "shape": [24], "lower": -2.0, "upper": 2.0},
                "privacy": {"mechanism": "none", "rng": "simulation", "sample_rate": 0.2},
                "training": {"rounds": 1, "steps_per_round": 250},
            },
            "waves",
        )
    )
    training = Training(rounds=1, steps_per_round=250, learning_rate=1e-2)
    train_round(model, x[:300], plan, training, SimulationNoise(0, 0, 0, 0), {}, trained=0)
    with torch.no_grad():
        after = sum(term.mean() for term in model(x[300:], eps))
        paths = model.forecast(x[300:, :16], 8, 64, torch.Generator().manual_seed(0))
    assert after < before - 10.0
    error = (paths.mean((1, 2)) - x[300:, 16:]).abs().mean()
    assert error < 0.3  # a forecast of 0 has 0.64


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 3, 4), {}, r"\(T,\) or"),
        ((10,), {"patch": 3}, "whole patches"),
        ((10,), {"patch": 10}, "two whole patches"),
        ((3, 10), {"masked": True}, "that 2 divides"),
        ((2, 10), {"known": 2}, "correct 'known'"),
        ((12,), {"patch": 4, "season": 6}, "multiple of patch"),
        ((12,), {"season": 6, "memory": 3}, "at least the season"),
        ((12,), {"masked": 1}, "true or false"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    shape: tuple[int, ...], options: dict[str, object], message: str
) -> None:
    """Each refusal says what to correct."""
    with pytest.raises(ConfigError, match=message):
        build("sequence", {**SMALL, **options}, shape, 0)


def test_a_history_below_one_patch_is_refused() -> None:
    """There is nothing to read in it."""
    with pytest.raises(ConfigError, match="at least 3 samples"):
        made((6,), patch=3).forecast(values(1, 2), 3, 1, torch.Generator())


def test_a_broadcast_prior_is_refused() -> None:
    """The prior is trained with the model, so no other may take its place."""
    model = made((6,))
    with pytest.raises(ConfigError, match="prior of its own"):
        use_prior(model, StandardNormal())
