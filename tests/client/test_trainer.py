"""Local DP-SGD: the claims that the accounting rests on."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedlatent.client import trainer
from fedlatent.client.trainer import gradient_sums, train_round
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ReleaseRefused
from fedlatent.shared.models import VAE, GaussianConfig, GaussianVAE, build, build_model
from fedlatent.shared.models.objective import elbo
from fedlatent.shared.privacy.noise import RngName, SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from tests.client.support import tiny_records, tiny_run

RUN = tiny_run()
PLAN = PrivacyPlan.from_config(RUN)
RECORDS = torch.from_numpy(tiny_records(60).astype(np.float32))


class FixedDraws:
    """Latent draws that are the same number for every record, so that parts can be compared."""

    rng: RngName = "simulation"

    def uniform(self, size: int) -> np.ndarray:
        """Never used."""
        return np.zeros(size)

    def normal(self, size: int) -> np.ndarray:
        """The constant 0.3; [size]."""
        return np.full(size, 0.3)


def clipped_by_hand(model: VAE, records: Tensor, clip: float, run: RunConfig) -> Tensor:
    """Sum of per-record gradients, each computed alone and clipped alone."""
    total = torch.zeros(sum(p.numel() for p in model.parameters()))
    for record in records:
        eps = torch.full((1, model.latent_dim), 0.3)
        loss = elbo(model(record[None], eps), run.training.beta, run.training.free_bits)
        grads = torch.autograd.grad(loss.sum(), list(model.parameters()))
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        total += flat * min(1.0, clip / (float(flat.norm()) + 1e-6))
    return total.double()


MODELS = {
    "mlp": ({"network": "mlp", "hidden": [6], "latent_dim": 2}, (12,)),
    "conv1d": ({"network": "conv1d", "hidden": [3, 4], "latent_dim": 2}, (12,)),
    "conv2d": ({"network": "conv2d", "hidden": [3], "latent_dim": 2}, (1, 4, 3)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clip", [0.5, 1e4])
def test_clipping_is_exact_per_record(name: str, clip: float) -> None:
    """The sum of clipped gradients equals that of records computed one by one."""
    options, shape = MODELS[name]
    model = build("gaussian", options, shape, 3)
    records = RECORDS[:9].view(9, *shape)
    expected = clipped_by_hand(model, records, clip, RUN)
    model.train()
    with gradient_sums(model, dataclasses.replace(PLAN, clip=clip), RUN.training) as sums:
        got = sums(records, torch.arange(9), FixedDraws())
    assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_large_samples_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Poisson sample larger than one part gives the same sum."""
    model = build_model(RUN).train()
    with gradient_sums(model, PLAN, RUN.training) as sums:
        whole = sums(RECORDS, torch.arange(60), FixedDraws())
        monkeypatch.setattr(trainer, "CHUNK", 7)
        parts = sums(RECORDS, torch.arange(60), FixedDraws())
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_neighbours_differ_by_the_clip_at_most() -> None:
    """Leaving one record out moves the sum by no more than the clipping norm."""
    model = build_model(RUN).train()
    with gradient_sums(model, PLAN, RUN.training) as sums:
        whole = sums(RECORDS, torch.arange(60), FixedDraws())
        for left_out in (0, 17, 59):
            others = torch.tensor([i for i in range(60) if i != left_out])
            moved = whole - sums(RECORDS, others, FixedDraws())
            assert float(moved.norm()) <= PLAN.clip * (1 + 1e-5)


@pytest.mark.parametrize("weight", [1e30, 1e19])
def test_record_that_overflows_leaves_no_trace(weight: float) -> None:
    """Weights for which one record overflows give the sum of the other records, not NaN."""
    options = {"hidden": [6], "latent_dim": 2, "activation": "relu"}
    model = build("gaussian", options, (12,), 0).train()
    with torch.no_grad():
        next(model.encoder.parameters())[0, 0] = weight
    records = RECORDS.clone()
    records[:, 0] = 0.0
    records[5, 0] = 3e10
    others = torch.tensor([i for i in range(60) if i != 5])
    with gradient_sums(model, PLAN, RUN.training) as sums:
        with_it = sums(records, torch.arange(60), FixedDraws())
        without = sums(records, others, FixedDraws())
    assert bool(torch.isfinite(with_it).all())
    assert float((with_it - without).norm()) <= PLAN.clip * (1 + 1e-5)


def _plain_sgd(sample_rate: float, noise_multiplier: float) -> tuple[RunConfig, PrivacyPlan]:
    """One step of SGD with rate 1, which shows the noisy gradient itself."""
    run = tiny_run(training={"optimizer": "sgd", "learning_rate": 1.0, "steps_per_round": 1})
    plan = PrivacyPlan.from_config(run)
    return run, dataclasses.replace(
        plan, sample_rate=sample_rate, noise_multiplier=noise_multiplier
    )


def _move(run: RunConfig, plan: PrivacyPlan, seed: int, records: Tensor = RECORDS) -> np.ndarray:
    """How far one round moves the weights."""
    model = build_model(run)
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    train_round(model, records, plan, run.training, SimulationNoise(seed), {})
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return (after - before).double().numpy()


