"""The edge beside PyTorch: latency, size, start-up, memory, and a stream of ten million records.

Two site scorers (encoder, decoder, distances) trained here without privacy in under a minute each:
heart beats of 140 samples and digits of 28 x 28. All times are of one thread, batch 1, in turns.

    fedlatent simulate bench edge --set out=edge.json
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.edge.single import SingleScorer
from fedlatent.shared.bundle.archive import SCORER
from fedlatent.shared.bundle.manifest import POSTERIOR, Thresholds
from fedlatent.shared.data.archives import read_npz
from fedlatent.shared.data.catalog import data_folder, paths, require
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.detection.combine import ScoreCombination
from fedlatent.shared.detection.metrics import auroc
from fedlatent.shared.export.bundling import BundleContents, Form, make_bundle
from fedlatent.shared.export.onnx import Scorer, export_scorer, scorer_outputs
from fedlatent.shared.export.parity import one_thread_session, run_onnx
from fedlatent.shared.export.targets import TARGETS, Target, choose
from fedlatent.shared.files import write_json
from fedlatent.shared.keys import SigningKey
from fedlatent.shared.models import VAE
from fedlatent.shared.privacy.summaries import LatentDensity
from fedlatent.simulations.bench.measure import circumstances
from fedlatent.simulations.zoo.training import fit, run_for

NEEDS = ("ecg5000", "mnist")  # of the catalogue
TURNS, CALLS = 15, 200
STREAMED = 10_000_000
QUANTILE = 0.99
ANOMALY = 2


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A trained scorer with records to judge it by.

    Attributes:
        name: "ecg" or "image".
        model: trained.
        contents: of its bundle.
        public: raw records that stand for public ones: of training, [N, *shape].
        test: raw records [M, *shape].
        label: 1 for an anomaly, [M].
    """

    name: str
    model: VAE
    contents: BundleContents
    public: NDArray[Any]
    test: NDArray[Any]
    label: NDArray[Any]

    @property
    def schema(self) -> Schema:
        """What a record is."""
        return self.contents.run.data


def ecg(data_dir: Path, rounds: int) -> Subject:
    """Normal beats of ECG5000 against abnormal ones."""
    arrays = read_npz(paths(data_dir, "ecg5000")[0], ["X", "anomaly"])
    normal = arrays["anomaly"] == 0
    order = np.random.default_rng(0).permutation(np.flatnonzero(normal))
    train, rest = order[:2000], order[2000:]
    test = np.concatenate([rest, np.flatnonzero(~normal)])
    options = {"network": "conv1d", "hidden": [16, 32], "latent_dim": 8}
    return _subject(
        "ecg", arrays["X"][train], arrays["X"][test], arrays["anomaly"][test], options, rounds,
        (-5.0, 5.0),
    )  # fmt: skip


def image(data_dir: Path, rounds: int) -> Subject:
    """Digits against the digit 2, which training has not seen, 28 x 28."""
    train, test = (read_npz(path, ["X", "y"]) for path in paths(data_dir, "mnist"))
    records = train["X"][train["y"] != ANOMALY][:6000].reshape(-1, 1, 28, 28) / 255.0
    held = test["X"].reshape(-1, 1, 28, 28) / 255.0
    options = {
        "network": "conv2d",
        "hidden": [16, 32],
        "latent_dim": 16,
        "likelihood": "bernoulli",
    }
    label = (test["y"] == ANOMALY).astype(np.uint8)
    return _subject("image", records, held, label, options, rounds, (0.0, 1.0))


def _subject(
    name: str,
    train: NDArray[Any],
    test: NDArray[Any],
    label: NDArray[Any],
    options: Mapping[str, object],
    rounds: int,
    bounds: tuple[float, float],
) -> Subject:
    training = {
        "rounds": rounds,
        "steps_per_round": 20,
        "learning_rate": 2e-3,
        "optimizer": "adam",
    }
    run = run_for(
        "gaussian",
        options,
        train.shape[1:],
        training=training,
        epsilon=None,
        sample_rate=min(1.0, 128 / len(train)),
        bounds=bounds,
    )
    schema = run.data
    x = schema.preprocess(train)
    model = fit(run, x)
    density = _density(model, x)
    combine = ScoreCombination.fit(_parts(model, density, x))
    scores = combine(_parts(model, density, x))
    contents = BundleContents(
        kind="site",
        run_id="bench",
        run=run.model_copy(update={"name": name}),
        model=model,
        density=density,
        thresholds=Thresholds(
            quantile=QUANTILE, absolute=float(np.quantile(scores, QUANTILE)), recentred=None
        ),
        epsilon=None,
        delta=1e-5,
        clients=1,
        combine=combine,
    )
    return Subject(name=name, model=model, contents=contents, public=train, test=test, label=label)


