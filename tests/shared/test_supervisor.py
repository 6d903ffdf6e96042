"""The supervisor with real processes."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlatent.shared.contact import Contact, Silence
from fedlatent.shared.errors import ServiceError
from fedlatent.shared.processes import MARK, TURN, end_processes, is_stopped, marked_processes
from fedlatent.shared.supervisor import (
    FLOWER_ENVIRONMENT,
    Service,
    Supervisor,
    read_status,
    running_pid,
    stop_running,
)

SLEEPER = ("/bin/sh", "-c", "echo up; exec sleep 300")


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def test_each_service_has_its_own_surroundings(tmp_path: Path) -> None:
    """A service runs in its own group, empty folder and FLWR_HOME, without telemetry."""
    show = ("/bin/sh", "-c", "pwd; ls -A | wc -l; env; echo done; exec sleep 300")
    service = Service(name="one", argv=show, env={"EXTRA": "1"}, ready=lambda log: "done" in log)
    with Supervisor(tmp_path, [service]) as supervisor:
        lines = supervisor.log_text("one").splitlines()
        (status,) = supervisor.status()
        assert status.pid is not None
        assert os.getpgid(status.pid) == status.pid
    assert lines[:2] == [str(tmp_path / "one" / "work"), "0"]
    assert f"FLWR_HOME={tmp_path}/one/flower" in lines
    assert "EXTRA=1" in lines
    assert {f"{key}={value}" for key, value in FLOWER_ENVIRONMENT.items()} <= set(lines)


def test_what_a_service_writes_is_for_its_owner_alone(tmp_path: Path) -> None:
    """A loose umask of whoever starts the supervisor reaches neither log nor files."""
    service = Service(
        name="one",
        argv=("/bin/sh", "-c", "touch file; echo done; exec sleep 300"),
        ready=lambda log: "done" in log,
    )
    before = os.umask(0)
    try:
        with Supervisor(tmp_path, [service]):
            written = [tmp_path / "one" / "log", tmp_path / "one" / "work" / "file"]
            assert [path.stat().st_mode & 0o777 for path in written] == [0o600, 0o600]
    finally:
        os.umask(before)


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can act as another account, by setpriv",
)
def test_another_account_marks_no_process_as_ours(tmp_path: Path) -> None:
    """Who puts our mark into a process of their own is not taken for a service of ours."""
    command = ("setpriv", "--reuid=65534", "--clear-groups", "sleep", "300")
    with subprocess.Popen(command, env=os.environ | {MARK: str(tmp_path)}) as process:
        try:
            until(lambda: os.stat(f"/proc/{process.pid}").st_uid == 65534)
            assert marked_processes(tmp_path) == {}
        finally:
            process.kill()


def test_a_dead_service_is_started_again(tmp_path: Path) -> None:
    """A service that is killed comes back with another process id, and says why it ended."""
    service = Service(name="one", argv=SLEEPER, ready=lambda log: "up" in log, pause_s=(0.05, 0.05))
    with Supervisor(tmp_path, [service]) as supervisor:
        (before,) = supervisor.status()
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        until(lambda: supervisor.status()[0].restarts == 1)
        assert supervisor.wait_ready("one", 5.0)
        (after,) = supervisor.status()
        assert after.pid != before.pid
        assert "signal 9" in after.reason
        until(lambda: read_status(tmp_path) == [after])
    assert [one.state for one in read_status(tmp_path)] == ["stopped"]


def test_a_full_or_broken_disk_ends_no_supervision(tmp_path: Path) -> None:
    """A service that cannot be started, or a status that cannot be written, is tried again."""
    service = Service(name="one", argv=SLEEPER, ready=lambda log: "up" in log, pause_s=(0.1, 0.1))
    with Supervisor(tmp_path, [service]) as supervisor:
        until(lambda: read_status(tmp_path) != [])
        shutil.rmtree(tmp_path / "one")
        (tmp_path / "one").write_text("no folder")
        (tmp_path / "status.json").unlink()
        (tmp_path / "status.json").mkdir()
        os.kill(supervisor.status()[0].pid or 0, signal.SIGKILL)
        until(lambda: supervisor.status()[0].restarts >= 2)
        assert supervisor.status()[0].reason.startswith("could not be started: ")
        assert read_status(tmp_path) == []
        (tmp_path / "one").unlink()
        (tmp_path / "status.json").rmdir()
        until(lambda: [one.state for one in read_status(tmp_path)] == ["ready"])


def test_pauses_between_restarts_grow(tmp_path: Path) -> None:
    """A service that always fails is started ever more seldom and its last words are kept."""
    service = Service(
        name="bad",
        argv=("/bin/sh", "-c", "echo no luck; exit 3"),
        required=False,
        pause_s=(0.25, 60.0),
        ready=lambda log: False,
    )
    with Supervisor(tmp_path, [service]) as supervisor:
        until(lambda: supervisor.status()[0].restarts == 2)
        began = time.monotonic()
        until(lambda: supervisor.status()[0].restarts == 3)
        assert time.monotonic() - began > 0.3  # of a whole second
        assert supervisor.status()[0].reason == "ended with status 3: no luck"


def test_grandchildren_end_with_the_supervisor(tmp_path: Path) -> None:
    """What a service started ends too, also in a session of its own."""
    script = "setsid sleep 301 & sleep 302 & echo up; wait"
    service = Service(name="one", argv=("/bin/sh", "-c", script), ready=lambda log: "up" in log)
    with Supervisor(tmp_path, [service]):
        until(lambda: len(marked_processes(tmp_path)) == 3)
    assert marked_processes(tmp_path) == {}


def test_a_required_service_that_fails_is_an_error(tmp_path: Path) -> None:
    """Start says which service failed and why, and leaves nothing behind."""
    good = Service(name="good", argv=SLEEPER)
    bad = Service(
        name="bad",
        argv=("/bin/sh", "-c", "echo port taken; exit 1"),
        ready=lambda log: False,
        diagnose=lambda log: log.strip().upper(),
    )
    with pytest.raises(ServiceError, match="bad to start, but it ended with status 1: PORT TAKEN"):
        Supervisor(tmp_path, [good, bad]).start()
    assert marked_processes(tmp_path) == {}
    assert running_pid(tmp_path) is None


def test_a_service_that_hangs_is_an_error(tmp_path: Path) -> None:
    """Start waits for a required service no longer than it was told."""
    slow = Service(name="slow", argv=SLEEPER, ready=lambda log: False, ready_timeout_s=0.3)
    with pytest.raises(ServiceError, match=r"slow to be ready within 0\.3 s"):
        Supervisor(tmp_path, [slow]).start()


def test_two_supervisors_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second one is refused and named the first one's process id."""
    service = Service(name="one", argv=SLEEPER)
    with Supervisor(tmp_path, [service]):
        with pytest.raises(ServiceError, match=f"process {os.getpid()} runs there"):
            Supervisor(tmp_path, [service]).start()
        assert running_pid(tmp_path) == os.getpid()
        assert len(marked_processes(tmp_path)) == 1


