"""Local state of a node: decoder and optimiser between rounds, and what a site bundle needs.

Below the store's folder, one folder per run::

    <run>/round-<round>-<entry>.safetensors   decoder and optimiser after one training round
    <run>/site.safetensors                    what ``export site`` reads, written at ``threshold``

Each is one file with its JSON in the safetensors metadata, written atomically, mode 0600. Nothing
here ever leaves the node. A round's state carries the number of the ledger entry that paid for
it; only the state of a released entry is ever continued from. Otherwise a first attempt that
crashed could live on in later rounds beside its repetition: two draws of noise for one charge.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from fedlatent.shared.arrays import add_prefix, strip_prefix
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.scaling import Scaling
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import canonical_json, write_atomic
from fedlatent.shared.privacy.noise import RngName
from fedlatent.shared.privacy.summaries import LatentDensity

#: Training rounds whose state is kept; a server may go back one checkpoint, a node one attempt.
KEEP_ROUNDS = 3

_META = "json"
_MODE = 0o600


@dataclass(frozen=True, kw_only=True)
class RoundState:
    """What a training round leaves for the next one.

    Attributes:
        decoder: every model tensor outside the encoder, by state-dict name.
        optimizer: the optimiser's tensors, as ``trainer.TrainResult`` has them.
        entry: number of the ledger's entry that paid for the round; None outside a ledger.
    """

    decoder: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    entry: int | None = None

    def finite(self) -> "RoundState":
        """The same, clamped as the release door clamps what it lets out of a diverged round."""
        decoder, optimizer = (
            {key: torch.nan_to_num(value) for key, value in tensors.items()}
            for tensors in (self.decoder, self.optimizer)
        )
        return RoundState(decoder=decoder, optimizer=optimizer, entry=self.entry)


@dataclass(frozen=True, kw_only=True)
class SiteMaterial:
    """Everything an ``export site`` needs, in one object.

    Attributes:
        run_id: the run it comes from.
        config: of that run; gives model family, schema and scoring.
        encoder: the final released encoder, float32 by full state-dict name.
        decoder: this site's own decoder, float32 by full state-dict name; trained with DP-SGD
            beside the encoder of its last round, and never released.
        density: of the latents of all clients.
        center: this site's latent mean [k], from its released moments.
        records: number of this site's records.
        epsilon: spent on this site's records when the threshold was paid, or None without privacy.
        delta: of that epsilon.
        rng: of the worst release in that epsilon.
        scaling: of the records' features, or None.
        person_records: most records of one person, or None where persons are not known.
        person_epsilon: spent on one person when the threshold was paid, or None as above or
            without privacy.
    """

    run_id: str
    config: RunConfig
    encoder: dict[str, np.ndarray]
    decoder: dict[str, np.ndarray]
    density: LatentDensity
    center: np.ndarray
    records: int
    epsilon: float | None
    delta: float
    rng: RngName
    scaling: Scaling | None = None
    person_records: int | None = None
    person_epsilon: float | None = None


class Store:
    """The state files of one node."""

    def __init__(self, root: Path) -> None:
        """Use ``root``, which is made at the first write."""
        self._root = root

    def save(self, run_id: str, round: int, entry: int, state: RoundState) -> None:
        """Write the state after ``round``, computed under ledger entry ``entry``; drop old ones."""
        tensors = {f"decoder/{key}": value for key, value in state.decoder.items()}
        tensors |= {f"optimizer/{key}": value for key, value in state.optimizer.items()}
        _write(self._folder(run_id) / f"round-{round:06d}-{entry}.safetensors", tensors, {})
        files = self._files(run_id)
        kept = sorted({number for number, _, _ in files})[-KEEP_ROUNDS:]
        for number, _, path in files:
            if number not in kept:
                path.unlink(missing_ok=True)

    def load(self, run_id: str, before: int, released: Callable[[int], bool]) -> RoundState | None:
        """The newest usable state of a round before ``before``; None when there is none.

        Args:
            run_id: the run.
            before: the round about to be trained.
            released: whether the ledger entry of that number has been released.

        Raises:
            DataError: the file is damaged.
        """
        for number, entry, path in reversed(self._files(run_id)):
            if number < before and released(entry):
                tensors, _ = _read(path)
                return RoundState(
                    decoder=_under("decoder/", tensors),
                    optimizer=_under("optimizer/", tensors),
                    entry=entry,
                )
        return None

    def save_site(self, material: SiteMaterial) -> None:
        """Write what a site bundle needs, replacing that of an earlier threshold of the run."""
        arrays = {
            **material.encoder,
            **material.decoder,
            **add_prefix("density.", material.density.arrays()),
            "center": material.center,
        }
        if material.scaling is not None:
            arrays |= add_prefix("scaling.", material.scaling.arrays())
        meta = {
            "run_id": material.run_id,
            "config": material.config.to_json(),
            "decoder": sorted(material.decoder),
            "encoder": sorted(material.encoder),
            "records": material.records,
            "epsilon": material.epsilon,
            "delta": material.delta,
            "rng": material.rng,
            "person_records": material.person_records,
            "person_epsilon": material.person_epsilon,
        }
        tensors = {key: torch.tensor(np.asarray(value)) for key, value in arrays.items()}
        _write(self._folder(material.run_id) / "site.safetensors", tensors, meta)

    def load_site(self, run_id: str) -> SiteMaterial:
        """Read what ``save_site`` wrote.

        Raises:
            DataError: the run has not reached its threshold here, or the file is damaged.
        """
        tensors, meta = _read(self._folder(run_id) / "site.safetensors")
        arrays = {key: value.numpy() for key, value in tensors.items()}
        run = RunConfig.from_json(meta["config"])
        scaling = strip_prefix(arrays, "scaling.")
        return SiteMaterial(
            run_id=meta["run_id"],
            config=run,
            encoder={key: arrays[key] for key in meta["encoder"]},
            decoder={key: arrays[key] for key in meta["decoder"]},
            density=LatentDensity.from_arrays(strip_prefix(arrays, "density.")),
            center=arrays["center"],
            records=meta["records"],
            epsilon=meta["epsilon"],
            delta=meta["delta"],
            rng=meta.get("rng", run.privacy.rng),  # files of older releases do not say
            scaling=Scaling.from_arrays(scaling, run.data) if scaling else None,
            person_records=meta.get("person_records"),
            person_epsilon=meta.get("person_epsilon"),
        )

    def site_runs(self) -> list[str]:
        """Runs for which ``load_site`` has something, the latest written last."""
        found = sorted(self._root.glob("*/site.safetensors"), key=lambda p: p.stat().st_mtime_ns)
        return [path.parent.name for path in found]

    def _folder(self, run_id: str) -> Path:
        return self._root / run_id

    def _files(self, run_id: str) -> list[tuple[int, int, Path]]:
        """Round, entry and path of each state, in that order."""
        paths = self._folder(run_id).glob("round-*.safetensors")
        parts = [(path.stem.split("-"), path) for path in paths]
        return sorted((int(part[1]), int(part[2]), path) for part, path in parts)


def _write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
    whole = {key: value.contiguous() for key, value in tensors.items()}
    write_atomic(path, save_tensors(whole, {_META: canonical_json(dict(meta)).decode()}), _MODE)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as archive:
            tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
            meta = json.loads((archive.metadata() or {})[_META])
    except FileNotFoundError:
        raise DataError(
            f"Expected saved state at {path}, got none; let the run finish on this node."
        ) from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"Expected saved state in {path}, got a damaged file ({type(error).__name__}); "
            "remove it."
        ) from None
    return tensors, meta


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
