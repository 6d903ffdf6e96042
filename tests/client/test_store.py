"""The local store."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedlatent.client.store import KEEP_ROUNDS, RoundState, SiteMaterial, Store
from fedlatent.shared.errors import DataError
from fedlatent.shared.privacy.summaries import LatentDensity
from tests.client.support import tiny_run


def state(value: float) -> RoundState:
    """A state filled with one number."""
    return RoundState(
        decoder={"decoder.0.weight": torch.full((2, 3), value)},
        optimizer={"encoder.0.weight/exp_avg": torch.full((2,), value)},
    )


def value_of(loaded: RoundState | None) -> float | None:
    """The number a state is filled with."""
    return None if loaded is None else float(loaded.decoder["decoder.0.weight"][0, 0])


def test_state_round_trip(tmp_path: Path) -> None:
    """Decoder and optimiser come back as they were, and only their owner may read them."""
    Store(tmp_path).save("r", 1, 7, state(1.5))
    loaded = Store(tmp_path).load("r", 2, {7}.__contains__)
    assert loaded is not None
    assert torch.equal(loaded.decoder["decoder.0.weight"], torch.full((2, 3), 1.5))
    assert torch.equal(loaded.optimizer["encoder.0.weight/exp_avg"], torch.full((2,), 1.5))
    (path,) = tmp_path.rglob("*.safetensors")
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_earlier_released_rounds_are_used(tmp_path: Path) -> None:
    """A retry starts from the round before, and a state whose release never left is passed over."""
    store = Store(tmp_path)
    store.save("r", 1, 1, state(1.0))
    store.save("r", 2, 2, state(2.0))
    assert value_of(store.load("r", 3, {1, 2}.__contains__)) == 2.0
    assert value_of(store.load("r", 2, {1, 2}.__contains__)) == 1.0
    assert value_of(store.load("r", 3, {1}.__contains__)) == 1.0
    assert store.load("r", 1, {1, 2}.__contains__) is None
    assert store.load("other", 3, {1, 2}.__contains__) is None


def test_second_request_of_a_round_has_its_own_state(tmp_path: Path) -> None:
    """Of two paid requests of one round the later one is continued from."""
    store = Store(tmp_path)
    store.save("r", 1, 9, state(1.0))
    store.save("r", 1, 10, state(2.0))
    assert value_of(store.load("r", 2, {9, 10}.__contains__)) == 2.0


def test_old_states_are_dropped(tmp_path: Path) -> None:
    """Only the last rounds stay on disk."""
    store = Store(tmp_path)
    for number in range(1, 8):
        store.save("r", number, number, state(float(number)))
    assert len(list(tmp_path.rglob("*.safetensors"))) == KEEP_ROUNDS
    assert value_of(store.load("r", 8, lambda entry: True)) == 7.0


def test_damaged_state_is_named(tmp_path: Path) -> None:
    """A damaged file is an error that names it."""
    store = Store(tmp_path)
    store.save("r", 1, 1, state(1.0))
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="damaged"):
        store.load("r", 2, {1}.__contains__)


def test_site_material_round_trip(tmp_path: Path) -> None:
    """What a site bundle needs comes back whole, without the node."""
    material = SiteMaterial(
        run_id="r",
        config=tiny_run(),
        encoder={"encoder.0.weight": np.ones((2, 3), np.float32)},
        decoder={"decoder.0.weight": np.zeros((3, 2), np.float32)},
        density=LatentDensity(
            count=10.0, mean=np.arange(2.0), covariance=np.eye(2), within=2 * np.eye(2)
        ),
        center=np.array([0.5, -0.5]),
        records=200,
        epsilon=3.5,
        delta=1e-5,
        rng="simulation",
    )
    store = Store(tmp_path)
    assert store.site_runs() == []
    store.save_site(material)
    loaded = Store(tmp_path).load_site("r")
    assert (loaded.run_id, loaded.config, loaded.records) == ("r", tiny_run(), 200)
    assert (loaded.epsilon, loaded.delta, loaded.rng) == (3.5, 1e-5, "simulation")
    np.testing.assert_array_equal(loaded.encoder["encoder.0.weight"], np.ones((2, 3)))
    np.testing.assert_array_equal(loaded.decoder["decoder.0.weight"], np.zeros((3, 2)))
    np.testing.assert_array_equal(loaded.density.within, 2 * np.eye(2))
    np.testing.assert_array_equal(loaded.center, [0.5, -0.5])
    assert store.site_runs() == ["r"]
    with pytest.raises(DataError, match="let the run finish"):
        store.load_site("other")
