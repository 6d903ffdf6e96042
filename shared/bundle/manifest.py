"""What a bundle says about itself: the signed manifest.

The manifest is JSON text that is signed as bytes and then parsed strictly: an unknown or missing
key, a wrong type, a NaN or an oversized value is a `BundleError`. It names every other file by
SHA-256 and length, so its signature covers them all.
"""

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, cast, get_args

from fedlatent.shared.bundle.strict import StrictObject, parse_object
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import BundleError, ConfigError, UpgradeNeeded
from fedlatent.shared.files import UTC_TIME, canonical_json

FORMAT_VERSION = 2
MAX_MANIFEST_BYTES = 65_536
MAX_LATENT_DIM = 4096
#: Beyond this a golden vector would say nothing about a device.
MAX_TOLERANCE = 0.25

Kind = Literal["global", "site"]
Format = Literal["onnx", "ort"]
Precision = Literal["fp32", "fp16", "int8-weights", "int8-dynamic", "int8-static"]

#: Outputs of the scorer with a meaning here. `SCORE` is always present and is what a bundle
#: flags by; a re-centred device flags by `RECENTRED` instead.
SCORE = "score"
RECENTRED = "recentred_distance"
RECONSTRUCTION = "reconstruction_error"
#: What the scorer says of the posterior of each record, [B, k], beside those outputs.
POSTERIOR = ("mu", "logvar")

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_OUTPUT = r"[a-z][a-z0-9_]{0,63}"
_FILE = r"[a-z]+\.(onnx|ort|npz|md)"
_HASH = r"[0-9a-f]{64}"
_METRIC = r"[A-Za-z0-9][A-Za-z0-9_.@/-]{0,63}"


