"""The disentanglement measure on codes whose answer is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.models.disentanglement import information, mutual_information_gap


def factors(count: int = 6_000) -> NDArray[np.int64]:
    """Three independent factors with 3, 8 and 16 levels."""
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, levels, count) for levels in (3, 8, 16)], axis=1)


def normal(count: int, dims: int) -> NDArray[np.float64]:
    """Codes that know nothing."""
    return np.random.default_rng(1).standard_normal((count, dims))


def test_a_latent_for_each_factor_is_perfect() -> None:
    """One latent a factor gives 1, in any order, scale and sign and beside idle latents."""
    known = factors()
    codes = np.concatenate([normal(len(known), 2), -3.0 * known[:, ::-1] + 7.0], axis=1)
    assert mutual_information_gap(codes, known) >= 0.99
    told = information(codes, known)
    assert told.shape == (5, 3)
    assert told.argmax(0).tolist() == [4, 3, 2]


def test_a_code_that_knows_nothing_is_at_zero() -> None:
    """Codes that are independent of the factors give 0."""
    known = factors()
    codes = normal(len(known), 6)
    assert information(codes, known).max() <= 0.05
    assert 0.0 <= mutual_information_gap(codes, known) <= 0.05


def test_two_latents_with_the_same_factor_have_no_gap() -> None:
    """A code that says everything twice tells each factor whole and has a gap of 0."""
    known = factors()
    codes = np.concatenate([known, known], axis=1)
    assert information(codes, known).max(0).min() >= 0.99
    assert mutual_information_gap(codes, known) <= 0.01


def test_rotation_lies_between_and_falls_with_the_angle() -> None:
    """Turning the plane of two factors lowers the measure step by step down to 45 degrees."""
    known = factors()[:, 1:]
    spread = (known - known.mean(0)) / known.std(0)
    found = []
    for degrees in (0, 5, 15, 30, 45):
        turn = np.deg2rad(degrees)
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        found.append(mutual_information_gap(spread @ matrix, known))
    assert found == sorted(found, reverse=True)
    assert found[0] >= 0.99
    assert 0.1 < found[2] < 0.9
    assert found[4] < 0.1


def test_noise_lowers_what_is_told() -> None:
    """The share of a factor that a noisy latent tells falls as the noise grows."""
    known = factors()[:, 1:2]
    told = [
        information(known + scale * normal(len(known), 1), known)[0, 0]
        for scale in (0.01, 0.5, 2.0, 20.0)
    ]
    assert told == sorted(told, reverse=True)
    assert told[0] > 0.9  # some bins hold two levels
    assert told[-1] < 0.1


def test_few_records_do_not_feign_information() -> None:
    """The estimate of an independent code stays near 0 with few records, too."""
    known = factors(400)
    assert information(normal(400, 4), known).mean() <= 0.05


@pytest.mark.parametrize(
    ("codes", "known", "words"),
    [
        (np.zeros((4, 2)), np.zeros((3, 1)), "same records"),
        (np.zeros(4), np.zeros((4, 1)), "same records"),
        (np.zeros((4, 2)), np.zeros((4, 1)), "two levels"),
        (np.zeros((4, 1)), np.arange(4)[:, None], "two latents"),
    ],
)
def test_wrong_arguments_are_named(
    codes: NDArray[np.float64], known: NDArray[np.float64], words: str
) -> None:
    """Shapes that do not fit and constant factors are refused in a sentence."""
    with pytest.raises(ConfigError, match=words):
        mutual_information_gap(codes, known)
