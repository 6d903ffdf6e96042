"""First weights trained on draws of the released Gaussian of the data: free of privacy cost."""

import numpy as np
import torch

from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.gaussian import DataGaussian
from fedlatent.shared.models.base import VAE
from fedlatent.shared.models.objective import record_loss

_BATCH = 256
_LEARNING_RATE = 2e-3


def warm_start(model: VAE, run: RunConfig, gaussian: DataGaussian) -> None:
    """Train ``model`` in place for ``training.warm_start_steps`` steps on synthetic records.

    Everyone who has the same Gaussian gets the same weights, within rounding.
    """
    rng = np.random.default_rng(run.seed)
    low, high = run.data.lower, run.data.upper
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
    model.train()
    model.sampled = run.training.objective == "iwae"
    for step in range(run.training.warm_start_steps):
        model.progress = step / run.training.warm_start_steps
        records = torch.from_numpy(np.clip(gaussian.draws(_BATCH, rng), low, high))
        eps = torch.from_numpy(rng.standard_normal((_BATCH, model.noise_dim)).astype(np.float32))
        loss = record_loss(model(records, eps), run.training, model.progress, 1).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    model.sampled, model.progress = False, 1.0
    model.eval()
