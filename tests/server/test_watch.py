"""Watching a run: what the registry said before it was resumed is no verdict."""

import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from fedlatent.server.control import Submission
from fedlatent.server.home import ServerHome
from fedlatent.server.registry import Registry
from fedlatent.server.watch import watch_run
from fedlatent.shared.errors import QuorumLost, ServiceError
from fedlatent.shared.files import write_json


@pytest.fixture
def paused(tmp_path: Path) -> ServerHome:
    """A home with one paused run."""
    home = ServerHome(tmp_path)
    with Registry(home.registry) as registry:
        registry.start_run("hearts", name="hearts", digest="d", config="{}", phases=1)
        registry.set_status("hearts", "paused", "too few answered")
    return home


def test_a_paused_run_is_said(paused: ServerHome) -> None:
    """Without a resume, paused is the end of watching."""
    with pytest.raises(QuorumLost, match="too few answered"):
        watch_run(paused, "hearts", lambda *_: None, 5.0)


def test_a_resumed_run_is_watched_on_although_it_was_paused_before(paused: ServerHome) -> None:
    """A word from before the launch is none about the run that goes on, whatever the clock says."""
    with Registry(paused.registry) as registry:
        row = registry.run("hearts")
    assert row is not None

    def go_on() -> None:
        with Registry(paused.registry) as registry:
            registry.start_run("hearts", name="hearts", digest="d", config="{}", phases=1)
            registry.set_status("hearts", "complete")

    later = threading.Timer(0.7, go_on)
    later.start()
    watch_run(paused, "hearts", lambda *_: None, 20.0, starts=row.starts)
    later.join()


def test_a_run_that_never_started_again_is_said(paused: ServerHome) -> None:
    """Where the process of a resumed run dies before its first word, its submission says why."""
    submission = Submission(
        run_id="hearts",
        config="{}",
        state="failed",
        reason="its process died 6 times; see the log of the run",
        flower_runs=("1", "2"),
        submitted="2026-01-01",
        starts=1,
    )
    write_json(paused.run("hearts") / "submission.json", asdict(submission))
    with pytest.raises(ServiceError, match="is failed: its process died 6 times"):
        watch_run(paused, "hearts", lambda *_: None, 20.0, starts=1)
