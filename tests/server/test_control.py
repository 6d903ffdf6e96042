"""The operator's files of runs: damaged ones, and two writers at once."""

import fcntl
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fedlatent.server.control import Control, RunState, Submission, fingerprint_of
from fedlatent.server.home import ServerHome
from fedlatent.server.registry import Registry, RunStatus
from fedlatent.server.service import ServerService, init_server
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ConfigError, DataError, ServiceError
from fedlatent.shared.files import write_json
from fedlatent.shared.keys import generate_node_key, name_node_key, node_public_key
from tests.server.services import until

CONFIG = RunConfig.parse({"name": "x", "data": {"name": "d", "shape": [2]}}, "test")

DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "junk": lambda path: path.write_bytes(b"\xff\x00junk"),
    "list": lambda path: path.write_text("[1]"),
    "types": lambda path: path.write_text(path.read_text().replace('"open"', "7")),
    "another": lambda path: path.write_text(path.read_text().replace("another", "x")),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    """A server that does not run."""
    made = ServerHome(tmp_path / "server")
    init_server(made, port=0)
    return made


def submit(
    home: ServerHome, run_id: str, status: RunStatus | None, state: RunState = "open"
) -> Submission:
    """Write a submission, and what the run has written if it has a status."""
    made = Submission(
        run_id=run_id,
        config=CONFIG.to_json(),
        state=state,
        reason="",
        flower_runs=("1",),
        submitted="2026-01-01",
    )
    write_json(home.run(run_id) / "submission.json", asdict(made))
    if status is not None:
        write_json(home.run(run_id) / "config.json", CONFIG.model_dump(mode="json"))
        with Registry(home.registry) as registry:
            registry.start_run(
                run_id, name="x", digest=CONFIG.digest(), config=CONFIG.to_json(), phases=1
            )
            registry.set_status(run_id, status, "as the registry says")
    return made


def test_damaged_submissions_stop_nobody_else(
    home: ServerHome, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each kind of damage is said once; the other runs are looked after."""
    for name, damage in DAMAGES.items():
        submit(home, name, None)
        damage(home.run(name) / "submission.json")
    submit(home, "good", "complete")
    service = ServerService(home)
    watcher = threading.Thread(target=service.watch_runs)
    watcher.start()
    try:
        until(lambda: service.control.submission("good").state == "completed", 240)
        threading.Event().wait(2.5)  # a look a second
    finally:
        service.stop()
        watcher.join()
    said = capfd.readouterr().err.splitlines()
    assert len(said) == len(DAMAGES)
    assert all("start a new run" in line for line in said)
    assert set(service.control.survey()[1]) == set(DAMAGES)


@pytest.mark.parametrize("name", list(DAMAGES))
@pytest.mark.parametrize(
    ("status", "state"), [("running", "open"), ("paused", "failed"), ("complete", "completed")]
)
def test_a_damaged_submission_is_made_anew(
    home: ServerHome, name: str, status: RunStatus, state: RunState
) -> None:
    """What the run and the registry say is enough, but not before the run has begun."""
    submit(home, name, status)
    control, path = Control(home), home.run(name) / "submission.json"
    DAMAGES[name](path)
    with pytest.raises(DataError, match="makes it anew"):
        control.submission(name)
    mended = control.mend(name)
    assert control.submission(name) == mended
    assert (mended.state, mended.config) == (state, CONFIG.to_json())
    assert mended.starts == (0 if state == "open" else 1)
    assert control.survey()[1] == {}


def test_a_wrong_name_is_found_at_admission(home: ServerHome, tmp_path: Path) -> None:
    """The site's own name stands in its key's file, so that no run is charged for another."""
    public = generate_node_key(tmp_path / "node", "ward-1")
    with pytest.raises(ConfigError, match=r"'ward-1' by .*node\.pub, got 'ward-2'"):
        Control(home).admit("ward-2", public)
    name_node_key(tmp_path / "node", "ward-2")
    with pytest.raises(ServiceError, match="to run, but it does not"):
        Control(home).admit("ward-2", public)
    entry = {"name": "ward-1", "node_id": "1", "public_key": "", "admitted": ""}
    fingerprint = fingerprint_of(node_public_key(public.read_text(), "a test"))
    write_json(home.sites, [entry | {"fingerprint": fingerprint}])
    with pytest.raises(ConfigError, match=r"'ward-2' by .*node\.pub, got 'ward-1'"):
        Control(home).admit("ward-1", public)  # admitted before the site changed its name
    with pytest.raises(ServiceError, match="to run, but it does not"):  # of an earlier release
        Control(home).admit("ward-3", generate_node_key(tmp_path / "old"))


def test_a_late_close_does_not_undo_a_resume(home: ServerHome) -> None:
    """Who read the submission before the run was launched again closes nothing."""
    stale = submit(home, "x", None)
    resumed = replace(stale, flower_runs=("1", "2"))
    write_json(home.run("x") / "submission.json", asdict(resumed))
    control = Control(home)
    assert control.close(stale, "failed", "paused") == resumed
    assert control.submission("x") == resumed
    assert control.close(resumed, "failed", "paused").state == "failed"


def test_a_run_that_goes_on_is_not_resumed(
    home: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as a process drives the run, a resume is refused in words."""
    monkeypatch.setattr("fedlatent.server.control._ENDING_S", 0.0)
    submit(home, "x", "running")
    with (home.run("x") / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ServiceError, match="got one that goes on"):
            Control(home).resume("x")
    with pytest.raises(ServiceError, match="run 'fedlatent server start' first"):
        Control(home).resume("x")


def test_a_verdict_of_before_the_resume_closes_nothing(home: ServerHome) -> None:
    """The registry's old pause, even one of a later hour, is none about the run that goes on."""
    stale = submit(home, "x", "paused")
    write_json(home.run("x") / "submission.json", asdict(replace(stale, starts=1)))
    submit(home, "y", "paused")
    service = ServerService(home)
    watcher = threading.Thread(target=service.watch_runs)
    watcher.start()
    try:
        until(lambda: service.control.submission("y").state == "failed", 240)
    finally:
        service.stop()
        watcher.join()
    assert service.control.submission("x").state == "open"
