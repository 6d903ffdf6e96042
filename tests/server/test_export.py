"""The global bundle of a finished run scores as the run's own evaluation does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.server.export import export_global, global_contents
from fedlatent.server.home import ServerHome
from fedlatent.shared.bundle.archive import DECODER
from fedlatent.shared.errors import ConfigError
from fedlatent.shared.keys import SigningKey
from fedlatent.simulations.federation import Simulation, datasets, simulate
from fedlatent.simulations.study.evaluation import combined_detector, global_detector
from tests.simulations.support import tiny_federation, tiny_run


def finished(folder: Path, **sections: object) -> tuple[Simulation, ServerHome, np.ndarray]:
    """A finished tiny run with these sections, its home with a key, and raw test records."""
    federation = tiny_federation()
    run = tiny_run(federation, **sections)
    simulation = simulate(run, datasets(federation), folder)
    home = ServerHome(folder / "server")
    SigningKey.generate(home.signing_key)
    return simulation, home, np.concatenate([site.test for site in federation.sites])


def load(home: ServerHome, **options: object) -> EdgeModel:
    """The device's view of the exported bundle."""
    report = export_global(home, **options)  # type: ignore[arg-type]
    return EdgeModel.load(report.path, [SigningKey.load(home.signing_key).public])


@pytest.mark.parametrize(
    "sections",
    [
        {"scoring": {"combined": True}},
        {"scoring": {"combined": True}, "summaries": {"data": "gaussian", "features": 12}},
        {"scoring": {"combined": True}, "sharing": "full"},
    ],
    ids=["latents", "data", "decoder"],
)
def test_a_combined_score_reaches_the_device(tmp_path: Path, sections: dict[str, object]) -> None:
    """Where clients released a density of parts, the bundle flags by it and its threshold."""
    simulation, home, raw = finished(tmp_path, **sections)
    detector = combined_detector(simulation.result)
    assert detector is not None
    edge = load(home)
    table = edge.score(raw)
    np.testing.assert_allclose(table.score, detector(raw), rtol=1e-4, atol=1e-4)
    assert table.threshold == simulation.result.released.thresholds["combined"]
    parts = (
        set(simulation.result.released.scores.names) if simulation.result.released.scores else set()
    )
    assert parts <= set(table.parts)
    moved = edge.recentre(raw[:10], anyway=True)
    assert moved.score(raw).threshold == simulation.result.released.thresholds["recentred"]


def test_without_it_the_latent_distance_is_the_score(tmp_path: Path) -> None:
    """A plain run's bundle scores by the released latent density alone."""
    simulation, home, raw = finished(tmp_path)
    table = load(home).score(raw)
    beside = table.score - table.threshold
    np.testing.assert_allclose(beside, global_detector(simulation.result)(raw), rtol=1e-4)
    assert table.threshold == simulation.result.released.thresholds["absolute"]


def test_only_a_shared_decoder_is_exported(tmp_path: Path) -> None:
    """A run of sharing "full" can ship the decoder; any other refuses."""
    _, home, raw = finished(tmp_path / "full", sharing="full")
    assert DECODER in load(home, decoder=True).bundle.files
    _, plain, _ = finished(tmp_path / "plain")
    with pytest.raises(ConfigError, match="sharing 'full'"):
        export_global(plain, decoder=True)
    assert len(raw) > 0


def test_a_threshold_that_flags_nothing_is_not_exported(tmp_path: Path) -> None:
    """A threshold in the last bin is refused in one sentence that names it."""
    simulation, _, _ = finished(tmp_path)
    thresholds = {"absolute": 10_000.0, "recentred": 3.0}
    released = replace(simulation.result.released, thresholds=thresholds)
    silenced = replace(simulation.result, released=released)
    with pytest.raises(ConfigError, match="flag something, got that of absolute scores"):
        global_contents(silenced, "run")
    assert global_contents(simulation.result, "run").thresholds.absolute
