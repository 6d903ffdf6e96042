"""A complete tiny bundle made with onnx.helper, independent of PyTorch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fedlatent.shared.bundle.archive import CARD, DENSITY, GOLDEN, SCORER, write_bundle
from fedlatent.shared.bundle.arrays import pack_arrays
from fedlatent.shared.bundle.graphs import make_golden
from fedlatent.shared.bundle.manifest import (
    POSTERIOR,
    Kind,
    Manifest,
    Privacy,
    ScoreDefinition,
    Thresholds,
    Training,
)
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.keys import SigningKey

DIM = 6
LATENT = 2
SCHEMA = Schema(
    name="tiny", shape=(DIM,), unit="mV", scale=1e-3, center="median", lower=-2.5, upper=2.5
)
#: mu = x W; the two latents are the first two values of a record.
WEIGHTS = np.eye(DIM, LATENT, dtype=np.float32)
CENTER = np.array([0.5, -0.25])
OUTPUTS = ("latent_distance", "recentred_distance", "score")
SITE_OUTPUTS = ("latent_distance", "recentred_distance", "reconstruction_error", "score")


def _graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[str | int]],
    outputs: dict[str, list[str | int]],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [
            numpy_helper.from_array(WEIGHTS, "W"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"),
            numpy_helper.from_array(np.array(4.0, dtype=np.float32), "four"),
            numpy_helper.from_array(np.array(0.0, dtype=np.float32), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def scorer(*, site: bool = False, overflow: bool = False) -> bytes:
    """Posterior, squared distance to center, four times that as `recentred_distance`, `score`.

    mu is the first two values of a record and logvar is -mu.
    A site's scorer also has the sum of squares as `reconstruction_error`, and uses it as `score`;
    with ``overflow`` the score is infinite.
    """
    outputs = SITE_OUTPUTS if site else OUTPUTS
    score = ["Identity", "reconstruction_error" if site else "latent_distance"]
    if overflow:
        score = ["Div", "latent_distance", "zero"]
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["mu"]),
        helper.make_node("Neg", ["mu"], ["logvar"]),
        helper.make_node("Sub", ["mu", "center"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["dd"]),
        helper.make_node("ReduceSum", ["dd", "axis"], ["latent_distance"], keepdims=0),
        helper.make_node("Mul", ["latent_distance", "four"], ["recentred_distance"]),
        helper.make_node("Mul", ["x", "x"], ["xx"]),
        helper.make_node("ReduceSum", ["xx", "axis"], ["reconstruction_error"], keepdims=0),
        helper.make_node(score[0], score[1:], ["score"]),
    ]
    given: dict[str, list[str | int]] = {name: ["batch", LATENT] for name in POSTERIOR}
    return _graph(
        nodes,
        {"x": ["batch", DIM], "center": [LATENT]},
        given | {name: ["batch"] for name in outputs},
    )


def other_graph() -> bytes:
    """A graph that is no scorer: x to y."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"])]
    return _graph(nodes, {"x": ["batch", DIM]}, {"y": ["batch", LATENT]})


def manifest(
    *,
    kind: Kind = "global",
    thresholds: Thresholds | None = None,
    privacy: Privacy | None = None,
) -> Manifest:
    """A manifest that fits the graphs of this module."""
    return Manifest(
        kind=kind,
        name="tiny-hearts",
        version=3,
        created="2026-01-31T12:00:00Z",
        run_id="run-1",
        family="gaussian",
        latent_dim=LATENT,
        schema=SCHEMA,
        score=ScoreDefinition(outputs=SITE_OUTPUTS if kind == "site" else OUTPUTS),
        thresholds=thresholds or Thresholds(quantile=0.99, absolute=1.0, recentred=4.0),
        privacy=privacy,
        training=Training(rounds=40, clients=38),
        metrics={"auroc_seen": 0.97},
    )


def raw_records(count: int = 5, seed: int = 0) -> np.ndarray:
    """Synthetic records in microvolt, int16 as an instrument gives them."""
    generator = np.random.default_rng(seed)
    return generator.normal(0, 800, (count, DIM)).astype(np.int16)


def density() -> dict[str, np.ndarray]:
    """Arrays of a latent density with center `CENTER`."""
    square = np.eye(LATENT)
    return {"count": np.ones(1), "mean": CENTER, "covariance": square, "within": square / 4}


def files(base: Manifest) -> dict[str, bytes]:
    """All files of a bundle, golden vectors included."""
    content = {
        SCORER: scorer(site=base.kind == "site"),
        DENSITY: pack_arrays(density()),
        CARD: b"# tiny-hearts\n",
    }
    return {**content, GOLDEN: make_golden(base, content, raw_records()[:, : base.schema.raw_size])}


def write(
    path: Path,
    key: SigningKey,
    base: Manifest | None = None,
    replaced: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a whole bundle to ``path``, with some files replaced, and return ``path``."""
    described = base or manifest()
    write_bundle(path, described, {**files(described), **(replaced or {})}, key)
    return path


def latents(raw: np.ndarray) -> np.ndarray:
    """What the encoder should give, in numpy: float64 [B, 2]."""
    scaled = raw * 1e-3
    return np.clip(scaled - np.median(scaled, axis=1, keepdims=True), -2.5, 2.5)[:, :LATENT]
