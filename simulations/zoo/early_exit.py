"""Early exits on heart beats: skipped work, time and accuracy together.

One sparse model is trained on the normal beats of all patients (MIT-BIH Arrhythmia Database,
Moody and Mark, PhysioNet) and finds ventricular beats by the squared error of its
reconstruction. It is held against itself with the trunk always used, for several thresholds of its
gate. The aim: at least 80 % of the encoder's multiply-adds skipped on normal beats that were not
trained on, at a loss of at most 0.01 in the area under the ROC curve.

Time is that of single beats through the exported ONNX encoder, one thread: its If runs the trunk
for hard beats alone. Baselines of the literature of the same data, all patients together: PCA
0.857 on raw beats, 0.925 without the beat's median, which is taken off here.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fedlatent.shared.data.sources import MITBIH_SCHEMA, mitbih
from fedlatent.shared.export import export_encoder
from fedlatent.shared.export.parity import one_thread_session
from fedlatent.shared.models.size import size_of
from fedlatent.shared.models.sparse import SparseVAE, trunk_share
from fedlatent.simulations.zoo.images import png
from fedlatent.simulations.zoo.training import Watch, fit, run_for

Floats = NDArray[np.float32]

#: Public values: a threshold from quantiles of training beats would be a release about them.
THRESHOLDS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TIMED = (0.0, 0.5, 1.0)
_AT_ONCE = 1_024
_BEATS = 400  # of a timing
_OPTIONS: dict[str, object] = {
    "network": "conv1d",
    "hidden": [32, 64, 64],
    "latent_dim": 8,
    "stem": 32,
    "activation": "tanh",
}
#: Nats that one use of the trunk must gain. Noise keeps the cheap exit further behind the trunk, so
#: that at the lower cost the gate of a private training stays open for every beat.
_COST, _PRIVATE_COST = 3.0, 25.0


def experiment(
    data: Path, *, epsilon: float | None, seed: int, quick: bool, watch: Watch
) -> dict[str, Any]:
    """Train one model; measure it at every threshold.

    Args:
        data: folder of the data sets.
        epsilon: of the training, or None.
        seed: of the split, weights, samples and noise.
        quick: few beats and steps.
        watch: told about the progress.
    """
    train, test, label = beats(data, seed, few=quick)
    training, sample_rate = _training(epsilon, quick=quick)
    options = {**_OPTIONS, "cost": _COST if epsilon is None else _PRIVATE_COST}
    run = run_for(
        "sparse",
        options,
        train.shape[1:],
        training=training,
        epsilon=epsilon,
        sample_rate=sample_rate,
        seed=seed,
        bounds=(MITBIH_SCHEMA.lower, MITBIH_SCHEMA.upper),
    )
    model = fit(run, train, watch=watch)
    if not isinstance(model, SparseVAE):
        raise TypeError(f"Expected a SparseVAE, got {type(model).__name__}.")
    found = sweep(model, test, label)
    with torch.no_grad():
        gate = model.gate(torch.from_numpy(test)).numpy()
    timed = {
        f"{threshold:g}": latency(model, threshold, test[label == 0][: 20 if quick else _BEATS])
        for threshold in ((0.5,) if quick else _TIMED)
    }
    watch(f"{found}\n{timed}")
    return {
        "thresholds": found,
        "microseconds a normal beat": timed,
        "best": best(found),
        "auroc of the gate alone": float(roc_auc_score(label, gate)),
        "multiply-adds": {
            "encoder": size_of(model).encode,
            "of it skipped on an easy beat": trunk_share(model),
        },
        "settings": {
            **options,
            **training,
            "sample_rate": sample_rate,
            "beats": len(train),
            "tested": len(test),
        },
        "picture": found,
    }


def beats(data: Path, seed: int, *, few: bool) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Training beats [N, 128], test beats [M, 128] and their labels [M], of all patients."""
    sites = mitbih(data, seed).sites[: 3 if few else None]
    train = np.concatenate([MITBIH_SCHEMA.preprocess(site.train) for site in sites])
    test = np.concatenate([MITBIH_SCHEMA.preprocess(site.test) for site in sites])
    label = np.concatenate([site.test_label for site in sites])
    return train.astype(np.float32), test.astype(np.float32), label


