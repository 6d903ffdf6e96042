"""The combined score is an affine sum whose constants come from normal records."""

import numpy as np
import pytest

from fedlatent.shared.detection.combine import DEFAULT_PARTS, ScoreCombination


def parts(count: int, seed: int) -> dict[str, np.ndarray]:
    """Draw the two default parts with very different units, and one that is not used."""
    rng = np.random.default_rng(seed)
    return {
        "recentred_distance": rng.chisquare(8, count),
        "reconstruction_error": 1e-3 * rng.chisquare(20, count),
        "latent_norm": 1e6 * rng.chisquare(3, count),
    }


def test_parts_count_equally_whatever_their_unit() -> None:
    """On the fitted records each part has mean 0 and deviation 1, and the score is their sum."""
    normal = parts(1000, 0)
    combination = ScoreCombination.fit(normal)
    assert combination.names == DEFAULT_PARTS
    score = combination(normal)
    expected = sum((normal[n] - normal[n].mean()) / normal[n].std() for n in DEFAULT_PARTS)
    np.testing.assert_allclose(score, expected, atol=1e-9)
    scaled = {name: 1000.0 * values for name, values in normal.items()}
    np.testing.assert_allclose(ScoreCombination.fit(scaled)(scaled), score, atol=1e-9)


def test_score_rises_with_each_part_and_per_record() -> None:
    """A larger part raises the score of that record only."""
    normal = parts(100, 0)
    combination = ScoreCombination.fit(normal)
    before = combination(normal)
    for name in DEFAULT_PARTS:
        changed = {key: values.copy() for key, values in normal.items()}
        changed[name][3] += normal[name].std()
        difference = combination(changed) - before
        assert difference[3] == pytest.approx(1.0)
        np.testing.assert_allclose(np.delete(difference, 3), 0.0, atol=1e-12)


def test_constants_rebuild_the_score() -> None:
    """The four fields are all there is: weights * (part - mean) / scale."""
    combination = ScoreCombination.fit(parts(50, 0), names=("latent_norm",), weights=(2.0,))
    values = parts(5, 1)
    np.testing.assert_allclose(
        combination(values),
        2.0 * (values["latent_norm"] - combination.mean[0]) / combination.scale[0],
    )
    rebuilt = ScoreCombination(
        names=combination.names,
        mean=combination.mean,
        scale=combination.scale,
        weights=combination.weights,
    )
    np.testing.assert_array_equal(rebuilt(values), combination(values))


def test_constant_part_stays_finite() -> None:
    """A part that never varies on normal records gives finite scores."""
    flat = {name: np.ones(10) for name in DEFAULT_PARTS}
    assert np.isfinite(ScoreCombination.fit(flat)(flat)).all()


def test_wrong_arguments() -> None:
    """Absent parts, unequal lengths, NaN and repeated names are programming errors."""
    normal = parts(10, 0)
    combination = ScoreCombination.fit(normal)
    one = np.ones(1)
    for call in (
        lambda: ScoreCombination.fit({"latent_norm": np.ones(3)}),
        lambda: ScoreCombination.fit({name: values[:1] for name, values in normal.items()}),
        lambda: ScoreCombination.fit({name: values * np.nan for name, values in normal.items()}),
        lambda: ScoreCombination.fit(normal, weights=(1.0,)),
        lambda: combination({**normal, "recentred_distance": np.ones(3)}),
        lambda: combination({name: values[None] for name, values in normal.items()}),
        lambda: ScoreCombination(names=("a", "a"), mean=[0, 0], scale=[1, 1], weights=[1, 1]),
        lambda: ScoreCombination(names=(), mean=[], scale=[], weights=[]),
        lambda: ScoreCombination(names=("a",), mean=one, scale=0 * one, weights=one),
    ):
        with pytest.raises(ValueError, match="Expected"):
            call()


def test_a_nearly_constant_part_is_not_blown_up() -> None:
    """A part that hardly varies is divided by a hundredth of its mean, not by its deviation."""
    rng = np.random.default_rng(5)
    parts = {"reconstruction_error": 30.0 + 1e-3 * rng.normal(size=50)}
    combination = ScoreCombination.fit(parts, names=("reconstruction_error",))
    assert combination.scale[0] == pytest.approx(0.3, rel=1e-3)