def outside(folder: Path, script: str = SLEEPER[-1], before: str = "") -> subprocess.Popen[bytes]:
    """A supervisor in a process of its own, as the command line runs it; its service is up."""
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from fedlatent.shared.supervisor import Service, Supervisor, run_until_signal
        service = Service(
            name="one", argv=("/bin/sh", "-c", {script!r}), ready=lambda log: "up" in log
        )
        supervisor = Supervisor(Path({str(folder)!r}), [service])
        run_until_signal(supervisor.start, supervisor.stop)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", before + program])
    until(lambda: read_status(folder) != [] and read_status(folder)[0].state == "ready")
    return process


def warden_of(folder: Path) -> int:
    """The process that waits for the end of the supervisor on ``folder``; 0 for none."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        words = entry.read_bytes().split(b"\0")
        if b"fedlatent.shared.processes" in words and os.fsencode(folder) in words:
            return int(entry.parent.name)
    return 0


def test_all_end_with_a_killed_supervisor(tmp_path: Path) -> None:
    """After kill -9 of a supervisor nothing goes on: no child, no session of its own, no sleeper.

    A process that SIGSTOP keeps from hearing SIGTERM is no exception.
    """
    script = "trap '' HUP; setsid sleep 301 & sleep 302 & echo up; wait"
    first = outside(tmp_path, script)
    until(lambda: len(marked_processes(tmp_path)) == 3)
    for pid, command in marked_processes(tmp_path).items():
        if command == "sleep 302":
            os.kill(pid, signal.SIGSTOP)
    first.kill()
    first.wait()
    until(lambda: marked_processes(tmp_path) == {}, 30.0)
    assert [one.state for one in read_status(tmp_path)] == ["stopped"]


def test_a_warden_leaves_the_next_supervisor_alone(tmp_path: Path) -> None:
    """What a new supervisor starts while the old one's warden still works goes on."""
    first = outside(tmp_path)
    os.kill(warden := warden_of(tmp_path), signal.SIGSTOP)
    first.kill()
    first.wait()
    (orphan,) = marked_processes(tmp_path)
    service = Service(name="one", argv=SLEEPER, ready=lambda log: "up" in log)
    with Supervisor(tmp_path, [service]) as supervisor:
        (now,) = marked_processes(tmp_path)
        assert now != orphan
        os.kill(warden, signal.SIGCONT)
        until(lambda: not Path(f"/proc/{warden}").exists() or "Z" in state_of(warden))
        assert list(marked_processes(tmp_path)) == [now]
        assert supervisor.status()[0].restarts == 0


