"""Scoring on a device: verify the bundle, check it on this machine, score, re-centre."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from shared.bundle.archive import GOLDEN, Bundle, read_bundle
from shared.bundle.graphs import Graphs, check_golden
from shared.bundle.manifest import RECENTRED, SCORE
from shared.errors import BundleError, DataError
from shared.files import read_json, write_json
from shared.keys import VerifyKey

CENTER_FORMAT = 1
_MAX_LATENT = 1e30


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of B records.

    Attributes:
        score: float [B]; higher is more anomalous.
        flag: bool [B]; whether the score lies above the threshold.
        parts: every output of the scorer by name, each [B].
        threshold: the one used.
    """

    score: np.ndarray
    flag: np.ndarray
    parts: Mapping[str, np.ndarray]
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Center:
    """A device's own latent center.

    Attributes:
        values: float64 [k], the mean latent of its normal records.
        records: how many records it was made from.
    """

    values: np.ndarray
    records: int


@dataclass(frozen=True, kw_only=True)
class EdgeModel:
    """A verified bundle, ready to score. Immutable: re-centring gives a new one.

    Attributes:
        bundle: manifest and files.
        graphs: the loaded graphs.
        golden_error: largest relative difference on the golden vectors, on this machine.
        center: the device's own center, or None for the bundle's.
    """

    bundle: Bundle
    graphs: Graphs
    golden_error: float
    center: Center | None = None

    @classmethod
    def load(cls, path: Path, trusted: Sequence[VerifyKey]) -> Self:
        """Verify the bundle, load its graphs from bytes and run its golden vectors.

        Args:
            path: the bundle file.
            trusted: public keys whose signature is accepted.

        Raises:
            BundleError: it is damaged, untrusted, of another version, or computes otherwise here.
        """
        bundle = read_bundle(path, trusted)
        graphs = Graphs.open(bundle.manifest, bundle.files)
        error = check_golden(graphs, bundle.files[GOLDEN])
        return cls(bundle=bundle, graphs=graphs, golden_error=error)

    @property
    def threshold(self) -> float:
        """The threshold that holds for this model as it is, re-centred or not.

        Raises:
            BundleError: the bundle has no threshold before re-centring.
        """
        thresholds = self.bundle.manifest.thresholds
        value = thresholds.absolute if self.center is None else thresholds.recentred
        if value is None:
            raise BundleError(
                "Expected a re-centred model, since this bundle has no other threshold, got one "
                "that is not; re-centre it on a few normal records first."
            )
        return value

    def score(self, records: ArrayLike) -> ScoreTable:
        """Score raw records [B, *shape] (or flat rows) in the unit of the data source.

        Raises:
            DataError: the records do not fit the schema, or hold NaN or infinity.
            BundleError: there is no threshold, or a score is not finite.
        """
        threshold = self.threshold
        parts = self.graphs.score(records, None if self.center is None else self.center.values)
        score = parts[SCORE if self.center is None else RECENTRED]
        return ScoreTable(score=score, flag=score > threshold, parts=parts, threshold=threshold)

    def encode(self, records: ArrayLike) -> np.ndarray:
        """Latent means [B, k] of raw records.

        Raises:
            DataError: the records do not fit the schema, or hold NaN or infinity.
        """
        return self.graphs.encode(records)["mu"]

    def recentre(self, normals: ArrayLike) -> Self:
        """Centre the latent space on this device's normal records.

        Args:
            normals: raw normal records [n, *shape], n >= 1; some tens are a good number.

        Returns:
            A model that scores by `recentred_distance` from their mean latent, with its threshold.

        Raises:
            BundleError: the bundle has no re-centred threshold.
            DataError: no record, or records that do not fit the schema.
        """
        self._require_recentring()
        latents = self.encode(normals)
        if not len(latents):
            raise DataError("Expected at least one normal record to re-centre on, got none.")
        mean = latents.mean(axis=0, dtype=np.float64)
        return replace(self, center=Center(values=mean, records=len(latents)))

    def save_center(self, path: Path) -> None:
        """Write this device's center as JSON (mode 0600), bound to this very bundle.

        Raises:
            DataError: the model is not re-centred.
        """
        if self.center is None:
            raise DataError("Expected a re-centred model to save, got none; re-centre it first.")
        value = {
            "format": CENTER_FORMAT,
            "bundle": self.bundle.digest,
            "records": self.center.records,
            "center": self.center.values.tolist(),
        }
        write_json(path, value, 0o600)

    def load_center(self, path: Path) -> Self:
        """Take the center that `save_center` wrote.

        Raises:
            DataError: the file is absent, damaged, or was made with another bundle.
            BundleError: the bundle has no re-centred threshold.
        """
        self._require_recentring()
        value = read_json(path)
        if not isinstance(value, dict) or set(value) != {"format", "bundle", "records", "center"}:
            raise DataError(f"Expected a saved center in {path}, got something else; re-centre.")
        if value["format"] != CENTER_FORMAT or value["bundle"] != self.bundle.digest:
            raise DataError(
                f"Expected a center made with this bundle in {path}, got another's; re-centre on "
                "normal records with this bundle."
            )
        values, records = _center_values(value["center"]), value["records"]
        whole = isinstance(records, int) and not isinstance(records, bool) and records >= 1
        if values is None or values.shape != self.graphs.center.shape or not whole:
            raise DataError(f"Expected a saved center in {path}, got a damaged one; re-centre.")
        return replace(self, center=Center(values=values, records=records))

    def info(self) -> dict[str, object]:
        """What a person wants to know, as JSON-ready values."""
        manifest = self.bundle.manifest
        thresholds, privacy = manifest.thresholds, manifest.privacy
        return {
            "name": manifest.name,
            "version": manifest.version,
            "kind": manifest.kind,
            "created": manifest.created,
            "run": manifest.run_id,
            "family": manifest.family,
            "latent_dim": manifest.latent_dim,
            "schema": manifest.schema.to_dict(),
            "outputs": list(manifest.score.outputs),
            "quantile": thresholds.quantile,
            "threshold_absolute": thresholds.absolute,
            "threshold_recentred": thresholds.recentred,
            "epsilon": None if privacy is None else privacy.epsilon,
            "delta": None if privacy is None else privacy.delta,
            "noise_rng": None if privacy is None else privacy.rng,
            "rounds": manifest.training.rounds,
            "clients": manifest.training.clients,
            "signed_by": self.bundle.key_id,
            "sha256": self.bundle.digest,
            "model_bytes": sum(len(data) for data in self.bundle.files.values()),
            "golden_error": self.golden_error,
            "recentred_on": None if self.center is None else self.center.records,
        }

    def _require_recentring(self) -> None:
        if self.bundle.manifest.thresholds.recentred is None:
            raise BundleError(
                "Expected a bundle with a re-centred threshold, got one without; score with it as "
                "it is, or use a bundle that can be re-centred."
            )


def _center_values(value: object) -> np.ndarray | None:
    """``value`` as float64 [k], or None when it is not a list of finite numbers."""
    if not isinstance(value, list):
        return None
    if not all(type(item) in (int, float) and abs(item) < _MAX_LATENT for item in value):
        return None
    return np.asarray(value, dtype=np.float64)
