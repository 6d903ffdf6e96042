"""What exact clipping costs a node, and whether a record that overflows shows in the time.

``fedlatent simulate bench clipping`` prints both tables. Sums are of one sample of 64
records, without noise: ours beside the two ways of Opacus, whose ghost clipping takes norms in one
backward pass and sums in another, and the time of our sum with and without a record that overflows.
"""

import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor

from fedlatent.client.gradients.sums import steady
from fedlatent.client.trainer import GradientSums
from fedlatent.shared.config import RunConfig
from fedlatent.shared.models import VAE, build_model
from fedlatent.shared.models.objective import record_loss
from fedlatent.shared.privacy.plan import PrivacyPlan

RECORDS, TURNS, CALLS = 64, 9, 6
OVERFLOW_CALLS = 50

CASES: Mapping[str, tuple[tuple[int, ...], dict[str, object]]] = {
    "mlp 784-256-32": ((784,), {"hidden": [256], "latent_dim": 32}),
    "heart beat 128-64-8": ((128,), {"hidden": [64], "latent_dim": 8}),
    "conv1d 128": ((128,), {"network": "conv1d", "hidden": [16, 32], "latent_dim": 16}),
    "conv2d 28x28": ((1, 28, 28), {"network": "conv2d", "hidden": [16, 32], "latent_dim": 16}),
}

Sum = Callable[[Tensor, Tensor], Tensor]


class Case:
    """One model with a sample of records.

    Attributes:
        x: records [64, *shape].
        eps: latent draws [64, 1, k].
    """

    def __init__(self, name: str) -> None:
        """Build what ``CASES`` names."""
        shape, options = CASES[name]
        self._run = RunConfig.parse(
            {
                "name": "clipping",
                "data": {"name": "clipping", "shape": list(shape)},
                "model": {"options": {**options, "activation": "relu"}},
                "privacy": {"rng": "simulation"},
            },
            "benchmark",
        )
        self._plan = PrivacyPlan.from_config(self._run)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(RECORDS, *shape, generator=generator) - 0.5
        self.eps = torch.randn(RECORDS, 1, self.model().noise_dim, generator=generator)

    def model(self) -> VAE:
        """The model with its first weights, in training."""
        run = self._run
        return build_model(run).train()

    def ours(self) -> Sum:
        """Of a node's trainer."""
        return GradientSums(self.model(), self._plan, self._run.training).of

    def rows(self) -> Sum:
        """Opacus's rows of single records, clipped and summed."""
        model = self.model()
        hooked = GradSampleModule(model, loss_reduction="sum")

        def clipped_sum(x: Tensor, eps: Tensor) -> Tensor:
            torch.autograd.backward(self._loss(model, x, eps).sum())
            each = [p.grad_sample.flatten(1) for p in model.parameters()]  # type: ignore[attr-defined]
            hooked.zero_grad(set_to_none=True)
            rows = torch.cat(each, 1)
            scale = (self._plan.clip / (rows.norm(dim=1) + 1e-6)).clamp(max=1.0)
            total: Tensor = scale @ rows
            return total

        return clipped_sum

    def ghost(self) -> Sum:
        """Opacus's ghost norms, and a second pass for the sums."""
        model = self.model()
        hooked = GradSampleModuleFastGradientClipping(model, loss_reduction="sum")

        def clipped_sum(x: Tensor, eps: Tensor) -> Tensor:
            parameters = list(model.parameters())
            loss = self._loss(model, x, eps)
            torch.autograd.grad(loss.sum(), parameters, retain_graph=True)
            scale = (self._plan.clip / (hooked.get_norm_sample() + 1e-6)).clamp(max=1.0)
            hooked.disable_hooks()
            grads = torch.autograd.grad((scale * loss).sum(), parameters)
            hooked.enable_hooks()
            return torch.cat([grad.flatten() for grad in grads])

        return clipped_sum

    def _loss(self, model: VAE, x: Tensor, eps: Tensor) -> Tensor:
        return record_loss(model(x, eps[:, 0]), self._run.training, 1.0, 1)


def costs(name: str) -> dict[str, float]:
    """CPU-milliseconds of a sum by each way: medians over turns that alternate."""
    case = Case(name)
    ways = {"ours": case.ours(), "opacus rows": case.rows(), "opacus ghost": case.ghost()}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(TURNS + 1):  # the first warms up
        for way, clipped_sum in ways.items():
            spent = [_cpu_ms(partial(clipped_sum, case.x, case.eps)) for _ in range(CALLS)]
            if turn:
                found[way].append(statistics.median(spent))
    return {way: statistics.median(spent) for way, spent in found.items()}


def overflow(name: str) -> dict[str, float]:
    """CPU-milliseconds of our sum without and with a record that overflows, in turns."""
    case = Case(name)
    sums, far = case.ours(), case.x.clone()
    far[RECORDS // 2] = 1e38
    found: dict[str, list[float]] = {"plain": [], "overflow": []}
    with steady():
        for _ in range(OVERFLOW_CALLS + 3):
            for kind, x in (("plain", case.x), ("overflow", far)):
                found[kind].append(_cpu_ms(partial(sums, x, case.eps)))
    medians = {kind: statistics.median(spent[3:]) for kind, spent in found.items()}
    each = np.array(found["overflow"][3:]) / np.array(found["plain"][3:])
    return medians | {"ratio": float(np.median(each))}


def _cpu_ms(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def clipping(*, as_json: bool = False) -> int:
    """Print both tables, or their figures as JSON."""
    torch.set_num_threads(1)
    # Records need no gradient, and Opacus's hooks read only that of a layer's output.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    found = {name: {"cost": costs(name), "overflow": overflow(name)} for name in CASES}
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    print("| model | ours, CPU-ms | over Opacus ghost | over Opacus rows | with an overflow |")
    print("|---|---|---|---|---|")
    for name, one in found.items():
        cost, over = one["cost"], one["overflow"]
        ratios = [cost["ours"] / cost[way] for way in ("opacus ghost", "opacus rows")]
        print(
            f"| {name} | {cost['ours']:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} "
            f"| x {over['ratio']:.3f} |"
        )
    return 0
