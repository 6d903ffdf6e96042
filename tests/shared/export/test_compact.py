"""Compact forms of a scorer graph: what they compute, their size, what they must not hold."""

import functools
import getpass
import logging
import socket
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fedlatent.shared.bundle.graphs import Graph
from fedlatent.shared.errors import BundleError
from fedlatent.shared.export import Scorer, export_scorer
from fedlatent.shared.export.compact import (
    INTEGER_OPS,
    optimise,
    quantise,
    shrink,
    to_fp16,
    to_int8_dynamic,
    to_int8_static,
    to_int8_weights,
    to_ort,
)
from fedlatent.shared.models import build
from fedlatent.shared.privacy.summaries import squared_distance
from tests.shared.export.conftest import Exported, latent_density


@functools.cache
def middle() -> tuple[bytes, np.ndarray, np.ndarray]:
    """An untrained model of about 50,000 weights: its scorer, records and center."""
    model = build("gaussian", {"hidden": [160, 64], "latent_dim": 4}, (140,), seed=0).eval()
    records = np.random.default_rng(0).normal(0, 1, (256, 140)).astype(np.float32)
    density = latent_density(model, records)
    data = export_scorer(Scorer(model, density, with_decoder=True))
    return data, records, density.mean.astype(np.float32)


def static(data: bytes, records: np.ndarray, center: np.ndarray) -> bytes:
    """Static int8 with a few calibration records."""
    return to_int8_static(data, records[:16], center)


FORMS: dict[str, Callable[[bytes, np.ndarray, np.ndarray], bytes]] = {
    "shrink": lambda data, x, center: shrink(data),
    "optimise": lambda data, x, center: optimise(data),
    "fp16": lambda data, x, center: to_fp16(data),
    "int8-weights": lambda data, x, center: to_int8_weights(data),
    "int8-dynamic": lambda data, x, center: to_int8_dynamic(data),
    "int8-static": static,
}


def center_of(export: Exported) -> np.ndarray:
    """The density's mean in float32."""
    return export.density.mean.astype(np.float32)


