"""Watching a run: what the registry said before it was resumed is no verdict."""

import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from fedlatent.server.control import RunState, Submission
from fedlatent.server.home import ServerHome
from fedlatent.server.outcome import SiteOutcome, SiteStatus
from fedlatent.server.registry import Registry
from fedlatent.server.watch import standing, watch_run
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


def submitted(home: ServerHome, state: RunState, reason: str = "") -> None:
    """Write the submission of the run that was launched a second time."""
    submission = Submission(
        run_id="hearts",
        config="{}",
        state=state,
        reason=reason,
        flower_runs=("1", "2"),
        submitted="2026-01-01",
        starts=1,
    )
    write_json(home.run("hearts") / "submission.json", asdict(submission))


def test_a_run_that_never_started_again_is_said(paused: ServerHome) -> None:
    """Where the process of a resumed run dies before its first word, its submission says why."""
    submitted(paused, "failed", "its process died 6 times; see the log of the run")
    with pytest.raises(ServiceError, match="is failed: its process died 6 times"):
        watch_run(paused, "hearts", lambda *_: None, 20.0, starts=1)


def stands(home: ServerHome) -> tuple[str, str]:
    """Status and sentence of the run, as they are shown."""
    with Registry(home.registry) as registry:
        row = registry.run("hearts")
    assert row is not None
    return standing(home, row)


def test_a_resumed_run_does_not_show_its_old_pause(paused: ServerHome) -> None:
    """Paused holds until the run is launched again, and again once it was driven since."""
    assert stands(paused) == ("paused", "too few answered")
    submitted(paused, "open")
    assert stands(paused) == ("running", "resumed; its app has not begun yet")
    with Registry(paused.registry) as registry:
        registry.start_run("hearts", name="hearts", digest="d", config="{}", phases=1)
        registry.set_status("hearts", "paused", "too few once more")
    assert stands(paused) == ("paused", "too few once more")


def test_a_run_whose_process_died_for_good_is_not_shown_as_running(paused: ServerHome) -> None:
    """The last word of a process that died is none; the submission says what became of the run."""
    with Registry(paused.registry) as registry:
        registry.set_status("hearts", "running")
    submitted(paused, "failed", "its process died 6 times")
    assert stands(paused) == ("failed", "its process died 6 times")


def answer(site: str, code: str = "") -> SiteOutcome:
    """A reply that counts, or a refusal."""
    status: SiteStatus = "refused" if code else "ok"
    return SiteOutcome(
        site=site, node_id=1, status=status, code=code, sentence=f"Expected {code}." if code else ""
    )


def test_sites_that_do_not_count_are_said_while_the_run_goes_on(tmp_path: Path) -> None:
    """Each in its own words, once for as long as that lasts; not the phases before a resume."""
    home, said, shown = ServerHome(tmp_path), list[str](), list[str]()
    phases = [
        [answer("a"), answer("b", "budget")],
        [answer("a"), answer("b", "budget")],
        [answer("a"), answer("b")],
        [answer("a"), answer("b", "budget")],
    ]

    with Registry(home.registry) as registry:
        registry.start_run("hearts", name="hearts", digest="d", config="{}", phases=5)
        registry.start_round("hearts", 1, "train", 1, 2)

        def report(sentence: str, share: float) -> None:
            shown.append(sentence)
            number = len(shown)
            if number > len(phases):
                registry.set_status("hearts", "complete")
                return
            registry.finish_round("hearts", number, "complete", phases[number - 1])
            registry.start_round("hearts", number + 1, "train", 1, 2)

        watch_run(home, "hearts", report, 30.0, note=said.append)
        line = "phase {} (train), 1 of 2 sites counted: b refused (budget): Expected budget"
        assert said == [line.format(1), line.format(4)]
        assert shown[:2] == [
            "training: 0 of 5 phases done, phase 1 (train) asks 2 sites",
            "training: 1 of 5 phases done, phase 2 (train) asks 2 sites",
        ]
        said.clear()
        registry.start_run("hearts", name="hearts", digest="d", config="{}", phases=5)
        registry.set_status("hearts", "complete")
    watch_run(home, "hearts", lambda *_: None, 5.0, starts=1, note=said.append)
    assert said == []
