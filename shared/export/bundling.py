"""From a trained model to a signed bundle: graphs, their parity with torch, and the manifest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from fedlatent.shared.bundle.archive import DECODER, SCORER
from fedlatent.shared.bundle.build import build_bundle
from fedlatent.shared.bundle.manifest import (
    Combination,
    Kind,
    Manifest,
    Privacy,
    Runtime,
    ScoreDefinition,
    Thresholds,
    Training,
)
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.scaling import Scaling
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.detection.combine import ScoreCombination
from fedlatent.shared.errors import ConfigError, DataError
from fedlatent.shared.export.compact import to_ort
from fedlatent.shared.export.onnx import (
    OPSET,
    Decoder,
    Scorer,
    export_decoder,
    export_scorer,
    scorer_outputs,
)
from fedlatent.shared.export.parity import SCORER_TOLERANCE, ParityReport, parity
from fedlatent.shared.export.released import Released
from fedlatent.shared.export.targets import Choice, Target, choose
from fedlatent.shared.files import read_json, utc_text, write_json
from fedlatent.shared.keys import SigningKey
from fedlatent.shared.models import VAE
from fedlatent.shared.privacy.accounting import ADJACENCY
from fedlatent.shared.privacy.clipping import synthetic_records
from fedlatent.shared.privacy.noise import RngName
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.summaries import LatentDensity

SUFFIX = ".fedlatent"
_VERSIONS = "versions.json"
_GOLDEN_RECORDS = 4
_PARITY_RECORDS = 64
_SYNTHETIC_RECORDS = 512


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """What a bundle is made of.

    Attributes:
        kind: "global" leaves the decoder out; "site" scores with it.
        run_id: the run it comes from.
        run: its configuration.
        model: with the trained weights loaded, float32.
        density: whose mean is the scoring centre.
        thresholds: above which records are flagged.
        epsilon: largest spend of a client, or None when the run was not private.
        delta: of that epsilon.
        rng: of the worst release in that epsilon; by default that of the run.
        clients: how many took part.
        combine: makes ``score`` of a site bundle.
        released: makes ``score`` of a global bundle; None takes the latent distance.
        version: rises with every bundle of the same name.
        decoder: also ship the decoder as a graph of its own; its records are scaled ones.
        scaling: of the records before the model, or None.
        expires: UTC time after which no device installs it, or None.
        note: more text for the model card.
    """

    kind: Kind
    run_id: str
    run: RunConfig
    model: VAE
    density: LatentDensity
    thresholds: Thresholds
    epsilon: float | None
    delta: float
    clients: int
    combine: ScoreCombination | None = None
    released: Released | None = None
    version: int = 1
    decoder: bool = False
    scaling: Scaling | None = None
    expires: str | None = None
    rng: RngName | None = None
    note: str = ""

    @property
    def scores_reconstructions(self) -> bool:
        """Whether the scorer holds the decoder: a site's own, or one that clients released."""
        return self.kind == "site" or bool(self.released and self.released.needs_decoder)


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a scorer is stored as.

    Attributes:
        target: chosen by measurement for this, or None for the float32 graph as exported.
        public: raw records [N, *shape] that anyone may see, to judge forms on; None makes
            synthetic ones.
        labels: 0 for normal and 1 for anomalous public records [N], or None.
        ort: stored in the format of this very ONNX Runtime instead of ONNX.
        rethreshold: gives the thresholds of the stored graph from records that stay here; None
            carries them over on the public records.
    """

    target: Target | None = None
    public: NDArray[Any] | None = None
    labels: NDArray[Any] | None = None
    ort: bool = False
    rethreshold: Callable[[bytes], Thresholds] | None = None


@dataclass(frozen=True, kw_only=True)
class BundleReport:
    """What was written.

    Attributes:
        path: the bundle.
        size: in bytes.
        parity: by graph, ONNX against torch.
        manifest: as signed.
        choice: forms that were compared, or None without a target.
    """

    path: Path
    size: int
    parity: dict[str, ParityReport]
    manifest: Manifest
    choice: Choice | None = None


def make_bundle(
    path: Path,
    contents: BundleContents,
    signing_key: SigningKey,
    records: NDArray[Any] | None = None,
    form: Form = Form(),
) -> BundleReport:
    """Export, check against torch, choose the form, and write one signed file.

    Args:
        path: target file.
        contents: model and facts.
        signing_key: signs the manifest.
        records: raw real records for the parity check; they are not stored. The synthetic golden
            records and extremes are checked in any case.
        form: of the scorer.

    Raises:
        BundleError: a graph differs from torch, or the bundle would not be readable.
        ConfigError: a decoder was asked for that may not be shipped.
    """
    _check_decoder(contents)
    schema = contents.run.data
    golden = golden_records(schema)
    checked = schema.preprocess(golden)
    if records is not None and len(records):
        checked = np.concatenate([checked, schema.preprocess(records[:_PARITY_RECORDS])])
    graphs, reports = _graphs(contents, schema, checked)
    scorer, described, choice = _formed(graphs[SCORER], contents, schema, form)
    written = build_bundle(
        path,
        described,
        scorer=scorer,
        decoder=graphs.get(DECODER),
        density=contents.density.arrays(),
        golden_records=golden,
        signing_key=signing_key,
        note=contents.note,
    )
    return BundleReport(
        path=path, size=path.stat().st_size, parity=reports, manifest=written, choice=choice
    )


def golden_records(schema: Schema) -> NDArray[np.float64]:
    """Synthetic raw records [4, *shape]: smooth random curves over the public range."""
    return synthetic_records(schema, _GOLDEN_RECORDS)


def make_next(
    folder: Path,
    contents: BundleContents,
    signing_key: SigningKey,
    path: Path | None = None,
    form: Form = Form(),
) -> tuple[Path, BundleReport]:
    """Make the next version of a bundle, and remember its number; gives where it lies, too.

    Args:
        folder: of the versions made so far.
        contents: as for `make_bundle`; the version in there does not count.
        signing_key: signs the manifest.
        path: target; by default ``<name>-<version>.fedlatent`` in ``folder``.
        form: of the scorer.

    Raises:
        BundleError: as `make_bundle`.
        ConfigError: as `make_bundle`.
    """
    name = contents.run.name
    version = next_version(folder, name)
    target = path or folder / f"{name}-{version}{SUFFIX}"
    report = make_bundle(target, replace(contents, version=version), signing_key, form=form)
    keep_version(folder, name, version)
    return target, report


def next_version(folder: Path, name: str) -> int:
    """One more than the highest version of ``name`` that was made for or lies in ``folder``."""
    stems = [path.name.removesuffix(SUFFIX) for path in folder.glob(f"{name}-*{SUFFIX}")]
    versions = [stem.rsplit("-", 1)[1] for stem in stems]
    highest = max((int(v) for v in versions if v.isdecimal()), default=0)
    return 1 + max(highest, _made(folder).get(name, 0))


def keep_version(folder: Path, name: str, version: int) -> None:
    """Remember in ``folder`` that ``version`` of ``name`` was made, wherever the file went."""
    made = _made(folder)
    made[name] = max(version, made.get(name, 0))
    write_json(folder / _VERSIONS, made)


def _made(folder: Path) -> dict[str, int]:
    path = folder / _VERSIONS
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict) or not all(type(v) is int for v in found.values()):
        raise DataError(
            f"Expected versions by name in {path}, got something else; write the highest version "
            "of each name there."
        )
    return dict(found)


def _check_decoder(contents: BundleContents) -> None:
    released = contents.kind == "site" or contents.run.shares_decoder
    if contents.decoder and not released:
        raise ConfigError(
            f"Expected sharing 'full' for a global bundle with a decoder, got "
            f"{contents.run.sharing!r}; export a site bundle for reconstructions."
        )
    if contents.decoder and contents.run.privacy.mechanism == "none":
        raise ConfigError(
            "Expected a decoder trained under differential privacy, got one that was not; "
            "leave the decoder out."
        )


def scorer_of(contents: BundleContents) -> Scorer:
    """What is exported as the bundle's scorer, in PyTorch."""
    return Scorer(
        contents.model.eval(),
        contents.density,
        with_decoder=contents.scores_reconstructions,
        combine=contents.combine,
        scaling=contents.scaling,
        released=contents.released,
    )