def state_of(pid: int) -> str:
    """The letter that the kernel has for the state of a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_killed_warden_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another takes its place, and the services do not notice."""
    monkeypatch.setattr("fedlatent.shared.supervisor._LOOK_S", 0.05)
    with Supervisor(tmp_path, [Service(name="one", argv=SLEEPER)]) as supervisor:
        before = warden_of(tmp_path)
        os.kill(before, signal.SIGKILL)
        until(lambda: warden_of(tmp_path) not in (before, 0))
        assert supervisor.status()[0].restarts == 0


def test_orphans_are_shown_and_ended(tmp_path: Path) -> None:
    """Where the warden was killed as well, status shows what runs, and stop ends it."""
    first = outside(tmp_path, "setsid sleep 301 & echo up; wait")
    os.kill(warden_of(tmp_path), signal.SIGKILL)
    first.kill()
    first.wait()
    assert running_pid(tmp_path) is None
    shown = read_status(tmp_path)
    assert [one.state for one in shown] == ["orphaned", "orphaned"]
    assert {one.pid for one in shown} == set(marked_processes(tmp_path))
    assert "sleep 301" in shown[1].reason
    assert stop_running(tmp_path) == "orphans"
    assert marked_processes(tmp_path) == {}
    assert stop_running(tmp_path) == ""
    assert [one.state for one in read_status(tmp_path)] == ["stopped"]


@pytest.mark.parametrize("lock", [None, b"", b"junk\xff"])
def test_a_lost_lock_file_hides_no_supervisor(tmp_path: Path, lock: bytes | None) -> None:
    """A supervisor without a sound lock file is still found, respected and stopped."""
    first = outside(tmp_path)
    path = tmp_path / "supervisor.lock"
    path.unlink() if lock is None else path.write_bytes(lock)
    assert running_pid(tmp_path) == first.pid
    assert [one.state for one in read_status(tmp_path)] == ["ready"]
    with pytest.raises(ServiceError, match=f"process {first.pid} runs there"):
        Supervisor(tmp_path, [Service(name="one", argv=SLEEPER)]).start()
    stopper = threading.Thread(target=stop_running, args=(tmp_path,))
    stopper.start()
    assert first.wait(120) == 0
    stopper.join(20)
    assert marked_processes(tmp_path) == {}


