"""The trainers that run in our own environment: one round of all clients of a task."""

import warnings
from collections.abc import Callable, Mapping

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor

from fedlatent.client.trainer import train_round
from fedlatent.shared.config import RunConfig
from fedlatent.shared.models import build_model
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.simulations.bench.plain import PlainVAE, Pool, Round, Task, copies
from fedlatent.simulations.stacked.engine import ClientWork, StackedTrainer


def run_config(task: Task, *, private: bool, rounds: int = 1) -> RunConfig:
    """The task as a run of ours; the whole model is shared, as peers share it."""
    options: dict[str, object] = {
        "network": task.network,
        "hidden": list(task.hidden),
        "latent_dim": task.latent,
        "activation": "relu",
        "likelihood": "bernoulli",
    }
    return RunConfig.parse(
        {
            "name": "bench",
            "sharing": "full",
            "data": {"name": "bits", "shape": list(task.shape), "lower": 0.0, "upper": 1.0},
            "model": {"options": options},
            "privacy": {
                "mechanism": "dp-sgd" if private else "none",
                "epsilon": 8.0,
                "sample_rate": task.batch / task.records,
                "rng": "simulation",
            },
            "training": {
                "rounds": rounds,
                "steps_per_round": task.steps,
                "optimizer": "sgd",
                "learning_rate": task.rate,
            },
            "federation": {"nodes": task.clients, "quorum": task.clients},
        },
        "benchmark",
    )


class Hooked:
    """DP-SGD by Opacus with the gradient of every record in memory, its default.

    Attributes:
        optimizer: Opacus's; its parameters hold the gradient of the step that was taken last.
    """

    wrapper: type[GradSampleModule] = GradSampleModule
    optimizer_class: type[DPOptimizer] = DPOptimizer

    def __init__(self, task: Task, *, noise: bool = True) -> None:
        """Wrap the model; ``noise`` is off where a test looks at the clipping."""
        self._task, self._cohort = task, Pool(task).cohort()
        self._model = PlainVAE(task)
        self._first = copies(self._model)
        plan = PrivacyPlan.from_config(run_config(task, private=True))
        self._wrapped = self.wrapper(
            self._model, loss_reduction="sum", **self._wrapper_options(plan.clip)
        )
        self.optimizer = self.optimizer_class(
            torch.optim.SGD(self._model.parameters(), lr=task.rate),
            noise_multiplier=plan.noise_multiplier if noise else 0.0,
            max_grad_norm=plan.clip,
            expected_batch_size=task.batch,
            loss_reduction="sum",
        )

    def __call__(self) -> None:
        """One round of all clients."""
        with _quiet():
            for records in self._cohort:
                self._model.load_state_dict(self._first)
                for x in torch.split(records, self._task.batch):
                    self.step(x)

    def step(self, x: Tensor) -> None:
        """One noisy step on a batch."""
        self.optimizer.zero_grad()
        torch.autograd.backward(self._losses(x).sum())
        self.optimizer.step()

    def _losses(self, x: Tensor) -> Tensor:
        losses: Tensor = self._wrapped(x, torch.randn(len(x), self._task.latent))
        return losses

    def _wrapper_options(self, clip: float) -> dict[str, object]:
        return {}


class Ghost(Hooked):
    """DP-SGD by Opacus's ghost clipping: norms in one backward pass, clipped sums in a second."""

    wrapper = GradSampleModuleFastGradientClipping
    optimizer_class = DPOptimizerFastGradientClipping

    def step(self, x: Tensor) -> None:
        """One noisy step on a batch."""
        self.optimizer.zero_grad()
        DPTensorFastGradientClipping(
            self._wrapped, self.optimizer, self._losses(x), loss_reduction="sum"
        ).backward()
        self.optimizer.step()

    def _wrapper_options(self, clip: float) -> dict[str, object]:
        return {"max_grad_norm": clip, "use_ghost_clipping": True}


def nodes(task: Task) -> Round:
    """``fedlatent.client.trainer`` as deployed nodes run it, client after client, with DP-SGD."""
    run, cohort = run_config(task, private=True), Pool(task).cohort()
    plan, model, first = (
        PrivacyPlan.from_config(run),
        build_model(run),
        build_model(run).state_dict(),
    )

    def one_round() -> None:
        for client, records in enumerate(cohort):
            model.load_state_dict(first)
            train_round(model, records, plan, run.training, SimulationNoise(client), {})

    return one_round


def stacked(task: Task, *, private: bool) -> Round:
    """``simulations.stacked``: the trainer alone, without the server's side of a round."""
    run, cohort = run_config(task, private=private), Pool(task).cohort()
    first = build_model(run).state_dict()
    trainer = StackedTrainer(build_model(run), PrivacyPlan.from_config(run), run.training)

    def one_round() -> None:
        work = [
            ClientWork(state=first, records=records, noise=SimulationNoise(client), optimizer={})
            for client, records in enumerate(cohort)
        ]
        for _ in trainer.train(work):
            pass  # as the peers: a client's result is dropped when the next one comes

    return one_round


#: The trainers by name.
TRAINERS: Mapping[str, Callable[[Task], Round]] = {
    "opacus_hooks": Hooked,
    "opacus_ghost": Ghost,
    "nodes_dp": nodes,
    "stacked": lambda task: stacked(task, private=False),
    "stacked_dp": lambda task: stacked(task, private=True),
}


def _quiet() -> "warnings.catch_warnings[None]":
    """Opacus's hooks need no gradient of the records, of which PyTorch warns."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
