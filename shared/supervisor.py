"""Keeps a set of processes running: start, watch, restart, stop, and leave no orphan.

Each service runs in its own session (so its own process group), its own empty working directory
and its own ``FLWR_HOME``, with its output in a log file. A service that exits is started again
after a pause that grows; one that lives and does not do its work any more is ended first. Every
process, and whatever it starts in turn, carries the name of the supervisor's folder in its
environment: that is how ``status`` and ``stop`` find the leftovers of a supervisor that is gone. A
warden beside the supervisor ends them as soon as it is. Linux only: see
``fedlatent.shared.processes``.
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

import fedlatent
from fedlatent.shared.contact import FOLDER_VARIABLE, Contact
from fedlatent.shared.errors import DataError, ServiceError
from fedlatent.shared.files import read_json, write_json
from fedlatent.shared.processes import (
    GRACE_S,
    Warden,
    end_processes,
    is_stopped,
    marked_processes,
    supervisor_of,
)
from fedlatent.shared.proxies import without_proxies
from fedlatent.shared.quiet import QUIET

FLOWER_ENVIRONMENT: Mapping[str, str] = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",  # seconds; Flower's default is 1
}
"""No package installs, and a quick pick-up of tasks."""

_POLL_S = 0.2
_HEALTHY_S = 60.0  # a service up for so long starts again with the shortest pause
_PRIVATE = 0o077  # umask of the services: what they write is for their owner alone
_MAX_LOG_BYTES = 32 * 1024 * 1024  # then the log moves to log.1
_LOG_TAIL_BYTES = 64 * 1024
_LOOK_S = 5.0  # between two looks at whether the services still do their work
_STOPPED_S = 60.0  # a process that a signal has stopped for so long is ended
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

State = Literal["starting", "ready", "waiting", "stopped", "orphaned"]
"""``orphaned``: it runs though its supervisor is gone."""


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
        self.ailment = ""
        self.ended_for = ""  # why it was ended by its supervisor

    def spawn(self, marks: Mapping[str, str]) -> None:
        """Start the service's process, with its output in the log."""
        work, flower_home = self.folder / "work", self.folder / "flower"
        for path in (self.folder, work, flower_home):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.trim_log()
        Contact(self.folder).forget_tries()
        environment = child_environment()
        environment |= {
            **self.service.env,
            "FLWR_HOME": str(flower_home),
            **marks,
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
        self.ails_since, self.ailment, self.ended_for = None, "", ""

    def log_text(self) -> str:
        """The end of the log since the last start; empty where it was taken away."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self.offset if self.offset <= size else 0, size - _LOG_TAIL_BYTES))
            return _COLOURS.sub("", log.read().decode(errors="replace"))
        return ""

    def trim_log(self) -> None:
        """Move an overlong log to ``log.1``; the process goes on writing at the new start."""
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
            with contextlib.suppress(OSError):  # a full disk, which the log must not stay on
                shutil.copyfile(self.log, self.log.with_suffix(".1"))
            os.truncate(self.log, 0)
            self.offset = 0

    def step(self, marks: Mapping[str, str]) -> None:
        """Look once: note an exit, a service that became ready, or a restart that is due."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.next_start:
                self.restarts += 1
                try:
                    self.spawn(marks)
                except OSError as error:  # a full disk, a folder that is gone, no more processes
                    self._failed(now, f"could not be started: {error}")
        elif (status := self.process.poll()) is not None:
            self.process = None
            self._failed(
                now,
                self.ended_for
                or (f"was killed by signal {-status}" if status < 0 else self._why(status)),
            )
        elif self.state == "starting" and self.service.ready(self.log_text()):
            self.state = "ready"

    def _failed(self, now: float, reason: str) -> None:
        """Note why it does not run, and when it is tried again."""
        self.failures = 1 if now - self.started > _HEALTHY_S else self.failures + 1
        shortest, longest = self.service.pause_s
        self.next_start = now + min(longest, shortest * 2.0 ** min(self.failures - 1, 60))
        self.state, self.reason = "waiting", reason

    def _why(self, status: int) -> str:
        return f"ended with status {status}: {self.service.diagnose(self.log_text())}"

    def told(self, process: "subprocess.Popen[bytes] | None", ailment: str) -> None:
        """Take what a look at ``process`` found; end it when it ails for too long."""
        if process is not self.process or self.state != "ready":
            return
        now, self.ailment = time.monotonic(), ailment
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
            reason=self.ailment if self.state == "ready" and self.ailment else self.reason,
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
        self._warden = Warden(folder)
        self._stopped: dict[int, float] = {}  # processes that stand still, and since when
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
            self._warden.watch(child_environment())
            for worker in self._workers:
                worker.spawn(self._warden.marks())
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
                worker.signal(signal.SIGCONT)  # else one that SIGSTOP holds would not hear it
                worker.signal(signal.SIGTERM)
                if worker.process is not None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        worker.process.wait(GRACE_S)
                    worker.signal(signal.SIGKILL)
                    worker.process.wait()
                worker.process, worker.state = None, "stopped"
            if self._lock is not None:
                end_processes(self.folder)
                self._warden.dismiss()
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
            worker.step(self._warden.marks())
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
                    worker.step(self._warden.marks())
                if time.monotonic() - last_trim > _HEALTHY_S:
                    last_trim = time.monotonic()
                    self._written = []  # so that a damaged file is made good
                    for worker in self._workers:
                        worker.trim_log()
                self._write_status()

    def _look(self) -> None:
        """Look, beside the watching, whether ready services still do their work."""
        while not self._stopping.wait(_LOOK_S):
            with contextlib.suppress(OSError):  # no room for a process: again at the next look
                self._warden.watch(child_environment())
            self.end_stopped(time.monotonic())
            for worker in self._workers:
                process = worker.process
                if worker.state == "ready" and not self._stopping.is_set():
                    ailment = worker.service.ails()
                    with self._guard:
                        worker.told(process, ailment)

    def end_stopped(self, now: float) -> None:
        """End processes at any depth that a signal has stopped for a minute."""
        stopped = [pid for pid in marked_processes(self.folder) if is_stopped(pid)]
        self._stopped = {pid: self._stopped.get(pid, now) for pid in stopped}
        with self._guard:
            for pid, since in self._stopped.items():
                if now - since < _STOPPED_S:
                    continue
                for worker in self._workers:
                    if worker.process is not None and worker.process.pid == pid:
                        worker.ended_for = "was ended: a signal had stopped it for a minute"
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _write_status(self) -> None:
        # Contact changes all the time and lies in files of its own.
        statuses = [replace(status, contact=None) for status in self.status()]
        if statuses != self._written:
            with contextlib.suppress(OSError):  # a full disk: again at the next look
                write_json(self.folder / "status.json", [asdict(status) for status in statuses])
                self._written = statuses


def child_environment() -> dict[str, str]:
    """Our environment without Flower's variables or a proxy, our programs and packages findable.

    What we start meets on Unix sockets and loopback; a node's link to its server gets its proxy by
    ``fedlatent.shared.proxies.proxy_environment``.
    """
    environment = without_proxies(os.environ)
    environment = {key: value for key, value in environment.items() if not key.startswith("FLWR_")}
    programs = str(Path(sys.executable).parent)
    packages = str(Path(fedlatent.__file__).resolve().parents[1])
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
    """Process id of the supervisor that runs on ``folder``, if one does.

    Where its lock file is lost or damaged it is found by the processes that it has started.
    """
    with contextlib.suppress(FileNotFoundError), (folder / "supervisor.lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = lock.read(32)
            if text.isdigit():
                return int(text)
    return supervisor_of(folder)


def stop_running(folder: Path, timeout_s: float = 60.0) -> Literal["supervisor", "orphans", ""]:
    """Ask the supervisor on ``folder`` to stop, wait for it, and end what it may leave behind.

    Returns:
        What was there to end; ``orphans`` are processes whose supervisor was gone already.

    Raises:
        ServiceError: It did not stop in time, or belongs to another account.
    """
    pid = running_pid(folder)
    if pid is None:
        return "orphans" if end_processes(folder) else ""
    with contextlib.suppress(ProcessLookupError):
        try:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
        except PermissionError:
            raise ServiceError(
                f"Expected process {pid}, which runs on {folder}, to be of this account, got one "
                "of another; stop it from there."
            ) from None
    deadline = time.monotonic() + timeout_s
    while running_pid(folder) == pid:
        if time.monotonic() > deadline:
            raise ServiceError(
                f"Expected process {pid} to stop within {timeout_s:g} s, but it still runs; "
                "end it with kill -9, which ends all that it has started."
            )
        time.sleep(_POLL_S)
    end_processes(folder)
    return "supervisor"


def read_status(folder: Path) -> list[ServiceStatus]:
    """What runs on ``folder`` now, with what its supervisor last said of it.

    Processes that were left behind by a supervisor that is gone are ``orphaned``. Empty when none
    ever ran.
    """
    said = [replace(one, contact=Contact(folder / one.name).last_answered) for one in _said(folder)]
    supervisor = running_pid(folder)
    if supervisor is not None:
        frozen = "its supervisor was stopped by a signal" if is_stopped(supervisor) else ""
        return [replace(one, reason=_frozen(one) or frozen or one.reason) for one in said]
    left = marked_processes(folder)
    statuses = [
        replace(one, state="orphaned", reason="its supervisor is gone; 'stop' ends it")
        if one.pid in left
        else replace(one, state="stopped", pid=None)
        for one in said
    ]
    for pid in left.keys() - {one.pid for one in said}:
        statuses.append(
            ServiceStatus(
                name=f"process {pid}",
                state="orphaned",
                pid=pid,
                restarts=0,
                reason=f"its supervisor is gone; 'stop' ends it: {left[pid][:200]}",
                log="",
            )
        )
    return statuses


def _said(folder: Path) -> list[ServiceStatus]:
    """What the supervisor wrote; nothing where that is absent or damaged, until it writes again."""
    try:
        value = read_json(folder / "status.json")
        return [ServiceStatus(**entry) for entry in value] if isinstance(value, list) else []
    except (DataError, TypeError, OSError):
        return []


def _frozen(status: ServiceStatus) -> str:
    return "a signal has stopped it" if status.pid is not None and is_stopped(status.pid) else ""


def run_until_signal(start: Callable[[], None], stop: Callable[[], None]) -> None:
    """Start, wait for SIGTERM, SIGINT or the terminal's end, stop; call from the main thread.

    A signal during ``start`` interrupts it; signals during ``stop`` are ignored. SIGHUP, which
    comes when the terminal closes, counts unless it is ignored already, as under ``nohup``.
    """

    def _interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        start()
        while True:
            time.sleep(1.0)  # where another thread got the signal, this one hears of it then
    except KeyboardInterrupt:
        pass
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _take_lock(folder: Path) -> IO[str]:
    lock = (folder / "supervisor.lock").open("a+")
    deadline = time.monotonic() + 1.0  # a status command may hold the lock for a moment
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)  # else a stop in this moment would end whatever has the old id now
            other = supervisor_of(folder)  # one whose lock file was removed
        except BlockingIOError:
            other = running_pid(folder) or 0
        if other is None:
            break
        if time.monotonic() > deadline:
            lock.close()
            raise ServiceError(
                f"Expected no other supervisor on {folder}, but process {other} runs there; "
                "stop it first."
            )
        time.sleep(_POLL_S / 4)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
