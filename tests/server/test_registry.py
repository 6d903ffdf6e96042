"""The registry: each phase is one row, however often it is done."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedlatent.server.outcome import SiteOutcome, SiteStatus
from fedlatent.server.registry import Registry
from fedlatent.shared.errors import ServiceError


def opened(path: Path) -> Registry:
    """A registry with one run."""
    registry = Registry(path / "registry.db")
    registry.start_run("tiny-1", name="tiny", digest="d", config="{}", phases=4)
    return registry


def outcome(site: str, **changes: object) -> SiteOutcome:
    """A site that counted."""
    values: dict[str, object] = {"status": "ok", "records": 10, "epsilon": 1.0, "delta": 1e-5}
    return SiteOutcome(site=site, node_id=2**64 - 1, **(values | changes))  # type: ignore[arg-type]


def test_phase_done_twice_is_one_row(tmp_path: Path) -> None:
    """A phase that is done again replaces its row and those of its sites."""
    with opened(tmp_path) as registry:
        for attempt, sites in ((1, ["a", "b", "c"]), (2, ["a", "b"])):
            registry.start_round("tiny-1", 1, "train", attempt, len(sites))
            registry.finish_round("tiny-1", 1, "complete", [outcome(site) for site in sites])
        (row,) = registry.rounds("tiny-1")
        assert (row.attempt, row.asked, row.good, row.records) == (2, 2, 2, 20)
        assert [part.site for part in registry.site_rounds("tiny-1", 1)] == ["a", "b"]
        assert registry.site_rounds("tiny-1")[0].node_id == str(2**64 - 1)


def test_a_registry_of_an_earlier_release_is_widened(tmp_path: Path) -> None:
    """Its rows stay, and those that come have the hash of the reply."""
    with opened(tmp_path) as registry:
        registry.start_round("tiny-1", 1, "train", 1, 1)
        registry.finish_round("tiny-1", 1, "complete", [outcome("a")])
    with sqlite3.connect(tmp_path / "registry.db") as old:
        old.execute("ALTER TABLE site_rounds DROP COLUMN sha256")
    with Registry(tmp_path / "registry.db") as registry:
        registry.start_round("tiny-1", 2, "train", 1, 1)
        registry.finish_round("tiny-1", 2, "complete", [outcome("a", sha256="b" * 64)])
        assert [row.sha256 for row in registry.site_rounds("tiny-1")] == ["", "b" * 64]


def test_site_keeps_its_last_epsilon(tmp_path: Path) -> None:
    """A refusal is noted with code and sentence and does not erase what the site has spent."""
    with opened(tmp_path) as registry:
        registry.start_round("tiny-1", 1, "train", 1, 1)
        registry.finish_round("tiny-1", 1, "complete", [outcome("a", epsilon=2.5)])
        registry.start_round("tiny-1", 2, "train", 1, 1)
        refused = outcome(
            "a", status="refused", code="budget", sentence="Expected x.", epsilon=None, records=0
        )
        registry.finish_round("tiny-1", 2, "failed", [refused])
        (site,) = registry.sites()
        assert (site.epsilon, site.last_status, site.last_code) == (2.5, "refused", "budget")
        assert registry.site_rounds("tiny-1", 2)[0].sentence == "Expected x."


@pytest.mark.parametrize("status", ["late", "open", "left out"])
def test_site_that_did_not_answer_was_not_seen(tmp_path: Path, status: SiteStatus) -> None:
    """A site is seen when it answers, whatever it says, and not when it is only named."""
    with opened(tmp_path) as registry:
        registry.start_round("tiny-1", 1, "train", 1, 1)
        registry.finish_round("tiny-1", 1, "complete", [outcome("a", status="refused")])
        (before,) = registry.sites()
        registry.finish_round("tiny-1", 1, "complete", [outcome("a", status=status)])
        (after,) = registry.sites()
    assert after.last_seen == before.last_seen
    assert after.last_status == status


def test_unfinished_are_those_to_resume(tmp_path: Path) -> None:
    """Running and interrupted runs go on by themselves; paused and complete ones do not."""
    with opened(tmp_path) as registry:
        for name in ("paused", "interrupted", "complete"):
            registry.start_run(name, name=name, digest="d", config="{}", phases=4)
        registry.set_status("paused", "paused", "Expected 2 nodes.")
        registry.set_status("interrupted", "interrupted")
        registry.set_status("complete", "complete")
        assert [run.id for run in registry.unfinished()] == ["tiny-1", "interrupted"]
        run = registry.run("paused")
        assert run is not None
        assert run.sentence == "Expected 2 nodes."
        assert len(registry.runs()) == 4


def test_starting_again_counts_and_clears(tmp_path: Path) -> None:
    """A run that is driven again is running, and the number of starts tells how often."""
    with opened(tmp_path) as registry:
        registry.set_status("tiny-1", "paused", "why")
        run = registry.start_run("tiny-1", name="tiny", digest="d", config="{}", phases=4)
        assert (run.status, run.sentence, run.starts) == ("running", "", 2)


def test_artefact_is_replaced(tmp_path: Path) -> None:
    """A file that is written again has one row."""
    with opened(tmp_path) as registry:
        for digest in ("a", "b"):
            registry.add_artefact("tiny-1", "model", tmp_path / "m", digest, 3)
        (artefact,) = registry.artefacts("tiny-1")
        assert artefact.sha256 == "b"


def test_commits_survive_a_power_cut(tmp_path: Path) -> None:
    """The SQLite file uses a write-ahead log."""
    opened(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "registry.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_unknown_run_and_bad_address_are_said(tmp_path: Path) -> None:
    """An unknown run, a bad URL and an unusable file each raise one sentence."""
    with opened(tmp_path) as registry, pytest.raises(ServiceError, match="'other'"):
        registry.set_status("other", "stopped")
    with pytest.raises(ServiceError, match="database URL"):
        Registry("nonsense")
    (tmp_path / "bad.db").write_bytes(b"not a database" * 100)
    with pytest.raises(ServiceError, match=r"bad\.db"):
        Registry(tmp_path / "bad.db")


def test_many_openers_of_a_new_registry_do_not_collide(tmp_path: Path) -> None:
    """Eight openers at once make one registry, and none of them fails."""
    for number in range(5):
        path = tmp_path / f"{number}.db"

        def opened(path: Path = path) -> int:
            with Registry(path) as registry:
                return len(registry.runs())

        with ThreadPoolExecutor(8) as pool:
            found = [pool.submit(opened) for _ in range(8)]
        assert [one.result() for one in found] == [0] * 8
