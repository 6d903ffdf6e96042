"""Transformations of raw records are public, seeded and keep shape and type."""

import numpy as np
import pytest

from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.transforms import affine_points, draw_shift, resample

STILL = np.zeros(2)


def schema(shape: tuple[int, ...], scale: float = 1.0) -> Schema:
    """A schema with bounds 0 and 1."""
    return Schema(
        name="any", shape=shape, unit="", scale=scale, center="none", lower=0.0, upper=1.0
    )


def images(count: int = 3) -> np.ndarray:
    """Random images of 5 x 7."""
    return np.random.default_rng(0).random((count, 5, 7))


def test_no_map_leaves_images_alone() -> None:
    """The identity reads every pixel where it is."""
    points = affine_points(5, 7, np.eye(2), STILL)
    np.testing.assert_array_equal(resample(images(), points), images())


def test_a_move_by_whole_pixels() -> None:
    """A picture moved by one row and two columns leaves blank margins behind."""
    moved = resample(images(), affine_points(5, 7, np.eye(2), np.array([1.0, 2.0])), blank=9.0)
    np.testing.assert_array_equal(moved[:, 1:, 2:], images()[:, :-1, :-2])
    assert (moved[:, 0] == 9.0).all()
    assert (moved[:, :, :2] == 9.0).all()


def test_a_quarter_turn() -> None:
    """A square image turned by 90 degrees clockwise is the one that numpy turns."""
    square = images()[:, :, :5]
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    turned = resample(square, affine_points(5, 5, quarter, STILL))
    np.testing.assert_allclose(turned, np.rot90(square, k=-1, axes=(1, 2)), atol=1e-12)


def test_half_a_pixel_is_the_mean() -> None:
    """Between two pixels, the value is the mean of both."""
    moved = resample(images(), affine_points(5, 7, np.eye(2), np.array([0.0, 0.5])))
    expected = (images()[:, :, :-1] + images()[:, :, 1:]) / 2
    np.testing.assert_allclose(moved[:, :, 1:], expected)


@pytest.mark.parametrize(
    ("shape", "dtype", "is_image"),
    [
        ((28, 28), np.uint8, True),
        ((1, 8, 8), np.float64, True),
        ((128,), np.int16, False),
        ((38, 8), np.float32, False),
    ],
)
def test_a_shift_keeps_shape_and_type(
    shape: tuple[int, ...], dtype: type[np.generic], is_image: bool
) -> None:
    """A shift is seeded, changes records one by one, and none at strength 0."""
    raw = np.random.default_rng(1).uniform(0, 255, (6, *shape)).astype(dtype)
    plan = schema(shape, 1 / 255)
    shift = draw_shift(plan, 0.5, np.random.default_rng(2), images=is_image)
    moved = shift(raw)
    assert moved.shape == raw.shape
    assert moved.dtype == raw.dtype
    assert not np.array_equal(moved, raw)
    again = draw_shift(plan, 0.5, np.random.default_rng(2), images=is_image)
    np.testing.assert_array_equal(again(raw[2:4]), moved[2:4])
    other = draw_shift(plan, 0.5, np.random.default_rng(3), images=is_image)
    assert not np.array_equal(other(raw), moved)
    none = draw_shift(plan, 0.0, np.random.default_rng(2), images=is_image)
    np.testing.assert_array_equal(none(raw), raw)
    assert shift(raw[:0]).shape == (0, *shape)


def test_images_stay_in_their_bounds_and_margins_are_blank() -> None:
    """A full image only gets blank margins: no pixel leaves 0 to 255, and the middle stays."""
    full = np.full((1, 28, 28), 255, dtype=np.uint8)
    moved = draw_shift(schema((28, 28), 1 / 255), 1.0, np.random.default_rng(5), images=True)(full)
    assert moved[0, 12:16, 12:16].min() == 255
    assert moved.min() == 0


def test_series_get_one_gain_and_offset_per_channel() -> None:
    """Each channel is an affine map of itself within the stated limits."""
    rows = np.random.default_rng(4).random((20, 3, 8))
    moved = draw_shift(schema((3, 8)), 1.0, np.random.default_rng(6), images=False)(rows)
    gains = []
    for channel in range(3):
        gain, offset = np.polyfit(rows[:, channel].ravel(), moved[:, channel].ravel(), 1)
        np.testing.assert_allclose(moved[:, channel], gain * rows[:, channel] + offset)
        assert 0.5 <= gain <= 2.0
        assert abs(offset) <= 0.1
        gains.append(gain)
    assert len({round(float(gain), 6) for gain in gains}) == 3


def test_whole_numbers_saturate() -> None:
    """Integers that would leave their type stop at its limits instead of wrapping around."""
    rows = np.full((1, 4), 32_000, dtype=np.int16)
    seen = [
        draw_shift(schema((4,), 1e-3), 1.0, np.random.default_rng(seed), images=False)(rows)
        for seed in range(20)
    ]
    assert np.concatenate(seen).min() > 0
    assert np.concatenate(seen).max() == np.iinfo(np.int16).max
