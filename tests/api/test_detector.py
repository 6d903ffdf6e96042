"""The estimator: scikit-learn's checks, pyod's habits, privacy, and the way to a device."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fedlatent as fl

Rows = NDArray[np.float64]


def rows_with_outliers(seed: int = 0) -> tuple[Rows, NDArray[np.int64]]:
    """180 correlated rows, and 20 that are not."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(2, 6))
    normal = rng.normal(size=(180, 2)) @ mix + 0.1 * rng.normal(size=(180, 6))
    odd = 2.0 * rng.normal(size=(20, 6)) * normal.std(axis=0)
    return np.vstack([normal, odd]), np.repeat([0, 1], [180, 20])


@parametrize_with_checks([fl.Detector(random_state=0)])
def test_scikit_learn_takes_it(estimator: fl.Detector, check: Callable[..., None]) -> None:
    """Every check that scikit-learn has for an estimator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.mark.filterwarnings("ignore")
def test_habits_are_those_of_pyod() -> None:
    """Same calls, same shapes and types, same meaning of each as pyod's own detectors."""
    from pyod.models.pca import PCA

    rows, odd = rows_with_outliers()
    ours, theirs = fl.Detector(contamination=0.1, random_state=0), PCA(contamination=0.1)
    for one in (ours, theirs):
        one.fit(rows)
    for name in ("decision_scores_", "labels_"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.shape == other.shape == (200,)
        assert np.issubdtype(mine.dtype, np.integer) == np.issubdtype(other.dtype, np.integer)
    assert isinstance(ours.threshold_, float)
    for one in (ours, theirs):  # a rank by the share of anomalies, which scores lie above
        assert int(one.labels_.sum()) == 20
        assert one.threshold_ == pytest.approx(np.percentile(one.decision_scores_, 90.0))
        assert roc_auc_score(odd, one.decision_scores_) > 0.8
        np.testing.assert_allclose(one.decision_function(rows), one.decision_scores_, rtol=1e-6)
        np.testing.assert_array_equal(one.predict(rows), one.labels_)
        chance = one.predict_proba(rows)
        assert chance.shape == (200, 2)
        np.testing.assert_allclose(chance.sum(axis=1), 1.0)
        assert chance[one.decision_scores_.argmax(), 1] == pytest.approx(1.0)
        assert chance[one.decision_scores_.argmin(), 1] == pytest.approx(0.0)


def test_equal_seeds_agree_and_others_differ() -> None:
    """A clone with the same seed gives the same scores, also after pickling."""
    rows, _ = rows_with_outliers()
    one = fl.Detector(random_state=3).fit(rows)
    two = clone(one).fit(rows)
    np.testing.assert_array_equal(one.decision_scores_, two.decision_scores_)
    again = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(again.decision_function(rows), one.decision_scores_)
    other = fl.Detector(random_state=4).fit(rows)
    assert not np.array_equal(one.decision_scores_, other.decision_scores_)


def test_frames_and_pipelines() -> None:
    """Names of columns are kept, and other names are refused as scikit-learn does."""
    rows, odd = rows_with_outliers()
    frame = pd.DataFrame(rows, columns=list("abcdef"))
    detector = fl.Detector(random_state=0).fit(frame)
    assert detector.feature_names_in_.tolist() == list("abcdef")
    with pytest.raises(ValueError, match="feature names"):
        detector.decision_function(frame.rename(columns={"a": "z"}))
    piped = make_pipeline(StandardScaler(), fl.Detector(random_state=0)).fit(rows)
    assert roc_auc_score(odd, piped.decision_function(rows)) > 0.8


def test_a_saved_detector_scores_alike_on_a_device(tmp_path: Path) -> None:
    """The bundle gives the same scores without PyTorch."""
    rows, _ = rows_with_outliers()
    detector = fl.Detector(random_state=0).fit(rows)
    detector.save(tmp_path / "detector.fedlatent")
    model = fl.load(tmp_path / "detector.fedlatent", tmp_path / "publisher.pem.pub")
    scores = model.score(rows).score
    spread = np.ptp(detector.decision_scores_)
    np.testing.assert_allclose(scores, detector.decision_scores_, atol=1e-5 * spread)
    # A second save with the first's key, and after that the scores are still the same.
    detector.save(tmp_path / "again.fedlatent", signing_key=tmp_path / "publisher.pem")
    fl.load(tmp_path / "again.fedlatent", tmp_path / "publisher.pem.pub")
    np.testing.assert_array_equal(detector.decision_function(rows), detector.decision_scores_)


def test_an_epsilon_covers_the_bundle(tmp_path: Path) -> None:
    """What is saved states at most that epsilon, with secure noise."""
    rows = np.random.default_rng(0).normal(size=(400, 3))
    bounds = (np.full(3, -5.0), np.full(3, 5.0))
    detector = fl.Detector(epsilon=4.0, bounds=bounds, random_state=0).fit(rows)
    manifest = detector.save(tmp_path / "private.fedlatent").manifest
    assert manifest.privacy is not None
    assert 3.0 < manifest.privacy.epsilon <= 4.0
    assert manifest.privacy.rng == "secure"
    assert detector.decision_function([[4.5, -4.5, 4.5]]) > detector.threshold_
    with pytest.warns(UserWarning, match="bounds were taken from the records"):
        fl.Detector(epsilon=4.0, random_state=0).fit(rows)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"contamination": 0.0}, "contamination above 0"),
        ({"contamination": 0.6}, "up to 0.5"),
        ({"bounds": (1.0, 0.0)}, "lower < upper"),
        ({"family": "none"}, "family"),
        ({"options": {"latent_dims": 3}}, "latent_dims"),
    ],
)
def test_wrong_parameters_are_told(parameters: dict[str, object], told: str) -> None:
    """In a sentence that names them, before anything is trained."""
    with pytest.raises((ValueError, fl.FedlatentError), match=told):
        fl.Detector(**parameters).fit(rows_with_outliers()[0])  # type: ignore[arg-type]


def test_nothing_is_saved_before_a_fit(tmp_path: Path) -> None:
    """Scikit-learn's own error, and no file."""
    with pytest.raises(NotFittedError):
        fl.Detector().save(tmp_path / "none.fedlatent")
    assert not [*tmp_path.iterdir()]
