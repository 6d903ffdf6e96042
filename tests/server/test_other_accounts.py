"""Nobody but the operator's own account commands the server, and nobody but a node's own its node.

Another account of the same machine tries what it can; then the operator starts a run past our own
commands. The folder of the federation is open to all, so that nothing but our own modes protects.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedlatent.server.control import FlowerRun
from fedlatent.server.home import ServerHome
from fedlatent.server.service import ServerService, init_server
from fedlatent.shared.config import RunConfig
from fedlatent.shared.processes import marked_processes
from fedlatent.shared.supervisor import child_environment
from tests.server.services import RUN, Federation, until

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")

TOKEN = re.compile(rb"[0-9a-f]{256}")
"""What a task's token looks like."""

ATTACK = r"""
import http.client, json, os, pathlib, re, socket, ssl, sys

asked = json.loads(sys.argv[1])
done = {"uid": os.getuid(), "answers": {}, "connected": [], "read": [], "environments": []}
trusting = ssl._create_unverified_context()
for port in asked["ports"]:
    for kind in (http.client.HTTPConnection, http.client.HTTPSConnection):
        secure = {"context": trusting} if kind is http.client.HTTPSConnection else {}
        for path in ("start-run", "list-runs"):
            connection = kind("127.0.0.1", port, timeout=5, **secure)
            try:
                connection.request("POST", "/v1/control/" + path, body=b"")
                answer = connection.getresponse().status
            except (OSError, http.client.HTTPException) as error:
                answer = type(error).__name__
            done["answers"][f"{kind.__name__} {port} {path}"] = answer
for path in asked["sockets"]:
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(path)
            done["connected"].append(path)
        except OSError:
            pass
for pid in asked["pids"]:
    try:
        if pathlib.Path(f"/proc/{pid}/environ").read_bytes():
            done["environments"].append(pid)
    except OSError:
        pass
done["tokens"] = [
    pid for pid in asked["pids"]
    if re.search(rb"[0-9a-f]{256}", pathlib.Path(f"/proc/{pid}/cmdline").read_bytes())
]
for path in asked["files"]:
    try:
        pathlib.Path(path).read_bytes()
        done["read"].append(path)
    except OSError:
        pass
print(json.dumps(done))
"""
"""What another account tries; prints what came of it."""

APP = """
from pathlib import Path
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    Path({marker!r}).write_text("ran")
Path({marker!r}).write_text("loaded")
"""
"""A ServerApp of one's own, in nine lines."""

PROJECT = """[project]
name = "own"
version = "1.0.0"
description = "d"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "someone"
fab-include = ["own.py"]
[tool.flwr.app.components]
serverapp = "own:app"
clientapp = "own:app"
"""


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """A server with one admitted node, online, in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="fl-open-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        home = ServerHome(folder / "server")
        init_server(home, port=0)
        with ServerService(home) as service:
            made = Federation(folder, service)
            made.node("ward-1").wait_online(240)
            yield made
            for node in made.nodes:
                node.stop()


@dataclass(frozen=True)
class ForeignRun:
    """A run that the operator started by Flower's own program, and the file its code would make."""

    run_id: str
    marker: Path


