"""Watching a run from outside: the registry tells how far it is."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from fedlatent.server.control import OVER, Control, Submission
from fedlatent.server.home import ServerHome
from fedlatent.server.outcome import excuses
from fedlatent.server.registry import Registry, Round, Run
from fedlatent.shared.errors import DataError, QuorumLost, ServiceError

#: Told a sentence and the share of the run that is done.
Report = Callable[[str, float], None]

#: Told a sentence that stays.
Note = Callable[[str], None]

_POLL_S = 0.5


def watch_run(
    home: ServerHome,
    run_id: str,
    report: Report,
    timeout_s: float = float("inf"),
    *,
    starts: int = 0,
    note: Note = lambda _sentence: None,
) -> None:
    """Report the phases of a run until it is complete.

    Args:
        home: of the server.
        run_id: the run.
        report: told how far it is.
        timeout_s: longest wait.
        starts: how often the registry had seen the run start when it was resumed; what it says of
            the run until it starts once more, such as that it is paused, no longer holds.
        note: told of a phase that ended, of this start, which sites newly did not count, and why.

    Raises:
        QuorumLost: it is paused, since too few nodes answered.
        ServiceError: it ended otherwise, or not within ``timeout_s``.
    """
    deadline, closed = time.monotonic() + timeout_s, ""
    news: _News | None = None
    while time.monotonic() < deadline:
        with Registry(home.registry) as registry:
            run = registry.run(run_id)
            rounds = registry.rounds(run_id)
            news = news or _News(rounds if starts else ())
            for sentence in news.of(registry, rounds):
                note(sentence)
        if run is None:
            report("training: waiting for the server's app", 0.0)
        else:
            done = sum(one.status == "complete" for one in rounds)
            report(
                f"training: {done} of {run.phases} phases done{_asking(rounds)}", done / run.phases
            )
            if run.status == "complete":
                return
            current = run.starts > starts
            if current and run.status == "paused":
                raise QuorumLost(f"Run {run_id} is paused: {run.sentence}")
            if current and run.status in ("failed", "stopped"):
                raise ServiceError(f"Run {run_id} is {run.status}: {run.sentence}")
        before, closed = closed, _closed(home, run_id)
        if before and closed:  # the registry had nothing to add
            raise ServiceError(closed)
        time.sleep(_POLL_S)
    raise ServiceError(
        f"Expected run {run_id} to end within {timeout_s:g} s, but it goes on; watch it with "
        f"'fedlatent server status {run_id}'."
    )


def standing(home: ServerHome, run: Run) -> tuple[str, str]:
    """Status and sentence of a run as they hold now.

    What the registry says is of the process that drove the run last. Once the run is launched again
    that no longer holds, nor does it when such a process died for good without a last word.
    """
    submission = _submission(home, run.id)
    if submission is not None:
        if submission.state == "open" and run.status in OVER and run.starts <= submission.starts:
            return "running", "resumed; its app has not begun yet"
        if submission.state in ("failed", "stopped") and run.status not in OVER:
            return submission.state, submission.reason
    return run.status, run.sentence


def _asking(rounds: Sequence[Round]) -> str:
    """What the phase that goes on does, if one does."""
    running = [one for one in rounds if one.status == "running"]
    if not running:
        return ""
    one = running[-1]
    again = "" if one.attempt == 1 else ", once more"
    return f", phase {one.number} ({one.kind}) asks {one.asked} sites{again}"


class _News:
    """Who newly did not count in the phases that have ended since the last look."""

    def __init__(self, old: Iterable[Round]) -> None:
        """Leave out ``old`` phases."""
        self._seen = {(one.number, one.finished) for one in old}
        self._known = set[tuple[str, str]]()

    def of(self, registry: Registry, rounds: Sequence[Round]) -> Iterator[str]:
        """A sentence for each such phase; a site's reason is not repeated while it lasts."""
        for one in rounds:
            if one.finished is None or (one.number, one.finished) in self._seen:
                continue
            self._seen.add((one.number, one.finished))
            sites = registry.site_rounds(one.run_id, one.number)
            bad = [site for site in sites if site.status != "ok"]
            fresh = [site for site in bad if (site.site, site.code) not in self._known]
            self._known = {(site.site, site.code) for site in bad}
            if fresh:
                counted = f"{one.good} of {one.asked} sites counted"
                yield f"phase {one.number} ({one.kind}), {counted}: {excuses(fresh)}"


def _closed(home: ServerHome, run_id: str) -> str:
    """Why a run that was submitted does not go on, whatever the registry says; empty if it does."""
    submission = _submission(home, run_id)
    if submission is None or submission.state not in ("failed", "stopped"):
        return ""
    return f"Run {run_id} is {submission.state}: {submission.reason}"


def _submission(home: ServerHome, run_id: str) -> Submission | None:
    """A run's submission; None of a simulated one, and where it is damaged: the run needs none."""
    if not (home.run(run_id) / "submission.json").exists():
        return None
    try:
        return Control(home).submission(run_id)
    except DataError:
        return None
