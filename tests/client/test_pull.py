"""What stands beside the optimiser: the pull to received weights, its schedule and the averages."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedlatent.client.trainer import (
    Pull,
    averaged,
    averages_of,
    learning_rate,
    pull_share,
    train_round,
)
from fedlatent.shared.config import RunConfig
from fedlatent.shared.models import build_model
from fedlatent.shared.models.base import ENCODER_PREFIX
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from tests.client.support import tiny_records, tiny_run

RECORDS = torch.from_numpy(tiny_records(60).astype(np.float32))


def weights(seed: int) -> dict[str, Tensor]:
    """Two parameters."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "encoder.w": torch.randn(4, 3, generator=generator),
        "encoder.b": torch.randn(4, generator=generator),
    }


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Largest difference."""
    return max(float((one[key] - two[key]).abs().max()) for key in two)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-6, 10.0), st.floats(0.0, 1e4))
def test_the_pull_never_overshoots(rate: float, strength: float) -> None:
    """Every weight stays between where it was and the anchor, however strong the pull."""
    own, anchor = weights(1), weights(2)
    before = {key: value.clone() for key, value in own.items()}
    Pull(anchor=anchor, strength=strength)(own, rate)
    assert 0.0 <= pull_share(rate, strength) <= 1.0
    for key, value in own.items():
        low, high = torch.minimum(before[key], anchor[key]), torch.maximum(before[key], anchor[key])
        assert bool((value >= low - 1e-6).all())
        assert bool((value <= high + 1e-6).all())


def test_one_pull_is_a_step_of_the_stated_size() -> None:
    """W - rate * strength * (w - anchor), if the anchor names them."""
    own, anchor = weights(1), weights(2)
    own["decoder.w"] = torch.ones(2)
    before = {key: value.clone() for key, value in own.items()}
    Pull(anchor=anchor, strength=3.0)(own, 0.1)
    for key in anchor:
        wanted = before[key] - 0.1 * 3.0 * (before[key] - anchor[key])
        torch.testing.assert_close(own[key], wanted)
    assert torch.equal(own["decoder.w"], torch.ones(2))


def test_pulls_come_to_the_anchor() -> None:
    """The distance shrinks by the same factor each time and the anchor does not move."""
    own, anchor = weights(1), weights(2)
    kept = {key: value.clone() for key, value in anchor.items()}
    first, pull = distance(own, anchor), Pull(anchor=anchor, strength=1.0)
    for _ in range(50):
        pull(own, 0.2)
    assert distance(own, anchor) == pytest.approx(first * 0.8**50, rel=0.1)
    assert distance(anchor, kept) == 0.0
    Pull(anchor=anchor, strength=1e9)(own, 1.0)
    assert distance(own, anchor) == 0.0


@pytest.mark.parametrize(
    ("name", "proximal", "strength"),
    [
        ("fedavg", 0.5, None),
        ("fedprox", 0.0, None),
        ("fedprox", 0.5, 0.5),
        ("mr-mtl", 0.7, 0.7),
    ],
)
def test_the_strategy_of_a_run_says_how_strong(
    name: str, proximal: float, strength: float | None
) -> None:
    """Only fedprox and mr-mtl pull, and a lambda of 0 is no pull."""
    run = tiny_run(strategy={"name": name, "proximal": proximal})
    pull = Pull.of(run, weights(1))
    assert (pull.strength if pull else None) == strength


def _round(
    run: RunConfig, strength: float | None, seed: int = 4
) -> tuple[float, dict[str, Tensor]]:
    """Distance of encoder weights from received ones after one noisy round, and all weights."""
    model, plan = build_model(run), PrivacyPlan.from_config(run)
    received = {
        key: value.clone()
        for key, value in model.state_dict().items()
        if key.startswith(ENCODER_PREFIX)
    }
    pull = None if strength is None else Pull(anchor=received, strength=strength)
    noise = SimulationNoise(seed)
    result = train_round(model, RECORDS, plan, run.training, noise, {}, pull=pull)
    return distance(result.state, received), result.state


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_stays_nearer_with_a_stronger_pull(optimizer: str) -> None:
    """The stronger the pull, the nearer the encoder stays; the whole way leaves it where it was."""
    run = tiny_run(training={"optimizer": optimizer, "steps_per_round": 15, "learning_rate": 0.05})
    found = [_round(run, strength)[0] for strength in (None, 1.0, 10.0, 20.0)]
    assert found[0] > found[1] > found[2] > found[3]
    assert found[3] == 0.0
    _, state = _round(run, 20.0)
    start = build_model(run).state_dict()
    assert any(
        not torch.equal(value, start[key])
        for key, value in state.items()
        if not key.startswith(ENCODER_PREFIX)
    )


def test_no_strength_trains_as_without_a_pull() -> None:
    """A pull of strength 0 changes no bit."""
    run = tiny_run()
    _, without = _round(run, None)
    _, with_it = _round(run, 0.0)
    assert all(torch.equal(without[key], with_it[key]) for key in without)


# The learning rate.


def test_the_cosine_falls_to_nearly_nothing() -> None:
    """It starts at the rate, is half of it in the middle, never rises, and ends near zero."""
    run = tiny_run(
        training={"rounds": 10, "steps_per_round": 10, "schedule": "cosine", "learning_rate": 0.4}
    )
    plan = PrivacyPlan.from_config(run)
    rates = [learning_rate(run.training, plan, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.4)
    assert rates[50] == pytest.approx(0.2)
    assert rates[25] == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert (np.diff(rates) < 0).all()
    assert 0.0 < rates[-1] < 0.4 * 1e-3
    assert learning_rate(run.training, plan, 1000) == 0.0


def test_a_constant_rate_stays() -> None:
    """Without a schedule every step has the same rate."""
    run = tiny_run(training={"learning_rate": 0.3})
    plan = PrivacyPlan.from_config(run)
    assert {learning_rate(run.training, plan, step) for step in (0, 5, 11, 500)} == {0.3}


def test_the_schedule_goes_on_over_rounds() -> None:
    """A late round of plain SGD moves less than the first one, by the ratio of the rates."""
    run = tiny_run(
        training={
            "rounds": 8,
            "steps_per_round": 1,
            "optimizer": "sgd",
            "schedule": "cosine",
            "learning_rate": 0.1,
        }
    )
    plan = PrivacyPlan.from_config(run)

    def moved(trained: int) -> Tensor:
        model = build_model(run)
        before = torch.cat([value.reshape(-1) for value in model.state_dict().values()])
        result = train_round(
            model, RECORDS, plan, run.training, SimulationNoise(1), {}, trained=trained
        )
        return torch.cat([value.reshape(-1) for value in result.state.values()]) - before

    ratio = float(moved(6).norm() / moved(0).norm())
    assert ratio == pytest.approx(0.5 * (1 + math.cos(math.pi * 6 / 8)), rel=1e-3)


def test_the_pull_follows_the_schedule() -> None:
    """At a rate of nearly zero even a strong pull moves next to nothing."""
    assert pull_share(1e-9, 100.0) == pytest.approx(1e-7)
    run = tiny_run(
        training={"rounds": 50, "steps_per_round": 1, "schedule": "cosine", "optimizer": "sgd"}
    )
    plan, model = PrivacyPlan.from_config(run), build_model(run)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    far = {key: value + 1.0 for key, value in before.items()}
    pull = Pull(anchor=far, strength=1.0)
    quiet = dataclasses.replace(plan, noise_multiplier=1e-9)
    result = train_round(
        model, RECORDS, quiet, run.training, SimulationNoise(1), {}, trained=49, pull=pull
    )
    assert distance(result.state, before) < 1e-4


# Averages of weights over rounds.


def test_averages_by_hand() -> None:
    """The first average is the weights; then decay * average + (1 - decay) * weights."""
    training = tiny_run(training={"ema": 0.75}).training
    first = averaged(training, weights(1), {})
    second = averaged(training, weights(2), first)
    for key, value in weights(1).items():
        torch.testing.assert_close(first[f"{key}/ema"], value)
        torch.testing.assert_close(second[f"{key}/ema"], 0.75 * value + 0.25 * weights(2)[key])
    assert averages_of({**second, "encoder.w/exp_avg": torch.zeros(1)}).keys() == {
        "encoder.w",
        "encoder.b",
    }


def test_averages_do_not_alias_the_weights() -> None:
    """Later steps on the weights leave the stored average as it was."""
    training, own = tiny_run(training={"ema": 0.5}).training, weights(1)
    first = averaged(training, own, {})
    own["encoder.w"].zero_()
    torch.testing.assert_close(first["encoder.w/ema"], weights(1)["encoder.w"])


def test_no_averages_unless_asked() -> None:
    """A decay of 0 keeps nothing."""
    assert averaged(tiny_run().training, weights(1), {}) == {}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_rounds_carry_averages_that_do_not_change_training(optimizer: str) -> None:
    """Two rounds give the same weights with averages as without, and the average of both."""
    results = []
    for ema in (0.0, 0.6):
        run = tiny_run(training={"ema": ema, "optimizer": optimizer, "momentum": 0.5})
        plan, model, seen = PrivacyPlan.from_config(run), build_model(run), []
        state: dict[str, Tensor] = {}
        for number in range(2):
            result = train_round(
                model, RECORDS, plan, run.training, SimulationNoise(number), state, trained=number
            )
            state = result.optimizer
            seen.append(result.state)
        results.append((seen, averages_of(state)))
    (plain, none), (same, average) = results
    assert none == {}
    for key in plain[1]:
        assert torch.equal(plain[1][key], same[1][key])
        torch.testing.assert_close(average[key], 0.6 * same[0][key] + 0.4 * same[1][key])
