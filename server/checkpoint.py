"""Checkpoints of a run: the last two completed phases on disk, each whole or absent.

One checkpoint is a safetensors file and a JSON file that names its SHA-256; the JSON is written
last, so a checkpoint without it does not exist. Reading takes the newest one whose hashes hold.
"""

import contextlib
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from fedlatent.shared.errors import DataError
from fedlatent.shared.files import canonical_json, read_json, sha256_hex, write_atomic, write_json
from fedlatent.shared.wire import Arrays, below, under

KEPT = 2
_FORMAT = 3
_GROUPS = ("encoder", "density", "data", "mixture", "optimizer", "average", "scores")
_MOMENTS = "moments/"

_log = getLogger("fedlatent.server")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The whole state of a run after ``done`` phases; everything else is derived.

    Attributes:
        run_id: the run.
        digest: digest of its configuration.
        done: number of completed phases.
        encoder: the shared arrays that the next phase sends.
        moments: released moments by node id, of the newest moments phase.
        density: arrays of the latent density, of the newest moments phase.
        data: arrays of the scaling, or of the Gaussian of the data, once that phase is done.
        mixture: arrays of the latent mixture, of the newest mixture phase.
        scores: arrays of the density of the score's parts, once that phase is done.
        optimizer: state of the server optimiser.
        average: the shared arrays averaged over rounds, where the run wants that.
        thresholds: "absolute" and "recentred", once the threshold phase is done.
        sites: public facts of each site's last good reply, by site name.
        history: one entry for each completed phase.
    """

    run_id: str
    digest: str
    done: int
    encoder: Arrays
    moments: dict[int, np.ndarray] = field(default_factory=dict)
    density: Arrays = field(default_factory=dict)
    data: Arrays = field(default_factory=dict)
    mixture: Arrays = field(default_factory=dict)
    scores: Arrays = field(default_factory=dict)
    optimizer: Arrays = field(default_factory=dict)
    average: Arrays = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    sites: dict[str, dict[str, object]] = field(default_factory=dict)
    history: list[dict[str, object]] = field(default_factory=list)


class CheckpointStore:
    """Reads and writes the checkpoints in one folder."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``; it is made on the first save."""
        self.folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint`` durably, then forget all but the last two."""
        data = save_arrays(_flatten(checkpoint))
        facts = {
            "format": _FORMAT,
            "run_id": checkpoint.run_id,
            "digest": checkpoint.digest,
            "done": checkpoint.done,
            "thresholds": checkpoint.thresholds,
            "sites": checkpoint.sites,
            "history": checkpoint.history,
            "arrays_sha256": sha256_hex(data),
        }
        write_atomic(self._arrays(checkpoint.done), data)
        write_json(
            self._facts(checkpoint.done), {**facts, "sha256": sha256_hex(canonical_json(facts))}
        )
        for number in self._numbers()[:-KEPT]:
            self._facts(number).unlink()
            with contextlib.suppress(FileNotFoundError):
                self._arrays(number).unlink()

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint; None when there never was one.

        Raises:
            DataError: there are checkpoints, but each of them is damaged.
        """
        numbers = self._numbers()
        for number in reversed(numbers):
            try:
                return self._read(number)
            except DataError as error:
                _log.warning("checkpoint %d is damaged and is passed over: %s", number, error)
        if numbers:
            raise DataError(
                f"Expected a whole checkpoint in {self.folder}, got {len(numbers)} damaged; "
                "restore the folder from a backup or start a new run."
            )
        return None

    def _read(self, number: int) -> Checkpoint:
        facts = read_json(self._facts(number))
        if not isinstance(facts, dict):
            raise DataError("Expected a JSON object, got another value.")
        if facts.pop("sha256", None) != sha256_hex(canonical_json(facts)):
            raise DataError("Expected facts that fit their hash, got others.")
        if facts["format"] != _FORMAT:
            raise DataError(f"Expected checkpoint format {_FORMAT}, got {facts['format']}.")
        try:
            data = self._arrays(number).read_bytes()
        except OSError as error:
            raise DataError(f"Expected readable arrays, got: {error.strerror}.") from None
        if sha256_hex(data) != facts["arrays_sha256"]:
            raise DataError("Expected arrays that fit their hash, got others.")
        try:
            arrays = load_arrays(data)
        except SafetensorError as error:
            raise DataError(f"Expected safetensors arrays, got: {error}.") from None
        moments = below(arrays, _MOMENTS)
        return Checkpoint(
            run_id=facts["run_id"],
            digest=facts["digest"],
            done=facts["done"],
            **{group: below(arrays, f"{group}/") for group in _GROUPS},
            moments={int(node): moments[node] for node in sorted(moments, key=int)},
            thresholds=facts["thresholds"],
            sites=facts["sites"],
            history=facts["history"],
        )

    def _numbers(self) -> list[int]:
        names = [path.stem for path in self.folder.glob("phase-*.json")]
        return sorted(int(name.removeprefix("phase-")) for name in names)

    def _arrays(self, number: int) -> Path:
        return self.folder / f"phase-{number:06d}.safetensors"

    def _facts(self, number: int) -> Path:
        return self.folder / f"phase-{number:06d}.json"


def _flatten(checkpoint: Checkpoint) -> Arrays:
    moments = {str(node): value for node, value in checkpoint.moments.items()}
    flat = under(_MOMENTS, moments)
    for group in _GROUPS:
        flat |= under(f"{group}/", getattr(checkpoint, group))
    return {key: np.ascontiguousarray(value) for key, value in flat.items()}
