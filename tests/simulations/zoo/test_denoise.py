"""The denoising experiment: its parts are exact, and a short form runs from end to end."""

from pathlib import Path

import numpy as np
import pytest

from fedlatent.simulations.zoo.denoise import experiment, picture
from fedlatent.simulations.zoo.denoise_data import (
    assembled,
    corrupted_strips,
    cut,
    psnr,
    shrink,
    snr,
)


@pytest.mark.parametrize("step", [(1, 1), (3, 2), (4, 4)])
def test_patches_make_the_image_again(step: tuple[int, int]) -> None:
    """Patches that are cut and put together are the image, its edges included."""
    image = np.random.default_rng(0).random((23, 18), dtype=np.float32)
    patches = cut(image, (4, 5), step)
    np.testing.assert_allclose(assembled(patches, image.shape, step), image, rtol=1e-6)


def test_ratios_are_in_decibels() -> None:
    """A tenth of the range is 20 dB of PSNR, and an error of half the signal 6 dB of SNR."""
    clean = np.ones((2, 8, 8), np.float32)
    assert psnr(clean - np.float32(0.1), clean) == pytest.approx(20.0, abs=1e-3)
    assert snr(clean[:, 0] / 2, clean[:, 0]) == pytest.approx(6.02, abs=0.01)


def test_wavelets_remove_noise_and_wander() -> None:
    """The baseline to beat gains decibels on spikes under noise and a wander."""
    clean = np.zeros((2, 7200), np.float32)
    for beat in range(180, 7200, 360):
        clean[:, beat - 8 : beat + 8] = np.hanning(16)
    clean -= clean.mean()
    noisy = corrupted_strips(clean, 0.1, seed=0)
    assert snr(shrink(noisy, 0.1, 0.7), clean) > snr(noisy, clean) + 3.0


def test_experiment_runs(data_dir: Path) -> None:
    """The short form gives finite figures of every method, and a picture."""
    pytest.importorskip("bm3d")
    pytest.importorskip("skimage")
    found = experiment(data_dir, epsilon=None, seed=0, quick=True, watch=None)
    image = picture(found.pop("picture"))
    assert image is not None
    assert image.startswith(b"\x89PNG")
    levels = [value for key, value in found["images"].items() if key.startswith("sigma")]
    assert len(levels) == 2
    for scores in levels:
        assert scores.keys() == {"noisy", "blur", "bm3d", "vae"}
        assert all(np.isfinite(score["psnr_db"]) for score in scores.values())
        assert scores["bm3d"]["psnr_db"] > scores["noisy"]["psnr_db"]
    assert all(np.isfinite(value) for value in found["signals"]["gain_db"].values())
