"""Keeps a set of processes running: start, watch, restart, stop, and leave no orphan.

Each service runs in its own session (so its own process group), its own empty working directory
and its own ``FLWR_HOME``, with its output in a log file. A service that exits is started again
after a pause that grows; one that lives and does not do its work any more is ended first. Every
process, and whatever it starts in turn, carries the name of the supervisor's folder in its
environment: that is how the leftovers of a supervisor that was killed are found and ended by the
next one. Linux only: processes are found through ``/proc``.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import IO, Literal, Self

from shared.contact import FOLDER_VARIABLE, Contact
from shared.errors import ServiceError
from shared.files import read_json, write_json
from shared.quiet import QUIET

MARK = "FEDLATENT_SUPERVISOR"
"""Environment variable that names the supervisor's folder in each process it started."""

FLOWER_ENVIRONMENT: Mapping[str, str] = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",  # seconds; Flower's default is 1
}
"""No package installs, and a quick pick-up of tasks."""

_POLL_S = 0.2
_GRACE_S = 8.0  # between SIGTERM and SIGKILL
_HEALTHY_S = 60.0  # a service up for so long starts again with the shortest pause
_PRIVATE = 0o077  # umask of the services: what they write is for their owner alone
_MAX_LOG_BYTES = 32 * 1024 * 1024  # then the log moves to log.1
_LOG_TAIL_BYTES = 64 * 1024
_LOOK_S = 5.0  # between two looks at whether the services still do their work
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

State = Literal["starting", "ready", "waiting", "stopped"]


def _always(log: str) -> bool:
    return True


def _healthy() -> str:
    return ""


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