def test_empty_sample_is_a_step_of_pure_noise() -> None:
    """With no record in the sample the step is noise of deviation sigma * C / (q * N)."""
    run, plan = _plain_sgd(sample_rate=1e-9, noise_multiplier=1.3)
    moves = np.concatenate([_move(run, plan, seed) for seed in range(60)])
    expected = plan.noise_multiplier * plan.clip / (plan.sample_rate * len(RECORDS))
    assert moves.std() / expected == pytest.approx(1.0, abs=0.03)
    assert abs(moves.mean()) < 4 * expected / math.sqrt(len(moves))


def test_step_has_the_stated_noise() -> None:
    """Over seeds, with every record in, a step varies by sigma * C / N on each weight."""
    run, plan = _plain_sgd(sample_rate=1.0, noise_multiplier=30.0)  # far above the latent draws
    moves = np.stack([_move(run, plan, seed) for seed in range(80)])
    expected = plan.noise_multiplier * plan.clip / len(RECORDS)
    assert math.sqrt(moves.var(axis=0, ddof=1).mean()) / expected == pytest.approx(1.0, abs=0.04)


def test_divides_by_the_public_constant() -> None:
    """The step is the clipped sum over q * N, not over the size of the sample."""
    run, plan = _plain_sgd(noise_multiplier=1e-12, sample_rate=0.5)
    model = build_model(run).train()
    noise = SimulationNoise(12)
    chosen = torch.from_numpy(plan.sample(len(RECORDS), noise))
    with gradient_sums(model, plan, run.training) as sums:
        total = sums(RECORDS, chosen, noise)
    expected = -total.numpy() / (0.5 * len(RECORDS))
    np.testing.assert_allclose(_move(run, plan, 12), expected, atol=1e-6)
    assert len(chosen) != 30


def test_non_private_step_is_plain_sgd() -> None:
    """Without privacy the same code takes the plain gradient step, without clip and noise."""
    run = tiny_run(
        privacy={"mechanism": "none", "sample_rate": 1.0},
        training={"optimizer": "sgd", "learning_rate": 0.01, "steps_per_round": 1},
    )
    plan = PrivacyPlan.from_config(run)
    model = build_model(run)
    noise = SimulationNoise(4)
    plan.sample(len(RECORDS), noise)
    eps = torch.from_numpy(noise.normal(len(RECORDS) * 2).astype(np.float32)).view(-1, 2)
    loss = elbo(model(RECORDS, eps), 1.0, 0.0).mean()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    expected = -0.01 * torch.cat([grad.reshape(-1) for grad in grads]).double().numpy()
    np.testing.assert_allclose(_move(run, plan, 4), expected, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_rounds_continue_the_optimiser(optimizer: str) -> None:
    """Two rounds that hand on the optimiser's state equal one round of twice the steps."""
    run = tiny_run(training={"optimizer": optimizer})
    plan = PrivacyPlan.from_config(run)
    noise, model = SimulationNoise(8), build_model(run)
    first = train_round(model, RECORDS, plan, run.training, noise, {})
    second = train_round(model, RECORDS, plan, run.training, noise, first.optimizer)
    twice = dataclasses.replace(plan, steps_per_round=2 * plan.steps_per_round)
    once = train_round(build_model(run), RECORDS, twice, run.training, SimulationNoise(8), {})
    for key, value in once.state.items():
        torch.testing.assert_close(second.state[key], value)
    assert second.optimizer.keys() == once.optimizer.keys()


def test_model_is_clean_afterwards() -> None:
    """After a round no hook and no per-record tensor is left on the model."""
    model = build_model(RUN)
    train_round(model, RECORDS, PLAN, RUN.training, SimulationNoise(1), {})
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert not any(hasattr(p, "_norm_sample") for p in model.parameters())
    assert not model.training


def test_same_noise_gives_the_same_weights() -> None:
    """The noise source is the only randomness."""
    results = [
        train_round(build_model(RUN), RECORDS, PLAN, RUN.training, SimulationNoise(2), {})
        for _ in range(2)
    ]
    for key, value in results[0].state.items():
        assert torch.equal(results[1].state[key], value)


class LeakyVAE(GaussianVAE):
    """A model with a buffer that follows the raw data, as an EMA codebook does."""

    def __init__(self) -> None:
        config = GaussianConfig(hidden=(6,), latent_dim=2)
        super().__init__(config, (12,), torch.Generator().manual_seed(0))
        self.average = torch.nn.Identity()
        self.average.register_buffer("mean", torch.zeros(12))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode, and remember the mean of the batch."""
        if self.training:
            self.average.get_buffer("mean").lerp_(x.mean(0), 0.1)
        return super().encode(x)


def test_changing_buffer_is_refused() -> None:
    """A model whose buffer moves in training is refused: raw data would leave through it."""
    run = tiny_run(privacy={"sample_rate": 0.9})
    plan = PrivacyPlan.from_config(run)
    with pytest.raises(ReleaseRefused, match=r"average\.mean"):
        train_round(LeakyVAE(), RECORDS, plan, run.training, SimulationNoise(0), {})


def test_a_layer_that_mixes_records_is_refused() -> None:
    """Batch normalisation has no gradient of a single record."""
    model = build_model(RUN).train()
    model.encoder.add_module("mixing", torch.nn.BatchNorm1d(4))
    with (
        pytest.raises(ReleaseRefused, match="one by one"),
        gradient_sums(model, PLAN, RUN.training),
    ):
        pass
