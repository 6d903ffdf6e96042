"""Watching a run from outside: the registry tells how far it is."""

import time
from collections.abc import Callable

from fedlatent.server.control import Control
from fedlatent.server.home import ServerHome
from fedlatent.server.registry import Registry
from fedlatent.shared.errors import DataError, QuorumLost, ServiceError

#: Told a sentence and the share of the run that is done.
Report = Callable[[str, float], None]

_POLL_S = 0.5


def watch_run(
    home: ServerHome,
    run_id: str,
    report: Report,
    timeout_s: float = float("inf"),
    *,
    starts: int = 0,
) -> None:
    """Report the phases of a run until it is complete.

    Args:
        home: of the server.
        run_id: the run.
        report: told how far it is.
        timeout_s: longest wait.
        starts: how often the registry had seen the run start when it was resumed; what it says of
            the run until it starts once more, such as that it is paused, no longer holds.

    Raises:
        QuorumLost: it is paused, since too few nodes answered.
        ServiceError: it ended otherwise, or not within ``timeout_s``.
    """
    deadline, closed = time.monotonic() + timeout_s, ""
    while time.monotonic() < deadline:
        with Registry(home.registry) as registry:
            run = registry.run(run_id)
            rounds = registry.rounds(run_id)
        if run is None:
            report("training: waiting for the server's app", 0.0)
        else:
            done = sum(one.status == "complete" for one in rounds)
            report(f"training: {done} of {run.phases} phases", done / run.phases)
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


def _closed(home: ServerHome, run_id: str) -> str:
    """Why a run that was submitted does not go on, whatever the registry says; empty if it does."""
    if not (home.run(run_id) / "submission.json").exists():
        return ""  # of a simulation
    try:
        submission = Control(home).submission(run_id)
    except DataError:  # the run itself does not need it
        return ""
    ended = submission.state in ("failed", "stopped")
    return f"Run {run_id} is {submission.state}: {submission.reason}" if ended else ""