def _graphs(
    contents: BundleContents, schema: Schema, checked: NDArray[np.float32]
) -> tuple[dict[str, bytes], dict[str, ParityReport]]:
    """Every graph with its parity against torch on trained weights."""
    model, density = contents.model.eval(), contents.density
    extremes = (schema.lower, schema.upper, 0.0)
    records: Mapping[str, np.ndarray] = {"x": checked}
    center = {"center": density.mean.astype(np.float32)}
    scorer = scorer_of(contents)
    files = {SCORER: export_scorer(scorer)}
    reports = {
        SCORER: parity(
            files[SCORER], scorer, records, extremes, fixed=center, tolerance=SCORER_TOLERANCE
        ),
    }
    if contents.decoder:
        files[DECODER] = export_decoder(model)
        with torch.no_grad():
            latents = model.encode(scorer.scaled(torch.from_numpy(checked)))[0].numpy()
        reports[DECODER] = parity(files[DECODER], Decoder(model), {"z": latents}, (0.0, 5.0, -5.0))
    return files, reports


def _formed(
    fp32: bytes, contents: BundleContents, schema: Schema, form: Form
) -> tuple[bytes, Manifest, Choice | None]:
    """The scorer in its form, and the manifest that says so."""
    data, thresholds, runtime, choice = fp32, contents.thresholds, Runtime(opset=OPSET), None
    if form.target is not None:
        public = form.public
        if public is None:
            public = synthetic_records(schema, _SYNTHETIC_RECORDS)
        center = contents.density.mean.astype(np.float32)
        choice = choose(
            fp32, form.target, schema.preprocess(public), center, thresholds, form.labels
        )
        data, thresholds = choice.data, choice.thresholds
        runtime = replace(
            runtime,
            precision=choice.precision,
            tolerance=choice.tolerance,
            target=form.target,
            hardware=choice.hardware,
        )
    if form.rethreshold is not None:
        thresholds = form.rethreshold(data)
    if form.ort:
        data = to_ort(data, packed=form.target == "smallest")
        least = ".".join(onnxruntime.__version__.split(".")[:2])
        runtime = replace(runtime, format="ort", min_onnxruntime=least)
    contents = replace(contents, thresholds=thresholds)
    return data, _manifest(contents, schema, runtime), choice


