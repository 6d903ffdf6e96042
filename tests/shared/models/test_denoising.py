"""The denoising family beyond the contract: levels, shortcuts, what it learns."""

import numpy as np
import pytest
import torch

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models import build
from fedlatent.shared.models.denoising import DenoisingVAE
from fedlatent.simulations.zoo.training import fit, run_for


def model_of(shape: tuple[int, ...] = (16,), **options: object) -> DenoisingVAE:
    """A small model."""
    model = build("denoising", {"latent_dim": 8, "hidden": [32], **options}, shape, 0)
    assert isinstance(model, DenoisingVAE)
    return model


def waves(count: int, seed: int) -> np.ndarray:
    """One sinusoid a record, of random phase."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, (count, 1))
    return (0.5 + 0.4 * np.sin(2 * np.pi * np.arange(16) / 16 + phase)).astype(np.float32)


def test_noise_is_counted() -> None:
    """A record takes the latent's numbers, one for its level, and those of each corruption."""
    assert model_of().noise_dim == 8 + 1 + 16
    assert model_of(corruptions=["blur", "wander"]).noise_dim == 8 + 1 + 3 * 3
    image = model_of((6, 5), network="conv2d", corruptions=["masking", "wander"])
    assert image.noise_dim == 8 + 1 + 30 + 3 * 4


def test_levels_fill_the_range() -> None:
    """Levels are uniform from 0 to the largest one, and what is corrupted has that level."""
    model = model_of(max_level=0.4)
    x = torch.zeros(4000, 16)
    eps = torch.randn(4000, model.noise_dim, generator=torch.Generator().manual_seed(1))
    corrupted, level = model.corrupt(x, eps[:, 8:])
    assert level.min() >= 0
    assert level.max() <= 0.4
    assert level.mean() == pytest.approx(0.2, abs=0.01)
    assert (corrupted.std(1) / level).mean() == pytest.approx(1.0, abs=0.05)


def test_the_target_is_clean() -> None:
    """The distortion is that of the record itself, whatever noise the encoder read."""
    model = model_of(variance=0.05).double()
    x = torch.full((3, 16), 0.7, dtype=torch.float64)
    eps = torch.randn(3, model.noise_dim, generator=torch.Generator().manual_seed(1)).double()
    corrupted, level = model.corrupt(x, eps[:, 8:])
    mu, logvar = model.encode_at(corrupted, level)
    z = mu + (0.5 * logvar).exp() * eps[:, :8]
    torch.testing.assert_close(model(x, eps).distortion, model.distortion(x, model.decode(z)))


@pytest.mark.parametrize("network", ["mlp", "conv1d"])
def test_the_level_is_read(network: str) -> None:
    """Another level gives another estimate, and `encode` is the one of level 0."""
    model = model_of(network=network, hidden=[4])
    x = torch.from_numpy(waves(2, 0))
    clean, noisy = (model.encode_at(x, torch.full((2,), level))[0] for level in (0.0, 0.2))
    assert torch.equal(model.encode(x)[0], clean)
    assert not torch.allclose(clean, noisy)


def test_shortcut_starts_as_lowest_frequencies() -> None:
    """Before training, a slow record passes the shortcut nearly unchanged."""
    x = torch.from_numpy(waves(5, 0))
    with torch.no_grad():
        through = model_of(shortcut=True).denoise(x, torch.zeros(5))
        without = model_of().denoise(x, torch.zeros(5))
    assert (through - x).square().mean() < 0.05 * (without - x).square().mean()


def test_noise_is_removed() -> None:
    """A few seconds of training lower the error of noisy records it has not seen."""
    run = run_for(
        "denoising",
        {"latent_dim": 4, "hidden": [32], "shortcut": True, "max_level": 0.3, "variance": 0.01},
        (16,),
        training={"rounds": 10, "steps_per_round": 30, "learning_rate": 5e-3, "beta": 0.1},
        epsilon=None,
        sample_rate=0.1,
    )
    model = fit(run, waves(500, 0))
    assert isinstance(model, DenoisingVAE)
    x = torch.from_numpy(waves(200, 1))
    noisy = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        estimate = model.denoise(noisy, torch.full((200,), 0.2))
    assert (estimate - x).square().mean() < 0.3 * (noisy - x).square().mean()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"corruptions": ["rain"]}, "salt_pepper"),
        ({"corruptions": []}, "list of names"),
        ({"max_level": 0.0}, "max_level"),
        ({"shortcut": True, "network": "conv1d"}, "shortcut"),
        ({"latent_dim": 0}, "latent_dim"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], words: str) -> None:
    """The error names the option or what it may be."""
    with pytest.raises(ConfigError, match=words):
        model_of(**options)
