"""The deployed path against the simulated one, through kill -9 of a whole server and a node.

Real processes: SuperLink, SuperExec and gateway; SuperNode, SuperExec and resident node for each
site, all started by the command line, over TLS on loopback.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.home import ClientHome
from fedlatent.server.control import Control
from fedlatent.server.home import ServerHome
from fedlatent.server.registry import Registry
from fedlatent.server.results import RunFolder
from fedlatent.server.service import ServerService, init_server
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import Federation
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.shared.processes import end_processes, marked_processes
from fedlatent.shared.supervisor import running_pid
from fedlatent.simulations.deployed import init_node
from fedlatent.simulations.federation import datasets, simulate
from tests.simulations.support import answers, simulated_ledger, tiny_federation, tiny_run

RUN_ID = "equal"
ROUNDS = 3


class Machine:
    """One server and its nodes as processes of the command line."""

    def __init__(self, folder: Path, federation: Federation, run: RunConfig) -> None:
        """Set all homes up; nothing starts."""
        self.server = ServerHome(folder / "server")
        init_server(self.server, port=0)
        self.address = ServerService(self.server).address
        self.port = int(self.address.rpartition(":")[2])
        self.nodes: dict[str, ClientHome] = {}
        self.started: list[subprocess.Popen[bytes]] = []
        for site in federation.sites:
            home = ClientHome(folder / site.name)
            init_node(home, site, run, self.address, self.server.ca_certificate.read_bytes())
            self.nodes[site.name] = home

    def start(self, side: str, home: Path) -> None:
        """Start ``fedlatent server`` or ``fedlatent client`` on ``home``."""
        with (home / f"start-{len(self.started)}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedlatent.cli.main", side, "start", "--home", str(home)],
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(process)

    def kill(self, services: Path) -> None:
        """SIGKILL the supervisor and every process it ever started."""
        supervisor = running_pid(services)
        assert supervisor is not None
        for pid in [supervisor, *marked_processes(services)]:
            with contextlib.suppress(ProcessLookupError):  # the warden was faster
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End whatever still runs."""
        for home in (self.server.services, *(node.services for node in self.nodes.values())):
            supervisor = running_pid(home)
            if supervisor is not None:
                os.kill(supervisor, signal.SIGKILL)
            end_processes(home)
        for process in self.started:
            process.wait(120)

    def complete(self) -> int:
        """Finished phases of the run."""
        with Registry(self.server.registry) as registry:
            return sum(one.status == "complete" for one in registry.rounds(RUN_ID))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Homes of a server and two nodes."""
    federation = tiny_federation(2)
    made = Machine(tmp_path / "deployed", federation, deployed_run(federation))
    yield made
    made.close()


def deployed_run(federation: Federation) -> RunConfig:
    """Three rounds with seeded noise, so that two paths can be compared."""
    return tiny_run(
        federation,
        training={"rounds": ROUNDS, "steps_per_round": 3},
        federation={"nodes": 2, "quorum": 2, "join_timeout_s": 480.0, "round_deadline_s": 45.0},
    )


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + 3 * timeout_s  # a busy machine
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {timeout_s} s"
        time.sleep(0.2)


def test_a_run_through_kills_equals_the_simulated_run(machine: Machine, tmp_path: Path) -> None:
    """After kill -9 of the server and of one node in mid-round the result is the calm one's.

    No phase is counted twice, every node pays exactly the plan, and the encoder, the density and
    the thresholds equal those of the same run in one process.
    """
    federation = tiny_federation(2)
    run = deployed_run(federation)
    calm = simulate(run, datasets(federation), tmp_path / "calm", run_id=RUN_ID).result
    machine.start("server", machine.server.root)
    until(lambda: running_pid(machine.server.services) is not None, 60, "the server's start")
    control = Control(machine.server)
    until(lambda: answers(machine.port), 60, "the gateway's start")
    for name, home in machine.nodes.items():
        control.admit(name, home.node_public_key)
        machine.start("client", home.root)
    control.submit(run, RUN_ID)
    until(lambda: machine.complete() >= 1, 120, "the first round")
    victim = next(iter(machine.nodes.values()))
    machine.kill(machine.server.services)
    machine.kill(victim.services)
    done_before = machine.complete()
    machine.start("server", machine.server.root)
    until(lambda: answers(machine.port), 60, "the gateway's second start")
    machine.start("client", victim.root)
    until(lambda: machine.complete() == ROUNDS + 2, 300, "the rest of the run")
    until(lambda: (machine.server.run(RUN_ID) / "result/result.json").exists(), 30, "the result")
    assert done_before < ROUNDS + 2
    _assert_equal(RunFolder.load(machine.server.run(RUN_ID) / "result"), calm)
    plan = PrivacyPlan.from_config(run)
    for home in machine.nodes.values():
        ledger = simulated_ledger(home, run.privacy.epsilon, run.privacy.delta)
        assert ledger.epsilon() == pytest.approx(plan.epsilon(), abs=1e-6)
        entries = [(entry.round, entry.kind) for entry in ledger.entries()]
        assert len(entries) == len(set(entries)) == ROUNDS + 2
    with Registry(machine.server.registry) as registry:
        numbers = [one.number for one in registry.rounds(RUN_ID)]
    assert numbers == list(range(1, ROUNDS + 3))


def _assert_equal(deployed: RunFolder, simulated: RunFolder) -> None:
    assert set(deployed.arrays) == set(simulated.arrays)
    for key, value in simulated.arrays.items():
        np.testing.assert_allclose(deployed.arrays[key], value, rtol=1e-5, atol=1e-6)
    there, here = deployed.released, simulated.released
    np.testing.assert_allclose(there.density.mean, here.density.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(there.density.within, here.density.within, rtol=1e-5)
    assert there.thresholds == pytest.approx(here.thresholds, rel=1e-4)
