"""Encoder, decoder and scorer of a model as ONNX bytes.

Every graph is deterministic (a posterior is represented by its mean), has a dynamic batch, is one
file without external data, and carries neither paths nor source lines of the exporting machine.

Shape suffixes: B records, k latent dimensions, `*shape` the shape of one record.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from fedlatent.shared.bundle.manifest import POSTERIOR
from fedlatent.shared.data.scaling import LIMIT, Scaling
from fedlatent.shared.detection.combine import ScoreCombination
from fedlatent.shared.errors import BundleError
from fedlatent.shared.export.released import (
    DATA_DISTANCE,
    RECONSTRUCTION_ERROR,
    Released,
    ReleasedScore,
)
from fedlatent.shared.models.base import VAE, Graph
from fedlatent.shared.privacy.summaries import LatentDensity

OPSET = 20
RANDOM_OPS = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
LATENT_PARTS = ("latent_norm", "latent_distance", "recentred_distance", "posterior_logvar")
_NOISY_LOGGER = "torch.onnx._internal.exporter._registration"  # says that torchvision is absent


class Scaled(nn.Module):
    """Standardises records `[B, *shape]` as a run's released scaling says; none changes nothing."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, scaling: Scaling | None, shape: tuple[int, ...]) -> None:
        """Bake the constants in float32."""
        super().__init__()
        self.active = scaling is not None
        if scaling is not None:
            places = (len(scaling.mean),) + (1,) * (len(shape) - 1)
            for name, value in scaling.arrays().items():
                self.register_buffer(name, torch.from_numpy(value).float().reshape(places))

    def forward(self, x: Tensor) -> Tensor:
        """Return the records as the model takes them."""
        if not self.active:
            return x
        return ((x - self.mean) / self.deviation).clamp(-LIMIT, LIMIT)


