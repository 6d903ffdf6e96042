"""The deployment under attack: a side for the server and one for each node, as an init keeps them.

A side is one home and all processes that belong to it. Whoever keeps the side's supervisor running
(systemd on a real machine) is played by `Stage.tend`: it starts a supervisor again that is gone,
whatever ended it, and never looks inside.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from fedlatent.client.home import USER_VARIABLE, ClientHome
from fedlatent.client.service import init_client
from fedlatent.server.control import Control
from fedlatent.server.home import ServerHome
from fedlatent.server.service import ServerService, init_server
from fedlatent.shared.config import RunConfig
from fedlatent.shared.data.sources import HEARTS_SCHEMA, hearts
from fedlatent.shared.errors import FedlatentError, ServiceError
from fedlatent.shared.files import read_json
from fedlatent.shared.processes import MARK, marked_processes
from fedlatent.shared.supervisor import child_environment
from fedlatent.simulations.chaos import hostile
from fedlatent.simulations.chaos.line import Line
from fedlatent.simulations.chaos.means import Means

HONEST = ("ward-1", "ward-2")
HOSTILE = "ward-3"
"""The site that lies when it is told to, and is honest else."""

NODES = (*HONEST, HOSTILE)
SERVER = "server"
SIDES = (SERVER, *NODES)

ROLES: Mapping[str, tuple[str, ...]] = {
    "server": ("superlink", "superexec", "gateway", "serverapp"),
    "node": ("resident", "supernode", "superexec", "clientapp"),
}
"""Kinds of processes below each kind of supervisor; beside it each has a warden."""

_COMMANDS = {
    "superlink": "launcher superlink",
    "superexec": "launcher superexec",
    "gateway": "fedlatent.server.gateway",
    "serverapp": "launcher serverapp",
    "resident": "resident",
    "supernode": "launcher supernode",
    "clientapp": "launcher clientapp",
}
_COMMAND = ("-m", "fedlatent.cli.main")
_ROUNDS = 8
_BEATS = 300
_DEADLINE_COMMANDS = 6.0
_LEAST_DEADLINE_S = 8.0
_POLL_S = 0.2
_RESTART_S = 1.0  # an init's pause before it starts a service again
_START_S = 300.0  # on a busy machine
_GRACE_S = 20.0


def run_config(seed: int, deadline_s: float) -> RunConfig:
    """A short private run of many phases that goes on with two of the three sites."""
    return RunConfig.parse(
        {
            "name": "chaos",
            "seed": seed,
            "data": HEARTS_SCHEMA.to_dict(),
            "model": {"options": {"hidden": [16], "latent_dim": 4}},
            "privacy": {"epsilon": 2.0, "delta": 1e-4},
            "training": {"rounds": _ROUNDS, "steps_per_round": 2},
            "federation": {
                "nodes": len(NODES),
                "quorum": 2,
                "round_deadline_s": deadline_s,
                "join_timeout_s": 4 * deadline_s,
            },
        },
        "chaos",
    )


@dataclass
class Side:
    """One home with its supervisor.

    Attributes:
        name: of the site, or ``server``.
        home: its folder.
        program: the arguments of Python that start its supervisor.
        environment: beside the usual one.
        log: what its supervisor prints, outside of the home.
        clock: the file that its clock goes by.
        process: the supervisor, once it was started.
        held: whether the init leaves it down.
    """

    name: str
    home: Path
    program: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    clock: Path
    process: "subprocess.Popen[bytes] | None" = None
    held: bool = False
    due: float = 0.0

    @property
    def is_server(self) -> bool:
        """Whether it is the server's."""
        return self.name == SERVER

    @property
    def services(self) -> Path:
        """Folder of its supervised processes."""
        return self.home / "services"

    def alive(self) -> bool:
        """Whether its supervisor runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start its supervisor."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "--home", str(self.home)],
                env={**child_environment(), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pids(self, role: str) -> list[int]:
        """Its processes of one kind, supervisor and warden included; oldest first."""
        if role == "supervisor":
            return [self.process.pid] if self.process is not None and self.alive() else []
        if role == "warden":
            return _wardens(self.services)
        wanted = _COMMANDS[role]
        found = marked_processes(self.services).items()
        return sorted(pid for pid, command in found if wanted in command)

    def everyone(self) -> list[int]:
        """All its processes, the supervisor first."""
        own = (*self.pids("supervisor"), *self.pids("warden"))
        return [*own, *marked_processes(self.services)]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        for pid in self.everyone():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """Stop its supervisor as an init does, and kill what is left."""
        self.held = True
        if self.process is not None and self.alive():
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_GRACE_S)
        self.kill()

    def kill(self) -> None:
        """End all its processes at once, as a power cut does."""
        self.held = True
        deadline = time.monotonic() + _GRACE_S
        while self.everyone() and time.monotonic() < deadline:
            self.signal(signal.SIGKILL)
            if self.process is not None:
                self.process.poll()
            time.sleep(_POLL_S / 4)

    def release(self) -> None:
        """Let the init start it again."""
        self.held, self.due = False, 0.0

    def whole(self) -> str:
        """What is missing for it to be as it should; empty for nothing."""
        if not self.alive():
            return f"{self.name}: no supervisor"
        try:
            statuses = read_json(self.services / "status.json")
        except FedlatentError:
            return f"{self.name}: no status"
        assert isinstance(statuses, list)
        for one in statuses:
            pid = one["pid"]
            if one["state"] != "ready" or pid is None or not Path(f"/proc/{pid}").exists():
                return f"{self.name}: {one['name']} is {one['state']} ({one['reason']})"
        return ""


class Stage:
    """Server, nodes and lines below one folder; entered, all of it runs."""

    def __init__(self, folder: Path, seed: int, means: Means) -> None:
        """Prepare; nothing is made yet.

        Args:
            folder: empty or absent; short, since sockets lie below it.
            seed: of the lines and the records.
            means: what this machine lets us do.

        Once entered, ``deadline_s`` is what a phase may take here: so many times what one command
        of Flower's took, since a phase starts such processes, too, and a machine may be busy.
        """
        self.folder = folder
        self.means = means
        self.sides: dict[str, Side] = {}
        self.lines: dict[str, Line] = {}
        self.control = Control(ServerHome(folder / SERVER))
        self.deadline_s = 0.0
        self._seed = seed
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Make the homes, start all sides, admit the sites.

        Raises:
            ServiceError: A side did not come up.
        """
        try:
            self._set_up()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self._stack.close()

    @property
    def server(self) -> Side:
        """The server's side."""
        return self.sides[SERVER]

    def nodes(self) -> list[Side]:
        """The nodes' sides."""
        return [side for side in self.sides.values() if not side.is_server]

    def tend(self) -> None:
        """Start every supervisor again that is gone and not held down, after a pause."""
        now = time.monotonic()
        for side in self.sides.values():
            if side.held or side.alive():
                continue
            if side.process is not None and side.due == 0.0:
                side.due = now + _RESTART_S
            elif now >= side.due:
                side.due = 0.0
                side.start()

    def missing(self) -> str:
        """What is missing for all sides to be as they should; empty for nothing."""
        return next(filter(None, (side.whole() for side in self.sides.values())), "")

    def _set_up(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in SIDES:
            self._stack.enter_context(self.means.small_disk(self.folder / name))
        init_server(self.control.home, port=0)
        address = ServerService(self.control.home).address
        port = int(address.rpartition(":")[2])
        self.sides[SERVER] = self._side(SERVER, (*_COMMAND, "server", "start"))
        for index, name in enumerate(NODES):
            line = self._stack.enter_context(Line(port, self._seed + index))
            self.lines[name] = line
            self._make_node(name, index, f"127.0.0.1:{line.port}")
            program = (*_COMMAND, "client", "start") if name in HONEST else ("-m", hostile.MODULE)
            self.sides[name] = self._side(name, program)
        self._stack.callback(self.stop)
        self.server.start()
        self._await(self.server)
        for side in self.nodes():
            side.start()
        began = time.monotonic()
        for side in self.nodes():
            self.control.admit(side.name, ClientHome(side.home).node_public_key)
        command_s = (time.monotonic() - began) / len(NODES)
        self.deadline_s = max(_LEAST_DEADLINE_S, _DEADLINE_COMMANDS * command_s)
        for side in self.nodes():
            self._await(side)

    def _make_node(self, name: str, index: int, address: str) -> None:
        home = ClientHome(self.folder / name)
        init_client(
            home,
            site=name,
            server=address,
            ca_certificate=self.control.home.ca_certificate.read_bytes(),
            data={"path": "beats.npz", "schema": HEARTS_SCHEMA.to_dict()},
            policy={"max_epsilon": 1e6, "delta": 1e-4},
            limits={"answer_step_s": 0.2},
        )
        source = hearts(1, seed=self._seed + index, beats=_BEATS).sites[0]
        np.savez(home.root / "beats.npz", X=source.train)

    def _side(self, name: str, program: tuple[str, ...]) -> Side:
        clock = self.folder / f"{name}.clock"
        return Side(
            name=name,
            home=self.folder / name,
            program=program,
            environment={USER_VARIABLE: str(self.folder / "user"), **self.means.clock(clock)},
            clock=clock,
            log=self.folder / f"{name}.log",
        )

    def _await(self, side: Side) -> None:
        deadline = time.monotonic() + _START_S
        while what := side.whole():
            if time.monotonic() > deadline or not side.alive():
                raise ServiceError(
                    f"Expected {side.name} to come up, but {what}; see {side.log} and {side.home}."
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop all sides, the nodes first."""
        for side in (*self.nodes(), self.server):
            side.end()

    def orphans(self) -> Iterator[str]:
        """Processes that live on although every side was stopped."""
        for side in self.sides.values():
            for pid, command in marked_processes(side.services).items():
                yield f"{side.name}: process {pid} ({command[:80]}) with {MARK} lives on"


def _wardens(folder: Path) -> list[int]:
    """Processes that wait for the end of a supervisor on a folder; they bear no mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # gone meanwhile
            words = path.read_bytes().split(b"\0")
            if b"fedlatent.shared.processes" in words and os.fsencode(folder) in words:
                found.append(int(path.parent.name))
    return sorted(found)
