"""Training in one place, with and without privacy: what every experiment of the zoo does."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fedlatent.client.trainer import averages_of, train_round
from fedlatent.shared.config import RunConfig
from fedlatent.shared.models import VAE, build_model, load_state
from fedlatent.shared.privacy.noise import SimulationNoise
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.simulations.stacked.engine import ClientWork, StackedTrainer

Watch = Callable[[str], None]

DELTA = 1e-5
_LINES = 10  # of progress in one training


def run_for(
    family: str,
    options: Mapping[str, object],
    shape: tuple[int, ...],
    *,
    training: Mapping[str, object],
    epsilon: float | None,
    sample_rate: float,
    clip: float = 1.0,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> RunConfig:
    """A run configuration for training in one place.

    Args:
        family: of models.
        options: of the family.
        shape: of one record.
        training: fields of ``Training``.
        epsilon: of the whole training at delta 1e-5, or None for none.
        sample_rate: of the Poisson samples.
        clip: L2 norm of one record's gradient.
        seed: of weights, samples and noise.
        bounds: of the records' values.
    """
    privacy: dict[str, object] = {
        "mechanism": "none" if epsilon is None else "dp-sgd",
        "rng": "simulation",
        "sample_rate": sample_rate,
        "clip": clip,
        "delta": DELTA,
    }
    if epsilon is not None:
        privacy["epsilon"] = epsilon
    return RunConfig.parse(
        {
            "name": "zoo",
            "seed": seed,
            "sharing": "full",
            "data": {"name": "zoo", "shape": list(shape), "lower": bounds[0], "upper": bounds[1]},
            "model": {"family": family, "options": dict(options)},
            "privacy": privacy,
            "training": dict(training),
        },
        "zoo",
    )


def fit(
    run: RunConfig,
    records: NDArray[np.float32],
    *,
    augment: Callable[[NDArray[np.float32], int], NDArray[np.float32]] | None = None,
    start: VAE | None = None,
    watch: Watch | None = None,
) -> VAE:
    """Train the run's model on all records in one place, round after round.

    A private training takes the stacked engine with one client, any other the trainer of a node;
    both are tested to agree. With averaged weights the average is returned.

    Args:
        run: model, plan and training.
        records: preprocessed [N, *shape].
        augment: makes the records of a round, from all records and its number; public randomness
            of a record by itself, such as a fresh binarisation.
        start: a model to go on from; its weights are copied.
        watch: gets lines about the progress.
    """
    model = build_model(run)
    if start is not None:
        load_state(model, start.state_dict())
    plan, training = PrivacyPlan.from_config(run), run.training
    trainer = StackedTrainer(model, plan, training) if plan.private else None
    optimizer: Mapping[str, torch.Tensor] = {}
    began = time.perf_counter()
    for number in range(training.rounds):
        values = records if augment is None else augment(records, number)
        data = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        noise = SimulationNoise(run.seed, 0, number, 0)
        if trainer is None:
            result = train_round(model, data, plan, training, noise, optimizer, trained=number)
        else:
            state = {key: value.detach().clone() for key, value in model.state_dict().items()}
            work = ClientWork(state=state, records=data, noise=noise, optimizer=optimizer)
            (result,) = trainer.train([work], trained=number)
            load_state(model, result.state)
        optimizer = result.optimizer
        if watch is not None and (number + 1) % max(training.rounds // _LINES, 1) == 0:
            seconds = time.perf_counter() - began
            watch(f"round {number + 1} of {training.rounds}, {seconds:.0f} s")
    if training.ema:
        load_state(model, {**model.state_dict(), **averages_of(optimizer)})
    return model.eval()