def test_a_damaged_status_file_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be read is no error, and is written anew."""
    monkeypatch.setattr("fedlatent.shared.supervisor._HEALTHY_S", 0.05)
    with Supervisor(tmp_path, [Service(name="one", argv=SLEEPER)]):
        until(lambda: len(read_status(tmp_path)) == 1)
        for junk in (b"", b"[{", b"[1]", b'[{"name": "one"}]', b"\xff"):
            (tmp_path / "status.json").write_bytes(junk)
            until(lambda: len(read_status(tmp_path)) == 1)


def test_the_terminals_end_is_the_end(tmp_path: Path) -> None:
    """SIGHUP stops a supervisor and its services as SIGTERM does; under nohup it does not."""
    first = outside(tmp_path)
    first.send_signal(signal.SIGHUP)
    assert first.wait(120) == 0
    assert marked_processes(tmp_path) == {}
    deaf = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    second = outside(tmp_path, before=deaf)
    second.send_signal(signal.SIGHUP)
    second.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    assert second.poll() is None
    second.terminate()
    assert second.wait(120) == 0


def test_hanging_up_is_terminating() -> None:
    """A process that has a way to end by SIGTERM takes it at SIGHUP, and dies of it if it has none.

    One that ignores SIGHUP goes on doing so.
    """
    program = (
        "import signal, sys, time; "
        "from fedlatent.shared.processes import hang_up_is_terminate; {}; "
        "hang_up_is_terminate(); print('up', flush=True); time.sleep(300)"
    )
    for setting, status in (
        ("pass", -signal.SIGTERM),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", 7),
        ("signal.signal(signal.SIGHUP, signal.SIG_IGN)", -signal.SIGKILL),
    ):
        argv = [sys.executable, "-c", program.format(setting)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGHUP)
            if "SIG_IGN" in setting:
                time.sleep(0.3)
                process.kill()
            assert process.wait(120) == status


def test_a_process_that_stands_still_is_ended(tmp_path: Path) -> None:
    """A signal that has stopped a process for a minute ends it, at any depth; status says so."""
    script = "sleep 301 & echo up; wait"
    service = Service(
        name="one",
        argv=("/bin/sh", "-c", script),
        ready=lambda log: "up" in log,
        pause_s=(0.1, 0.1),
    )
    with Supervisor(tmp_path, [service]) as supervisor:
        until(lambda: read_status(tmp_path) != [] and len(marked_processes(tmp_path)) == 2)
        for pid in marked_processes(tmp_path):
            os.kill(pid, signal.SIGSTOP)
        until(lambda: all(is_stopped(pid) for pid in marked_processes(tmp_path)))
        assert read_status(tmp_path)[0].reason == "a signal has stopped it"
        before = set(marked_processes(tmp_path))
        supervisor.end_stopped(100.0)
        supervisor.end_stopped(159.0)
        assert set(marked_processes(tmp_path)) == before
        supervisor.end_stopped(160.0)
        until(lambda: supervisor.status()[0].restarts == 1)
        assert "a signal had stopped it" in supervisor.status()[0].reason
        until(lambda: not before & set(marked_processes(tmp_path)))


def test_a_frozen_supervisor_is_shown_and_stopped(tmp_path: Path) -> None:
    """A supervisor that SIGSTOP holds is named as such, and stop reaches it."""
    first = outside(tmp_path)
    first.send_signal(signal.SIGSTOP)
    until(lambda: is_stopped(first.pid))
    assert read_status(tmp_path)[0].reason == "its supervisor was stopped by a signal"
    stopper = threading.Thread(target=stop_running, args=(tmp_path,))
    stopper.start()
    assert first.wait(120) == 0
    stopper.join(20)


def test_what_is_started_meanwhile_is_ended_too(tmp_path: Path) -> None:
    """A process that leaves a child while it is being ended leaves nothing."""
    script = "trap 'sleep 303 & exit' TERM; echo up; while :; do sleep 0.1; done"
    marks = {MARK: str(tmp_path), TURN: "0-x"}
    argv = ("/bin/sh", "-c", script)
    with subprocess.Popen(argv, env=os.environ | marks, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        reaper = threading.Thread(target=process.wait)
        reaper.start()
        assert end_processes(tmp_path, "1-y") == 0
        assert end_processes(tmp_path, "0-x") >= 2
        reaper.join(10)
    assert marked_processes(tmp_path) == {}


def test_a_running_supervisor_can_be_stopped_from_outside(tmp_path: Path) -> None:
    """One call ends a supervisor of another process with all its services."""
    assert not stop_running(tmp_path)
    process = outside(tmp_path)
    assert running_pid(tmp_path) == process.pid
    waiter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; "
            "from fedlatent.shared.supervisor import stop_running; "
            "sys.exit(not stop_running(Path(sys.argv[1])))",
            str(tmp_path),
        ]
    )
    assert process.wait(120) == 0
    assert waiter.wait(120) == 0
    assert marked_processes(tmp_path) == {}


def test_a_service_that_lives_and_does_nothing_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ails for longer than its patience is ended, and the reason is kept."""
    monkeypatch.setattr("fedlatent.shared.supervisor._LOOK_S", 0.05)
    ailing = ["it has not polled for 90 s"]
    service = Service(
        name="one",
        argv=SLEEPER,
        ready=lambda log: "up" in log,
        pause_s=(0.05, 0.05),
        ails=lambda: ailing[0],
        patience_s=0.3,
    )
    with Supervisor(tmp_path, [service]) as supervisor:
        until(lambda: supervisor.status()[0].restarts == 1)
        ailing[0] = ""
        assert supervisor.status()[0].reason == "was ended: it has not polled for 90 s"
        assert supervisor.wait_ready("one", 5.0)
        restarts = supervisor.status()[0].restarts
        time.sleep(0.6)
        assert supervisor.status()[0].restarts == restarts


