"""Smaller and faster forms of a scorer graph, bytes in and bytes out.

Two kinds. Weight-only forms (`to_fp16`, `to_int8_weights`) store weights in fewer bytes and compute
in float32 as before: ONNX Runtime unpacks them once when it loads the file, so speed, range and
agreement between machines are those of float32. Integer forms (`to_int8_dynamic`,
`to_int8_static`) also round activations; their scores depend on the machine's integer kernels.

The constants of the latent distances (whatever meets `center`) stay exact in every form: a distance
multiplies their rounding by the worst-known latent direction. Every result is loaded from its
bytes and run on extremes before it is returned.
"""

import itertools
import logging
import string
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from fedlatent.shared.bundle.graphs import Graph
from fedlatent.shared.errors import BundleError
from fedlatent.shared.export import onnx as exporter

#: Weights of fewer values than these are not packed so: that takes one or two more nodes.
LEAST_INT8, LEAST_FP16 = 256, 32
#: The only operators whose inputs are quantised by the integer forms. Sums and squares of scores
#: must not be: their calibrated range ends at normal records, so anomalies would be cut off. For
#: ConvTranspose there is no integer kernel, so its weights are stored as in `to_int8_weights`.
INTEGER_OPS = ("Conv", "Gemm", "MatMul")
#: Values that fill a whole record when a result is checked.
EXTREMES = (0.0, 1.0, -1.0, 1e3, -1e3)

#: Their results stay float32 in static int8, or latents and reconstructions of anomalies would be
#: cut off; only a convolution needs a quantised result to run on integers.
_FLOAT_OUTPUTS = ("Gemm", "MatMul")
_LAYERS = (*INTEGER_OPS, "ConvTranspose")
_RECURRENT = ("GRU", "LSTM", "RNN")
_LARGEST_FP16 = 65504.0
_VALUES_PER_SCALE = 32
_SHRINKS = np.linspace(0.7, 1.0, 31, dtype=np.float32)  # of the largest magnitude of a channel
_CENTER = "center"
_QUANTISER_ERRORS = (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError)


def shrink(data: bytes) -> bytes:
    """The same graph in fewer bytes: short inner names, no defaults, equal constants once.

    Names of inputs and outputs stay; what is computed is the same to the bit.

    Raises:
        BundleError: it is not a graph that loads, runs and is finite.
    """
    return _finish(_parse(data))


def optimise(data: bytes) -> bytes:
    """Fold constants and drop idle nodes by ONNX Runtime's basic level, whose result is portable.

    Raises:
        BundleError: it is not a graph that loads, runs and is finite.
    """
    return _finish(_parse(_saved(data, "model.onnx", ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)))


def to_ort(data: bytes, *, packed: bool = False) -> bytes:
    """The graph in ONNX Runtime's own format, which its smaller builds read.

    Such a file is for the ONNX Runtime version that wrote it and newer ones, is a little larger
    than ONNX, and is not optimised further when it loads.

    Args:
        data: the graph as ONNX.
        packed: keep the weights of a weight-only form as they are: fewer bytes, but unpacked again
            at every call, which can double its time. False stores them as float32.

    Raises:
        BundleError: it is not a graph that loads, runs and is finite.
    """
    levels = ort.GraphOptimizationLevel
    level = levels.ORT_DISABLE_ALL if packed else levels.ORT_ENABLE_EXTENDED
    result = _saved(data, "model.ort", level)
    _check_runs(result, _parse(data))
    return result


def to_fp16(data: bytes) -> bytes:
    """Weights as float16, arithmetic in float32: about half the bytes.

    Raises:
        BundleError: it is not a graph that loads, runs and is finite.
    """
    proto = _parse(data)
    for tensor in _weights(proto.graph, LEAST_FP16):
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() < _LARGEST_FP16:
            _unpacked(proto.graph, tensor, values.astype(np.float16))
    return _finish(proto)


def to_int8_weights(data: bytes) -> bytes:
    """Weights as int8 with a scale per channel, arithmetic in float32: about a quarter.

    Vectors (biases) and small weights become float16, since one byte a value would save little.

    Raises:
        BundleError: it is not a graph that loads, runs and is finite.
    """
    proto = _parse(data)
    _pack_int8(proto.graph)
    return _finish(proto)


