"""The result folder of a run: shared weights, latent density, and the facts about both.

``result.json`` is written last and names the SHA-256 of the other files, so a result is whole or
absent; writing it again gives the same bytes.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from fedlatent.server.checkpoint import Checkpoint
from fedlatent.shared.arrays import Arrays, add_prefix, strip_prefix
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import DataError
from fedlatent.shared.files import read_json, sha256_hex, write_atomic, write_json
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.privacy.threshold import silent
from fedlatent.shared.summaries import (
    Federated,
    latent_radius,
    names_of,
    read_stored,
    stored_name,
)
from fedlatent.shared.wire import PROTOCOL

FACTS = "result.json"
DENSITY = "density.safetensors"
EXTRA = "extra.safetensors"
_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What a finished run gives.

    Attributes:
        folder: the result folder.
        config: the run configuration.
        arrays: the shared arrays: the encoder, or all parameters when the run shares "full".
        released: what the summaries were pooled into, thresholds among it.
        facts: the whole of ``result.json``.
    """

    folder: Path
    config: RunConfig
    arrays: Arrays
    released: Federated
    facts: dict[str, object]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a result folder and check its hashes.

        Raises:
            DataError: a file is absent, damaged or not from the same run.
        """
        facts = read_json(folder / FACTS)
        if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
            raise DataError(
                f"Expected a result of format {_FORMAT} in {folder / FACTS}, got another file."
            )
        try:
            config = RunConfig.parse(facts["config"], str(folder / FACTS))
            read = {
                part: _load(folder, facts[part]["file"], facts[part]["sha256"])
                for part in ("model", "density", "extra")
            }
            groups = {
                name: strip_prefix(read["extra"], f"{name}.")
                for name in map(stored_name, names_of(config))
            }
            released = replace(
                read_stored(config, {**groups, "density": read["density"]}),
                form="diagonal" if facts.get("moments") == "diagonal" else "full",
                thresholds={k: v for k, v in facts["thresholds"].items() if k != "quantile"},
            )
        except (KeyError, TypeError) as error:
            raise DataError(
                f"Expected a whole result in {folder / FACTS}, got one without {error}; "
                "resume the run to write it again."
            ) from None
        return cls(
            folder=folder,
            config=config,
            arrays=read["model"],
            released=released,
            facts=facts,
        )

    def files(self) -> dict[str, Path]:
        """The files of the result by artefact name."""
        return {
            "model": self.folder / model_file(self.config),
            "density": self.folder / DENSITY,
            "extra": self.folder / EXTRA,
            "result": self.folder / FACTS,
        }


def silent_ones(thresholds: Mapping[str, float]) -> tuple[str, ...]:
    """Names of the thresholds in the last bin of scores."""
    return tuple(name for name, value in thresholds.items() if silent(value))


def model_file(config: RunConfig) -> str:
    """Name of the weights file of a run."""
    return "model.safetensors" if config.shares_decoder else "encoder.safetensors"


def write_result(
    state: Checkpoint, config: RunConfig, plan: PrivacyPlan, latent_dim: int, folder: Path
) -> RunFolder:
    """Write the result of a run whose phases are all done."""
    released = state.released
    parts = released.stored()
    density = parts.pop("density")
    extra: Arrays = {}
    for name, arrays in parts.items():
        extra |= add_prefix(f"{name}.", arrays)
    files = {
        "model": (model_file(config), save_arrays(state.encoder)),
        "density": (DENSITY, save_arrays(density)),
        "extra": (EXTRA, save_arrays(extra)),
    }
    finished = state.history[-1]["finished"]
    facts: dict[str, object] = {
        "format": _FORMAT,
        "protocol": PROTOCOL,
        "run_id": state.run_id,
        "digest": state.digest,
        "created": datetime.fromtimestamp(float(str(finished)), UTC).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "plan": plan_facts(plan),
        "rounds": state.history,
        "sites": state.sites,
        "latent_dim": latent_dim,
        "moments": released.form,
        "radius": latent_radius(config, latent_dim),
        "thresholds": {"quantile": config.scoring.quantile, **released.thresholds},
        "silent": silent_ones(released.thresholds),
    }
    for part, (name, data) in files.items():
        write_atomic(folder / name, data)
        facts[part] = {"file": name, "sha256": sha256_hex(data), "bytes": len(data)}
    write_json(folder / FACTS, facts)
    return RunFolder.load(folder)


def plan_facts(plan: PrivacyPlan) -> dict[str, object]:
    """The plan's public numbers, with the epsilon they add up to (null when not private).

    ``epsilon`` is by RDP, by which the plan was solved and clients charge.
    """
    epsilon, tighter = plan.epsilon(), plan.pld_epsilon()
    return {
        **dataclasses.asdict(plan),
        "summaries": {
            kind: {"releases": count, "noise_multiplier": sigma}
            for kind, count, sigma in plan.summaries
        },
        "epsilon": epsilon if math.isfinite(epsilon) else None,
        "epsilon_pld": tighter if math.isfinite(tighter) else None,
        "adjacency": "zero-out",
        "unit": "record",
    }


def _load(folder: Path, name: str, digest: str) -> Arrays:
    try:
        data = (folder / Path(name).name).read_bytes()
    except OSError as error:
        raise DataError(
            f"Expected a readable file {name} in {folder}, got: {error.strerror}."
        ) from None
    if sha256_hex(data) != digest:
        raise DataError(
            f"Expected {folder / name} to fit its hash, got other bytes; resume the run."
        )
    try:
        return load_arrays(data)
    except SafetensorError as error:
        raise DataError(f"Expected safetensors in {folder / name}, got: {error}.") from None
