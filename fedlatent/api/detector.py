"""An anomaly detector with the habits of scikit-learn and the names of pyod."""

import copy
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from fedlatent.shared.data.column import Column
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.data.sources import Federation, SiteData
from fedlatent.shared.export.bundling import BundleContents, BundleReport, scorer_of
from fedlatent.simulations.train import KEY, contents_of, run_of, signed, worry

_MARGIN = 1.0  # of the range of the records, on each side of it: what lies beyond is clipped
_NAME = "records"


class Detector(BaseEstimator):  # type: ignore[misc]
    """Detect anomalies among rows of numbers by a variational autoencoder.

    Scores follow pyod: higher is more anomalous, labels are 0 (normal) and 1 (anomalous). Without
    an epsilon the fitted model holds exact statistics of the records. With one, everything in the
    saved bundle is covered by it, while what this object tells of the training records
    (``decision_scores_``, ``threshold_``, ``labels_``) stays with whoever has them anyway.

    Args:
        epsilon: of the saved bundle, for one record; None for no privacy.
        contamination: share of the training records that are taken for anomalies, for
            ``threshold_``.
        family: of the model; ``fedlatent model list`` names all.
        options: of the family, such as ``{"latent_dim": 4}``.
        bounds: lower and upper of each feature, or of all of them; what lies beyond is clipped. By
            default the range of the training records and as much again on each side, which no
            epsilon covers.
        random_state: seed of the first weights, and of all that is random but noise under an
            epsilon, which is secure.

    Attributes:
        decision_scores_: float [n], scores of the training records.
        threshold_: above it a record is anomalous.
        labels_: int [n], 0 or 1 for each training record.
        n_features_in_: features seen in fit.
        feature_names_in_: their names, where they have names.
        contents_: what `save` makes a bundle of: model, density, thresholds, epsilon.

    Examples:
        >>> import numpy as np, fedlatent as fl
        >>> rows = np.random.default_rng(0).normal(size=(300, 5))
        >>> detector = fl.Detector(contamination=0.05, random_state=0).fit(rows)
        >>> detector.decision_function(rows[:3]).shape
        (3,)
        >>> int(detector.labels_.sum())
        15
        >>> detector.predict([[8.0, -8.0, 8.0, -8.0, 8.0]])
        array([1])
    """

    decision_scores_: NDArray[np.float64]
    threshold_: float
    labels_: NDArray[np.int64]
    contents_: BundleContents

    def __init__(
        self,
        *,
        epsilon: float | None = None,
        contamination: float = 0.1,
        family: str = "gaussian",
        options: Mapping[str, object] | None = None,
        bounds: tuple[ArrayLike, ArrayLike] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        """Keep the parameters as they are; `fit` looks at them."""
        self.epsilon = epsilon
        self.contamination = contamination
        self.family = family
        self.options = options
        self.bounds = bounds
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Train on records, most of which are normal.

        Args:
            X: records [n, features], finite numbers.
            y: not used; there as in all of scikit-learn.

        Raises:
            ValueError: records, contamination or bounds are not as they must be.
            ConfigError: the family or an option is unknown.
        """
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        if not 0.0 < self.contamination <= 0.5:
            raise ValueError(
                f"Expected contamination above 0 and up to 0.5, got {self.contamination}; give the "
                "share of anomalies among the training records."
            )
        federation = _federation(rows, _schema(*self._bounds(rows)))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        run = run_of(
            federation,
            family=self.family,
            options=self.options,
            epsilon=self.epsilon,
            seed=seed,
        )
        if text := worry(run, federation):
            warnings.warn(text, stacklevel=2)
        with tempfile.TemporaryDirectory(prefix="fedlatent-") as name:
            self.contents_ = contents_of(run, federation, Path(name))
        scores = self._scores(rows)
        self.decision_scores_ = scores
        self.threshold_ = float(np.percentile(scores, 100.0 * (1.0 - self.contamination)))
        self.labels_ = (scores > self.threshold_).astype(np.int64)
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Scores [n] of records [n, features]; higher is more anomalous."""
        check_is_fitted(self)
        return self._scores(validate_data(self, X, dtype=np.float64, reset=False))

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Labels [n] of records: 1 above ``threshold_``, else 0."""
        return (self.decision_function(X) > self.threshold_).astype(np.int64)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Chances [n, 2] of being normal and anomalous, as pyod's linear rule has them.

        The second is the score on the scale of the training scores, 0 at the least and 1 at the
        greatest of them, and cut off beyond. It is no calibrated probability.
        """
        scores, known = self.decision_function(X), self.decision_scores_
        spread = float(np.ptp(known)) or 1.0
        chance = np.clip((scores - known.min()) / spread, 0.0, 1.0)
        return np.column_stack([1.0 - chance, chance])

    def save(self, out: str | Path, *, signing_key: str | Path | None = None) -> BundleReport:
        """Export to ONNX, check that against PyTorch, and write one signed file for devices.

        The bundle has a threshold of its own, for a share of normal records; see `fedlatent.load`.

        Args:
            out: the bundle.
            signing_key: private key file; by default ``publisher.pem`` beside the bundle, made new.

        Raises:
            NotFittedError: `fit` was not called.
            BundleError: the graph differs from PyTorch.

        Examples:
            >>> report = detector.save("detector.fedlatent")
            >>> model = fl.load("detector.fedlatent", key="publisher.pem.pub")
            >>> bool(np.allclose(model.score(rows).score, detector.decision_scores_, atol=1e-3))
            True
        """
        check_is_fitted(self)
        target = Path(out)
        key = target.parent / KEY if signing_key is None else Path(signing_key)
        return signed(target, self.contents_, key)[0]

    def _bounds(self, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper [features]; the next numbers where a feature is constant."""
        if self.bounds is None:
            if self.epsilon is not None:
                warnings.warn(
                    "bounds were taken from the records, which epsilon does not cover; give bounds "
                    "that are public knowledge",
                    stacklevel=3,
                )
            low, high = rows.min(axis=0), rows.max(axis=0)
            margin = np.where(low < high, _MARGIN * (high - low), np.abs(low) + 1.0)
            return low - margin, high + margin
        low, high = (
            np.broadcast_to(np.asarray(one, np.float64), rows.shape[1]) for one in self.bounds
        )
        if not (low < high).all():
            raise ValueError("Expected bounds with lower < upper in every feature, got others.")
        return low, high

    def _scores(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        contents = self.contents_
        scorer = copy.deepcopy(scorer_of(contents)).double()  # the bundle is of float32
        records = torch.from_numpy(contents.run.data.preprocess(rows)).double()
        with torch.no_grad():
            score = scorer(records, torch.from_numpy(contents.density.mean).double())[-1]
        return np.asarray(score.numpy())


def _schema(low: NDArray[np.float64], high: NDArray[np.float64]) -> Schema:
    """A column for each feature."""
    columns = tuple(
        Column(name=f"x{at}", lower=float(lower), upper=float(upper))
        for at, (lower, upper) in enumerate(zip(low, high, strict=True))
    )
    return Schema(name=_NAME, columns=columns)


def _federation(rows: NDArray[np.float64], schema: Schema) -> Federation:
    """One client that trains on all rows."""
    none = np.zeros(0, dtype=np.uint8)
    site = SiteData(
        name="site",
        train=rows,
        test=rows[:0],
        test_label=none,
        test_kind=none.astype(np.str_),
        extra=rows[:0],
        extra_kind=none.astype(np.str_),
    )
    return Federation(name=_NAME, schema=schema, sites=(site,), synthetic=False, note="")