@dataclass(frozen=True, kw_only=True)
class Service:
    """One process to keep running.

    Attributes:
        name: Folder and log name, unique in its supervisor.
        argv: Command line; the first entry is an absolute path.
        env: Variables added to the supervisor's own environment.
        ready: Says, from the log text since the last start, whether the service is up.
        ready_timeout_s: How long ``Supervisor.start`` waits for ``ready``.
        required: Whether ``Supervisor.start`` waits for it and fails with it.
        diagnose: Turns the log text of a failed start into one sentence.
        pause_s: Shortest and longest pause before a restart; it doubles in between.
        ails: Looks at a ready service every few seconds: why it does not do its work any more, in
            the words "it ..."; empty while it does. It may take a few seconds.
        patience_s: How long it may ail; then it is ended and started again.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[str], bool] = _always
    ready_timeout_s: float = 60.0
    required: bool = True
    diagnose: Callable[[str], str] = _last_line
    pause_s: tuple[float, float] = (0.5, 15.0)
    ails: Callable[[], str] = _healthy
    patience_s: float = 30.0


@dataclass(frozen=True, kw_only=True)
class ServiceStatus:
    """What a supervisor knows of one service.

    Attributes:
        name: Of the service.
        state: Whether it runs.
        pid: Its process, while it runs.
        restarts: How often it was started again.
        reason: Why it last ended, or why it ails now.
        log: Its log file.
        contact: When its peer last answered it, in seconds since 1970; None where it has no peer
            or was never answered.
    """

    name: str
    state: State
    pid: int | None
    restarts: int
    reason: str
    log: str
    contact: float | None = None


class _Worker:
    """The running side of one service."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service = service
        self.folder = folder / service.name
        self.log = self.folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.state: State = "stopped"
        self.reason = ""
        self.restarts = 0
        self.failures = 0  # in a row
        self.started = 0.0
        self.next_start = 0.0
        self.offset = 0  # where this start's part of the log begins
        self.ails_since: float | None = None
        self.ended_for = ""  # why it was ended by its supervisor

    def spawn(self, mark: Path) -> None:
        """Start the process."""
        work, flower_home = self.folder / "work", self.folder / "flower"
        for path in (self.folder, work, flower_home):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.trim_log()
        Contact(self.folder).forget_tries()
        environment = child_environment()
        environment |= {
            **self.service.env,
            "FLWR_HOME": str(flower_home),
            MARK: str(mark),
            FOLDER_VARIABLE: str(self.folder),
        }
        self.log.touch(0o600)
        with self.log.open("ab") as log:
            self.offset = log.tell()
            self.process = subprocess.Popen(
                self.service.argv,
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=_PRIVATE,
            )
        self.state, self.started = "starting", time.monotonic()
        self.ails_since, self.ended_for = None, ""

    def log_text(self) -> str:
        """The end of the log since the last start."""
        with self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self.offset if self.offset <= size else 0, size - _LOG_TAIL_BYTES))
            return _COLOURS.sub("", log.read().decode(errors="replace"))

    def trim_log(self) -> None:
        """Move an overlong log to ``log.1``; the process goes on writing at the new start."""
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
            shutil.copyfile(self.log, self.log.with_suffix(".1"))
            os.truncate(self.log, 0)
            self.offset = 0

    def step(self, mark: Path) -> None:
        """Look once: note an exit, a service that became ready, or a restart that is due."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.next_start:
                self.restarts += 1
                self.spawn(mark)
        elif (status := self.process.poll()) is not None:
            self.process = None
            self.failures = 1 if now - self.started > _HEALTHY_S else self.failures + 1
            shortest, longest = self.service.pause_s
            self.next_start = now + min(longest, shortest * 2.0 ** (self.failures - 1))
            self.state = "waiting"
            self.reason = self.ended_for or (
                f"was killed by signal {-status}" if status < 0 else self._why(status)
            )
        elif self.state == "starting" and self.service.ready(self.log_text()):
            self.state = "ready"

    def _why(self, status: int) -> str:
        return f"ended with status {status}: {self.service.diagnose(self.log_text())}"

    def told(self, process: "subprocess.Popen[bytes] | None", ailment: str) -> None:
        """Take what a look at ``process`` found; end it when it ails for too long."""
        if process is not self.process or self.state != "ready":
            return
        now = time.monotonic()
        if not ailment:
            self.ails_since = None
        elif self.ails_since is None:
            self.ails_since = now
        elif now - self.ails_since >= self.service.patience_s:
            self.ended_for = f"was ended: {ailment}"
            self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def status(self) -> ServiceStatus:
        """A picture for people and for ``status.json``."""
        return ServiceStatus(
            name=self.service.name,
            state=self.state,
            pid=None if self.process is None else self.process.pid,
            restarts=self.restarts,
            reason=self.reason,
            log=str(self.log),
            contact=Contact(self.folder).last_answered,
        )


class Supervisor:
    """Runs services below one folder; a second supervisor on the same folder is refused."""

    def __init__(self, folder: Path, services: Sequence[Service]) -> None:
        """Prepare; nothing starts yet.

        Args:
            folder: Home of logs and working directories; absolute.
            services: In the order in which they start; they stop in the opposite order.
        """
        self.folder = folder
        self._workers = [_Worker(service, folder) for service in services]
        self._guard = threading.RLock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock: IO[str] | None = None
        self._written: list[ServiceStatus] = []

    def __enter__(self) -> Self:
        """Start everything."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self.stop()

    def start(self) -> None:
        """Start all services in order, each once the one before is ready.

        Raises:
            ServiceError: Another supervisor runs here, or a required service did not come up;
                what had started is stopped again.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _take_lock(self.folder)
        try:
            end_processes(self.folder)
            for worker in self._workers:
                worker.spawn(self.folder)
                if worker.service.required:
                    self._await_first(worker)
        except BaseException:
            self.stop()
            raise
        self._stopping.clear()
        for name, target in (("supervisor", self._watch), ("looks", self._look)):
            self._threads.append(threading.Thread(target=target, name=name, daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """End all services, their children and leftovers; safe to call twice."""
        self._stopping.set()
        while self._threads:
            self._threads.pop().join()
        with self._guard:
            for worker in reversed(self._workers):
                worker.signal(signal.SIGTERM)
                if worker.process is not None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        worker.process.wait(_GRACE_S)
                    worker.signal(signal.SIGKILL)
                    worker.process.wait()
                worker.process, worker.state = None, "stopped"
            if self._lock is not None:
                end_processes(self.folder)
                self._write_status()
                self._lock.close()
                self._lock = None

    def status(self) -> list[ServiceStatus]:
        """The state of each service, in starting order."""
        with self._guard:
            return [worker.status() for worker in self._workers]

    def log_text(self, name: str) -> str:
        """The end of one service's log since it last started."""
        with self._guard:
            return self._worker(name).log_text()

    def wait_ready(self, name: str, timeout_s: float) -> bool:
        """Wait until a service is ready; ``False`` when the time is over or it ended first."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            state = self._worker(name).state
            if state != "starting":
                return state == "ready"
            time.sleep(_POLL_S / 2)
        return False

    def _worker(self, name: str) -> _Worker:
        for worker in self._workers:
            if worker.service.name == name:
                return worker
        raise ValueError(f"Expected a service of this supervisor, got {name!r}.")

    def _await_first(self, worker: _Worker) -> None:
        deadline = time.monotonic() + worker.service.ready_timeout_s
        while time.monotonic() < deadline:
            worker.step(self.folder)
            if worker.state == "ready":
                return
            if worker.state == "waiting":
                raise ServiceError(
                    f"Expected {worker.service.name} to start, but it {worker.reason}; "
                    f"see {worker.log}."
                )
            time.sleep(_POLL_S / 2)
        raise ServiceError(
            f"Expected {worker.service.name} to be ready within "
            f"{worker.service.ready_timeout_s:g} s, but it was not; see {worker.log}."
        )

    def _watch(self) -> None:
        last_trim = time.monotonic()
        while not self._stopping.wait(_POLL_S):
            with self._guard:
                for worker in self._workers:
                    worker.step(self.folder)
                if time.monotonic() - last_trim > _HEALTHY_S:
                    last_trim = time.monotonic()
                    for worker in self._workers:
                        worker.trim_log()
                self._write_status()

    def _look(self) -> None:
        """Look, beside the watching, whether ready services still do their work."""
        while not self._stopping.wait(_LOOK_S):
            for worker in self._workers:
                process = worker.process
                if worker.state == "ready" and not self._stopping.is_set():
                    ailment = worker.service.ails()
                    with self._guard:
                        worker.told(process, ailment)

    def _write_status(self) -> None:
        # Contact changes all the time and lies in files of its own.
        statuses = [replace(status, contact=None) for status in self.status()]
        if statuses != self._written:
            write_json(self.folder / "status.json", [asdict(status) for status in statuses])
            self._written = statuses


def child_environment() -> dict[str, str]:
    """Our environment without Flower's variables, with our programs and packages findable."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    programs = str(Path(sys.executable).parent)
    packages = str(Path(__file__).resolve().parent.parent)
    environment["PATH"] = os.pathsep.join([programs, environment.get("PATH", os.defpath)])
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([packages, *([inherited] if inherited else [])])
    environment["PYTHONUNBUFFERED"] = "1"
    return environment | dict(FLOWER_ENVIRONMENT) | dict(QUIET)