@pytest.fixture(scope="module")
def foreign(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> ForeignRun:
    """Such a run, started."""
    control, folder = federation.service.control, tmp_path_factory.mktemp("foreign")
    marker, app = folder / "marker", folder / "own"
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "own.py").write_text(APP.format(marker=str(marker)))
    control.online()  # writes down for flwr where the server is
    flwr = [sys.executable, "-P", "-m", "fedlatent.server.launcher", "flwr"]
    done = subprocess.run(
        [*flwr, "run", str(app), "fedlatent", "--format", "json"],
        env=child_environment() | {"FLWR_HOME": str(control.home.services / "cli" / "flower")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout[done.stdout.index("{") :])
    return ForeignRun(str(answer["run-id"]), marker)


def processes(federation: Federation) -> dict[int, str]:
    """Every living process of the server and its node: id to command."""
    folders = [federation.service.home.services, *(one.home.services for one in federation.nodes)]
    return {pid: command for one in folders for pid, command in marked_processes(one).items()}


def listening_ports(pids: list[int]) -> set[int]:
    """The TCP ports that some processes listen on."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if (target := os.readlink(entry)).startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def attack(asked: dict[str, object], *, before: tuple[str, ...] = ()) -> dict[str, object]:
    """Run the attack, as another account with ``before`` its command."""
    python = os.path.realpath(sys.executable)
    done = subprocess.run(
        [*before, python, "-I", "-c", ATTACK, json.dumps(asked)],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_nothing_listens_on_tcp_but_the_gateway(federation: Federation) -> None:
    """Of all processes of server and node, one listens on one port: the gateway."""
    found = {
        command: ports
        for pid, command in processes(federation).items()
        if (ports := listening_ports([pid]))
    }
    ((command, ports),) = found.items()
    assert "fedlatent.server.gateway" in command
    assert ports == {federation.service.settings.port}


def test_flower_listens_on_sockets_of_its_owner(federation: Federation) -> None:
    """The sockets of SuperLink and SuperNode have mode 0600 in a folder of mode 0700."""
    node = federation.nodes[0].home
    for path in (federation.service.home.link_socket, node.runtime_socket):
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can act as another account, by setpriv",
)
@pytest.mark.usefixtures("foreign")  # which waits in vain for its submission meanwhile
def test_another_account_gets_nothing_during_a_run(federation: Federation) -> None:
    """During a run it commands no API, reads no token and no file; the operator's own account can.

    No token stands in any argument or environment either, where the operator's programs would
    show it.
    """
    service, node = federation.service, federation.nodes[0]
    training = {"rounds": 3, "steps_per_round": 5}
    run = service.control.submit(RunConfig.parse(RUN | {"training": training}, "test"))
    seen: dict[int, str] = {}
    shown = []

    def apps_seen() -> bool:
        for pid, command in processes(federation).items():
            seen[pid] = command
            for part in ("cmdline", "environ"):
                try:
                    shown.extend(TOKEN.findall(Path(f"/proc/{pid}/{part}").read_bytes()))
                except OSError:  # it has ended meanwhile
                    continue
        commands = " ".join(seen.values())
        return "launcher serverapp" in commands and "launcher clientapp" in commands

    until(apps_seen, 240)
    homes = (service.home.root, node.home.root)
    asked: dict[str, object] = {
        "ports": sorted(listening_ports(list(processes(federation)))),
        "sockets": [str(path) for home in homes for path in home.rglob("*.sock")],
        "pids": list(processes(federation)),
        "files": [str(path) for home in homes for path in home.rglob("*") if path.is_file()],
    }
    assert len(asked["sockets"]) == 3  # type: ignore[arg-type]
    got = attack(asked, before=AS_NOBODY)
    assert got["uid"] == NOBODY
    answers = got["answers"]
    assert isinstance(answers, dict)
    assert len(answers) == 4  # two calls, each in plain and in TLS, to the one port
    assert set(answers.values()) == {403, "RemoteDisconnected"}
    assert [got[one] for one in ("connected", "read", "environments", "tokens")] == [[]] * 4
    own = attack(asked)
    assert own["connected"] == asked["sockets"]
    assert own["environments"]
    assert own["read"]
    until(lambda: not apps_seen() or service.control.submission(run.run_id).state != "open", 240)
    assert service.control.submission(run.run_id).state == "completed"
    assert shown == []


def test_a_run_behind_our_back_is_refused(federation: Federation, foreign: ForeignRun) -> None:
    """A run that Flower was told of without a submission ends; its code neither runs nor loads."""
    control = federation.service.control

    def state() -> FlowerRun:
        (found,) = [run for run in control.flower_runs() if run.run_id == foreign.run_id]
        return found

    until(lambda: state().status.startswith("finished"), 240)
    assert state().status == "finished:failed"
    assert "which no submission names" in state().details
    assert not foreign.marker.exists()
    assert list((control.home.services / "superexec").rglob("own.py")) == []