def _density(model: VAE, x: NDArray[np.float32]) -> LatentDensity:
    with torch.no_grad():
        mu = model.encode(torch.from_numpy(x))[0].double().numpy()
    covariance = np.cov(mu.T) + 1e-3 * np.eye(mu.shape[1])
    return LatentDensity(
        count=float(len(mu)), mean=mu.mean(axis=0), covariance=covariance, within=covariance
    )


def _parts(
    model: VAE, density: LatentDensity, x: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    scorer = Scorer(model, density, with_decoder=True).eval()
    center = torch.from_numpy(density.mean.astype(np.float32))
    with torch.no_grad():
        values = scorer(torch.from_numpy(x), center)[len(POSTERIOR) :]
    names = scorer_outputs(with_decoder=True)
    return {name: value.double().numpy() for name, value in zip(names, values, strict=True)}


def speed(subject: Subject, edge: EdgeModel) -> dict[str, Any]:
    """Microseconds of one record by each way, and their ratios, medians over turns."""
    schema, contents = subject.schema, subject.contents
    raw = np.ascontiguousarray(subject.test[0])
    x = schema.preprocess(raw[np.newaxis])
    center = contents.density.mean.astype(np.float32)
    module = Scorer(
        subject.model, contents.density, with_decoder=True, combine=contents.combine
    ).eval()
    given = torch.from_numpy(x), torch.from_numpy(center)
    session = one_thread_session(edge.bundle.files[SCORER])
    feeds = {"x": x, "center": center}

    def eager() -> None:
        with torch.inference_mode():
            module(*given)

    single = SingleScorer(edge)
    ways: dict[str, Callable[[], object]] = {
        "torch_eager": eager,
        "bare_session": lambda: session.run(None, feeds),
        "edge_single": lambda: single(raw),
        "edge_batch_of_one": lambda: edge.score(raw[np.newaxis]),
    }
    laps: dict[str, list[list[float]]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            laps[name].append(_calls(way))
    p50 = {name: [statistics.median(turn) for turn in turns] for name, turns in laps.items()}

    def ratio(a: str, b: str) -> float:
        return statistics.median(one / other for one, other in zip(p50[a], p50[b], strict=True))

    return {
        "p50_us": {name: statistics.median(values) for name, values in p50.items()},
        "p99_us": {
            name: statistics.median(float(np.quantile(turn, 0.99)) for turn in turns)
            for name, turns in laps.items()
        },
        "torch_over_edge": ratio("torch_eager", "edge_single"),
        "edge_over_bare": ratio("edge_single", "bare_session"),
    }


def _calls(way: Callable[[], object]) -> list[float]:
    for _ in range(20):
        way()
    found = []
    for _ in range(CALLS):
        start = time.perf_counter()
        way()
        found.append(1e6 * (time.perf_counter() - start))
    return found


def forms(subject: Subject) -> dict[str, Any]:
    """What each target chooses, and the table of all candidates, judged on the test set."""
    contents, schema = subject.contents, subject.schema
    density = contents.density
    scorer = Scorer(contents.model, density, with_decoder=True, combine=contents.combine)
    fp32 = export_scorer(scorer)
    center = density.mean.astype(np.float32)
    chosen: dict[str, Any] = {"stripped_fp32_bytes": len(fp32)}
    x, absolute = schema.preprocess(subject.test), contents.thresholds.absolute
    full = _run(fp32, x, center)
    for target in TARGETS:
        choice = choose(
            fp32,
            target,
            schema.preprocess(subject.public[:1000]),
            center,
            contents.thresholds,
        )
        scores = _run(choice.data, x, center)
        flags = scores > (choice.thresholds.absolute or 0.0)
        chosen[target] = {
            "precision": choice.precision,
            "bytes": len(choice.data),
            "bytes_over_fp32": len(choice.data) / len(fp32),
            "auroc_loss": auroc(subject.label, full) - auroc(subject.label, scores),
            "flips": float(np.mean(flags != (full > (absolute or 0.0)))),
            "tolerance": choice.tolerance,
        }
        chosen["candidates"] = [
            {
                "name": one.name,
                "bytes": one.bytes,
                "p50_us": one.p50,
                "p99_us": one.p99,
                "max_drift": one.max_drift,
                "flips": one.flips,
                "eligible": one.eligible,
                "reason": one.reason,
            }
            for one in choice.table
            if one.bytes
        ]
    chosen["auroc"] = auroc(subject.label, full)
    return chosen


def _run(data: bytes, x: NDArray[np.float32], center: NDArray[np.float32]) -> NDArray[Any]:
    found: NDArray[Any] = run_onnx(data, {"x": x, "center": center})["score"]
    return found


def start_up(bundle: Path, key: Path, records: Path, turns: int = 7) -> dict[str, float]:
    """Seconds from the start of a fresh process to its first score, and its peak memory."""
    seconds, peaks = [], []
    arguments = ["score", str(bundle), str(records), "--key", str(key), "--json"]
    for _ in range(turns):
        done = subprocess.run(
            [sys.executable, "-m", "fedlatent.client.edge.main", *arguments],
            capture_output=True,
            check=True,
            text=True,
        )
        process = json.loads(done.stdout)["process"]
        seconds.append(process["first_score_s"])
        peaks.append(process["peak_rss_mb"])
    return {"first_score_s": statistics.median(seconds), "peak_rss_mb": max(peaks)}


def stream(bundle: Path, key: Path, records: NDArray[np.float32], count: int) -> dict[str, Any]:
    """Feed ``count`` raw records to ``stream`` through a pipe and watch its memory."""
    command = [
        sys.executable,
        "-m",
        "fedlatent.client.edge.main",
        "stream",
        str(bundle),
        "--key",
        str(key),
    ]
    block = np.ascontiguousarray(records, dtype="<f4")
    memory: list[float] = []
    start, sent = time.perf_counter(), 0
    with subprocess.Popen(
        [*command, "--format", "f32"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        pipe = process.stdin
        if pipe is None:
            raise RuntimeError("Expected a pipe to the process, got none.")
        while sent < count:
            part = block[: min(len(block), count - sent)]
            pipe.write(part.tobytes())
            sent += len(part)
            if sent * 50 // count > len(memory):
                memory.append(_resident_mb(process.pid))
        pipe.close()
        status = process.wait()
    seconds = time.perf_counter() - start
    return {
        "records": sent,
        "exit": status,
        "seconds": seconds,
        "records_per_s": sent / seconds,
        "rss_mb": memory,
        "growth_mb": memory[-1] - memory[len(memory) // 10] if memory else 0.0,
    }


def _resident_mb(process: int) -> float:
    fields = Path(f"/proc/{process}/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) * 1024 / 1e6


def measure(subject: Subject, folder: Path, key: SigningKey) -> dict[str, Any]:
    """Everything about one subject; its bundles stay in ``folder``."""
    made, models = {}, {}
    targets: tuple[Target | None, ...] = (None, "smallest", "fastest")
    for target in targets:
        path = folder / f"{subject.name}-{target or 'plain'}.fedlatent"
        form = Form(target=target, public=subject.public[:1000])
        made[target] = make_bundle(path, subject.contents, key, form=form)
        models[target] = EdgeModel.load(path, [key.public])
    fp32 = len(models[None].bundle.files[SCORER])
    raw = folder / f"{subject.name}.npz"
    np.savez(raw, X=subject.test[:100])
    return {
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "stripped_fp32_bytes": fp32,
        "bundle_bytes": {str(target): one.size for target, one in made.items()},
        "smallest_bundle_over_plain_bundle": made["smallest"].size / made[None].size,
        "smallest_bundle_over_stripped_fp32": made["smallest"].size / fp32,
        "speed": speed(subject, models["fastest"]),
        "forms": forms(subject),
        "start": start_up(made["fastest"].path, folder / "key.pem.pub", raw),
    }


def edge(
    *,
    data: Path | None = None,
    out: Path = Path("edge.json"),
    rounds: int = 30,
    records: int = STREAMED,
) -> int:
    """Measure everything and write it as JSON.

    Args:
        data: folder of the data sets; by default that of ``data_folder``.
        out: the report.
        rounds: of training, 20 steps each.
        records: of the stream; 0 for none.
    """
    require(data_folder(data), NEEDS, "the benchmark edge")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    report: dict[str, Any] = {"circumstances": circumstances()}
    with tempfile.TemporaryDirectory() as folder:
        key = SigningKey.generate(Path(folder) / "key.pem")
        for make in (ecg, image):
            subject = make(data_folder(data), rounds)
            print(f"{subject.name}: trained", flush=True)
            report[subject.name] = measure(subject, Path(folder), key)
            print(f"{subject.name}: measured", flush=True)
            if make is ecg and records:
                path = Path(folder) / "ecg-fastest.fedlatent"
                report["stream"] = stream(
                    path, Path(folder) / "key.pem.pub", subject.test[:4096], records
                )
    write_json(out, report)
    print(f"written to {out}")
    return 0
