"""Baselines find what they must, and the private one says what it releases."""

from collections.abc import Callable

import numpy as np
import pytest

from fedlatent.shared.data.frequencies import cosine_basis
from fedlatent.shared.detection import baselines
from fedlatent.shared.detection.baselines import (
    Scorer,
    dp_gaussian_mixture,
    dp_mahalanobis,
    isolation_forest,
    knn,
    mahalanobis,
    one_class_svm,
    pca,
)
from fedlatent.shared.detection.metrics import auroc
from fedlatent.shared.privacy.accounting import GaussianEvent, epsilon_of
from fedlatent.shared.privacy.noise import SimulationNoise


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


def private_mixture(normals: np.ndarray) -> Scorer:
    """Fit the noisy mixture on two sites."""
    return dp_gaussian_mixture(
        np.array_split(normals, 2),
        features=12,
        radius=8.0,
        components=3,
        em_rounds=2,
        noise_multiplier=1.0,
        noise=SimulationNoise(1),
    )


FITS: dict[str, Callable[[np.ndarray], Scorer]] = {
    "pca": lambda normals: pca(normals, components=2),
    "mahalanobis": mahalanobis,
    "knn": knn,
    "isolation_forest": isolation_forest,
    "one_class_svm": one_class_svm,
    "dp_mahalanobis": private,
    "dp_gaussian_mixture": private_mixture,
}
#: A forest cuts along axes, and a plane that lies across them leaves it little.
LEAST = {"isolation_forest": 0.6, "one_class_svm": 0.8}


@pytest.mark.parametrize("name", FITS)
def test_records_off_the_plane_score_higher(name: str) -> None:
    """Every baseline separates isotropic noise from records near a plane, record by record."""
    scorer = FITS[name](cloud(4000, 0))
    normal, odd = cloud(200, 1), np.random.default_rng(2).normal(size=(200, 2, 6)) * 1.5
    records = np.concatenate([normal, odd])
    scores = scorer(records)
    assert scores.shape == (400,)
    assert auroc(np.repeat([0, 1], 200), scores) > LEAST.get(name, 0.95)
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


