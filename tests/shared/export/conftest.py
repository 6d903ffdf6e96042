"""Models trained for a moment on real digits, exported once for all export tests."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedlatent.shared.detection.combine import ScoreCombination
from fedlatent.shared.export import (
    Scorer,
    export_decoder,
    export_encoder,
    export_scorer,
    scorer_outputs,
)
from fedlatent.shared.models import VAE, build
from fedlatent.shared.models.objective import elbo
from fedlatent.shared.privacy.summaries import LatentDensity

MODELS: dict[str, tuple[tuple[int, ...], dict[str, object]]] = {
    "mlp": ((64,), {"hidden": [32]}),
    "conv1d": (
        (64,),
        {"network": "conv1d", "hidden": [4, 8], "activation": "silu", "likelihood": "bernoulli"},
    ),
    "conv2d": (
        (8, 8),
        {"network": "conv2d", "hidden": [4, 8], "activation": "gelu", "likelihood": "discretised"},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A trained model, the records it was trained on, its density and its three graphs."""

    model: VAE
    records: np.ndarray
    density: LatentDensity
    combine: ScoreCombination
    encoder: bytes
    decoder: bytes
    scorer: bytes


def trained(name: str) -> tuple[VAE, np.ndarray]:
    """Train for 150 steps on digits scaled to [0, 1]."""
    shape, options = MODELS[name]
    images = load_digits().images[:600] / 16.0
    records = images.reshape(-1, *shape).astype(np.float32)
    model = build("gaussian", {"latent_dim": 4, **options}, shape, seed=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        rows = torch.randint(0, len(records), (64,), generator=generator)
        x, eps = torch.from_numpy(records)[rows], torch.randn(64, 4, generator=generator)
        optimiser.zero_grad()
        elbo(model(x, eps)).mean().backward()
        optimiser.step()
    return model, records


def latent_density(model: VAE, records: np.ndarray) -> LatentDensity:
    """Sample statistics of the latents, with a smaller covariance within clients."""
    with torch.no_grad():
        mu = model.encode(torch.from_numpy(records))[0].double().numpy()
    covariance = np.cov(mu.T) + 1e-3 * np.eye(mu.shape[1])
    shrink = np.diag(np.linspace(0.5, 0.9, len(covariance)))
    return LatentDensity(
        count=float(len(mu)),
        mean=mu.mean(axis=0),
        covariance=covariance,
        within=shrink @ covariance @ shrink,
    )


def combination(model: VAE, records: np.ndarray, density: LatentDensity) -> ScoreCombination:
    """Fit the default combination to the records."""
    center = torch.from_numpy(density.mean.astype(np.float32))
    with torch.no_grad():
        values = Scorer(model, density, with_decoder=True)(torch.from_numpy(records), center)[2:]
    parts = zip(scorer_outputs(True), values, strict=True)
    return ScoreCombination.fit({name: value.numpy() for name, value in parts})


@functools.cache
def exported(name: str) -> Exported:
    """Train and export one model of `MODELS`."""
    model, records = trained(name)
    density = latent_density(model, records)
    combine = combination(model, records, density)
    return Exported(
        model=model,
        records=records,
        density=density,
        combine=combine,
        encoder=export_encoder(model),
        decoder=export_decoder(model),
        scorer=export_scorer(Scorer(model, density, with_decoder=True, combine=combine)),
    )


@pytest.fixture(params=MODELS)
def export(request: pytest.FixtureRequest) -> Exported:
    """Each trained and exported model in turn."""
    return exported(request.param)


@pytest.fixture
def small() -> Exported:
    """The smallest of them."""
    return exported("mlp")
