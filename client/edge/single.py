"""Scoring one record after another at nearly the cost of the bare ONNX Runtime session."""

import math

import numpy as np

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import BundleError

#: A sum of squares below this is one of finite values that centring cannot make overflow.
_PLAIN = 1e280


class SingleScorer:
    """Scores single records in memory that is bound once; equal to `EdgeModel.score`.

    Not safe for several threads at once: they would share that memory.
    """

    def __init__(self, model: EdgeModel) -> None:
        """Bind the scorer of ``model``.

        Raises:
            BundleError: there is no threshold.
        """
        schema = model.bundle.manifest.schema
        center = model.density.mean if model.center is None else model.center
        self._x = np.zeros((1, *schema.shape), dtype=np.float32)
        self._prepare = _Preparation(schema, self._x.reshape(-1))
        feeds = {"x": self._x, "center": center.astype(np.float32)}
        self._bound = model.graphs.scorer.bind(feeds)
        self._mu: np.ndarray = self._bound.outputs["mu"][0]
        self._score = self._bound.outputs[model.scored_by]
        self._run = self._bound.run
        self._threshold = model.threshold

    @property
    def clipped(self) -> int:
        """How many values of the last record lie beyond the public bounds, if it is unchanged."""
        return self._prepare.clipped

    @property
    def mu(self) -> np.ndarray:
        """Latent mean [k] of the last record; a view that the next call overwrites."""
        return self._mu

    def __call__(self, record: np.ndarray) -> tuple[float, bool]:
        """Score one raw record.

        Args:
            record: numbers [*shape], or flat [size], in the unit of the data source.

        Returns:
            The score, and whether it lies above the threshold.

        Raises:
            DataError: the record does not fit the schema, or holds NaN or infinity.
            BundleError: the score is not finite.
        """
        self._prepare(record)
        self._run()
        score: float = self._score.item(0)
        if not math.isfinite(score):
            raise BundleError("Expected a finite score, got another; export the bundle again.")
        return score, score > self._threshold


class _Preparation:
    """`Schema.preprocess` of one record without allocations: the same arithmetic and values."""

    def __init__(self, schema: Schema, target: np.ndarray) -> None:
        """Write into ``target``, float32 [size]."""
        self._schema, self._target = schema, target
        self._shapes = (schema.raw_shape, (schema.raw_size,))
        self._last = np.zeros(schema.raw_size)
        self._work = np.empty(schema.size)
        self._sorted = np.empty(schema.size)
        middle = schema.size // 2
        self._middle = (middle - 1, middle) if schema.size % 2 == 0 else (middle, middle)

    @property
    def clipped(self) -> int:
        """Values of the last record that are clipped."""
        return int(self._schema.outside(self._last[np.newaxis])[0])

    def __call__(self, record: np.ndarray) -> None:
        schema, work = self._schema, self._work
        if record.shape not in self._shapes or record.dtype.kind not in "iuf":
            schema.preprocess(record[np.newaxis])  # says what is wrong
        self._last = record
        if schema.columns:
            self._target[:] = schema.preprocess(record[np.newaxis]).reshape(-1)
            return
        np.multiply(record.reshape(-1), schema.scale, out=work)
        if not work.dot(work) < _PLAIN:  # false for NaN, too
            self._target[:] = schema.preprocess(record[np.newaxis]).reshape(-1)
            return
        if schema.center == "median":
            low, high = self._middle
            self._sorted[:] = work
            self._sorted.partition((low, high))
            np.subtract(work, (self._sorted[low] + self._sorted[high]) / 2, out=work)
        elif schema.center == "mean":
            np.subtract(work, work.mean(), out=work)
        np.maximum(work, schema.lower, out=work)
        np.minimum(work, schema.upper, out=self._target, casting="same_kind")
