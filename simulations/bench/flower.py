"""Flower's own simulation engine on the benchmark's work, by ``flwr run``, as a system.

``python -m fedlatent.simulations.bench.flower --task JSON``. A SuperLink with the simulation engine
runs in an empty folder, so that its workers take the app that was sent and nothing else. Costs are
those of all processes: SuperLink, SuperExec, server app, Ray and its one worker.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from fedlatent.server.service import free_port
from fedlatent.shared.errors import ServiceError
from fedlatent.shared.processes import Warden, end_processes, marked_processes
from fedlatent.shared.supervisor import child_environment, program
from fedlatent.shared.toml import dumps
from fedlatent.simulations.bench.plain import Task
from fedlatent.simulations.bench.remote import ONE_THREAD, export
from fedlatent.simulations.bench.turns import Enough, Turns, Work, own_cpu_s

_START_S = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")
_CPU_FIELDS = slice(11, 15)  # after the command: own user and system time, ended children's


def tree_cpu_s(folder: Path) -> float:
    """Process time of all processes that carry the mark ``folder``, and of ended children."""
    total = own_cpu_s()
    for pid in marked_processes(folder):
        with contextlib.suppress(OSError):  # gone meanwhile
            text = Path(f"/proc/{pid}/stat").read_text()
            total += sum(map(int, text.rsplit(")", 1)[1].split()[_CPU_FIELDS])) / _TICKS
    return total


def tree_memory_mb(folder: Path) -> float:
    """Memory of these processes now, shared pages counted once, in 10^6 bytes."""
    total = 0
    for pid in marked_processes(folder):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total * 1024 / 1e6


def write_app(folder: Path, task: Task, line: Path) -> Path:
    """The app's folder, as ``flwr run`` takes it."""
    app = folder / "app"
    export(app, "flower_app")
    components = {
        "serverapp": "fedlatent.simulations.bench.flower_app:app",
        "clientapp": "fedlatent.simulations.bench.flower_app:client",
    }
    config = {"task": task.to_json(), "line": str(line)}
    flower = {"publisher": "fedlatent", "components": components, "config": config}
    project = {
        "name": "bench",
        "version": "1.0.0",
        "description": "Benchmark.",
        "license": "Apache-2.0",
    }
    (app / "pyproject.toml").write_text(
        dumps({"project": project, "tool": {"flwr": {"app": flower}}}), encoding="utf-8"
    )
    return app


@contextlib.contextmanager
def superlink(folder: Path) -> Iterator[dict[str, str]]:
    """A SuperLink with the simulation engine; yields the environment of its clients."""
    port, home, empty = free_port(), folder / "flower", folder / "empty"
    home.mkdir()
    empty.mkdir()
    warden = Warden(folder)
    warden.watch(child_environment())
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    config = {"superlink": {"default": "here", "here": connection}}
    (home / "config.toml").write_text(dumps(config), encoding="utf-8")
    env = child_environment() | {
        **ONE_THREAD,
        **warden.marks(),
        "FLWR_HOME": str(home),
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }
    argv = [program("flower-superlink"), "--insecure", "--simulation", "--port", str(port)]
    process = subprocess.Popen(
        argv, cwd=empty, env=env, stdout=2, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        yield env
    finally:
        end_processes(folder)
        warden.dismiss()
        process.wait()


def start_run(app: Path, task: Task, env: dict[str, str]) -> None:
    """Send the app, again while the SuperLink starts.

    Raises:
        ServiceError: it was not taken.
    """
    sizes = f"num-supernodes={task.clients} client-resources-num-cpus=1 init-args-num-cpus=1"
    argv = [program("flwr"), "run", str(app), "here", "--federation-config", sizes]
    deadline = time.monotonic() + _START_S
    while True:
        sent = subprocess.run(
            argv, env=env, cwd=app.parent / "empty", capture_output=True, text=True, check=False
        )
        if sent.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise ServiceError(
                f"Expected flwr run to start the app, got: {(sent.stdout + sent.stderr)[-300:]!r}."
            )
        time.sleep(1)


def serve(task: Task, folder: Path) -> None:
    """Start Flower and take turns until there are no more.

    Raises:
        ServiceError: the run ended by itself.
    """
    line = folder / "line"
    app = write_app(folder, task, line)
    with socket.socket(socket.AF_UNIX) as listener, superlink(folder) as env:
        listener.bind(str(line))
        listener.listen(1)
        start_run(app, task, env)
        listener.settimeout(_START_S)
        with listener.accept()[0] as connection, connection.makefile("rw") as talk:
            _take_turns(talk, folder)
    raise ServiceError("Expected Flower's run to go on, but it ended; its log is above.")


def _take_turns(talk: TextIO, folder: Path) -> None:
    turns = Turns(cpu_s=lambda: tree_cpu_s(folder), peak_mb=lambda: tree_memory_mb(folder))
    for line in talk:
        if line.strip() == "begin":
            turns.begin()
        else:
            turns.work = Work(**json.loads(line))
            turns.round_done()
        talk.write("go\n")
        talk.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the task and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m fedlatent.simulations.bench.flower"
    )
    parser.add_argument("--task", type=Task.from_json, required=True)
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="fedlatent-flower-") as folder,
        contextlib.suppress(Enough),
    ):
        serve(options.task, Path(folder))


if __name__ == "__main__":
    main()
