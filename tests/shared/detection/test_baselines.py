"""Baselines find what they must, and the private one says what it releases."""

from collections.abc import Callable

import numpy as np
import pytest

from shared.detection.baselines import Scorer, _cosines, dp_mahalanobis, knn, mahalanobis, pca
from shared.detection.metrics import auroc
from shared.privacy.noise import SimulationNoise


def cloud(count: int, seed: int) -> np.ndarray:
    """Draw records [N, 2, 6] close to a plane."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(2, 12))
    return (rng.normal(size=(count, 2)) @ mix + 0.1 * rng.normal(size=(count, 12))).reshape(
        -1, 2, 6
    )


def private(normals: np.ndarray) -> Scorer:
    """Fit the noisy detector on two sites."""
    return dp_mahalanobis(
        np.array_split(normals, 2),
        features=12,
        radius=8.0,
        noise_multiplier=1.0,
        noise=SimulationNoise(1),
    )


FITS: dict[str, Callable[[np.ndarray], Scorer]] = {
    "pca": lambda normals: pca(normals, components=2),
    "mahalanobis": mahalanobis,
    "knn": knn,
    "dp_mahalanobis": private,
}


@pytest.mark.parametrize("name", FITS)
def test_records_off_the_plane_score_higher(name: str) -> None:
    """Every baseline separates isotropic noise from records near a plane, record by record."""
    scorer = FITS[name](cloud(4000, 0))
    normal, odd = cloud(200, 1), np.random.default_rng(2).normal(size=(200, 2, 6)) * 1.5
    records = np.concatenate([normal, odd])
    scores = scorer(records)
    assert scores.shape == (400,)
    assert auroc(np.repeat([0, 1], 200), scores) > 0.95
    np.testing.assert_allclose(scorer(records[7:8]), scores[7:8])


def test_pca_with_all_components_leaves_nothing() -> None:
    """As many components as dimensions reconstruct every record."""
    np.testing.assert_allclose(pca(cloud(50, 0), components=12)(cloud(5, 1)), 0.0, atol=1e-18)


def test_mahalanobis_of_the_mean_is_zero() -> None:
    """The mean has distance 0, and distances average to the dimension on the fitted records."""
    normals = cloud(500, 0)
    scorer = mahalanobis(normals, ridge=1e-9)
    assert scorer(normals.mean(0, keepdims=True))[0] == pytest.approx(0.0, abs=1e-9)
    assert scorer(normals).mean() == pytest.approx(12.0, rel=0.01)


def test_knn_distance() -> None:
    """The score is the distance to the k-th neighbour."""
    scorer = knn(np.array([[0.0], [1.0], [3.0]]), neighbours=2)
    np.testing.assert_allclose(scorer(np.array([[0.0], [5.0]])), [1.0, 4.0])


@pytest.mark.parametrize("shape", [(12,), (1, 4, 4)])
def test_cosine_rows_are_orthonormal(shape: tuple[int, ...]) -> None:
    """The public map keeps lengths, starts with the mean and does not depend on data."""
    size = int(np.prod(shape))
    full = _cosines(shape, size)
    np.testing.assert_allclose(full @ full.T, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(full[0], 1.0 / np.sqrt(size))
    np.testing.assert_array_equal(_cosines(shape, 3), full[:3])


def test_dp_mahalanobis_without_noise_is_mahalanobis() -> None:
    """With no noise and no clipping the private detector ranks like the plain one."""
    normals, records = cloud(500, 0) + 0.3, cloud(50, 1)
    scorer = dp_mahalanobis(
        [normals[:200], normals[200:]],
        features=12,
        radius=1e3,
        noise_multiplier=0.0,
        noise=SimulationNoise(0),
    )
    np.testing.assert_allclose(scorer(records), mahalanobis(normals, 1e-9)(records), rtol=0.01)


def test_noise_changes_the_private_detector_only_by_its_key() -> None:
    """Equal noise keys give equal scores; the noise does move them."""
    normals, records = cloud(300, 0), cloud(5, 1)

    def fit(sigma: float, key: int) -> np.ndarray:
        return dp_mahalanobis(
            [normals], features=6, radius=5.0, noise_multiplier=sigma, noise=SimulationNoise(key)
        )(records)

    np.testing.assert_array_equal(fit(1.0, 1), fit(1.0, 1))
    assert not np.allclose(fit(1.0, 1), fit(1.0, 2))
    assert not np.allclose(fit(1.0, 1), fit(0.0, 1))


def test_private_gaussian_recentres_on_a_shifted_site() -> None:
    """A site whose records are shifted as a whole is normal again about its own mean."""
    rng = np.random.default_rng(5)
    shifts = rng.normal(size=(7, 2, 6))
    sites = [cloud(500, i) + shift for i, shift in enumerate(shifts)]
    model = dp_mahalanobis(
        sites[:6], features=12, radius=8.0, noise_multiplier=1.0, noise=SimulationNoise(3)
    )
    normal, odd = sites[6], sites[6] + rng.normal(size=(500, 2, 6))
    label, records = np.repeat([0, 1], 500), np.concatenate([normal, odd])
    own = auroc(label, model.recentre(normal[:20])(records))
    assert own > 0.95
    assert own > auroc(label, model(records))
    with pytest.raises(ValueError, match="at least 1"):
        model.recentre(np.empty((0, 2, 6)))


def test_wrong_arguments() -> None:
    """Too few records and numbers outside their range are programming errors."""
    rows = cloud(5, 0)
    noise = SimulationNoise(0)
    for call in (
        lambda: pca(rows[:1]),
        lambda: pca(rows, components=0),
        lambda: mahalanobis(rows, ridge=0.0),
        lambda: knn(rows, neighbours=6),
        lambda: knn(rows, neighbours=0),
        lambda: pca(np.zeros(3)),
        lambda: dp_mahalanobis([], features=2, radius=1.0, noise_multiplier=1.0, noise=noise),
        lambda: dp_mahalanobis([rows], features=2, radius=0.0, noise_multiplier=1.0, noise=noise),
        lambda: dp_mahalanobis([rows], features=13, radius=1.0, noise_multiplier=1.0, noise=noise),
    ):
        with pytest.raises(ValueError, match="Expected"):
            call()
