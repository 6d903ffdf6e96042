"""The real server and real nodes: TLS, node keys, gateway, process isolation.

Everything listens on loopback and lives below a temporary folder.
"""

import http.client
import os
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlatent.client.service import ClientService
from fedlatent.server.app import admitted_records
from fedlatent.server.home import ServerHome
from fedlatent.server.registry import Registry
from fedlatent.server.service import ServerService, init_server, is_lost
from fedlatent.server.settings import load_settings
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.shared.keys import generate_node_key, name_node_key
from fedlatent.shared.processes import marked_processes
from tests.server.services import RUN, Federation, until


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server on free ports of loopback."""
    folder = tmp_path_factory.mktemp("federation")
    home = ServerHome(folder / "server")
    init_server(home, port=0)
    with ServerService(home) as service:
        made = Federation(folder, service)
        yield made
        for node in made.nodes:
            node.stop()
    assert marked_processes(home.services) == {}


@pytest.fixture(scope="module")
def node(federation: Federation) -> ClientService:
    """One admitted node, online."""
    made = federation.node("ward-1")
    made.wait_online(240)
    return made


def only_process(folder: Path, word: str) -> int:
    """The process id of the one marked process whose command has ``word``."""
    (found,) = [pid for pid, command in marked_processes(folder).items() if word in command]
    return found


def complete_rounds(home: ServerHome, run_id: str) -> int:
    """How many phases of a run are complete in the registry."""
    with Registry(home.registry) as registry:
        return sum(row.status == "complete" for row in registry.rounds(run_id))


def test_a_run_goes_from_submission_to_result(federation: Federation, node: ClientService) -> None:
    """A submitted run trains at the node, is completed, and its log can be read."""
    control = federation.service.control
    submission = control.submit(RunConfig.parse(RUN, "test"))
    done = control.wait(submission.run_id, 600)
    assert (done.state, done.reason, len(done.flower_runs)) == ("completed", "", 1)
    assert complete_rounds(federation.service.home, done.run_id) == 3
    assert "complete" in control.log(done.flower_runs[0])
    left = node.home.release_log.read_text().splitlines()
    assert sum("sent again" not in line for line in left) == 3  # on a slow machine a reply may be
    assert control.online()["ward-1"] == "online"
    with pytest.raises(ConfigError, match="Expected a new run id"):
        control.submit(RunConfig.parse(RUN, "test"), run_id=done.run_id)


def test_nodes_run_their_own_code(node: ClientService) -> None:
    """What the server sent was not even unpacked at the node."""
    apps = node.home.services / "superexec" / "flower" / "apps"
    assert not list(apps.rglob("*.py"))


def test_an_unknown_node_is_turned_away(federation: Federation, node: ClientService) -> None:
    """A node whose key was not admitted learns so in words, and joins once it is admitted."""
    stranger = federation.node("stranger", admit=False)
    until(lambda: stranger.status()[1].reason != "", 240)
    with pytest.raises(ServiceError, match="does not know this node's key"):
        stranger.wait_online(0.1)
    log = (federation.service.home.services / "gateway" / "log").read_text()
    assert "may not join" in log
    site = federation.service.control.admit("stranger", stranger.home.node_public_key)
    assert site.fingerprint in log
    assert federation.service.control.admit("stranger", stranger.home.node_public_key) == site
    stranger.wait_online(240)
    with pytest.raises(ConfigError, match="Expected a new site"):
        federation.service.control.admit("ward-1", stranger.home.node_public_key)
    federation.service.control.remove("stranger")
    with pytest.raises(ConfigError, match=r"'stranger' by .*node\.pub, got 'guest'"):
        federation.service.control.admit("guest", stranger.home.node_public_key)
    name_node_key(stranger.home.node_key, "guest")  # as the node does once node.toml says so
    again = federation.service.control.admit("guest", stranger.home.node_public_key)
    assert (again.node_id, again.fingerprint) == (site.node_id, site.fingerprint)
    control = federation.service.control
    assert control.admit("guest", stranger.home.node_public_key, records=90).records == 90
    assert control.admit("guest", stranger.home.node_public_key).records == 90
    assert admitted_records(federation.service.home) == {"guest": 90}
    federation.service.control.remove("guest")
    with pytest.raises(ConfigError, match="Expected an admitted site"):
        federation.service.control.remove("guest")
    assert [one.name for one in federation.service.control.sites()] == ["ward-1"]


def test_an_admission_that_was_cut_short_is_completed(federation: Federation) -> None:
    """A key that Flower knows and we do not, as after a kill in between, is admitted after all."""
    control = federation.service.control
    place = generate_node_key(federation.folder / "cut")
    site = control.admit("cut", place)
    control._write_sites([one for one in control.sites() if one.name != "cut"])
    assert control.admit("cut", place).node_id == site.node_id
    control.remove("cut")
    assert control.admit("cut", place).node_id == site.node_id
    control.remove("cut")


def test_the_control_api_is_out_of_reach(federation: Federation) -> None:
    """Who holds nothing but the CA certificate gets 403 for whatever could start code."""
    context = ssl.create_default_context(cafile=str(federation.service.home.ca_certificate))
    port = federation.service.settings.port
    for path in ("/v1/control/start-run", "/v1/control/list-runs", "/v1/runtime/acquire-task"):
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
        connection.request("POST", path, body=b"")
        assert connection.getresponse().status == 403
        connection.close()


def test_a_second_server_in_the_home_is_refused(federation: Federation) -> None:
    """Two servers cannot share one home."""
    with pytest.raises(ServiceError, match="runs there"):
        ServerService(federation.service.home).start()
    with pytest.raises(ServiceError, match="Expected no server"):
        init_server(federation.service.home, port=0)


def test_commands_need_a_running_server(tmp_path: Path) -> None:
    """A command to a server that does not run says how to start it."""
    home = ServerHome(tmp_path / "server")
    init_server(home, port=0)
    with pytest.raises(ServiceError, match="run 'fedlatent server start' first"):
        ServerService(home).control.submit(RunConfig.parse(RUN, "test"))


def test_a_home_with_a_port_of_flowers_is_read(tmp_path: Path) -> None:
    """A server.toml that still names the port that Flower had means the same without it."""
    home = ServerHome(tmp_path / "server")
    settings = init_server(home, port=0)
    home.config.write_text("link_port = 8000\n" + home.config.read_text())
    assert load_settings(home) == settings


@pytest.mark.parametrize(
    ("status", "alive", "lost"),
    [
        ("pending", 0, False),
        ("starting", 0, True),
        ("running", 0, True),
        ("running", 1, False),
        ("finished:failed", 1, True),
        ("finished:stopped", 0, True),
        ("finished:completed", 0, True),
        ("unknown", 2, True),
    ],
)
def test_lost_runs_are_told_from_waiting_ones(status: str, alive: int, lost: bool) -> None:
    """A run is lost when Flower ended it, or takes it for running while no process lives."""
    assert is_lost(status, alive) is lost


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "victim"),
    [
        ("server", "launcher serverapp"),
        ("server", "launcher superlink"),
        ("server", "launcher superexec"),
        ("server", "fedlatent.server.gateway"),
        ("node", "fedlatent.client.resident"),
        ("node", "launcher superexec"),
        ("node", "launcher supernode"),
    ],
)
def test_a_run_survives_the_death_of_any_process(
    federation: Federation, node: ClientService, side: str, victim: str
) -> None:
    """Whichever process is killed in the middle of a run, the run is completed."""
    home, control = federation.service.home, federation.service.control
    training = {"rounds": 3, "steps_per_round": 5}
    submission = control.submit(RunConfig.parse(RUN | {"training": training}, "test"))
    until(lambda: complete_rounds(home, submission.run_id) >= 1, 240)
    folder = home.services if side == "server" else node.home.services
    os.kill(only_process(folder, victim), signal.SIGKILL)
    done = control.wait(submission.run_id, 600)
    assert done.state == "completed"
    assert complete_rounds(home, done.run_id) == 5


def test_a_supernode_that_stops_polling_is_started_again(
    federation: Federation, node: ClientService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that lives and asks for nothing is ended, and the status says why."""
    node.wait_online(240)
    before = next(one for one in node.status() if one.name == "supernode")
    assert before.contact is not None
    assert time.time() - before.contact < 60.0
    assert before.pid is not None
    monkeypatch.setattr("fedlatent.client.service._QUIET_S", 10.0)  # an idle one polls each 3 s
    os.kill(before.pid, signal.SIGSTOP)
    until(lambda: node.status()[1].restarts > before.restarts, 240)
    assert "it has asked its peer for nothing for" in node.status()[1].reason
