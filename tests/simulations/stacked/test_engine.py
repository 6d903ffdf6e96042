"""The stacked trainer takes the steps of ``fedlatent.client.trainer`` for every client."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlatent.client.trainer import TrainResult, train_round
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import VAE, build_model
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.simulations.stacked import engine
from fedlatent.simulations.stacked.engine import ClientWork, StackedTrainer
from tests.client.support import tiny_run

SIZES = (40, 1, 7, 23, 60)
SECTIONS: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {"training": {"optimizer": "sgd", "learning_rate": 0.05}},
    "momentum": {"training": {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.8}},
    "several draws": {"training": {"multiplicity": 3}},
    "objective": {"training": {"beta": 0.3, "free_bits": 0.2}},
    "empty": {"privacy": {"sample_rate": 0.004}},
    "everyone": {"privacy": {"sample_rate": 1.0}},
    "not private": {"privacy": {"mechanism": "none", "sample_rate": 0.3}},
    "not private, empty": {"privacy": {"mechanism": "none", "sample_rate": 0.004}},
    "conv": {"model": {"options": {"network": "conv1d", "hidden": [3]}}},
    "autoencoder": {"model": {"options": {"stochastic": False, "hidden": [6]}}},
}


def records_of(client: int) -> Tensor:
    """Records of one client."""
    return torch.randn(SIZES[client], 12, generator=torch.Generator().manual_seed(client))


def model_for(run: RunConfig, client: int) -> VAE:
    """The run's model, with weights of the client's own."""
    model = build_model(run)
    generator = torch.Generator().manual_seed(100 + client)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def one_by_one(run: RunConfig, rounds: int = 2) -> list[TrainResult]:
    """What the trainer gives each client after some rounds."""
    plan, results = PrivacyPlan.from_config(run), []
    for client in range(len(SIZES)):
        model, noise = model_for(run, client), SimulationNoise(9, client)
        state: dict[str, Tensor] = {}
        for _ in range(rounds):
            last = train_round(model, records_of(client), plan, run.training, noise, state)
            state = last.optimizer
        results.append(last)
    return results


def stacked(run: RunConfig, rounds: int = 2, **limits: int) -> list[TrainResult]:
    """The same by the stacked trainer."""
    plan = PrivacyPlan.from_config(run)
    trainer = StackedTrainer(build_model(run), plan, run.training, **limits)
    noises = [SimulationNoise(9, client) for client in range(len(SIZES))]
    results = [
        TrainResult(state=model_for(run, client).state_dict(), optimizer={})
        for client in range(len(SIZES))
    ]
    for _ in range(rounds):
        work = [
            ClientWork(
                state=result.state,
                records=records_of(client),
                noise=noises[client],
                optimizer=result.optimizer,
            )
            for client, result in enumerate(results)
        ]
        results = list(trainer.train(work))
    return results


def assert_equal(got: list[TrainResult], expected: list[TrainResult], tolerance: float) -> None:
    """Weights and optimisers agree within a relative tolerance and 1e-6."""
    for one, other in zip(got, expected, strict=True):
        for a, b in ((one.state, other.state), (one.optimizer, other.optimizer)):
            assert a.keys() == b.keys()
            for key, value in b.items():
                torch.testing.assert_close(a[key], value, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("name", SECTIONS)
def test_rounds_equal_those_of_the_trainer(name: str) -> None:
    """Clients of unequal size get the trainer's weights and optimiser state over two rounds."""
    run = tiny_run(**SECTIONS[name])
    assert_equal(stacked(run), one_by_one(run), 1e-4)


@pytest.mark.parametrize("name", ["adam", "sgd", "several draws", "conv"])
def test_padded_samples_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples padded to one size, as on an accelerator, give the results of ragged ones."""
    run = tiny_run(**SECTIONS[name])
    monkeypatch.setattr(engine, "SMALL", 0)
    ragged = stacked(run)
    monkeypatch.setattr(engine, "SMALL", 2**30)
    assert_equal(stacked(run), ragged, 1e-4)


def test_unknown_device_is_a_configuration_error() -> None:
    """A device that this machine lacks is named."""
    run = tiny_run()
    with pytest.raises(ConfigError, match="nonsense"):
        StackedTrainer(
            build_model(run), PrivacyPlan.from_config(run), run.training, device="nonsense"
        )


@pytest.mark.parametrize("limits", [{"max_clients": 1}, {"max_clients": 2}, {"memory": 1}])
def test_chunks_do_not_matter(limits: dict[str, int]) -> None:
    """Clients trained one at a time, in pairs or all together get the same results."""
    run = tiny_run(privacy={"sample_rate": 0.3})
    assert_equal(stacked(run, **limits), stacked(run), 1e-6)


def test_large_samples_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples larger than one pass give the same results."""
    run = tiny_run(privacy={"sample_rate": 0.5})
    whole = stacked(run)
    monkeypatch.setattr(engine, "CHUNK", 7)
    assert_equal(stacked(run), whole, 1e-5)


def test_chunks_hold_every_client_once_and_keep_to_the_memory() -> None:
    """Neighbours go together, everyone once, and half the memory makes smaller chunks."""
    run = tiny_run()
    plan = PrivacyPlan.from_config(run)
    counts = [5, 900, 30, 30, 1, 400] * 20
    chunks = {}
    for memory in (2**17, 2**18):
        trainer = StackedTrainer(build_model(run), plan, run.training, memory=memory)
        chunks[memory] = list(trainer.chunks(counts))
        flat = [client for chunk in chunks[memory] for client in chunk]
        assert flat == list(range(len(counts)))
    assert len(chunks[2**17]) > len(chunks[2**18]) > 1


def test_layer_outside_the_zoo_takes_the_same_steps() -> None:
    """A model with layer normalisation equals the trainer."""
    run = tiny_run()
    plan = PrivacyPlan.from_config(run)
    model = build_model(run)
    model.encoder = nn.Sequential(*model.encoder.children(), nn.LayerNorm(4))
    work = ClientWork(
        state=copy.deepcopy(model.state_dict()),
        records=records_of(0),
        noise=SimulationNoise(3),
        optimizer={},
    )
    got = StackedTrainer(copy.deepcopy(model), plan, run.training).train([work])
    expected = train_round(model, records_of(0), plan, run.training, SimulationNoise(3), {})
    assert_equal(list(got), [expected], 1e-4)


def test_model_with_a_buffer_is_refused() -> None:
    """A tensor that is no trained parameter could differ between clients, so it is refused."""
    run = tiny_run()
    model = build_model(run)
    model.register_buffer("average", torch.zeros(12))
    with pytest.raises(ConfigError, match="buffers"):
        StackedTrainer(model, PrivacyPlan.from_config(run), run.training)