class Encoder(nn.Module):
    """Records `[B, *shape]` to posterior mean and log variance `[B, k]`."""

    def __init__(self, model: VAE, scaling: Scaling | None = None) -> None:
        """Wrap `model`."""
        super().__init__()
        self.model = model
        self.scaled = Scaled(scaling, model.input_shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `mu` and `logvar`."""
        return self.model.encode(self.scaled(x))


class Decoder(nn.Module):
    """Latents `[B, k]` to mean records `[B, *shape]` in data space."""

    def __init__(self, model: VAE) -> None:
        """Wrap `model`."""
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        """Mean records `[B, *shape]` in data space, of latents `[B, k]`."""
        return self.model.reconstruct(z)


class Scorer(nn.Module):
    """`mu` and `logvar`, `[B, k]`, then anomaly scores, `[B]`, in the order of `scorer_outputs`.

    Args:
        model: A trained model.
        density: The released density of latents.
        with_decoder: Whether the reconstruction error is computed; false leaves the decoder out.
        combine: How parts become `score`; None makes it the latent distance.
        scaling: Of the records before the model, or None.
        released: Makes `score` of what clients released; excludes `combine`.

    Raises:
        ValueError: `combine` or `released` names a part that the graph does not compute.
    """

    absolute: Tensor
    recentred: Tensor

    def __init__(
        self,
        model: VAE,
        density: LatentDensity,
        *,
        with_decoder: bool = False,
        combine: ScoreCombination | None = None,
        scaling: Scaling | None = None,
        released: Released | None = None,
    ) -> None:
        """Bake the constants in float32."""
        super().__init__()
        self.model = model
        self.scaled = Scaled(scaling, model.input_shape)
        self.with_decoder = with_decoder
        self.combine = combine
        self.released = None if released is None else ReleasedScore(released)
        scores = scorer_outputs(with_decoder, released)
        self.outputs = (*POSTERIOR, *scores)
        known = scores[:-1]
        names = released.scores.names if released else combine.names if combine else ()
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"Expected parts of the score out of {known}, got {unknown}.")
        for name, recentred in (("absolute", False), ("recentred", True)):
            factor = np.linalg.cholesky(density.precision(recentred=recentred))
            self.register_buffer(name, torch.from_numpy(factor.astype(np.float32)))

    def forward(self, x: Tensor, center: Tensor) -> tuple[Tensor, ...]:
        """Score records `[B, *shape]` about `center` `[k]`."""
        given, x = x, self.scaled(x)
        mu_Bk, logvar_Bk = self.model.encode(x)
        offset_Bk = mu_Bk - center
        # |L^T d|^2 with P = L L^T: never negative, unlike d^T P d in float32.
        parts = {
            "latent_norm": mu_Bk.square().sum(1),
            "latent_distance": (offset_Bk @ self.absolute).square().sum(1),
            "recentred_distance": (offset_Bk @ self.recentred).square().sum(1),
            "posterior_logvar": logvar_Bk.sum(1),
        }
        if self.with_decoder:
            parts[RECONSTRUCTION_ERROR] = self.model.reconstruction_error(
                x, self.model.decode(mu_Bk)
            )
        if self.released is None:
            return mu_Bk, logvar_Bk, *parts.values(), self._score(parts)
        if DATA_DISTANCE in self.released.names:
            parts[DATA_DISTANCE] = self.released.distance(given)
        score_B = self.released({**parts, "posterior_logvar": logvar_Bk.mean(1)})
        return mu_Bk, logvar_Bk, *parts.values(), score_B

    def _score(self, parts: dict[str, Tensor]) -> Tensor:
        if self.combine is None:
            return parts["latent_distance"].clone()  # an output of its own
        total_B = torch.zeros_like(parts["latent_norm"])
        columns = zip(
            self.combine.names,
            self.combine.mean.tolist(),
            self.combine.scale.tolist(),
            self.combine.weights.tolist(),
            strict=True,
        )
        for name, mean, scale, weight in columns:
            total_B = total_B + (weight / scale) * (parts[name] - mean)
        return total_B


def scorer_outputs(with_decoder: bool, released: Released | None = None) -> tuple[str, ...]:
    """Names of the scores that the scorer graph gives, in order; the last is `score`."""
    parts = [*LATENT_PARTS, *([RECONSTRUCTION_ERROR] if with_decoder else [])]
    if released is not None and DATA_DISTANCE in released.scores.names:
        parts.append(DATA_DISTANCE)
    return (*parts, "score")


def export_encoder(model: VAE, scaling: Scaling | None = None) -> bytes:
    """Export `x` `[B, *shape]` to `mu` and `logvar` `[B, k]`, all float32."""
    inputs = {"x": torch.zeros(2, *model.input_shape)}
    return _export(Encoder(model, scaling), inputs, {"x"}, ("mu", "logvar"))


def export_decoder(model: VAE) -> bytes:
    """Export `z` `[B, k]` to `reconstruction` `[B, *shape]` in data space, all float32."""
    return _export(
        Decoder(model), {"z": torch.zeros(2, model.latent_dim)}, {"z"}, ("reconstruction",)
    )


def export_scorer(scorer: Scorer) -> bytes:
    """Export `x` `[B, *shape]` and `center` `[k]` to `scorer.outputs`, all float32.

    `latent_distance` uses the covariance of all records and belongs to the density's mean as
    centre; `recentred_distance` uses the covariance within clients and belongs to a local centre.
    """
    model = scorer.model
    inputs = {"x": torch.zeros(2, *model.input_shape), "center": torch.zeros(model.latent_dim)}
    return _export(scorer, inputs, {"x"}, scorer.outputs)


def export_graph(graph: Graph) -> bytes:
    """Export a graph of a family's own; every input has a batch as its first axis."""
    inputs = dict(graph.inputs)
    return _export(graph.module, inputs, set(inputs), graph.outputs)


def _export(
    module: nn.Module, inputs: dict[str, Tensor], batched: set[str], outputs: Sequence[str]
) -> bytes:
    """Trace a float32 copy of `module`, strip what only debuggers read, and check the result."""
    frozen = copy.deepcopy(module).to(device="cpu", dtype=torch.float32).eval()
    batch = torch.export.Dim("batch")
    logger = logging.getLogger(_NOISY_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Inside torch 2.13; nothing a caller could change.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`")
            # `torch.cond` looks at the gradient of whatever it is given.
            warnings.filterwarnings(
                "ignore", r"The \.grad attribute of a Tensor that is not a leaf"
            )
            # Two inputs have the same number of records, which is what is meant.
            warnings.filterwarnings("ignore", r"# The axis name: batch will not be used")
            program = torch.onnx.export(
                frozen,
                tuple(inputs.values()),
                None,
                dynamo=True,
                dynamic_shapes=tuple({0: batch} if name in batched else None for name in inputs),
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise BundleError("Expected a traced graph, got none; use the supported version of torch.")
    proto = program.model_proto
    _strip(proto)
    _check(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _strip(proto: onnx.ModelProto) -> None:
    """Remove stack traces, paths, documentation and inferred shapes, all of them optional."""
    proto.ClearField("metadata_props")
    proto.ClearField("doc_string")
    for graph in _graphs(proto.graph):
        for field in ("metadata_props", "doc_string", "value_info"):
            graph.ClearField(field)
        for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
            item.ClearField("metadata_props")
            item.ClearField("doc_string")


def _check(proto: onnx.ModelProto) -> None:
    """Refuse a graph that draws random numbers, calls functions or is not valid ONNX."""
    random = sorted({n.op_type for g in _graphs(proto.graph) for n in g.node} & RANDOM_OPS)
    if random:
        raise BundleError(
            f"Expected a deterministic graph, got {random}; pass noise to the model as an input."
        )
    if proto.functions:
        raise BundleError(
            f"Expected plain operators only, got {len(proto.functions)} local functions; "
            "build the model from layers that the exporter knows."
        )
    onnx.checker.check_model(proto, full_check=True)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield `graph` and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graphs(inner)