def sweep(model: SparseVAE, test: Floats, label: NDArray[np.uint8]) -> dict[str, dict[str, float]]:
    """For each threshold: skipped share of the encoder's work, hard shares and area.

    Args:
        model: trained.
        test: beats [M, 128].
        label: 0 normal, 1 anomalous [M].
    """
    gate, cheap, deep = (np.concatenate(part) for part in zip(*_errors(model, test), strict=True))
    share, always = trunk_share(model), float(roc_auc_score(label, deep))
    found = {}
    for threshold in THRESHOLDS:
        hard = gate > threshold
        area = float(roc_auc_score(label, np.where(hard, deep, cheap)))
        found[f"{threshold:g}"] = {
            "skipped on normal beats": share * float(1.0 - hard[label == 0].mean()),
            "hard among normal": float(hard[label == 0].mean()),
            "hard among ventricular": float(hard[label == 1].mean()),
            "auroc": area,
            "lost auroc": always - area,
        }
    return found


def best(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The threshold that skips most on these beats, of those that lose at most 0.01 of area."""
    kept = {name: row for name, row in found.items() if row["lost auroc"] <= 0.01}
    name = max(kept, key=lambda key: kept[key]["skipped on normal beats"])
    return {"threshold": float(name), **kept[name]}


def latency(model: SparseVAE, threshold: float, test: Floats) -> dict[str, float]:
    """Microseconds of one beat through the exported encoder: median, mean and 95th percentile."""
    before, model.threshold = model.threshold, threshold
    try:
        graph = export_encoder(model)
    finally:
        model.threshold = before
    session = one_thread_session(graph)
    spent = []
    for beat in np.concatenate([test[:20], test]):
        began = time.perf_counter()
        session.run(None, {"x": beat[None]})
        spent.append(1e6 * (time.perf_counter() - began))
    times = np.array(spent[20:])  # the first ones warm up
    return {
        "median": float(np.median(times)),
        "mean": float(times.mean()),
        "p95": float(np.percentile(times, 95)),
    }


def picture(found: Mapping[str, Mapping[str, float]]) -> bytes:
    """Area under the ROC curve against skipped share: a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.9), layout="constrained")
    axes = figure.subplots()
    skipped = [100 * row["skipped on normal beats"] for row in found.values()]
    area = [row["auroc"] for row in found.values()]
    always = found["0"]["auroc"]
    axes.axhspan(always - 0.01, always, alpha=0.2, label="at most 0.01 below always deep")
    axes.axvline(80, color="grey", linestyle=":", label="80 % skipped")
    axes.plot(skipped, area, "o-")
    for name, x, y in zip(found, skipped, area, strict=True):
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(3, 4), fontsize=7)
    axes.set_xlabel("multiply-adds of the encoder skipped on normal beats, %")
    axes.set_ylabel("area under the ROC curve")
    axes.set_title("Thresholds of the gate")
    axes.legend(fontsize=8)
    return png(figure)


def _errors(model: SparseVAE, test: Floats) -> list[tuple[Floats, Floats, Floats]]:
    """Gate, and anomaly score by the cheap exit and by the trunk, of parts of the beats."""
    rows = []
    with torch.no_grad():
        for x in torch.split(torch.from_numpy(test), _AT_ONCE):
            scores = (model.reconstruction_error(x, model.decode(mu)) for mu in model.exits(x))
            rows.append((model.gate(x).numpy(), *(score.numpy() for score in scores)))
    return rows  # type: ignore[return-value]


def _training(epsilon: float | None, *, quick: bool) -> tuple[dict[str, object], float]:
    """Fields of the training, and the sample rate."""
    training: dict[str, object] = {"schedule": "cosine", "ema": 0.8, "learning_rate": 2e-3}
    if quick:
        return {**training, "rounds": 2, "steps_per_round": 5}, 0.1
    if epsilon is None:
        return {**training, "rounds": 50, "steps_per_round": 20}, 0.02
    return {**training, "rounds": 40, "steps_per_round": 6, "learning_rate": 3e-3}, 0.1
