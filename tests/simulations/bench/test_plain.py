"""The benchmark's work: one model in two ways of writing, and the records of its clients."""

from dataclasses import replace

import pytest
import torch

from fedlatent.shared.models import build_model
from fedlatent.shared.models.objective import elbo
from fedlatent.simulations.bench.plain import CONV, MLP, PlainVAE, Pool, Task, count_parameters
from fedlatent.simulations.bench.systems import run_config


@pytest.mark.parametrize("task", [MLP, CONV], ids=["mlp", "conv"])
def test_peers_train_our_model(task: Task) -> None:
    """Our state dict fits the plain model, and both give each record the same loss."""
    ours, plain = build_model(run_config(task, private=True)), PlainVAE(task)
    plain.load_state_dict(ours.state_dict())
    assert count_parameters(ours) == count_parameters(plain)
    x = Pool(task).of(3)[:5]
    eps = torch.randn(5, task.latent, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plain(x, eps), elbo(ours(x, eps)))


def test_work_is_the_stated_one() -> None:
    """The dense model has 427,344 parameters; a client has 64 records in two steps of 32."""
    sizes = 784 * 256 + 256 + 256 * 64 + 64 + 32 * 256 + 256 + 256 * 784 + 784
    assert count_parameters(PlainVAE(MLP)) == sizes == 427_344
    assert (MLP.clients, MLP.records, MLP.batch, MLP.steps) == (100, 64, 32, 2)


def test_clients_have_bits_of_their_own() -> None:
    """Records are zeros and ones, differ between clients, and are the same in every process."""
    first, second = Pool(MLP.sized(2)).cohort()
    assert first.shape == (64, 784)
    assert set(first.flatten().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    assert torch.equal(first, Pool(MLP).of(0))


def test_ten_thousand_clients_share_the_memory_of_one_pool() -> None:
    """A client's records are a window of the pool, not a copy."""
    pool = Pool(MLP)
    assert pool.of(9_999).untyped_storage().data_ptr() == pool.records.untyped_storage().data_ptr()


def test_a_task_survives_the_way_to_another_process() -> None:
    """The JSON of a task gives an equal task."""
    task = replace(CONV, clients=7, device="cpu")
    assert Task.from_json(task.to_json()) == task
