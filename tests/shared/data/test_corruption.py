"""Corruptions: what each does to a record, by itself and at its level."""

import math

import numpy as np
import pytest
import torch

from fedlatent.shared.data.corruption import (
    CORRUPTIONS,
    blur,
    corrupt,
    masking,
    salt_pepper,
    wander,
)
from fedlatent.shared.errors import ConfigError

every_kind = pytest.mark.parametrize("kind", CORRUPTIONS)
every_shape = pytest.mark.parametrize(
    ("shape", "axes"), [((40,), 1), ((2, 40), 1), ((8, 7), 2), ((3, 8, 7), 2)]
)


def records(shape: tuple[int, ...], count: int = 4) -> torch.Tensor:
    """Values in [0, 1]."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)).double()


def noise(kind: str, shape: tuple[int, ...], axes: int, count: int = 4) -> torch.Tensor:
    """What a kind asks for."""
    numbers = CORRUPTIONS[kind].numbers(shape, axes)
    return torch.randn(count, numbers, generator=torch.Generator().manual_seed(1)).double()


@every_kind
@every_shape
def test_level_zero_changes_nothing(kind: str, shape: tuple[int, ...], axes: int) -> None:
    """At level 0 every corruption is the identity, and above it none is."""
    x, eps = records(shape), noise(kind, shape, axes)
    apply = CORRUPTIONS[kind].apply
    torch.testing.assert_close(apply(x, eps, torch.zeros(4).double(), axes), x)
    changed = apply(x, eps, torch.full((4,), 0.8).double(), axes)
    assert changed.shape == x.shape
    assert (changed != x).flatten(1).any(1).all()


@every_kind
@every_shape
def test_records_have_levels_of_their_own(kind: str, shape: tuple[int, ...], axes: int) -> None:
    """A record among others is corrupted as it is alone."""
    x, eps = records(shape), noise(kind, shape, axes)
    level = torch.tensor([0.1, 0.4, 0.0, 0.7]).double()
    together = CORRUPTIONS[kind].apply(x, eps, level, axes)
    for i in range(4):
        part = slice(i, i + 1)
        alone = CORRUPTIONS[kind].apply(x[part], eps[part], level[part], axes)
        torch.testing.assert_close(together[part], alone)


@pytest.mark.parametrize("kind", ["gaussian", "wander"])
def test_added_noise_has_its_level_as_root_mean_square(kind: str) -> None:
    """What is added has the root mean square that the level says, over many records."""
    x = torch.zeros(4000, 50).double()
    eps = noise(kind, (50,), 1, 4000)
    added = CORRUPTIONS[kind].apply(x, eps, torch.full((4000,), 0.3).double(), 1)
    assert added.square().mean().sqrt() == pytest.approx(0.3, rel=0.05)


def test_shares_of_replaced_values() -> None:
    """Salt, pepper and masks take the share of values that the level says."""
    x, level = records((5000,)), torch.full((4,), 0.2).double()
    eps = noise("masking", (5000,), 1)
    masked = masking(x, eps, level, 1)
    assert (masked == 0).double().mean() == pytest.approx(0.2, abs=0.02)
    specked = salt_pepper(x, eps, level, 1)
    assert (specked != x).double().mean() == pytest.approx(0.2, abs=0.02)
    changed = torch.where(specked != x, specked, x[:, :1])
    extremes = (x.amin(1, keepdim=True), x.amax(1, keepdim=True), x[:, :1])
    assert torch.stack([changed == value for value in extremes]).any(0).all()


def test_wander_is_slow() -> None:
    """A wander has nearly all its power below two periods in a record."""
    eps = noise("wander", (256,), 1)
    added = wander(torch.zeros(4, 256).double(), eps, torch.ones(4).double(), 1)
    power = torch.fft.rfft(added * torch.hann_window(256).double()).abs().square()
    assert power[:, :4].sum() > 0.99 * power.sum()


def test_blur_is_a_normal_average() -> None:
    """A constant stays itself and an impulse becomes the Gaussian kernel."""
    impulse = torch.zeros(1, 21).double()
    impulse[0, 10] = 1.0
    got = blur(impulse, torch.zeros(1, 0), torch.ones(1).double(), 1)[0]
    assert got.sum() == pytest.approx(1.0)
    assert got[11] / got[10] == pytest.approx(math.exp(-0.5))
    flat = torch.full((1, 21), 3.0).double()
    torch.testing.assert_close(blur(flat, torch.zeros(1, 0), torch.ones(1).double(), 1), flat)


@every_kind
def test_arrays_are_corrupted_by_a_seed(kind: str) -> None:
    """Equal seeds corrupt equally, others differently unless the kind draws nothing."""
    clean = records((9, 8)).float().numpy()
    first = corrupt(clean, kind, 0.6, seed=3)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, corrupt(clean, kind, 0.6, seed=3))
    assert (first != corrupt(clean, kind, 0.6, seed=4)).any() == (kind != "blur")


def test_an_unknown_kind_is_refused() -> None:
    """The error names the kinds there are."""
    with pytest.raises(ConfigError, match="salt_pepper"):
        corrupt(np.zeros((1, 4), np.float32), "rain", 0.1, seed=0)
