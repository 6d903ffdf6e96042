"""How a system in a process of its own is measured: it takes a turn when it is told to.

The process starts, does one round to warm up, says so, and waits. Each line on its standard
input is a turn: one more round, answered by one line of JSON with its costs. The end of the input
is the end. A waiting process costs nothing, so systems can take turns for as long as one likes.
Only the standard library is imported: peers run this file too.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

#: Wall time at which the starting process was created, in seconds since the epoch.
STARTED = "FEDLATENT_BENCH_STARTED"


class Enough(BaseException):
    """The last turn was taken.

    No ``Exception``: a simulator must not take it for a failure of a client and go on.
    """


@dataclass(frozen=True, kw_only=True)
class Lap:
    """What one round, or a start, cost.

    Attributes:
        cpu_s: process time of all processes of the system.
        wall_s: time on the clock.
        peak_mb: greatest resident memory so far, in 10^6 bytes.
    """

    cpu_s: float
    wall_s: float
    peak_mb: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a system says it does in a round, so that a reader can hold it against the others."""

    parameters: int
    clients: int
    records: int
    steps: int


def own_cpu_s() -> float:
    """Process time of this process and of its ended children."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def own_peak_mb() -> float:
    """Greatest resident memory of this process so far, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class Turns:
    """The side of the measured process.

    A system that runs its own loop calls ``begin`` before its first round, as often as it likes,
    and ``round_done`` after each; any other hands one round to ``serve``.

    Attributes:
        work: of one round; set it before the first round is done.
    """

    work: Work

    def __init__(
        self,
        cpu_s: Callable[[], float] = own_cpu_s,
        peak_mb: Callable[[], float] = own_peak_mb,
    ) -> None:
        """Take standard output for the reports; whatever else prints goes to standard error.

        Args:
            cpu_s: process time so far, of all processes of the system.
            peak_mb: greatest memory so far.
        """
        self._cpu_s = cpu_s
        self._peak_mb = peak_mb
        self._start: Lap | None = None
        self._mark = 0.0, float(os.environ.get(STARTED, time.time()))
        self._reported = False
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def begin(self) -> None:
        """Say that the first round begins, which ends the start-up."""
        if self._start is None:
            self._start = self._lap()
            self._mark = self._cpu_s(), time.time()

    def round_done(self) -> None:
        """Report the round that just ended and wait for the next turn.

        Raises:
            Enough: there is none.
        """
        self.begin()
        lap = asdict(self._lap())
        if not self._reported and self._start is not None:
            lap |= {"start": asdict(self._start), "work": asdict(self.work)}
            self._reported = True
        self._out.write(json.dumps(lap) + "\n")
        self._out.flush()
        if not sys.stdin.readline():
            raise Enough
        self._mark = self._cpu_s(), time.time()

    def serve(self, one_round: Callable[[], None]) -> None:
        """Take turns until there are no more."""
        try:
            while True:
                self.begin()
                one_round()
                self.round_done()
        except Enough:
            pass

    def _lap(self) -> Lap:
        """Since the mark."""
        cpu, wall = self._cpu_s() - self._mark[0], time.time() - self._mark[1]
        return Lap(cpu_s=cpu, wall_s=wall, peak_mb=self._peak_mb())
