"""A run as people start it: encoders and summaries leave, under the default optimiser."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedlatent.client.compute import latents_of, load_weights, run_model
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation, hearts
from fedlatent.shared.models import VAE
from fedlatent.shared.models.base import ENCODER_PREFIX
from fedlatent.simulations.audit.transcript import Transcript, record
from fedlatent.simulations.federation import datasets


@dataclass(frozen=True, kw_only=True, eq=False)
class UsualRun:
    """A finished run and the records behind it.

    Attributes:
        federation: raw records of all clients.
        transcript: what left them.
    """

    federation: Federation
    transcript: Transcript

    @property
    def config(self) -> RunConfig:
        """Of the run."""
        return self.transcript.result.config

    def members(self) -> np.ndarray:
        """Preprocessed training records of all clients [N, 128]."""
        schema = self.federation.schema
        return np.concatenate([schema.preprocess(site.train) for site in self.federation.sites])

    def others(self) -> np.ndarray:
        """Preprocessed normal records of the same clients that were held out [M, 128]."""
        schema = self.federation.schema
        return np.concatenate(
            [schema.preprocess(site.test[site.test_label == 0]) for site in self.federation.sites]
        )

    def released(self) -> VAE:
        """The model with the final encoder; its decoder is that of the seed, as anyone has it."""
        model = run_model(self.config)
        arrays = self.transcript.result.arrays
        encoder = {key: v for key, v in arrays.items() if key.startswith(ENCODER_PREFIX)}
        load_weights(model, encoder, whole=False)
        return model


def usual_run(
    folder: Path, seed: int, *, clients: int, beats: int, epsilon: float | None
) -> UsualRun:
    """Train on synthetic hearts; without ``epsilon`` without clipping and noise."""
    federation = hearts(clients, seed, beats=beats)
    run = usual_config(federation, seed, epsilon)
    return UsualRun(federation=federation, transcript=record(run, datasets(federation), folder))


def usual_config(federation: Federation, seed: int, epsilon: float | None) -> RunConfig:
    """The run: encoders and summaries leave, as when people start one."""
    privacy: dict[str, object] = {"rng": "simulation", "sample_rate": 0.2}
    privacy |= {"mechanism": "none"} if epsilon is None else {"epsilon": epsilon}
    clients = len(federation.sites)
    return RunConfig.parse(
        {
            "name": "audit-usual",
            "seed": seed,
            "data": federation.schema.to_dict(),
            "model": {"options": {"hidden": [32], "latent_dim": 8}},
            "privacy": privacy,
            "training": {"rounds": 5, "steps_per_round": 20, "learning_rate": 4e-3},
            "federation": {"nodes": clients, "quorum": clients},
        },
        "audit",
    )


def codes(model: VAE, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latent means and log variances [N, k] of preprocessed records, float64."""
    tensor = torch.from_numpy(np.ascontiguousarray(records))
    with torch.no_grad():
        logvar = model.encode(tensor)[1].double().numpy()
    return latents_of(model, tensor), logvar