def to_int8_dynamic(data: bytes) -> bytes:
    """Integer products of layers; ranges of activations are taken anew from every batch.

    Note that a record's score then depends, slightly, on the batch it comes in.

    Raises:
        BundleError: the graph cannot be quantised, or the result does not run or is not finite.
    """

    def run(model: onnx.ModelProto, target: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=list(INTEGER_OPS),
            per_channel=True,
            weight_type=QuantType.QUInt8,  # integer convolutions take no int8 weights everywhere
            nodes_to_exclude=_exact_nodes(model.graph),
        )

    return _quantised(data, run)


def to_int8_static(data: bytes, calibration: np.ndarray, center: np.ndarray) -> bytes:
    """Integer products of layers; ranges of activations are fixed by calibration records.

    Args:
        data: the float32 graph.
        calibration: preprocessed records float32 [N, *shape], N > 0. Their extremes end up in the
            file, so they must be public or synthetic, never private.
        center: latent center float32 [k].

    Raises:
        BundleError: the graph cannot be quantised, or the result does not run or is not finite.
        ValueError: there is no calibration record.
    """
    if not len(calibration):
        raise ValueError("Expected at least one calibration record, got none.")

    def run(model: onnx.ModelProto, target: Path) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        _isolate(model.graph)
        quantize_static(
            model,
            target,
            _reader(model, calibration, center),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(INTEGER_OPS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_exact_nodes(model.graph),
            extra_options={"OpTypesToExcludeOutputQuantization": list(_FLOAT_OUTPUTS)},
        )

    return _quantised(data, run)


def quantise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 of a weight, scaled per tensor or along the axis that fits best.

    An axis is considered when at least 32 values share a scale. The scale of a channel is the one
    of 31, from 0.7 to 1 times its largest magnitude over 127, with the least squared error.

    Returns:
        int8 of the same shape, and float32 scales that broadcast against it.
    """
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for axis in (None, *range(values.ndim)):
        count = 1 if axis is None else values.shape[axis]
        if count * _VALUES_PER_SCALE > values.size:
            continue
        error, codes, scale = _quantise_along(values.astype(np.float32), axis)
        if best is None or error < best[0]:
            best = error, codes, scale
    if best is None:  # fewer than 32 values
        best = _quantise_along(values.astype(np.float32), None)
    return best[1], best[2]


def _pack_int8(graph: onnx.GraphProto) -> None:
    for tensor in _weights(graph, LEAST_FP16):
        values = numpy_helper.to_array(tensor)
        if values.ndim > 1 and values.size >= LEAST_INT8:
            _unpacked(graph, tensor, *quantise(values))
        elif np.abs(values).max() < _LARGEST_FP16:
            _unpacked(graph, tensor, values.astype(np.float16))


def _quantise_along(values: np.ndarray, axis: int | None) -> tuple[float, np.ndarray, np.ndarray]:
    """Squared error, codes and scales for one scale per index of ``axis``."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    largest = np.abs(values).max(axis=others, keepdims=True) / np.float32(127)
    largest = np.where(largest > 0, largest, np.float32(1))
    scale, least = largest, np.full(largest.shape, np.inf, np.float32)
    for factor in _SHRINKS:
        tried = (largest * factor).astype(np.float32)
        error = np.square(values - tried * _codes(values, tried)).sum(axis=others, keepdims=True)
        scale, least = np.where(error < least, tried, scale), np.minimum(error, least)
    return float(least.sum()), _codes(values, scale).astype(np.int8), scale


def _codes(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    codes: np.ndarray = np.clip(np.rint(values / scale), -127, 127)
    return codes


def _weights(graph: onnx.GraphProto, least: int) -> list[TensorProto]:
    """Float32 initializers of at least ``least`` values that only layers and look-ups read.

    Constants of elementwise arithmetic, such as the scaling of records, are no weights.
    """
    exact = _downstream(graph, _CENTER)
    uses: dict[str, list[bool]] = {}
    for inner in exporter._graphs(graph):
        for node in inner.node:
            near_center = not exact.isdisjoint(node.output)
            for place, name in enumerate(node.input):
                uses.setdefault(name, []).append(_is_weight(node, place) and not near_center)
    return [
        tensor
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and int(np.prod(tensor.dims)) >= least
        and all(uses.get(tensor.name, [False]))
    ]


def _is_weight(node: onnx.NodeProto, place: int) -> bool:
    if node.op_type == "Gather":
        return place == 0
    if node.op_type in _RECURRENT:
        return place in (1, 2, 3)
    return node.op_type == "MatMul" or (node.op_type in _LAYERS and place > 0)


def _downstream(graph: onnx.GraphProto, source: str) -> set[str]:
    """Names of all values that depend on ``source``; nodes are in topological order."""
    reached = {source}
    for node in graph.node:
        names = set(node.input) | _captured(node)
        if not reached.isdisjoint(names):
            reached.update(node.output)
    return reached


def _captured(node: onnx.NodeProto) -> set[str]:
    """Outer names that the graphs inside ``node`` may read."""
    inner = (g for a in node.attribute for g in (*a.graphs, a.g) if g.node)
    return {name for g in inner for n in g.node for name in (*n.input, *_captured(n))}


def _exact_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that compute distances from the center."""
    reached = _downstream(graph, _CENTER)
    return [node.name for node in graph.node if not reached.isdisjoint(node.output)]


def _isolate(graph: onnx.GraphProto) -> None:
    """Give every layer that is to be quantised an input of its own, by identities.

    Otherwise all readers of that input get its rounded values: latents would leave the graph cut
    off at the range of calibration, and distances would be computed from them.
    """
    exact = set(_exact_nodes(graph))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type in INTEGER_OPS and node.name not in exact:
            own = f"{node.name}/input"
            nodes.append(helper.make_node("Identity", [node.input[0]], [own], name=own))
            node.input[0] = own
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)


def _bypass_identities(graph: onnx.GraphProto) -> None:
    """Let readers of identities read the source itself; those that make an output stay."""
    outputs = {item.name for item in graph.output}
    idle = [n for n in graph.node if n.op_type == "Identity" and n.output[0] not in outputs]
    source: dict[str, str] = {}
    for node in idle:
        source[node.output[0]] = source.get(node.input[0], node.input[0])
        graph.node.remove(node)
    _substitute(graph, source)


def _unpacked(
    graph: onnx.GraphProto, tensor: TensorProto, packed: np.ndarray, scale: np.ndarray | None = None
) -> None:
    """Store ``tensor`` as ``packed`` and let nodes at the start make it float32 again."""
    name = tensor.name
    stored = f"{name}/packed"
    cast = name if scale is None else f"{name}/float"
    nodes = [helper.make_node("Cast", [stored], [cast], to=TensorProto.FLOAT)]
    constants = [numpy_helper.from_array(packed, stored)]
    if scale is not None:
        constants.append(numpy_helper.from_array(scale, f"{name}/scale"))
        nodes.append(helper.make_node("Mul", [cast, f"{name}/scale"], [name]))
    graph.initializer.remove(tensor)
    graph.initializer.extend(constants)
    rest = list(graph.node)
    graph.ClearField("node")
    graph.node.extend([*nodes, *rest])


def _parse(data: bytes) -> onnx.ModelProto:
    """The graph, refused before anything opens a file that it may name."""
    try:
        proto: onnx.ModelProto = onnx.load_model_from_string(data)
    except Exception as error:  # the decoder's class depends on the protobuf build
        raise BundleError(
            "Expected an ONNX graph, got bytes that are none; export the model again."
        ) from error
    for graph in exporter._graphs(proto.graph):
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer):
            raise BundleError(
                "Expected all weights inside the graph, got external data; export the model again."
            )
    return proto


def _finish(proto: onnx.ModelProto) -> bytes:
    """Shrink in place, check, and serialise."""
    exporter._strip(proto)
    for field in ("producer_name", "producer_version", "domain", "model_version"):
        proto.ClearField(field)
    proto.graph.name = "g"
    used = {node.domain for g in exporter._graphs(proto.graph) for node in g.node}
    imports = [item for item in proto.opset_import if item.domain in used]
    proto.ClearField("opset_import")
    proto.opset_import.extend(imports)
    _merge_constants(proto.graph)
    versions = {item.domain: item.version for item in imports}
    for graph in exporter._graphs(proto.graph):
        for node in graph.node:
            node.ClearField("name")
            _drop_defaults(node, versions)
    _rename(proto.graph)
    exporter._check(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    _check_runs(data, proto)
    return data


def _merge_constants(graph: onnx.GraphProto) -> None:
    """Keep one of equal initializers and none that nothing reads."""
    outputs = {item.name for item in graph.output}
    read = {name for g in exporter._graphs(graph) for node in g.node for name in node.input}
    kept: dict[tuple[object, ...], str] = {}
    replaced: dict[str, str] = {}
    constants = []
    for tensor in graph.initializer:
        value = numpy_helper.to_array(tensor)
        key = (tensor.data_type, value.shape, value.tobytes())
        if tensor.name not in outputs:
            if tensor.name not in read:
                continue
            if key in kept:
                replaced[tensor.name] = kept[key]
                continue
            kept[key] = tensor.name
        constants.append(tensor)
    graph.ClearField("initializer")
    graph.initializer.extend(constants)
    _substitute(graph, replaced)


def _substitute(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Replace names of values wherever nodes read or write them, inner graphs included."""
    for inner in exporter._graphs(graph):
        for node in inner.node:
            for field in (node.input, node.output):
                field[:] = [names.get(name, name) for name in field]


def _drop_defaults(node: onnx.NodeProto, versions: dict[str, int]) -> None:
    """Remove attributes that say what the standard says anyway."""
    try:
        schema = onnx.defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return  # an operator of ONNX Runtime's own
    for attribute in list(node.attribute):
        known = schema.attributes.get(attribute.name)
        if known is not None and known.default_value.type == attribute.type:
            default = helper.get_attribute_value(known.default_value)
            if default == helper.get_attribute_value(attribute):
                node.attribute.remove(attribute)


def _rename(graph: onnx.GraphProto) -> None:
    """Give short names to all values but the inputs and outputs of the whole graph."""
    kept = {item.name for item in (*graph.input, *graph.output)}
    fresh = (name for name in _short_names() if name not in kept)
    names: dict[str, str] = {"": "", **{name: name for name in kept}}
    graphs = list(exporter._graphs(graph))
    for inner in graphs:
        items = [*inner.input, *inner.initializer, *inner.output]
        values = [name for node in inner.node for name in (*node.input, *node.output)]
        for name in (*(item.name for item in items), *values):
            if name not in names:
                names[name] = next(fresh)
    _substitute(graph, names)
    for inner in graphs:
        for item in (*inner.input, *inner.initializer, *inner.output):
            item.name = names[item.name]


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            yield "".join(letters)


def _check_runs(data: bytes, proto: onnx.ModelProto) -> None:
    """Load ``data`` from bytes and run one and three records of every extreme."""
    graph = Graph(data, "the compact graph")
    shapes = {
        item.name: [axis.dim_value for axis in item.type.tensor_type.shape.dim]
        for item in proto.graph.input
    }
    for value, batch in itertools.product(EXTREMES, (1, 3)):
        feeds = {
            name: np.zeros(shape, np.float32)
            if name == _CENTER
            else np.full([batch, *shape[1:]], value, np.float32)
            for name, shape in shapes.items()
        }
        broken = [name for name, out in graph.run(feeds).items() if not np.isfinite(out).all()]
        if broken:
            raise BundleError(
                f"Expected finite values of {broken}, got NaN or infinity for records of "
                f"{value:g} only; do not ship this form."
            )


def _saved(data: bytes, name: str, level: ort.GraphOptimizationLevel) -> bytes:
    """What ONNX Runtime writes after it optimised the graph; the suffix chooses the format."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / name
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base of their own
            raise BundleError(
                "Expected an ONNX graph that ONNX Runtime loads, got another; export it again."
            ) from error
        return target.read_bytes()


def _quantised(data: bytes, run: Callable[[onnx.ModelProto, Path], None]) -> bytes:
    """Run a quantiser, which works on files and logs to the root logger, and finish its result."""
    model = _parse(data)
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    with tempfile.TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "quantised.onnx"
        try:
            run(model, target)
        except (*_QUANTISER_ERRORS, ValueError) as error:
            raise BundleError(
                f"Expected a graph that can be quantised, got {type(error).__name__}; "
                "use a weight-only form."
            ) from error
        result = _parse(target.read_bytes())
        _bypass_identities(result.graph)
        _pack_int8(result.graph)
        return _finish(result)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep a library that configures the root logger from doing so."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    silent = logging.NullHandler()
    root.handlers[:] = [silent]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _reader(model: onnx.ModelProto, records: np.ndarray, center: np.ndarray) -> Any:  # noqa: ANN401
    """Calibration records one by one, as the quantiser wants them."""
    from onnxruntime.quantization import CalibrationDataReader

    names = {item.name for item in model.graph.input}
    constant = {_CENTER: np.asarray(center, np.float32)} if _CENTER in names else {}

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, rows: Sequence[np.ndarray]) -> None:
            self.rows = iter(rows)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"x": row[None], **constant}

    return Reader(list(np.asarray(records, np.float32)))
