"""One experiment on every grid: in one process, on Flower's engine, and over real services."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.journal import SHORT, read_journal
from fedlatent.server.home import ServerHome
from fedlatent.server.registry import Registry
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.processes import marked_processes
from fedlatent.simulations.deployed import run_deployed
from fedlatent.simulations.federation import Engine, Progress, Simulation, datasets, simulate
from fedlatent.simulations.flower import run_on_flower
from tests.simulations.support import simulated_ledger, tiny_federation, tiny_run

SITES, ROUNDS = 3, 3
PHASES = [
    *("data", "train", "train", "moments", "mixture"),
    *("train", "moments", "mixture", "scores", "threshold"),
]

ENGINES: tuple[Engine, ...] = ("nodes", "stacked")
OUTSIDE = ("flower", "deployed")
GRIDS = ("stacked", *OUTSIDE)

pytest.importorskip("ray", reason="Flower's simulation engine needs Ray")


def experiment(federation: Federation) -> RunConfig:
    """Three rounds and every kind of summary; deadlines that a loaded machine keeps.

    The records' Gaussian warms the first weights, and a mixture becomes the last round's prior.
    """
    return tiny_run(
        federation,
        sharing="encoder+summary",
        training={"rounds": ROUNDS, "steps_per_round": 3, "warm_start_steps": 3},
        summaries={
            "data": "gaussian",
            "features": 8,
            "every": 2,
            "prior": "mixture",
            "components": 2,
            "em_rounds": 1,
        },
        scoring={"combined": True},
        federation={
            "nodes": len(federation.sites),
            "quorum": len(federation.sites),
            "join_timeout_s": 480.0,
            "round_deadline_s": 480.0,
        },
    )


class Grids:
    """The experiment's outcome on each grid, and what was said on the way."""

    def __init__(self, folder: Path) -> None:
        """Run it everywhere; real services mostly wait, so all the rest runs meanwhile."""
        self.federation = tiny_federation(SITES)
        self.run = experiment(self.federation)
        self.folder = folder
        self.told: dict[str, list[Progress]] = {name: [] for name in OUTSIDE}
        self.simulations: dict[str, Simulation] = {}
        self.interrupted: dict[int, str] = {}
        sites = datasets(self.federation)
        with ThreadPoolExecutor(1) as background:
            deployed = background.submit(self._outside, "deployed", run_deployed)
            for engine in ENGINES:
                self.simulations[engine] = simulate(self.run, sites, folder / engine, engine=engine)
            self._outside("flower", run_on_flower)
            with pytest.raises(KeyboardInterrupt):
                run_on_flower(
                    self.run, self.federation, folder / "interrupted", watch=self._interrupt
                )
            deployed.result()

    def _outside(self, name: str, runner: Callable[..., Simulation]) -> None:
        self.simulations[name] = runner(
            self.run, self.federation, self.folder / name, watch=self.told[name].append
        )

    def _interrupt(self, progress: Progress) -> None:
        """Note what runs in the second phase, and interrupt."""
        if progress.phase > 1:
            services = ServerHome(self.folder / "interrupted" / "server").services.resolve()
            self.interrupted.update(marked_processes(services))
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Grids:
    """All four outcomes."""
    return Grids(tmp_path_factory.mktemp("grids"))


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_gives_the_same_result(grids: Grids, grid: str) -> None:
    """Encoder, density and thresholds equal those of real nodes in one process."""
    wanted, found = grids.simulations["nodes"].result, grids.simulations[grid].result
    assert found.arrays.keys() == wanted.arrays.keys()
    for key, value in wanted.arrays.items():
        np.testing.assert_allclose(found.arrays[key], value, rtol=1e-4, atol=1e-6, err_msg=key)
    assert found.released.stored().keys() == wanted.released.stored().keys()
    for name, arrays in wanted.released.stored().items():
        for key, value in arrays.items():
            other = found.released.stored()[name][key]
            np.testing.assert_allclose(other, value, rtol=1e-4, atol=1e-6, err_msg=key)
    thresholds = wanted.released.thresholds
    assert found.released.thresholds == pytest.approx(thresholds, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_costs_the_same(grids: Grids, grid: str) -> None:
    """Each site, by its own name, took part in all phases with its records and its epsilon."""
    wanted, found = (grids.simulations[one].result.facts["sites"] for one in ("nodes", grid))
    assert isinstance(wanted, dict)
    assert isinstance(found, dict)
    assert found.keys() == wanted.keys()
    for site, facts in wanted.items():
        own = found[site]
        assert (own["records"], own["phases"]) == (facts["records"], facts["phases"])
        assert own["epsilon"] == pytest.approx(facts["epsilon"], abs=1e-9)


@pytest.mark.parametrize("grid", OUTSIDE)
def test_the_ledgers_of_outside_grids_hold_the_plan(grids: Grids, grid: str) -> None:
    """Every node's own ledger says the plan's epsilon, and its material names the same run."""
    simulation, privacy = grids.simulations[grid], grids.run.privacy
    assert len(simulation.homes) == SITES
    for site, home in simulation.homes.items():
        ledger = simulated_ledger(home, privacy.epsilon, privacy.delta)
        assert ledger.epsilon() == pytest.approx(PrivacyPlan.from_config(grids.run).epsilon())
        wanted, found = (grids.simulations[one].material(site) for one in ("nodes", grid))
        assert found.run_id == wanted.run_id
        for key, value in wanted.decoder.items():
            np.testing.assert_allclose(found.decoder[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("grid", OUTSIDE)
def test_the_registry_tells_the_history(grids: Grids, grid: str) -> None:
    """Every phase is in the history with its clients, cost and traffic, and was told meanwhile."""
    history = grids.simulations[grid].history
    reference = grids.simulations["nodes"].history
    assert [(one.number, one.kind) for one in history] == list(enumerate(PHASES, 1))
    for one, wanted in zip(history, reference, strict=True):
        assert (one.asked, one.good, one.late, one.away) == (SITES, SITES, 0, 0)
        assert one.seconds > 0
        assert one.loss is None
        assert one.epsilon == pytest.approx(wanted.epsilon, abs=1e-9)
        assert (one.bytes_up, one.bytes_down) == (wanted.bytes_up, wanted.bytes_down)
    told = grids.told[grid]
    assert [one.phase for one in told] == sorted(one.phase for one in told)
    assert {one.phases for one in told} == {len(PHASES)}
    assert (told[-1].phase, told[-1].answered) == (len(PHASES), SITES)


@pytest.mark.parametrize("grid", ["nodes", *OUTSIDE])
def test_what_a_site_logged_is_what_the_server_got(grids: Grids, grid: str) -> None:
    """The hash in each line of a site's log is that of the server's registry, in every phase."""
    simulation = grids.simulations[grid]
    with Registry(ServerHome(grids.folder / grid / "server").registry) as registry:
        (run,) = registry.runs()
        got = {(row.site, row.number): row.sha256 for row in registry.site_rounds(run.id)}
    assert len(set(got.values())) == len(got) == SITES * len(PHASES)
    logged: dict[tuple[str, int], str] = {}
    for site, home in simulation.homes.items():
        own = {line.round: line.sha256 for line in read_journal(home.release_journal).values}
        logged |= {(site, number): sha256 for number, sha256 in own.items()}
        text = home.release_log.read_text()
        assert all(f"sha256 {sha256[:SHORT]}" in text for sha256 in own.values())
    if grid == "flower":  # whose server knows its sites by Flower's numbers alone
        assert {(number, one) for (_, number), one in got.items()} == {
            (number, one) for (_, number), one in logged.items()
        }
    else:
        assert got == logged


@pytest.mark.parametrize("grid", OUTSIDE)
def test_nothing_is_left_running(grids: Grids, grid: str) -> None:
    """No process of the server's or a node's services lives on."""
    homes = grids.simulations[grid].homes.values()
    services = [ServerHome(grids.folder / grid / "server").services]
    services += [home.services for home in homes]
    assert [marked_processes(folder.resolve()) for folder in services] == [{}] * (SITES + 1)


def test_an_interrupted_run_leaves_nothing(grids: Grids) -> None:
    """An interrupt in the midst of a run ends Flower's engine, Ray and all."""
    commands = " ".join(grids.interrupted.values())
    assert all(name in commands for name in ("flower-superlink", "raylet", "ray::"))
    assert [pid for pid in grids.interrupted if living(pid)] == []


def living(pid: int) -> bool:
    """Whether a process runs; a dead one that waits to be reaped does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
