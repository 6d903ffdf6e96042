"""Checkpoints of a run: the last two completed phases on disk, each whole or absent.

One checkpoint is a safetensors file and a JSON file that names its SHA-256; the JSON is written
last, so a checkpoint without it does not exist. Reading takes the newest one whose hashes hold.
"""

import contextlib
from dataclasses import dataclass, field, replace
from logging import getLogger
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from fedlatent.shared.arrays import Arrays, add_prefix, strip_prefix
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import canonical_json, read_json, sha256_hex, write_atomic, write_json
from fedlatent.shared.summaries import Federated, form_of, names_of, read_stored, stored_name

KEPT = 2
_FORMAT = 3
_GROUPS = ("encoder", "optimizer", "average")
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
        released: what the summaries have been pooled into so far.
        optimizer: state of the server optimiser.
        average: the shared arrays averaged over rounds, where the run wants that.
        sites: public facts of each site's last good reply, by site name.
        history: one entry for each completed phase.
    """

    run_id: str
    digest: str
    done: int
    encoder: Arrays
    released: Federated = field(default_factory=Federated)
    optimizer: Arrays = field(default_factory=dict)
    average: Arrays = field(default_factory=dict)
    sites: dict[str, dict[str, object]] = field(default_factory=dict)
    history: list[dict[str, object]] = field(default_factory=list)


class CheckpointStore:
    """Reads and writes the checkpoints in one folder."""

    def __init__(self, folder: Path, run: RunConfig) -> None:
        """Use ``folder`` for the checkpoints of ``run``; it is made on the first save."""
        self.folder = folder
        self._run = run

    def save(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint`` durably, then forget all but the last two."""
        data = save_arrays(_flatten(checkpoint))
        facts = {
            "format": _FORMAT,
            "run_id": checkpoint.run_id,
            "digest": checkpoint.digest,
            "done": checkpoint.done,
            "thresholds": dict(checkpoint.released.thresholds),
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
        moments = strip_prefix(arrays, _MOMENTS)
        by_node = {int(node): moments[node] for node in sorted(moments, key=int)}
        names = map(stored_name, names_of(self._run))
        released = read_stored(self._run, {n: strip_prefix(arrays, f"{n}/") for n in names})
        return Checkpoint(
            run_id=facts["run_id"],
            digest=facts["digest"],
            done=facts["done"],
            **{group: strip_prefix(arrays, f"{group}/") for group in _GROUPS},
            released=replace(
                released, form=form_of(by_node), moments=by_node, thresholds=facts["thresholds"]
            ),
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
    released = checkpoint.released
    flat = add_prefix(_MOMENTS, {str(node): value for node, value in released.moments.items()})
    own = {group: getattr(checkpoint, group) for group in _GROUPS}
    for group, arrays in (own | released.stored()).items():
        flat |= add_prefix(f"{group}/", arrays)
    return {key: np.ascontiguousarray(value) for key, value in flat.items()}