@pytest.mark.parametrize("fit", [isolation_forest, one_class_svm, knn])
def test_seeded_baselines_repeat(
    fit: Callable[..., Scorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal seeds give equal scores, other seeds others once records are drawn."""
    monkeypatch.setattr(baselines, "MOST_NEIGHBOURS", 50)
    monkeypatch.setattr(baselines, "MOST_VECTORS", 50)
    normals, records = cloud(500, 0), cloud(20, 1)
    first = fit(normals, seed=1)(records)
    np.testing.assert_array_equal(fit(normals, seed=1)(records), first)
    assert not np.array_equal(fit(normals, seed=2)(records), first)


def test_large_sets_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more records than the limit, so many count: fewer neighbours lie farther away."""
    normals, records = cloud(1000, 0), cloud(50, 1)
    whole = knn(normals)(records)
    monkeypatch.setattr(baselines, "MOST_NEIGHBOURS", 100)
    assert (knn(normals)(records) >= whole).all()
    assert knn(normals)(records).mean() > 1.3 * whole.mean()


def test_isolation_score_lies_in_the_unit_interval() -> None:
    """Scores are those of the paper; a far record is well above one half, the middle below."""
    rows = np.random.default_rng(0).normal(size=(1000, 3))
    far, middle = isolation_forest(rows)(np.array([[9.0, 9.0, 9.0], [0.0, 0.0, 0.0]]))
    assert 0.65 < far < 1.0
    assert 0.3 < middle < 0.5


def test_support_vectors_leave_the_stated_share_outside() -> None:
    """About the share `outliers` of the fitted records scores above the machine's offset."""
    from sklearn.svm import OneClassSVM

    rows = np.random.default_rng(0).normal(size=(1000, 2))
    offset = OneClassSVM(nu=0.2, gamma="scale").fit(rows).offset_[0]
    outside = (one_class_svm(rows, outliers=0.2)(rows) > -offset).mean()
    assert outside == pytest.approx(0.2, abs=0.02)


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


def two_moons(count: int, seed: int) -> np.ndarray:
    """Draw records [N, 2] of two clusters with a gap between them."""
    rng = np.random.default_rng(seed)
    side = np.where(rng.random(count) < 0.5, -2.0, 2.0)
    return np.stack([side, np.zeros(count)], axis=1) + 0.4 * rng.normal(size=(count, 2))


def fit_mixture(
    sites: list[np.ndarray], sigma: float, components: int = 4, em_rounds: int = 4, key: int = 0
) -> baselines.PrivateMixture:
    """Fit the mixture to records of two values."""
    return dp_gaussian_mixture(
        sites,
        features=2,
        radius=4.0,
        components=components,
        em_rounds=em_rounds,
        noise_multiplier=sigma,
        noise=SimulationNoise(key),
    )


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_mixture_finds_the_gap_that_one_gaussian_covers(sigma: float) -> None:
    """Records between two clusters score high, with noise of a usual size too."""
    sites = [two_moons(1500, i) for i in range(3)]
    gap = 0.2 * np.random.default_rng(9).normal(size=(200, 2))
    records, label = np.concatenate([two_moons(200, 8), gap]), np.repeat([0, 1], 200)
    single = dp_mahalanobis(
        sites, features=2, radius=4.0, noise_multiplier=sigma, noise=SimulationNoise(1)
    )
    assert auroc(label, single(records)) < 0.2
    assert auroc(label, fit_mixture(sites, sigma)(records)) > 0.95


def test_one_component_without_noise_is_the_gaussian() -> None:
    """A single component takes mean and covariance of all records and is their density."""
    rows = two_moons(3000, 0)
    fitted = fit_mixture([rows[:1000], rows[1000:]], 0.0, components=1, em_rounds=1).mixture
    np.testing.assert_allclose(fitted.means[0], rows.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(
        np.diag(fitted.covariances[0]), rows.var(axis=0), rtol=0.02, atol=0.11
    )


def test_mixture_costs_one_release_more_than_its_rounds() -> None:
    """1 + T releases at sigma sqrt(1 + T) cost what one at sigma costs, and so many are made."""
    sizes: list[int] = []

    class Counting(SimulationNoise):
        """Seeded noise that notes how many numbers were asked for."""

        def normal(self, size: int) -> np.ndarray:
            """Draw and note."""
            sizes.append(size)
            return super().normal(size)

    dp_gaussian_mixture(
        [two_moons(500, 0), two_moons(500, 1)],
        features=2,
        radius=4.0,
        components=2,
        em_rounds=3,
        noise_multiplier=0.1,
        noise=Counting(0),
    )
    assert sizes == [9, 9] + [18, 18] * 3
    single = epsilon_of([GaussianEvent(noise_multiplier=2.0)], 1e-5)
    many = epsilon_of([GaussianEvent(noise_multiplier=4.0, steps=4)], 1e-5)
    assert many == pytest.approx(single)


def test_tables_keep_their_columns() -> None:
    """With as many features as columns or more, the map is the identity; fewer are frequencies."""
    rows = cloud(300, 0).reshape(300, 12)
    for features in (12, 50):
        scorer = dp_mahalanobis(
            [rows], features=features, radius=9.0, noise_multiplier=0.0, noise=SimulationNoise(0)
        )
        np.testing.assert_array_equal(scorer.features.projection, np.eye(12))
    few = dp_mahalanobis(
        [rows], features=3, radius=9.0, noise_multiplier=0.0, noise=SimulationNoise(0)
    )
    np.testing.assert_array_equal(few.features.projection, cosine_basis((12,), 3))
    np.testing.assert_allclose(
        few.features.projection @ few.features.projection.T, np.eye(3), atol=1e-12
    )
    np.testing.assert_allclose(few.features.projection[0], 1.0 / np.sqrt(12))


def test_a_public_centre_changes_nothing_but_the_clipping() -> None:
    """Records about 5 are clipped about 0 and not about 5; without clipping both agree."""
    rows, records = cloud(500, 0) + 5.0, cloud(40, 1) + 5.0

    def fit(center: float, radius: float) -> np.ndarray:
        return dp_mahalanobis(
            [rows],
            features=12,
            radius=radius,
            noise_multiplier=0.0,
            noise=SimulationNoise(0),
            center=center,
        )(records)

    exact = mahalanobis(rows, 1e-9)(records)
    np.testing.assert_allclose(fit(0.0, 200.0), exact, rtol=0.05)
    np.testing.assert_allclose(fit(5.0, 20.0), exact, rtol=0.01)
    assert not np.allclose(fit(0.0, 15.0), exact, rtol=0.5)


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
        lambda: dp_mahalanobis([rows], features=0, radius=1.0, noise_multiplier=1.0, noise=noise),
        lambda: isolation_forest(rows[:1]),
        lambda: isolation_forest(rows, trees=0),
        lambda: one_class_svm(rows[:1]),
        lambda: one_class_svm(rows, outliers=0.0),
        lambda: fit_mixture([two_moons(50, 0)], 0.0, components=0),
        lambda: fit_mixture([two_moons(50, 0)], 0.0, em_rounds=0),
        lambda: fit_mixture([], 0.0),
    ):
        with pytest.raises(ValueError, match="Expected"):
            call()
