"""pfl-research on the benchmark's work: federated averaging without privacy, one process.

It runs under the Python of an environment of its own, since its pins conflict with ours:
``PYTHON -m fedlatent.simulations.bench.pfl --task JSON``. See docs/benchmarks.md for how to make
one.
"""

import argparse
import os

os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend  # type: ignore[import-not-found]
from pfl.algorithm.base import NNAlgorithmParams  # type: ignore[import-not-found]
from pfl.algorithm.federated_averaging import (  # type: ignore[import-not-found]
    FederatedAveraging,
)
from pfl.callback.base import TrainingProcessCallback  # type: ignore[import-not-found]
from pfl.data.dataset import Dataset  # type: ignore[import-not-found]
from pfl.data.federated_dataset import FederatedDataset  # type: ignore[import-not-found]
from pfl.data.sampling import get_user_sampler  # type: ignore[import-not-found]
from pfl.hyperparam.base import (  # type: ignore[import-not-found]
    NNEvalHyperParams,
    NNTrainHyperParams,
)
from pfl.metrics import Metrics, Weighted  # type: ignore[import-not-found]
from pfl.model.pytorch import PyTorchModel  # type: ignore[import-not-found]
from torch import Tensor

from fedlatent.simulations.bench.plain import PlainVAE, Pool, Task, count_parameters
from fedlatent.simulations.bench.turns import Enough, Turns, Work

_ROUNDS = 10_000  # more than anybody measures


class PflVAE(PlainVAE):
    """The model with the two methods that pfl asks for."""

    def loss(self, x: Tensor, eval: bool = False) -> Tensor:
        """Mean over a batch."""
        self.train(not eval)
        return super().loss(x)

    @torch.no_grad()
    def metrics(self, x: Tensor, eval: bool = True) -> dict[str, object]:
        """Mean loss; not called in the benchmark, which evaluates nothing."""
        return {"loss": Weighted(super().loss(x).item() * len(x), len(x))}


class _Rounds(TrainingProcessCallback):  # type: ignore[misc]
    """Takes a turn after each central iteration."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_train_begin(self, *, model: object) -> object:
        """The start-up is over."""
        self._turns.begin()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: object, model: object, *, central_iteration: int
    ) -> tuple[bool, object]:
        """Report; stop when there are no more turns."""
        try:
            self._turns.round_done()
        except Enough:
            return True, Metrics()
        return False, Metrics()


def run(task: Task) -> None:
    """Train until no more turns come.

    No user is evaluated: every per-user evaluation would be work that the others do not do. pfl
    evaluates in iterations that are multiples of the frequency, so the first iteration is 1.
    """
    np.random.seed(0)
    torch.manual_seed(0)
    device = os.environ["PFL_PYTORCH_DEVICE"]
    pool, users = Pool(task), list(range(task.clients))
    users_data = FederatedDataset(
        lambda user: Dataset((pool.of(user).to(device),), user_id=str(user)),
        get_user_sampler("minimize_reuse", users),
    )
    net = PflVAE(task).to(device)
    algorithm = FederatedAveraging()
    algorithm._current_central_iteration = 1
    turns = Turns()
    turns.work = Work(
        parameters=count_parameters(net),
        clients=task.clients,
        records=task.records,
        steps=task.steps,
    )
    algorithm.run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=_ROUNDS,
            evaluation_frequency=10**9,
            train_cohort_size=task.clients,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=users_data, val_data=users_data),
        model=PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=task.rate, local_batch_size=task.batch
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[_Rounds(turns)],
        send_metrics_to_platform=False,
    )


def main() -> None:
    """Read the task and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m fedlatent.simulations.bench.pfl"
    )
    parser.add_argument("--task", type=Task.from_json, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(options.task)


if __name__ == "__main__":
    main()