def test_an_ailment_that_passes_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look that finds fault is not enough."""
    monkeypatch.setattr("fedlatent.shared.supervisor._LOOK_S", 0.02)
    looks = iter([*["it does not answer"] * 3, ""] * 100)
    service = Service(
        name="one", argv=SLEEPER, ready=lambda log: "up" in log, ails=looks.__next__, patience_s=0.2
    )
    with Supervisor(tmp_path, [service]) as supervisor:
        time.sleep(1.0)
        assert supervisor.status()[0].restarts == 0


def test_the_last_contact_is_shown(tmp_path: Path) -> None:
    """A service's process notes when its peer answered, and the status says when that was."""
    code = (
        "from fedlatent.shared.contact import Contact; "
        "c = Contact.of_process(); c.tried(); c.answered(); "
        "print('up', flush=True); import time; time.sleep(300)"
    )
    service = Service(name="one", argv=(sys.executable, "-c", code), ready=lambda log: "up" in log)
    before = time.time() - 1.0
    with Supervisor(tmp_path, [service]) as supervisor:
        contact = supervisor.status()[0].contact
        assert contact is not None
        assert before <= contact <= time.time()
        until(lambda: read_status(tmp_path) != [])
        assert read_status(tmp_path)[0].contact == contact
    assert Contact(tmp_path / "two").last_answered is None


def test_silence_is_measured_by_a_clock_that_nobody_sets(tmp_path: Path) -> None:
    """A note of another time is a sign of life as any; one that stays the same is none."""
    contact = Contact(tmp_path)
    silence = Silence(contact)
    assert silence.ailment(0.0) == ""
    contact.tried()
    for moment in (time.time() - 9e4, time.time() + 9e4):  # the clock is set back and forward
        os.utime(tmp_path / "contact.tried", (moment, moment))
        assert silence.ailment(60.0) == ""
    time.sleep(0.05)
    assert "for nothing for 0 s" in silence.ailment(0.02)
    contact.forget_tries()
    assert silence.ailment(0.02) == ""