def program(name: str) -> str:
    """Absolute path of a console program that came with one of our dependencies.

    Raises:
        ServiceError: It is not installed.
    """
    path = shutil.which(name, path=child_environment()["PATH"])
    if path is None:
        raise ServiceError(
            f"Expected the program {name}, found none; install the 'client' or 'server' extra."
        )
    return path


def running_pid(folder: Path) -> int | None:
    """Process id of the supervisor that runs on ``folder``, if one does."""
    try:
        with (folder / "supervisor.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0) or None
    except FileNotFoundError:
        pass
    return None


def stop_running(folder: Path, timeout_s: float = 60.0) -> bool:
    """Ask the supervisor on ``folder`` to stop and wait for it; ``False`` when none runs.

    Raises:
        ServiceError: It did not stop in time.
    """
    pid = running_pid(folder)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while running_pid(folder) == pid:
        if time.monotonic() > deadline:
            raise ServiceError(
                f"Expected process {pid} to stop within {timeout_s:g} s, but it still runs; "
                "end it with kill -9 and start again."
            )
        time.sleep(_POLL_S)
    return True


def read_status(folder: Path) -> list[ServiceStatus]:
    """What the supervisor on ``folder`` last said of its services; empty when none ever ran."""
    path = folder / "status.json"
    if not path.exists():
        return []
    value = read_json(path)
    statuses = [ServiceStatus(**entry) for entry in value] if isinstance(value, list) else []
    statuses = [
        replace(status, contact=Contact(folder / status.name).last_answered) for status in statuses
    ]
    if running_pid(folder) is None:
        statuses = [replace(status, state="stopped", pid=None) for status in statuses]
    return statuses


def run_until_signal(start: Callable[[], None], stop: Callable[[], None]) -> None:
    """Start, wait for SIGTERM or SIGINT, stop; call from the main thread.

    A signal during ``start`` interrupts it; signals during ``stop`` are ignored.
    """

    def _interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        start()
        while True:
            time.sleep(_HEALTHY_S)
    except KeyboardInterrupt:
        pass
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def marked_processes(folder: Path) -> dict[int, str]:
    """Living processes that a supervisor on ``folder`` started, at any depth: id to command.

    Those of this account alone, since anybody may put the mark into a process of their own.
    """
    wanted = f"{MARK}={folder}".encode()
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            own = entry.stat().st_uid == os.getuid()
            if own and wanted in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = command.decode(errors="replace").strip()
    return found


def end_processes(folder: Path) -> int:
    """End every process that a supervisor on ``folder`` left behind; returns how many."""
    left = marked_processes(folder)
    for number, patience_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
        for pid in marked_processes(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while marked_processes(folder) and time.monotonic() < deadline:
            time.sleep(_POLL_S / 4)
    return len(left)


def _take_lock(folder: Path) -> IO[str]:
    lock = (folder / "supervisor.lock").open("a+")
    deadline = time.monotonic() + 1.0  # a status command may hold the lock for a moment
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.seek(0)
                pid = lock.read()
                lock.close()
                raise ServiceError(
                    f"Expected no other supervisor on {folder}, but process {pid} runs there; "
                    "stop it first."
                ) from None
            time.sleep(_POLL_S / 4)
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
