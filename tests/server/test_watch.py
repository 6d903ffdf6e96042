"""Watching a run: what the registry said before it was resumed is no verdict."""

import threading
import time
from pathlib import Path

import pytest

from server.home import ServerHome
from server.registry import Registry
from server.watch import watch_run
from shared.errors import QuorumLost


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
    """A word from before the launch is none about the run that goes on."""
    launched = time.time()

    def go_on() -> None:
        with Registry(paused.registry) as registry:
            registry.start_run("hearts", name="hearts", digest="d", config="{}", phases=1)
            registry.set_status("hearts", "complete")

    later = threading.Timer(0.7, go_on)
    later.start()
    watch_run(paused, "hearts", lambda *_: None, 20.0, launched=launched)
    later.join()