@dataclass(frozen=True, kw_only=True)
class Combination:
    """How `score` was made from other outputs; for people, the graph holds the same constants.

    Attributes:
        names: outputs of the scorer that enter.
        mean: of each output on normal records.
        scale: standard deviation of each; positive.
        weights: of each standardised output in the sum.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ScoreDefinition:
    """What the scorer graph returns.

    Attributes:
        outputs: names of all its outputs, `score` among them.
        combine: how `score` comes from them; None when it is the latent distance, or what clients
            released a density of parts for.
    """

    outputs: tuple[str, ...]
    combine: Combination | None = None


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Scores above a threshold are flagged.

    Attributes:
        quantile: share of normal records that should score below it.
        absolute: threshold of `score` for the bundle as it comes; None when there is none.
        recentred: threshold of `recentred_distance` after re-centring on the device; None when
            that is not supported.
    """

    quantile: float
    absolute: float | None
    recentred: float | None


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """The differential privacy of what the sites released, as accounted.

    A global bundle is made of that alone. A site bundle also holds exact statistics of the site's
    records, which this does not cover.

    Attributes:
        epsilon: largest total over the sites.
        delta: of the (epsilon, delta) statement.
        noise_multiplier: of a training step.
        sample_rate: Poisson sampling rate of a training step.
        steps: training steps in total.
        rng: of the worst release in that total: "secure" or "simulation".
        adjacency: which data sets are neighbours, such as "zero-out".
        unit: what is protected, such as "record".
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    rng: str
    adjacency: str
    unit: str


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the model came about.

    Attributes:
        rounds: finished ones.
        clients: that took part.
        sharing: what clients released: "encoder", "summary", "encoder+summary" or "full".
    """

    rounds: int
    clients: int
    sharing: str = "encoder"


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What a device needs, and what the graphs were made for.

    Attributes:
        format: of the scorer: "onnx", or "ort" for ONNX Runtime of one version alone.
        precision: of the weights and of the arithmetic.
        opset: of the ONNX standard.
        min_onnxruntime: oldest ONNX Runtime that is accepted, "1.24".
        tolerance: golden outputs must agree to this, relative to max(|expected|, 1).
        target: what the form was chosen for: "auto", "smallest", "fastest", "arm" or "web".
        hardware: notes for people: where the choice was measured.
    """

    format: Format = "onnx"
    precision: Precision = "fp32"
    opset: int = 20
    min_onnxruntime: str = "1.24"
    tolerance: float = 1e-4
    target: str = "auto"
    hardware: str = "not measured"


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Digest and length of one file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole manifest.

    Attributes:
        kind: "global" (made by the server, no decoder) or "site" (made by a node for its own
            devices).
        name: of the model.
        version: rises with every release of ``name``; from 1.
        created: UTC time, "2026-01-31T12:00:00Z".
        run_id: of the federated run.
        family: of the model.
        latent_dim: size of the latent space.
        schema: what a record is.
        score: what the scorer returns.
        thresholds: above which a record is flagged.
        privacy: None when training was not private.
        training: rounds, clients and what they shared.
        runtime: what a device needs.
        expires: UTC time like ``created`` after which no device installs it, or None; a running
            bundle goes on.
        metrics: figures of an evaluation, by name.
        files: digest and length by file name; filled when the bundle is written.
    """

    kind: Kind
    name: str
    version: int
    created: str
    run_id: str
    family: str
    latent_dim: int
    schema: Schema
    score: ScoreDefinition
    thresholds: Thresholds
    privacy: Privacy | None
    training: Training
    runtime: Runtime = Runtime()
    expires: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The manifest as canonical JSON.

        Raises:
            BundleError: a number is not finite.
        """
        try:
            return canonical_json(
                asdict(self) | {"schema": self.schema.to_dict(), "format_version": FORMAT_VERSION}
            )
        except ValueError:
            raise BundleError(
                "Expected finite numbers in the manifest, got NaN or infinity; drop that figure."
            ) from None

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Parse a manifest strictly.

        Raises:
            BundleError: an older format version, or any departure from the format; UpgradeNeeded: a
                newer one.
        """
        top = parse_object(data, "manifest.json", MAX_MANIFEST_BYTES)
        version = top.integer("format_version", 0)
        if version != FORMAT_VERSION:
            kind = UpgradeNeeded if version > FORMAT_VERSION else BundleError
            raise kind(
                f"Expected bundle format version {FORMAT_VERSION}, got {version}; "
                "update this program or export the bundle again."
            )
        manifest = cls(
            kind=cast(Kind, top.text("kind", "global|site")),
            name=top.text("name", _NAME),
            version=top.integer("version", 1),
            created=_time("created", top.text("created", UTC_TIME)),
            run_id=top.text("run_id", _NAME),
            family=top.text("family", _NAME),
            latent_dim=top.integer("latent_dim", 1, MAX_LATENT_DIM),
            schema=_schema(top),
            score=_score(top.child("score")),
            thresholds=_thresholds(top.child("thresholds")),
            privacy=_privacy(top.optional_child("privacy")),
            training=_training(top.child("training")),
            runtime=_runtime(top.child("runtime")),
            expires=_expires(top),
            metrics=top.number_mapping("metrics", _METRIC),
            files=top.children("files", _FILE, _file_entry),
        )
        top.close()
        manifest.check()
        return manifest

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            BundleError: a global bundle with a reconstruction score that nobody released, a score
                or threshold without its output, or no threshold at all.
        """
        if SCORE not in self.score.outputs:
            raise BundleError(f"Expected an output named {SCORE!r} in the score, got none.")
        combine = self.score.combine
        if combine and not set(combine.names) <= set(self.score.outputs):
            raise BundleError("Expected a combination of the scorer's outputs, got other names.")
        released = self.kind == "site" or self.training.sharing == "full"
        if RECONSTRUCTION in self.score.outputs and not released:
            raise BundleError(
                "Expected a global bundle without a reconstruction score, got one; decoders stay "
                "with their sites, so make a site bundle."
            )
        if self.thresholds.recentred is not None and RECENTRED not in self.score.outputs:
            raise BundleError(
                f"Expected an output named {RECENTRED!r} for the re-centred threshold, got none."
            )
        if self.thresholds.absolute is None and self.thresholds.recentred is None:
            raise BundleError("Expected at least one threshold, got none; set one.")


def _time(key: str, text: str) -> str:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        raise BundleError(
            f"Expected a calendar time at {key!r} in manifest.json, got {text!r}."
        ) from None
    return text


def _expires(top: StrictObject) -> str | None:
    text = top.optional_text("expires", UTC_TIME)
    return None if text is None else _time("expires", text)


def _schema(top: StrictObject) -> Schema:
    try:
        return Schema.from_dict(top.mapping("schema"))
    except ConfigError as error:
        raise BundleError(
            f"Expected a valid schema in manifest.json, got another: {error}"
        ) from None


def _score(score: StrictObject) -> ScoreDefinition:
    outputs = score.texts("outputs", _OUTPUT)
    child = score.optional_child("combine")
    score.close()
    return ScoreDefinition(outputs=outputs, combine=_combination(child) if child else None)


def _combination(combine: StrictObject) -> Combination:
    result = Combination(
        names=combine.texts("names", _OUTPUT),
        mean=combine.numbers("mean"),
        scale=combine.numbers("scale"),
        weights=combine.numbers("weights"),
    )
    combine.close()
    lengths = {len(result.names), len(result.mean), len(result.scale), len(result.weights)}
    if len(lengths) != 1 or not result.names or min(result.scale) <= 0:
        raise BundleError(
            "Expected a score combination with one mean, one positive scale and one weight for "
            "each name, got other lengths or signs."
        )
    return result


def _thresholds(value: StrictObject) -> Thresholds:
    result = Thresholds(
        quantile=value.number("quantile"),
        absolute=value.optional_number("absolute"),
        recentred=value.optional_number("recentred"),
    )
    value.close()
    if not 0 < result.quantile < 1:
        raise BundleError(f"Expected a quantile between 0 and 1, got {result.quantile}.")
    return result


def _privacy(value: StrictObject | None) -> Privacy | None:
    if value is None:
        return None
    result = Privacy(
        epsilon=value.number("epsilon"),
        delta=value.number("delta"),
        noise_multiplier=value.number("noise_multiplier"),
        sample_rate=value.number("sample_rate"),
        steps=value.integer("steps", 0),
        rng=value.text("rng", "secure|simulation"),
        adjacency=value.text("adjacency", _NAME),
        unit=value.text("unit", _NAME),
    )
    value.close()
    if (
        result.epsilon < 0
        or not 0 < result.delta < 1
        or result.noise_multiplier <= 0
        or not 0 < result.sample_rate <= 1
    ):
        raise BundleError(
            "Expected privacy figures within their ranges (epsilon >= 0, 0 < delta < 1, noise "
            "multiplier > 0, 0 < sample rate <= 1), got others; use null when nothing is claimed."
        )
    return result


def _training(value: StrictObject) -> Training:
    result = Training(
        rounds=value.integer("rounds", 0),
        clients=value.integer("clients", 0),
        sharing=value.text("sharing", r"encoder|summary|encoder\+summary|full"),
    )
    value.close()
    return result


def _runtime(value: StrictObject) -> Runtime:
    result = Runtime(
        format=cast(Format, value.text("format", "|".join(get_args(Format)))),
        precision=cast(Precision, value.text("precision", "|".join(get_args(Precision)))),
        opset=value.integer("opset", 1, 99),
        min_onnxruntime=value.text("min_onnxruntime", r"\d{1,3}\.\d{1,3}"),
        tolerance=value.number("tolerance"),
        target=value.text("target", _NAME),
        hardware=value.text("hardware"),
    )
    value.close()
    if not 0 < result.tolerance <= MAX_TOLERANCE:
        raise BundleError(
            f"Expected a tolerance of golden outputs above 0 and at most {MAX_TOLERANCE}, got "
            f"{result.tolerance}."
        )
    return result


def _file_entry(value: StrictObject) -> FileEntry:
    return FileEntry(sha256=value.text("sha256", _HASH), bytes=value.integer("bytes", 0))
