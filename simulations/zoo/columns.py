"""Tables: patients of four hospitals and network connections, as columns of numbers and classes.

Patients (UCI heart disease, Janosi et al.): trained on 70 % of those without disease, the disease
is the anomaly; and, trained on 70 % of all, a fifth of the test's values is hidden and filled.
Connections (NSL-KDD, Tavallaee et al., 2009): trained on the normal ones of the training file,
attacks of the official test are the anomalies. The mixed family stands against the Gaussian one
of the same size on the same values as one vector, where what is missing is the middle of its range
or none of the levels; against PCA of that vector; and against column means and modes. As filler
the Gaussian family suffers from what it is trained on: no level is its answer to a missing class.
Known on NSL-KDD: PCA 0.950, nearest neighbours in latents of a beta-VAE 0.975.

All records of a table are in one place: this measures families, not the federation.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from fedlatent.shared.data.catalog import paths
from fedlatent.shared.data.column import Column, Level, Transform, layout
from fedlatent.shared.data.columns import hidden, places, present, to_records
from fedlatent.shared.models import VAE
from fedlatent.shared.models.mixed import MixedVAE
from fedlatent.simulations.zoo.images import png
from fedlatent.simulations.zoo.training import Watch, fit, run_for

#: AUROC on the official test of NSL-KDD.
REPORTED = {"PCA": 0.950, "latent neighbours of a beta-VAE": 0.975}


def _numbers(name: str, lower: float, upper: float, transform: Transform = "none") -> Column:
    return Column(name=name, lower=lower, upper=upper, transform=transform, missing="mask")


def _classes(name: str, levels: tuple[Level, ...]) -> Column:
    return Column(name=name, levels=levels, missing="mask")


#: Medical limits, and the codes of the study's protocol.
HEART = (
    _numbers("age", 20.0, 90.0),
    _classes("sex", (0.0, 1.0)),
    _classes("cp", (1.0, 2.0, 3.0, 4.0)),
    _numbers("trestbps", 80.0, 200.0),
    _numbers("chol", 100.0, 500.0),
    _classes("fbs", (0.0, 1.0)),
    _classes("restecg", (0.0, 1.0, 2.0)),
    _numbers("thalach", 60.0, 210.0),
    _classes("exang", (0.0, 1.0)),
    _numbers("oldpeak", -2.0, 5.0),
    _classes("slope", (1.0, 2.0, 3.0)),
    _classes("ca", (0.0, 1.0, 2.0, 3.0)),
    _classes("thal", (3.0, 6.0, 7.0)),
)
_NOT_MEASURED = ("trestbps", "chol")  # where 0 says so

_COUNTS = {
    **{"duration": 6e4, "src_bytes": 1.4e9, "dst_bytes": 1.4e9, "wrong_fragment": 3.0},
    **{"urgent": 3.0, "hot": 99.0, "num_failed_logins": 5.0, "num_compromised": 1e3},
    **{"num_root": 1e3, "num_file_creations": 99.0, "num_shells": 3.0, "num_access_files": 10.0},
    **{"count": 511.0, "srv_count": 511.0, "dst_host_count": 255.0, "dst_host_srv_count": 255.0},
}
_FLAGS = ("land", "logged_in", "root_shell", "is_host_login", "is_guest_login")
_SHARES = (
    *("serror_rate", "srv_serror_rate", "rerror_rate", "srv_rerror_rate", "same_srv_rate"),
    *("diff_srv_rate", "srv_diff_host_rate", "dst_host_same_srv_rate", "dst_host_diff_srv_rate"),
    *("dst_host_same_src_port_rate", "dst_host_srv_diff_host_rate", "dst_host_serror_rate"),
    *("dst_host_srv_serror_rate", "dst_host_rerror_rate", "dst_host_srv_rerror_rate"),
)
_ENDINGS = ("SF", "S0", "S1", "S2", "S3", "REJ", "RSTR", "RSTO", "RSTOS0", "SH", "OTH")
CONNECTION = (
    *(_numbers(name, 0.0, end, "log") for name, end in _COUNTS.items()),
    *(_numbers(name, 0.0, 1.0) for name in _SHARES),
    *(_classes(name, (0.0, 1.0)) for name in _FLAGS),
    _classes("protocol_type", ("tcp", "udp", "icmp")),
    _classes("flag", _ENDINGS),
)

_HIDDEN = 0.3  # share of values hidden in training, anew every round
_ASKED = 0.2  # share of the test's values to fill
_NEIGHBOURS = 5
_COMPONENTS = 10  # of PCA
_SIZE = {"hidden": [128, 64], "latent_dim": 8}

Records = NDArray[np.float32]
Scores = NDArray[np.float64]


def experiment(
    data: Path, *, epsilon: float | None, seed: int, quick: bool, watch: Watch
) -> dict[str, Any]:
    """Anomalies among patients and connections, and missing values of patients.

    Args:
        data: folder of the data sets.
        epsilon: of each training, or None.
        seed: of splits, weights, samples and noise.
        quick: few connections and steps.
        watch: told about the progress.
    """
    frame, rows = patients(data)
    rng = np.random.default_rng(seed)
    train = _Trainer(epsilon=epsilon, seed=seed, quick=quick, watch=watch)
    disease = _disease(frame, rows, rng, train)
    filling = _filling(rows, rng, train)
    attacks = _attacks(data, train, quick=quick)
    return {
        "patients: AUROC of disease": disease,
        "patients: hidden values": filling,
        "connections: AUROC of attacks": attacks,
        "reported": REPORTED,
        "picture": {
            "disease of patients": {name: row["all patients"] for name, row in disease.items()},
            "attacks among connections": {name: row["AUROC"] for name, row in attacks.items()},
        },
    }


def picture(found: Mapping[str, Mapping[str, float]]) -> bytes:
    """AUROC of every score as bars, one panel for each kind of anomaly: a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(found), 2.8), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (title, scores) in zip(panels, found.items(), strict=True):
        names = list(scores)[::-1]
        values = [scores[name] for name in names]
        bars = axes.barh(names, values, color="tab:blue")
        axes.bar_label(bars, fmt="%.3f", padding=2, fontsize=8)
        axes.set_xlim(0.5, 1.04)
        axes.set_xlabel("AUROC")
        axes.set_title(title)
    return png(figure)


