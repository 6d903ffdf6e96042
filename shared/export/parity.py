"""Does an ONNX file compute what its torch module computes?

Random inputs do not answer that: run trained weights on real records and on extremes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch
from torch import nn

from fedlatent.shared.errors import BundleError

TOLERANCE = 1e-5
# A distance multiplies the rounding of a latent by up to 1 / sqrt(least variance), so a model with
# unused latent dimensions comes near 1e-5 although both sides are right.
SCORER_TOLERANCE = 1e-4
EXTREMES = (0.0, 1.0, -1.0)
BEYOND = (1e3, -1e3)
BATCHES = (1, 3, 64)
_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Largest differences found.

    Attributes:
        max_abs: Largest absolute difference of any output value.
        max_rel: Largest difference relative to the record's largest value in that output, or to 1
            where that is smaller.
        cases: Number of batches compared.
    """

    max_abs: float
    max_rel: float
    cases: int


def run_onnx(onnx_bytes: bytes, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a graph once on one thread; inputs and outputs by name, float32 or int64."""
    session = one_thread_session(onnx_bytes)
    return _run(session, inputs)


def parity(
    onnx_bytes: bytes,
    module: nn.Module,
    inputs: Mapping[str, np.ndarray],
    extremes: Sequence[float] = EXTREMES,
    *,
    beyond: Sequence[float] = BEYOND,
    fixed: Mapping[str, np.ndarray] | None = None,
    tolerance: float = TOLERANCE,
) -> ParityReport:
    """Compare a graph with the module it was exported from.

    Each of 1, 3, 64 and all records is one batch, and each extreme a batch of three records.

    Args:
        onnx_bytes: The exported graph, inputs in the order of the module's arguments.
        module: The module in float32, with the same weights.
        inputs: Real records `[N, ...]` for every batched input, N > 0.
        extremes: Values that fill a whole record, such as the schema's bounds.
        beyond: Values outside of what preprocessing lets through; outputs must be finite there,
            but rounding alone may move a saturated layer, so they are not compared.
        fixed: Inputs without a batch dimension, the same in every case.
        tolerance: Largest relative difference allowed; `SCORER_TOLERANCE` for a scorer.

    Raises:
        BundleError: An output is not finite or differs by more than `tolerance`.
    """
    session = one_thread_session(onnx_bytes)
    constant = dict(fixed or {})
    names = [item.name for item in session.get_inputs()]
    if set(names) != inputs.keys() | constant.keys():
        raise ValueError(f"Expected inputs {names}, got {sorted(inputs.keys() | constant.keys())}.")
    worst_abs = worst_rel = 0.0
    cases = _cases(inputs, (*extremes, *beyond))
    compared = len(cases) - len(beyond)
    was_training = module.training
    module.eval()
    try:
        for number, (label, case) in enumerate(cases):
            feed = {name: {**case, **constant}[name] for name in names}
            largest, relative = _compare(label, _run(session, feed), _reference(module, feed))
            if number >= compared:
                continue
            worst_abs, worst_rel = max(worst_abs, largest), max(worst_rel, relative)
            if relative > tolerance:
                raise BundleError(
                    f"Expected the exported model within {tolerance:g} of the original, got "
                    f"{relative:.2g} on {label}; do not ship this file."
                )
    finally:
        module.train(was_training)
    return ParityReport(max_abs=worst_abs, max_rel=worst_rel, cases=len(cases))


def _cases(
    inputs: Mapping[str, np.ndarray], extremes: Sequence[float]
) -> list[tuple[str, dict[str, np.ndarray]]]:
    arrays = {name: np.asarray(value, dtype=np.float32) for name, value in inputs.items()}
    sizes = {len(value) for value in arrays.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"Expected equally many records in every input, got {sorted(sizes)}.")
    batches = sorted({*BATCHES, *sizes})
    cases = [
        (f"{batch} records", {k: np.resize(v, (batch, *v.shape[1:])) for k, v in arrays.items()})
        for batch in batches
    ]
    for value in extremes:
        filled = {k: np.full((3, *v.shape[1:]), value, np.float32) for k, v in arrays.items()}
        cases.append((f"records of {value:g} only", filled))
    return cases


def _compare(
    label: str, got: Mapping[str, np.ndarray], expected: Sequence[np.ndarray]
) -> tuple[float, float]:
    largest = relative = 0.0
    for (name, value), reference in zip(got.items(), expected, strict=True):
        if value.shape != reference.shape:
            raise BundleError(
                f"Expected {name} of shape {reference.shape}, got {value.shape} on {label}; "
                "do not ship this file."
            )
        if not (np.isfinite(value).all() and np.isfinite(reference).all()):
            raise BundleError(
                f"Expected finite values of {name}, got NaN or inf on {label}; "
                "do not ship this file."
            )
        flat, wanted = (a.reshape(len(a), -1).astype(np.float64) for a in (value, reference))
        difference = np.abs(flat - wanted).max(axis=1)
        scale = np.maximum(np.abs(wanted).max(axis=1), 1.0)
        largest = max(largest, float(difference.max()))
        relative = max(relative, float((difference / scale).max()))
    return largest, relative


def _reference(module: nn.Module, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        out = module(*(torch.from_numpy(np.ascontiguousarray(v)) for v in feed.values()))
    return [value.numpy() for value in (out if isinstance(out, tuple) else (out,))]


def one_thread_session(onnx_bytes: bytes) -> onnxruntime.InferenceSession:
    """A session of ONNX Runtime on the CPU that starts no threads of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])


def _run(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    feed = {
        item.name: np.asarray(inputs[item.name], dtype=_DTYPES[item.type])
        for item in session.get_inputs()
    }
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))
