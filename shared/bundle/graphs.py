"""Running a bundle's graphs: ONNX Runtime on bytes, one thread, and the golden test vectors.

Shape legend: B records, k latent dimensions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from fedlatent.shared.bundle.archive import DENSITY, GOLDEN, scorer_name
from fedlatent.shared.bundle.arrays import pack_arrays, unpack_arrays
from fedlatent.shared.bundle.manifest import POSTERIOR, Manifest
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import BundleError, UpgradeNeeded

#: Records are run in chunks of this size, which bounds the memory of a large file.
CHUNK = 32

_ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,  # its own failures that have no class
    UnicodeDecodeError,  # its messages that quote broken names
)


class Graph:
    """One ONNX graph, loaded from bytes so that it cannot refer to other files."""

    def __init__(self, data: bytes, where: str) -> None:
        """Load ``data``; ``where`` names it in error sentences.

        Raises:
            BundleError: ONNX Runtime does not load it.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # failures come as exceptions
        try:
            self._session: Any = ort.InferenceSession(
                data, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except _ORT_ERRORS:
            raise BundleError(
                f"Expected an ONNX graph that this ONNX Runtime ({ort.__version__}) loads in "
                f"{where}, got another; update onnxruntime or export the bundle again."
            ) from None
        self.inputs = frozenset(item.name for item in self._session.get_inputs())
        self.outputs = tuple(item.name for item in self._session.get_outputs())
        self._where = where

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises:
            BundleError: the graph fails on these inputs.
        """
        try:
            values = self._session.run(None, dict(feeds))
        except _ORT_ERRORS:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise BundleError(
                f"Expected {self._where} to run on {shapes}, got a failure of ONNX Runtime; "
                "export the bundle again."
            ) from None
        return dict(zip(self.outputs, values, strict=True))

    def bind(self, feeds: Mapping[str, np.ndarray]) -> "Bound":
        """Bind inputs and outputs for one record to fixed memory, which saves most of a call.

        Args:
            feeds: contiguous float32 arrays by name, `x` [1, *shape]; they are read anew at each
                call, so write a record into them.

        Raises:
            BundleError: the graph fails on these inputs.
        """
        outputs = {name: np.array(value) for name, value in self.run(feeds).items()}
        binding = self._session.io_binding()
        inputs = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        run = self._session.run_with_iobinding
        return Bound(outputs=outputs, run=lambda: run(binding), held=(dict(feeds), inputs))


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A graph on fixed memory.

    Attributes:
        outputs: by name; each call of ``run`` writes into them.
        run: computes the outputs of what the bound inputs hold.
        held: what must live as long as this.
    """

    outputs: Mapping[str, np.ndarray]
    run: Callable[[], None]
    held: tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class Density:
    """The released density of latents.

    Attributes:
        mean: float64 [k]: of all clients in a global bundle, of the site itself in a site bundle.
        covariance: float64 [k, k], of all latents.
        within: float64 [k, k], of latents about their own client's mean.
    """

    mean: np.ndarray
    covariance: np.ndarray
    within: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """The scorer with what it needs.

    Attributes:
        scorer: x [B, *shape], center [k] -> `POSTERIOR`, each [B, k], and the outputs that the
            manifest names, each [B].
        schema: how raw records become x.
        density: of latents.
        tolerance: of golden outputs.
    """

    scorer: Graph
    schema: Schema
    density: Density
    tolerance: float

    @classmethod
    def open(cls, manifest: Manifest, files: Mapping[str, bytes]) -> Self:
        """Load the graphs of a bundle, finished or still being made.

        Args:
            manifest: its schema, score, runtime and latent_dim count.
            files: at least scorer and density.

        Raises:
            BundleError: a graph or the density does not fit the manifest; UpgradeNeeded: this ONNX
                Runtime is too old.
        """
        _check_runtime(manifest.runtime.min_onnxruntime)
        where = scorer_name(manifest)
        scorer = Graph(files[where], where)
        if scorer.inputs != {"x", "center"}:
            raise BundleError(f"Expected {where} to take x and center, got other inputs.")
        expected = {*POSTERIOR, *manifest.score.outputs}
        if set(scorer.outputs) != expected:
            raise BundleError(
                f"Expected the outputs {', '.join(sorted(expected))} from {where}, got "
                f"{', '.join(sorted(scorer.outputs))}."
            )
        return cls(
            scorer=scorer,
            schema=manifest.schema,
            density=_density(files[DENSITY], manifest.latent_dim),
            tolerance=manifest.runtime.tolerance,
        )

    def score(self, raw: ArrayLike, center: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """All scorer outputs for raw records [B, *shape].

        Args:
            raw: records in the unit of the data source.
            center: latent center [k] of a re-centred device; None for the density's own.

        Raises:
            DataError: the records do not fit the schema.
            BundleError: the graph fails or gives values that are not finite.
        """
        used = self.density.mean if center is None else center
        feeds = {"center": used.astype(np.float32)}
        return _chunked(self.scorer, self.schema.preprocess(raw), feeds)


def make_golden(manifest: Manifest, files: Mapping[str, bytes], records: np.ndarray) -> bytes:
    """Golden vectors of a bundle in the making: ``golden.npz`` as bytes.

    Args:
        manifest: as for `Graphs.open`.
        files: scorer and density.
        records: raw records [B, *shape] that may be published: synthetic ones, never private ones.

    Raises:
        BundleError: the graphs do not fit the manifest or give values that are not finite.
        DataError: the records do not fit the schema.
    """
    graphs = Graphs.open(manifest, files)
    raw = np.asarray(records, dtype=np.float32)
    return pack_arrays({"records": raw, **_golden_outputs(graphs, raw)})


def check_golden(graphs: Graphs, data: bytes) -> float:
    """Run the golden records on this machine and compare.

    Returns:
        The largest difference, relative to max(|expected|, 1).

    Raises:
        BundleError: no golden records, other outputs, or a difference above the tolerance.
    """
    arrays = unpack_arrays(data, GOLDEN)
    raw = arrays.pop("records", np.zeros(0))
    if not raw.size:
        raise BundleError(f"Expected at least one record in {GOLDEN}, got none.")
    actual = _golden_outputs(graphs, raw)
    if {n: a.shape for n, a in actual.items()} != {n: a.shape for n, a in arrays.items()}:
        raise BundleError(f"Expected {GOLDEN} to hold the outputs of these graphs, got others.")
    worst = max(
        float(np.max(np.abs(actual[name] - expected) / np.maximum(np.abs(expected), 1.0)))
        for name, expected in arrays.items()
    )
    if worst > graphs.tolerance:
        raise BundleError(
            f"Expected golden outputs within {graphs.tolerance:g}, got a difference of "
            f"{worst:.2g}; this machine or its ONNX Runtime computes otherwise, so do not use it."
        )
    return worst


def _golden_outputs(graphs: Graphs, raw: np.ndarray) -> dict[str, np.ndarray]:
    return {f"scorer_{name}": value for name, value in graphs.score(raw).items()}


def _chunked(
    graph: Graph, records: np.ndarray, constants: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Run ``graph`` over chunks of ``records``; at least once, so that no record gives [0, ...]."""
    parts = [
        graph.run({"x": records[start : start + CHUNK], **constants})
        for start in range(0, max(len(records), 1), CHUNK)
    ]
    result = {name: np.concatenate([part[name] for part in parts]) for name in graph.outputs}
    for name, value in result.items():
        if len(value) != len(records) or not np.isfinite(value).all():
            raise BundleError(
                f"Expected one finite {name} for each of {len(records)} records, got others; "
                "export the bundle again."
            )
    return result


def _check_runtime(least: str) -> None:
    def parts(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())

    if parts(ort.__version__) < parts(least):
        raise UpgradeNeeded(
            f"Expected ONNX Runtime {least} or newer for this bundle, got {ort.__version__}; "
            "update onnxruntime."
        )


def _density(data: bytes, latent_dim: int) -> Density:
    """``density.npz`` (`LatentDensity.arrays`), after a check of names and shapes."""
    arrays = unpack_arrays(data, DENSITY)
    square = (latent_dim, latent_dim)
    shapes = {"count": (1,), "mean": (latent_dim,), "covariance": square, "within": square}
    if {name: array.shape for name, array in arrays.items()} != shapes:
        raise BundleError(
            f"Expected count, mean, covariance and within for {latent_dim} latent dimensions in "
            f"{DENSITY}, got other arrays."
        )
    names = ("mean", "covariance", "within")
    return Density(**{name: arrays[name].astype(np.float64) for name in names})