def patients(data: Path) -> tuple[pd.DataFrame, Records]:
    """The table of patients and its records [N, D]."""
    frame = pd.read_csv(*paths(data, "heart_disease"))
    for name in _NOT_MEASURED:
        frame[name] = frame[name].mask(frame[name] == 0.0)
    return frame, to_records(frame, HEART)


def as_vector(records: Records, columns: tuple[Column, ...]) -> Records:
    """Numbers and levels alone, [N, values]: a missing number is the middle of its range."""
    parts = []
    for column, place in zip(columns, places(columns), strict=True):
        block = records[:, place]
        if not column.levels:
            block = np.where(block[:, 1:] > 0.5, block[:, :1], 0.5)
        parts.append(block)
    return np.concatenate(parts, axis=1).astype(np.float32)


class _Trainer:
    """Trains a family on records of some columns, under the settings of the experiment."""

    def __init__(self, *, epsilon: float | None, seed: int, quick: bool, watch: Watch) -> None:
        self._epsilon, self._seed = epsilon, seed
        self._quick, self._watch = quick, watch

    def __call__(
        self,
        family: str,
        records: Records,
        columns: tuple[Column, ...],
        *,
        hide: bool = False,
    ) -> VAE:
        """The trained model of "mixed" or "gaussian"; `hide` hides values anew every round."""
        options = {**_SIZE, "variance": 0.02}
        if family == "mixed":
            options["columns"] = layout(columns)
        private = self._epsilon is not None
        large = len(records) > 5_000
        rounds, steps = (40, 50) if not private else (20, 25) if large else (10, 10)
        batch = (512 if large else 128) if private else 128

        def augment(values: Records, number: int) -> Records:
            if hide:
                rng = np.random.default_rng([self._seed, number])
                mask = rng.random((len(values), len(columns))) < _HIDDEN
                values = hidden(values, columns, mask)
            return values if family == "mixed" else as_vector(values, columns)

        run = run_for(
            family,
            options,
            augment(records[:1], 0).shape[1:],
            training={
                "rounds": 2 if self._quick else rounds,
                "steps_per_round": 5 if self._quick else steps,
                "learning_rate": 5e-3 if private else 2e-3,
                "schedule": "cosine",
            },
            epsilon=self._epsilon,
            sample_rate=min(batch / len(records), 0.5),
            seed=self._seed,
        )
        self._watch(f"{family} on {len(records)} records")
        return fit(run, records, augment=augment)


def _disease(
    frame: pd.DataFrame, rows: Records, rng: np.random.Generator, train: _Trainer
) -> dict[str, dict[str, float]]:
    """AUROC over all test patients, and its mean over the hospitals."""
    ill = frame["disease"].to_numpy() == 1
    healthy = rng.permutation(np.flatnonzero(~ill))
    known = healthy[: round(0.7 * len(healthy))]
    test = np.setdiff1d(np.arange(len(rows)), known)
    hospital = frame["hospital"].to_numpy()[test]

    def figures(scores: Scores) -> dict[str, float]:
        each = [
            float(roc_auc_score(ill[test][mine], scores[mine]))
            for name in sorted(set(hospital.tolist()))
            for mine in [hospital == name]
        ]
        overall = float(roc_auc_score(ill[test], scores))
        return {"all patients": overall, "mean of hospitals": float(np.mean(each))}

    scores = _anomaly_scores(rows[known], rows[test], HEART, train)
    return {name: figures(values) for name, values in scores.items()}


