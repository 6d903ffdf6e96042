"""The trainers: what they really do in a round, and that Opacus clips."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from fedlatent.shared.models import VAE
from fedlatent.simulations.bench.plain import CONV, MLP, PlainVAE, Pool, Task, plain_loop
from fedlatent.simulations.bench.systems import TRAINERS, Ghost, Hooked

TINY = replace(MLP, shape=(12,), hidden=(6,), latent=2, clients=3, records=8, batch=4)
TINY_CONV = replace(CONV, shape=(1, 8, 8), hidden=(2, 3), latent=2, clients=2, records=4, batch=2)


@pytest.mark.parametrize("name", ["plain_loop", "opacus_hooks", "opacus_ghost"])
@pytest.mark.parametrize("task", [TINY, TINY_CONV], ids=["mlp", "conv"])
def test_peers_pass_over_every_record_once(name: str, task: Task) -> None:
    """A round has the stated number of steps and sees each client's records once."""
    one_round = (plain_loop if name == "plain_loop" else TRAINERS[name])(task)
    sizes: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, PlainVAE):
            sizes.append(len(inputs[0]))

    handle = register_module_forward_pre_hook(count)
    try:
        one_round()
    finally:
        handle.remove()
    assert sizes == [task.batch] * (task.clients * task.steps)


def test_nodes_take_the_stated_steps() -> None:
    """Our deployed trainer takes one step for each batch, of a Poisson sample of that size."""
    task = replace(TINY, records=400, batch=200, clients=2)
    sizes: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, VAE):
            sizes.append(len(inputs[0]))

    one_round = TRAINERS["nodes_dp"](task)
    handle = register_module_forward_pre_hook(count)
    try:
        one_round()
    finally:
        handle.remove()
    steps = [size for size in sizes if size > 10]  # a node first looks at layers with few records
    assert len(steps) == 2 * task.steps
    assert all(150 < size < 250 for size in steps)


@pytest.mark.parametrize("name", ["stacked", "stacked_dp"])
@pytest.mark.parametrize("task", [TINY, TINY_CONV], ids=["mlp", "conv"])
def test_our_trainer_does_a_round(name: str, task: Task) -> None:
    """The stacked trainer accepts the benchmark's models and records."""
    TRAINERS[name](task)()


@pytest.mark.parametrize("kind", [Hooked, Ghost], ids=["hooks", "ghost"])
@pytest.mark.parametrize("task", [TINY, TINY_CONV], ids=["mlp", "conv"])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_opacus_clips_every_record(kind: type[Hooked], task: Task) -> None:
    """One record moves the sum by exactly the clip, though its own gradient is far longer."""
    torch.manual_seed(0)
    system = kind(task, noise=False)
    record = Pool(task).of(0)[:1]
    system.step(record)
    applied = torch.cat([p.grad.flatten() for p in system.optimizer.params])
    plain = PlainVAE(task)
    torch.autograd.backward(plain.loss(record))
    raw = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
    assert raw.norm() > 1.5
    assert applied.norm().item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kind", [Hooked, Ghost], ids=["hooks", "ghost"])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_opacus_adds_noise(kind: type[Hooked]) -> None:
    """With noise the applied gradient is far longer than one record may make it."""
    torch.manual_seed(0)
    system = kind(TINY)
    system.step(Pool(TINY).of(0)[:1])
    applied = torch.cat([p.grad.flatten() for p in system.optimizer.params])
    assert applied.norm() > 2.0
