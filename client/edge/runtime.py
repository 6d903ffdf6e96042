"""Scoring on a device: verify the bundle, check it on this machine, score, re-centre."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, cast

import numpy as np
from numpy.typing import ArrayLike

from fedlatent.client.edge import recentring
from fedlatent.shared.bundle.archive import GOLDEN, Bundle, parse_bundle, read_bundle
from fedlatent.shared.bundle.graphs import Density, Graphs, check_golden
from fedlatent.shared.bundle.manifest import POSTERIOR, RECENTRED, SCORE
from fedlatent.shared.errors import BundleError, ConfigError, DataError
from fedlatent.shared.files import read_json, write_json
from fedlatent.shared.keys import VerifyKey
from fedlatent.shared.notebook import facts, rows

CALIBRATION_FORMAT = 2
#: Of the normal records that a calibration is made from, at most so many give the center; the
#: threshold comes from the others, which makes its error rate hold exactly.
CENTER_RECORDS = 30
_MAX_LATENT = 1e30
_SHOWN = 10  # records, in a notebook
_KEYS = {"format", "bundle", "records", "center", "threshold", "quantile"}


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of B records.

    Attributes:
        score: float [B]; higher is more anomalous.
        flag: bool [B]; whether the score lies above the threshold.
        parts: every score of the scorer by name, each [B].
        threshold: the one used.
        mu: latent means [B, k].
        clipped: int [B], values of each record beyond the schema's public bounds. What lies beyond
            them was clipped before it was scored, so a score of such a record says little.
    """

    score: np.ndarray
    flag: np.ndarray
    parts: Mapping[str, np.ndarray]
    threshold: float
    mu: np.ndarray
    clipped: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """Score, flag, clipped values and all parts by name, each [B], as a data frame takes them.

        Examples:
            >>> import pandas as pd
            >>> pd.DataFrame(model.score(records).columns()).columns[:3].tolist()
            ['score', 'flag', 'clipped']
        """
        parts = {name: value for name, value in self.parts.items() if name != SCORE}
        return {"score": self.score, "flag": self.flag, "clipped": self.clipped, **parts}

    def _repr_html_(self) -> str:
        """How many are flagged, and the first records, in a notebook."""
        title = f"{int(self.flag.sum())} of {len(self.flag)} records above {self.threshold:.4g}"
        first = zip(self.score[:_SHOWN], self.flag, self.clipped, strict=False)
        cells = [(at, f"{one:.4g}", flag, beyond) for at, (one, flag, beyond) in enumerate(first)]
        return rows(title, ["record", "score", "flag", "values beyond bounds"], cells)

    @property
    def outside(self) -> np.ndarray:
        """Which records hold a value beyond the public bounds, bool [B]."""
        return self.clipped > 0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a device learnt from its own normal records.

    Attributes:
        records: how many they were.
        center: float64 [k], their mean latent, or None for the bundle's center.
        threshold: of their scores, or None for the bundle's threshold.
        quantile: share of normal records that lies below that threshold, at least, on average.
        doubt: why the center is the bundle's although re-centring was asked for; None otherwise.
    """

    records: int
    center: np.ndarray | None = None
    threshold: float | None = None
    quantile: float | None = None
    doubt: str | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class EdgeModel:
    """A verified bundle, ready to score. Immutable: calibration gives a new one.

    Attributes:
        bundle: manifest and files.
        graphs: the loaded graphs.
        golden_error: largest relative difference on the golden vectors, on this machine.
        calibration: of this device, or None to score as the bundle comes.

    Examples:
        >>> model = fl.load("patients.fedlatent", key="publisher.pem.pub")
        >>> scores = model.score(records)
        >>> scores.score.shape, scores.flag.dtype
        ((5,), dtype('bool'))
        >>> own = model.calibrate(normals, quantile=0.9)
        >>> own.calibration.records
        35
    """

    bundle: Bundle
    graphs: Graphs
    golden_error: float
    calibration: Calibration | None = None

    @classmethod
    def load(cls, path: Path, trusted: Sequence[VerifyKey]) -> Self:
        """Verify the bundle, load its graphs from bytes and run its golden vectors.

        Args:
            path: the bundle file.
            trusted: public keys whose signature is accepted.

        Raises:
            BundleError: it is damaged, untrusted, of another version, or computes otherwise here.
        """
        return cls._checked(read_bundle(path, trusted))

    @classmethod
    def from_bytes(
        cls, data: bytes, trusted: Sequence[VerifyKey], where: str = "the given bytes"
    ) -> Self:
        """Like `load`, for a bundle in memory that came from ``where``."""
        return cls._checked(parse_bundle(data, trusted, where))

    @classmethod
    def _checked(cls, bundle: Bundle) -> Self:
        graphs = Graphs.open(bundle.manifest, bundle.files)
        error = check_golden(graphs, bundle.files[GOLDEN])
        return cls(bundle=bundle, graphs=graphs, golden_error=error)

    def __repr__(self) -> str:
        """Kind, name and version."""
        manifest = self.bundle.manifest
        return f"EdgeModel({manifest.kind} bundle {manifest.name!r}, version {manifest.version})"

    def _repr_html_(self) -> str:
        """What the bundle is, in a notebook."""
        manifest = self.bundle.manifest
        privacy = manifest.privacy
        covered = "none" if privacy is None else f"{privacy.epsilon:.4g} at {privacy.delta:g}"
        return facts(
            f"{manifest.kind} bundle {manifest.name}, version {manifest.version}",
            {
                "records": f"{manifest.schema.name}, shape {manifest.schema.shape}",
                "epsilon of what was released": covered,
                "threshold": f"{self.threshold:.4g}",
                "checked here": f"largest difference {self.golden_error:.1e}",
            },
        )

    @property
    def center(self) -> np.ndarray | None:
        """The device's own latent center [k], or None for the bundle's."""
        return None if self.calibration is None else self.calibration.center

    @property
    def doubt(self) -> str | None:
        """Why this device keeps the bundle's center although it was to be re-centred, or None."""
        return None if self.calibration is None else self.calibration.doubt

    @property
    def density(self) -> Density:
        """The density of latents that came with the bundle."""
        return self.graphs.density

    @property
    def threshold(self) -> float:
        """The threshold that holds for this model as it is: the device's own before the bundle's.

        Raises:
            BundleError: the bundle has no threshold before re-centring.
        """
        if self.calibration is not None and self.calibration.threshold is not None:
            return self.calibration.threshold
        thresholds = self.bundle.manifest.thresholds
        value = thresholds.absolute if self.center is None else thresholds.recentred
        if value is None and self.doubt is not None:
            raise BundleError(
                f"Expected normal records that this bundle, which has no other threshold, can be "
                f"re-centred on, got others: {self.doubt}; give other ones."
            )
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
        parts = self.graphs.score(records, self.center)
        mu, _ = (parts.pop(name) for name in POSTERIOR)
        score = parts[self.scored_by]
        return ScoreTable(
            score=score,
            flag=score > threshold,
            parts=parts,
            threshold=threshold,
            mu=mu,
            clipped=self.bundle.manifest.schema.outside(records),
        )

    def encode(self, records: ArrayLike) -> np.ndarray:
        """Latent means [B, k] of raw records.

        Raises:
            DataError: the records do not fit the schema, or hold NaN or infinity.
        """
        return self.graphs.score(records)["mu"]

    def recentre(self, normals: ArrayLike, *, anyway: bool = False) -> Self:
        """Centre the latent space on this device's normal records, where that can be trusted.

        Args:
            normals: raw normal records [n, *shape] in the order of time; some tens are a good
                number.
            anyway: whether their mean is taken even where it should not be trusted.

        Returns:
            A model that scores by `recentred_distance` from their mean latent, with the bundle's
            threshold for it. Where their mean should not be trusted, a model that scores as the
            bundle comes; its calibration says why (``doubt``).

        Raises:
            BundleError: the bundle has no re-centred threshold, or nothing else and a mean that
                should not be trusted.
            DataError: no record, or records that do not fit the schema.
        """
        self._require_recentring()
        latents = self.encode(normals)
        if not len(latents):
            raise DataError("Expected at least one normal record to re-centre on, got none.")
        known = (self.density.mean, self.density.within)
        why = None if anyway else recentring.doubt(latents.astype(np.float64), *known)
        mean = None if why else latents.mean(axis=0, dtype=np.float64)
        found = Calibration(records=len(latents), center=mean, doubt=why)
        return replace(self, calibration=found)

    def calibrate(
        self, normals: ArrayLike, quantile: float | None = None, *, recentre: bool = False
    ) -> Self:
        """Set the threshold from this device's own normal records, by split conformal prediction.

        The threshold is the score of rank ceil((n + 1) * quantile) of n normal records: a further
        normal record of the same kind is flagged with probability at most 1 - quantile (Vovk,
        Gammerman and Shafer 2005; Lei et al. 2018). With ``recentre`` the first third, at most
        `CENTER_RECORDS`, gives the center and the others the threshold.

        Args:
            normals: raw normal records [n, *shape].
            quantile: None takes the bundle's.
            recentre: also centre the latent space on them.

        Raises:
            DataError: too few records for the quantile, or records that do not fit the schema.
            BundleError: the bundle cannot be re-centred.
            ConfigError: the quantile does not lie between 0 and 1.
        """
        wanted = self.bundle.manifest.thresholds.quantile if quantile is None else quantile
        if not 0 < wanted < 1:
            raise ConfigError(f"Expected a quantile between 0 and 1, got {wanted}.")
        records = np.asarray(normals)
        first = min(CENTER_RECORDS, len(records) // 3) if recentre else 0
        base = self.recentre(records[:first]) if first else replace(self, calibration=None)
        rest = records[first:]
        rank = math.ceil((len(rest) + 1) * wanted)
        if rank > len(rest):
            least = math.ceil(wanted / (1 - wanted) - 1e-9) + first
            raise DataError(
                f"Expected at least {least} normal records for a threshold at quantile {wanted:g}, "
                f"got {len(records)}; give more, or a lower quantile."
            )
        scores = np.sort(base.graphs.score(rest, base.center)[base.scored_by])
        found = Calibration(
            records=len(records),
            center=base.center,
            doubt=base.doubt,
            threshold=float(scores[rank - 1]),
            quantile=wanted,
        )
        return replace(self, calibration=found)

    def save_calibration(self, path: Path) -> None:
        """Write this device's calibration as JSON (mode 0600), bound to this very bundle.

        Raises:
            DataError: the model is not calibrated.
        """
        found = self.calibration
        if found is None or (found.center is None and found.threshold is None):
            raise DataError("Expected a calibrated model to save, got none; calibrate it first.")
        value = {
            "format": CALIBRATION_FORMAT,
            "bundle": self.bundle.digest,
            "records": found.records,
            "center": None if found.center is None else found.center.tolist(),
            "threshold": found.threshold,
            "quantile": found.quantile,
        }
        write_json(path, value, 0o600)

    def load_calibration(self, path: Path) -> Self:
        """Take the calibration that `save_calibration` wrote.

        Raises:
            DataError: the file is absent, damaged, or was made with another bundle.
            BundleError: the bundle has no re-centred threshold.
        """
        value = read_json(path)
        if not isinstance(value, dict) or set(value) != _KEYS:
            raise DataError(
                f"Expected a saved calibration in {path}, got something else; calibrate again."
            )
        if value["format"] != CALIBRATION_FORMAT or value["bundle"] != self.bundle.digest:
            raise DataError(
                f"Expected a calibration made with this bundle in {path}, got another's; "
                "calibrate on normal records with this bundle."
            )
        found = _calibration(value, len(self.density.mean))
        if found is None:
            raise DataError(
                f"Expected a saved calibration in {path}, got a damaged one; calibrate again."
            )
        if found.center is not None:
            self._require_recentring()
        return replace(self, calibration=found)

    def info(self) -> dict[str, object]:
        """What a person wants to know, as JSON-ready values."""
        manifest = self.bundle.manifest
        thresholds, privacy = manifest.thresholds, manifest.privacy
        own = manifest.kind == "site"  # holds exact statistics, which no epsilon covers
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
            "epsilon": None if privacy is None or own else privacy.epsilon,
            "epsilon_released": None if privacy is None else privacy.epsilon,
            "delta": None if privacy is None else privacy.delta,
            "noise_rng": None if privacy is None else privacy.rng,
            "rounds": manifest.training.rounds,
            "clients": manifest.training.clients,
            "signed_by": self.bundle.key_id,
            "sha256": self.bundle.digest,
            "model_bytes": sum(len(data) for data in self.bundle.files.values()),
            "golden_error": self.golden_error,
            "precision": manifest.runtime.precision,
            "format": manifest.runtime.format,
            "target": manifest.runtime.target,
            "hardware": manifest.runtime.hardware,
            "expires": manifest.expires,
            **self.calibration_info(),
        }

    def calibration_info(self) -> dict[str, object]:
        """What this device learnt, as JSON-ready values."""
        found = self.calibration
        return {
            "recentred_on": None if found is None or found.center is None else found.records,
            "calibrated_on": None if found is None or found.threshold is None else found.records,
        }

    @property
    def scored_by(self) -> str:
        """The output that is compared with the threshold."""
        return SCORE if self.center is None else RECENTRED

    def _require_recentring(self) -> None:
        if self.bundle.manifest.thresholds.recentred is None:
            raise BundleError(
                "Expected a bundle with a re-centred threshold, got one without; score with it as "
                "it is, or use a bundle that can be re-centred."
            )


def _calibration(value: Mapping[str, object], latent_dim: int) -> Calibration | None:
    """A calibration from JSON values, or None when one of them is not what it must be."""
    records, center = value["records"], value["center"]
    threshold, quantile = value["threshold"], value["quantile"]
    if not isinstance(records, int) or isinstance(records, bool) or records < 1:
        return None
    if center is None and threshold is None:
        return None
    if center is not None and not _are_numbers(center, latent_dim):
        return None
    if (threshold is None) != (quantile is None):
        return None
    if threshold is not None and not _are_numbers([threshold, quantile], 2):
        return None
    return Calibration(
        records=records,
        center=None if center is None else np.asarray(center, dtype=np.float64),
        threshold=threshold if threshold is None else float(cast(float, threshold)),
        quantile=quantile if quantile is None else float(cast(float, quantile)),
    )


def _are_numbers(value: object, count: int) -> bool:
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(type(item) in (int, float) and abs(item) < _MAX_LATENT for item in value)