def _manifest(contents: BundleContents, schema: Schema, runtime: Runtime) -> Manifest:
    run, combine = contents.run, contents.combine
    return Manifest(
        kind=contents.kind,
        name=run.name,
        version=contents.version,
        created=utc_text(),
        run_id=contents.run_id,
        family=run.model.family,
        latent_dim=contents.model.latent_dim,
        schema=schema,
        score=ScoreDefinition(
            outputs=scorer_outputs(contents.scores_reconstructions, contents.released),
            combine=None
            if combine is None
            else Combination(
                names=combine.names,
                mean=tuple(combine.mean.tolist()),
                scale=tuple(combine.scale.tolist()),
                weights=tuple(combine.weights.tolist()),
            ),
        ),
        thresholds=contents.thresholds,
        privacy=_privacy(contents),
        training=Training(
            rounds=run.training.rounds, clients=contents.clients, sharing=run.sharing
        ),
        runtime=runtime,
        expires=contents.expires,
    )


def _privacy(contents: BundleContents) -> Privacy | None:
    if contents.epsilon is None:
        return None
    plan = PrivacyPlan.from_config(contents.run)
    return Privacy(
        epsilon=contents.epsilon,
        delta=contents.delta,
        noise_multiplier=plan.noise_multiplier,
        sample_rate=plan.sample_rate,
        steps=plan.rounds * plan.steps_per_round,
        rng=contents.rng or plan.rng,
        adjacency=ADJACENCY,
        unit="record",
    )