def _attacks(data: Path, train: _Trainer, *, quick: bool) -> dict[str, dict[str, float]]:
    """AUROC on the official test."""
    known, tested = (pd.read_csv(path) for path in paths(data, "nsl_kdd"))
    known = known[known["category"] == "normal"]
    if quick:
        known, tested = known[:500], tested[:500]
    attack = tested["category"].to_numpy() != "normal"
    rows, asked = (to_records(frame, CONNECTION) for frame in (known, tested))
    scores = _anomaly_scores(rows, asked, CONNECTION, train)
    return {name: {"AUROC": float(roc_auc_score(attack, each))} for name, each in scores.items()}


def _anomaly_scores(
    known: Records, asked: Records, columns: tuple[Column, ...], train: _Trainer
) -> dict[str, Scores]:
    """Of every model and way to score, greater for the stranger."""
    found: dict[str, Scores] = {}
    vectors = as_vector(known, columns), as_vector(asked, columns)
    for family, (own, other) in {"mixed": (known, asked), "gaussian": vectors}.items():
        model = train(family, known, columns)
        mean, error = _encoded(model, other)
        centre, _ = _encoded(model, own)
        found[f"{family}, reconstruction"] = error
        found[f"{family}, latent distance"] = _mahalanobis(centre, mean)
        found[f"{family}, latent neighbours"] = _to_neighbours(centre, mean)
    pca = PCA(min(_COMPONENTS, *vectors[0].shape), svd_solver="full").fit(vectors[0])
    back = pca.inverse_transform(pca.transform(vectors[1]))
    found["PCA"] = ((vectors[1] - back) ** 2).sum(1).astype(np.float64)
    return found


def _filling(
    rows: Records, rng: np.random.Generator, train: _Trainer
) -> dict[str, dict[str, float]]:
    """Accuracy of hidden classes and error of hidden numbers, as shares of their range."""
    order = rng.permutation(len(rows))
    known, test = (rows[part] for part in np.split(order, [round(0.7 * len(rows))]))
    asked = present(test, HEART) & (rng.random((len(test), len(HEART))) < _ASKED)
    given = hidden(test, HEART, asked)
    model = train("mixed", known, HEART, hide=True)
    if not isinstance(model, MixedVAE):
        raise TypeError(f"Expected a MixedVAE, got {type(model).__name__}.")
    plain = train("gaussian", known, HEART, hide=True)
    with torch.no_grad():
        filled = model.impute(torch.from_numpy(given)).numpy()
        vector = torch.from_numpy(as_vector(given, HEART))
        spread = plain.reconstruct(plain.encode(vector)[0]).numpy()
    usual = np.repeat(_usual(known)[None], len(test), axis=0)
    return {
        "mixed": _errors(test, asked, lambda place, _: filled[:, place]),
        "gaussian": _errors(test, asked, lambda _, place: spread[:, place]),
        "mean or mode": _errors(test, asked, lambda place, _: usual[:, place]),
    }


def _errors(
    test: Records, asked: NDArray[np.bool_], guess: Callable[[slice, slice], Records]
) -> dict[str, float]:
    """Of guesses, which get a column's place among the records and among the vectors."""
    right, squares, start = [], [], 0
    for index, (column, place) in enumerate(zip(HEART, places(HEART), strict=True)):
        width = len(column.levels) or 1
        mine = asked[:, index]
        said, true = guess(place, slice(start, start + width))[mine], test[mine, place]
        if column.levels:
            right.append(said.argmax(1) == true.argmax(1))
        else:
            squares.append((said[:, 0] - true[:, 0]) ** 2)
        start += width
    return {
        "accuracy of classes": float(np.concatenate(right).mean()),
        "RMSE of numbers": float(np.sqrt(np.concatenate(squares).mean())),
    }


def _usual(known: Records) -> Records:
    """A record [D] of each column's mean, or the shares of its levels."""
    there = np.repeat(present(known, HEART), [column.width for column in HEART], axis=1)
    return np.asarray(known.sum(0) / np.maximum(there.sum(0), 1), dtype=np.float32)


def _encoded(model: VAE, records: Records) -> tuple[Scores, Scores]:
    """Posterior means [N, k] and reconstruction errors [N]."""
    x = torch.from_numpy(records)
    with torch.no_grad():
        mean = model.encode(x)[0]
        error = model.reconstruction_error(x, model.decode(mean))
    return mean.double().numpy(), error.double().numpy()


def _mahalanobis(known: Scores, asked: Scores) -> Scores:
    """Squared distance of latents from the mean of the known ones, under their covariance."""
    covariance = np.cov(known.T) + 1e-6 * np.eye(known.shape[1])
    offset = asked - known.mean(0)
    return np.asarray((offset @ np.linalg.inv(covariance) * offset).sum(1))


def _to_neighbours(known: Scores, asked: Scores) -> Scores:
    """Mean distance to the nearest latents of known records."""
    distances, _ = NearestNeighbors(n_neighbors=_NEIGHBOURS).fit(known).kneighbors(asked)
    return np.asarray(distances.mean(1))
