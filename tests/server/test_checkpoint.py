"""Checkpoints are whole or passed over."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlatent.server.checkpoint import Checkpoint, CheckpointStore
from fedlatent.shared.errors import DataError
from fedlatent.shared.summaries import example_state
from tests.server.federation import tiny_config

RUN = tiny_config(summaries={"data": "scaling", "components": 3}, scoring={"combined": True})


def checkpoint(done: int) -> Checkpoint:
    """A checkpoint with something in every field."""
    return Checkpoint(
        run_id="tiny-1",
        digest="d" * 64,
        done=done,
        encoder={"encoder.w": np.full((2, 2), done, np.float32)},
        released=replace(
            example_state(RUN, 2),
            moments={2: np.eye(2), 18446744073709551615: np.ones((2, 2))},
            thresholds={"absolute": 1.5, "recentred": 2.5},
        ),
        sites={"north": {"records": 3, "epsilon": None}},
        history=[{"number": 1, "finished": 12.25}],
    )


def test_round_trip(tmp_path: Path) -> None:
    """Every field comes back as it was saved, dtypes included."""
    store = CheckpointStore(tmp_path, RUN)
    assert store.load() is None
    saved = checkpoint(3)
    store.save(saved)
    loaded = store.load()
    assert loaded is not None
    for name in ("run_id", "digest", "done", "sites", "history"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert loaded.released.thresholds == saved.released.thresholds
    groups = [(saved.encoder, loaded.encoder), (saved.released.moments, loaded.released.moments)]
    parts = saved.released.stored(), loaded.released.stored()
    assert parts[0].keys() == parts[1].keys()
    groups += [(arrays, parts[1][name]) for name, arrays in parts[0].items()]
    for before, after in groups:
        assert list(before) == list(after)
        for key in before:
            np.testing.assert_array_equal(before[key], after[key], strict=True)


def test_two_generations_are_kept(tmp_path: Path) -> None:
    """Old checkpoints go, the last two stay."""
    store = CheckpointStore(tmp_path, RUN)
    for done in range(5):
        store.save(checkpoint(done))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "phase-000003.json",
        "phase-000003.safetensors",
        "phase-000004.json",
        "phase-000004.safetensors",
    ]


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_falls_back(tmp_path: Path, suffix: str, damage: str) -> None:
    """A newest checkpoint with one wrong bit, a cut or a missing file gives the one before."""
    store = CheckpointStore(tmp_path, RUN)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    path = tmp_path / f"phase-000002.{suffix}"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-7])
    else:
        path.unlink()
    loaded = store.load()
    assert loaded is not None
    assert loaded.done == 1


def test_all_damaged_is_said(tmp_path: Path) -> None:
    """A folder with damaged checkpoints alone is an error, not a start from the beginning."""
    store = CheckpointStore(tmp_path, RUN)
    store.save(checkpoint(1))
    (tmp_path / "phase-000001.json").write_text("{}")
    with pytest.raises(DataError, match="got 1 damaged"):
        store.load()