def run(data: bytes, records: np.ndarray, center: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of a graph loaded from bytes."""
    return Graph(data, "test").run({"x": records, "center": center})


def operators(data: bytes) -> list[onnx.NodeProto]:
    """Nodes of a graph."""
    return list(onnx.load_model_from_string(data).graph.node)


def drift(new: np.ndarray, old: np.ndarray) -> float:
    """Largest change relative to max(|old|, 1)."""
    return float((np.abs(new - old) / np.maximum(np.abs(old), 1)).max())


@pytest.mark.parametrize("name", FORMS)
def test_every_form_loads_from_bytes_and_keeps_names(name: str, export: Exported) -> None:
    """Each form of each network has the same inputs and outputs and scores near float32."""
    center = center_of(export)
    data = FORMS[name](export.scorer, export.records, center)
    before, after = Graph(export.scorer, "before"), Graph(data, "after")
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    old, new = run(export.scorer, export.records, center), run(data, export.records, center)
    integer = name in ("int8-dynamic", "int8-static")
    assert np.corrcoef(old["score"], new["score"])[0, 1] > (0.9 if integer else 0.999)


@pytest.mark.parametrize("form", [shrink, optimise])
def test_lossless_forms_are_exact(form: Callable[[bytes], bytes], export: Exported) -> None:
    """Renaming, merging and folding constants changes no bit of any output."""
    center = center_of(export)
    old = run(export.scorer, export.records, center)
    new = run(form(export.scorer), export.records, center)
    for name, values in old.items():
        np.testing.assert_array_equal(new[name], values)


def test_shrinking_saves_bytes_and_is_stable(export: Exported) -> None:
    """A shrunk graph is smaller, and shrinking it again or anew gives the same bytes."""
    once = shrink(export.scorer)
    assert len(once) < len(export.scorer)
    assert shrink(once) == once == shrink(export.scorer)


def test_weight_only_forms_are_small_and_close() -> None:
    """Of 50,000 weights float16 takes 0.52 of the bytes and int8 0.30, near in score."""
    data, records, center = middle()
    old = run(data, records, center)
    for form, ratio, bound in ((to_fp16, 0.52, 0.005), (to_int8_weights, 0.30, 0.10)):
        packed = form(optimise(data))
        assert len(packed) < ratio * len(data)
        new = run(packed, records, center)
        assert max(drift(new[name], old[name]) for name in old) < bound


def test_weight_only_forms_compute_in_float32() -> None:
    """They hold only casts and products more than float32, and the same layers."""
    data = optimise(middle()[0])
    plain = [node.op_type for node in operators(data)]
    for form in (to_fp16, to_int8_weights):
        added = [node.op_type for node in operators(form(data))]
        for kind in plain:
            added.remove(kind)
        assert set(added) <= {"Cast", "Mul"}


def test_constants_of_distances_stay_exact(small: Exported) -> None:
    """In weight-only forms the latent distances of given latents are those of float32."""
    model = build("gaussian", {"hidden": [24], "latent_dim": 20}, (64,), seed=0).eval()
    wide = export_scorer(Scorer(model, latent_density(model, small.records)))
    factors = [
        numpy_helper.to_array(item)
        for item in onnx.load_model_from_string(wide).graph.initializer
        if item.name in ("absolute", "recentred")
    ]
    assert [factor.shape for factor in factors] == [(20, 20)] * 2
    for form in (to_fp16, to_int8_weights):
        kept = onnx.load_model_from_string(form(wide)).graph.initializer
        stored = [numpy_helper.to_array(item) for item in kept]
        for factor in factors:
            assert any(np.array_equal(factor, value) for value in stored)


def test_elementwise_constants_stay_exact() -> None:
    """Constants that scale records are no weights, however many they are."""
    offsets = np.linspace(-1, 1, 400, dtype=np.float32)
    weights = np.random.default_rng(0).normal(0, 1, (400, 2)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["x", "offsets"], ["scaled"]),
            helper.make_node("MatMul", ["scaled", "weights"], ["mu"]),
        ],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 400])],
        [helper.make_tensor_value_info("mu", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(offsets, "offsets"), numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    packed = onnx.load_model_from_string(to_int8_weights(model.SerializeToString()))
    stored = [numpy_helper.to_array(item) for item in packed.graph.initializer]
    assert any(np.array_equal(offsets, value) for value in stored)
    assert sorted(value.dtype.name for value in stored) == ["float32", "float32", "int8"]


def test_int8_codes_beat_plain_rounding() -> None:
    """Scales found by search have less squared error than the largest magnitude over 127."""
    values = np.random.default_rng(0).standard_t(4, (64, 16, 5)).astype(np.float32)
    codes, scale = quantise(values)
    plain = np.abs(values).max() / 127
    error = np.square(values - codes * scale).sum()
    assert codes.dtype == np.int8
    assert error < 0.5 * np.square(values - plain * np.rint(values / plain)).sum()
    largest = np.abs(values).max(axis=(1, 2), keepdims=True) / 127
    assert error < np.square(values - largest * np.rint(values / largest)).sum()


def test_int8_of_zeros_is_zero() -> None:
    """A tensor or channel of zeros comes back as zeros."""
    values = np.zeros((64, 40), np.float32)
    values[1] = 3.0
    codes, scale = quantise(values)
    np.testing.assert_allclose(codes * scale, values, rtol=1e-6)


def test_static_int8_touches_layers_only(export: Exported) -> None:
    """Values are rounded to feed Conv, Gemm or MatMul or where a Conv ends, and nowhere else."""
    nodes = operators(static(export.scorer, export.records, center_of(export)))
    made_by = {name: node.op_type for node in nodes for name in node.output}
    rounded = {n.output[0]: n.input[0] for n in nodes if n.op_type == "QuantizeLinear"}
    assert rounded
    for node in nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in rounded:
            readers = {n.op_type for n in nodes if node.output[0] in n.input}
            assert readers <= {*INTEGER_OPS} or made_by[rounded[node.input[0]]] == "Conv"


def test_static_int8_keeps_latents_and_distances(export: Exported) -> None:
    """Posteriors leave the graph unrounded; distances are those of the latents that leave it."""
    center = center_of(export)
    data = static(export.scorer, export.records, center)
    nodes = operators(data)
    made_by = {name: node.op_type for node in nodes for name in node.output}
    assert "DequantizeLinear" not in (made_by["mu"], made_by["logvar"])
    # Far beyond the calibration records, so that a rounded latent would be cut off.
    far = run(data, 3 * export.records[:32], center + 0.5)
    for name, recentred in (("latent_distance", False), ("recentred_distance", True)):
        precision = export.density.precision(recentred=recentred)
        expected = squared_distance(far["mu"].astype(np.float64), center + 0.5, precision)
        np.testing.assert_allclose(far[name], expected, rtol=1e-3)


@pytest.mark.parametrize("name", FORMS)
def test_forms_hold_nothing_of_this_machine(name: str, small: Exported) -> None:
    """No metadata, no documentation, no names of layers, no producer, no path, user or host."""
    data = FORMS[name](small.scorer, small.records, center_of(small))
    for word in (b"model.", b"node_", b"/home", b"/tmp", b"torch", b"onnx.", b"path", b"site-pac"):
        assert word not in data
    for secret in (socket.gethostname(), getpass.getuser()):
        assert len(secret) < 5 or secret.encode() not in data
    proto = onnx.load_model_from_string(data)
    assert not proto.metadata_props
    assert not proto.producer_name
    assert not proto.graph.value_info
    assert all(not (n.name or n.doc_string or n.metadata_props) for n in proto.graph.node)


@pytest.mark.parametrize("packed", [False, True])
def test_ort_format_loads_from_bytes(packed: bool, export: Exported) -> None:
    """The format of ONNX Runtime is found out from the bytes and scores like ONNX."""
    center = center_of(export)
    plain = to_int8_weights(export.scorer)
    data = to_ort(plain, packed=packed)
    assert data[4:8] == b"ORTM"
    assert b"/tmp" not in data
    old, new = run(plain, export.records, center), run(data, export.records, center)
    assert max(drift(new[name], old[name]) for name in old) < 1e-4


def test_packed_ort_is_smaller() -> None:
    """Packed weights stay packed in the format of ONNX Runtime only when asked for."""
    plain = to_int8_weights(middle()[0])
    assert len(to_ort(plain, packed=True)) < 0.5 * len(to_ort(plain))


def test_quantising_leaves_logging_alone(small: Exported) -> None:
    """The root logger has the same handlers and level afterwards."""
    root = logging.getLogger()
    before = list(root.handlers), root.level
    to_int8_dynamic(small.scorer)
    static(small.scorer, small.records, center_of(small))
    assert (list(root.handlers), root.level) == before


def test_calibration_needs_a_record(small: Exported) -> None:
    """Static int8 without records is refused."""
    with pytest.raises(ValueError, match="calibration record"):
        to_int8_static(small.scorer, small.records[:0], center_of(small))


@pytest.mark.parametrize("form", [shrink, optimise, to_fp16, to_int8_weights, to_ort])
def test_bytes_that_are_no_graph_are_refused(form: Callable[[bytes], bytes]) -> None:
    """Other bytes give our own error."""
    with pytest.raises(BundleError, match="Expected an ONNX graph"):
        form(b"no graph at all")


def test_a_graph_that_overflows_is_refused() -> None:
    """A form that is not finite on extremes is not returned."""
    graph = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["score"])],
        "overflow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(BundleError, match="finite"):
        shrink(model.SerializeToString())


def test_external_data_is_refused(small: Exported) -> None:
    """Weights in another file are refused before anything opens it."""
    proto = onnx.load_model_from_string(small.scorer)
    tensor = next(t for t in proto.graph.initializer if len(t.raw_data) > 1000)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    for form in (shrink, to_int8_weights):
        with pytest.raises(BundleError, match="external data"):
            form(proto.SerializeToString())
