"""Strike, mend, wait, look: again and again while runs go on.

An operator is played as well: a run that is over is followed by the next one, and one that stands
still with a sentence is resumed. A sentence is all that the operator has to go by, so one that is
missing is a violation, as is whatever does not go on in time.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fedlatent.shared.errors import FedlatentError
from fedlatent.shared.schedule import phases
from fedlatent.shared.supervisor import read_status
from fedlatent.simulations.chaos.faults import Missed, Wound, struck
from fedlatent.simulations.chaos.invariants import Witness
from fedlatent.simulations.chaos.plan import Fault, deal
from fedlatent.simulations.chaos.stage import HOSTILE, NODES, Stage, run_config

_PATIENCE_DEADLINES = 15.0
_POLL_S = 0.25
_OPERATE_S = 1.0
_WORDS_DEADLINES = 5.0  # for a damaged file to be got over, or to be complained about
_SETTLE_S = 5.0  # what is said later than that is said in time, too
_SHUT_OUT_S = 40.0  # a node that is let in again may take so long, and more is no pause
_LEAST_PHASES = 2  # left of a run that is struck
_BASIS = ("store/", "outbox/", "keys/records.salt", "beats.npz", "ledger.db-wal")

_OURS = ("resident", "gateway")  # the others are Flower's, which ends so when its peer goes

Told = dict[str, Any]


@dataclass
class Storm:
    """Faults of one seed on one stage.

    Attributes:
        stage: entered.
        seed: of the faults.
        count: how many to strike.
        limit_s: how long all of it may take; then fewer faults are struck.
        struck: each fault with what came of it.
        runs: each run with the sentences with which it paused.
        refusals: damages that were complained about, with the words.
        violations: what did not hold.
    """

    stage: Stage
    seed: int
    count: int
    limit_s: float
    struck: list[Told] = field(default_factory=list)
    runs: list[Told] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    refusals: list[Told] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Remember nothing yet."""
        self._witness = Witness(
            server=self.stage.server.home,
            nodes={name: self.stage.sides[name].home for name in NODES},
        )
        self._run = ""
        self._operated = 0.0

    @property
    def patience_s(self) -> float:
        """How long getting well may take: a run resumed twice, with two attempts each time."""
        return _PATIENCE_DEADLINES * self.stage.deadline_s

    def rage(self) -> None:
        """Strike all faults, then let the last run come to its end."""
        began = time.monotonic()
        volleys = deal(self.seed, self.stage.means.lacking())
        while len(self.struck) < self.count and time.monotonic() - began < self.limit_s:
            left = self.count - len(self.struck)
            self._volley(next(volleys)[:left])
        self._finish()

    def _volley(self, volley: list[Fault]) -> None:
        """Strike a few faults at once, mend, wait until all is well, and look at the files."""
        if not self._wait(self._under_way, self.patience_s):
            self._fails(f"before {', '.join(map(str, volley))}: no run gets under way")
        marks, began = self._marks(), time.monotonic()
        hit: list[tuple[Fault, Wound]] = []
        with contextlib.ExitStack() as stack:
            for fault in volley:
                time.sleep(fault.delay_s)
                with contextlib.suppress(Missed):
                    hit.append((fault, stack.enter_context(struck(self.stage, fault))))
                    self._excuse(fault)
            self._hold(hit, marks)
            lasted = time.monotonic() - began
            before = self._phases()
        healed = time.monotonic()
        well = self._recover(before)
        passed = time.monotonic() - healed
        for fault, _ in hit:
            self.struck.append(
                {**asdict(fault), "group": fault.group, "lasted_s": lasted, "recovery_s": passed}
            )
        names = ", ".join(str(fault) for fault, _ in hit) or "nothing was hit"
        if not well:
            self._fails(f"{names}: not well after {passed:.0f} s: {self._ailing(before)}")
        found = self._witness.look()
        self.violations += [f"after {names}: {one}" for one in found]
        print(f"{len(self.struck):4d}  {passed:6.1f} s  {names}", flush=True)
        for one in found:
            print(f"      VIOLATED: {one}", flush=True)

    def _hold(self, hit: list[tuple[Fault, Wound]], marks: Mapping[Path, int]) -> None:
        """Let the faults last; with a damaged file, until it is got over or complained about."""
        until = time.monotonic() + max((fault.hold_s for fault, _ in hit), default=0.0)
        files = [(fault, wound) for fault, wound in hit if fault.kind == "file"]
        while time.monotonic() < until:
            self.stage.tend()
            time.sleep(_POLL_S)
        for fault, wound in files:
            before, pauses = self._phases(), self._pauses()
            words, began, passed = "", time.monotonic(), 0.0
            while not wound.lives and passed < _WORDS_DEADLINES * self.stage.deadline_s:
                self._operate()
                words = words or self._words(marks)
                ill = self.stage.sides[fault.side].whole()
                wound.lives = not ill and bool(self._phases() - before)
                stands = (ill or self._pauses() > pauses) and passed > _SETTLE_S
                shut_out = self.stage.missing() and passed > _SHUT_OUT_S + self.stage.deadline_s
                if words and (stands or shut_out):
                    break
                time.sleep(_POLL_S)
                passed = time.monotonic() - began
            if not wound.lives:
                self.refusals.append({"fault": str(fault), "words": words})
                if not words:
                    self._fails(f"{fault}: nothing goes on, and nobody says why")

    def _excuse(self, fault: Fault) -> None:
        """Note what can no longer be asked for."""
        now = self._witness.excuses
        if fault.kind == "lie":
            now = replace(now, lies=now.lies | {(HOSTILE, self._run)})
        if fault.kind == "file" and fault.what.startswith("releases"):
            now = replace(now, lines=now.lines | {fault.side})
        if fault.kind == "file" and fault.what.startswith(_BASIS):
            now = replace(now, basis=now.basis | {fault.side})
        if fault.kind == "file" and ("checkpoints" in fault.what or fault.what == "registry.db"):
            now = replace(now, lineage=now.lineage | {self._run})
        self._witness.excuses = now

    def _recover(self, before: set[object]) -> bool:
        """Whether all processes are there again, and a phase more is done, in time."""
        return self._wait(lambda: not self._ailing(before), self.patience_s)

    def _ailing(self, before: set[object]) -> str:
        """What is not well yet; empty for nothing."""
        missing = self.stage.missing()
        return missing or ("" if self._phases() - before else f"no phase of {self._run} is done")

    def _finish(self) -> None:
        """Let the last run end, stop all, and look a last time."""
        if not self._wait(lambda: self._state() == "completed", 3 * self.patience_s):
            self._fails(f"run {self._run} did not complete")
        self._close_run()
        self.stage.stop()
        orphans = list(self.stage.orphans())
        self.violations += [*orphans, *(f"at the end: {one}" for one in self._witness.look())]

    @property
    def litter(self) -> int:
        """Temporary files that are left."""
        return self._witness.litter()

    def tracebacks(self) -> list[str]:
        """Ends of our own processes that were no sentence: log and last line of each, once."""
        found = dict[str, None]()
        for path in self._logs():
            if path.parent.name in _OURS or path.suffix == ".log":
                text = path.read_text(errors="replace")
                for part in text.split("Traceback (most recent call last):")[1:]:
                    lines = [line for line in part.splitlines() if line and line[0] not in " \t"]
                    last = lines[0][:200] if lines else "cut short"
                    found[f"{path.relative_to(self.stage.folder)}: {last}"] = None
        return list(found)

    def _wait(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Tend and operate until a condition holds; whether it did in time."""
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self._operate()
            time.sleep(_POLL_S)
        return True

    def _under_way(self) -> bool:
        """Whether a run has begun a phase and has a few more to do."""
        rows = [row for row in self._rounds() if row[0] == self._run]
        done = sum(row[2] == "complete" for row in rows)
        wanted = len(phases(run_config(self.seed, self.stage.deadline_s)))
        return bool(self._run) and len(rows) > done and done <= wanted - _LEAST_PHASES

    def _operate(self) -> None:
        """What init and operator do: start what is gone, go on with what stands still."""
        self.stage.tend()
        if time.monotonic() - self._operated < _OPERATE_S:
            return
        state = self._state()
        with contextlib.suppress(FedlatentError, OSError):
            if state in ("", "completed"):
                self._close_run()
                number = len(self.runs) + 1
                self.stage.control.submit(
                    run_config(self.seed + number, self.stage.deadline_s), f"chaos-{number}"
                )
                self._run = f"chaos-{number}"
                self.runs.append({"run": self._run, "pauses": [], "state": "open"})
            elif state in ("failed", "stopped"):
                reason = self.stage.control.submission(self._run).reason
                self.runs[-1]["pauses"].append(reason)
                if not reason:
                    self._fails(f"run {self._run} stands still without a sentence")
                self.stage.control.resume(self._run)
        self._operated = time.monotonic()

    def _pauses(self) -> int:
        """How often runs stood still so far."""
        return sum(len(run["pauses"]) for run in self.runs)

    def _close_run(self) -> None:
        if self.runs:
            self.runs[-1]["state"] = self._state()

    def _state(self) -> str:
        """Of the run: empty before the first, ``unknown`` while its file cannot be read."""
        if not self._run:
            return ""
        try:
            return self.stage.control.submission(self._run).state
        except (FedlatentError, OSError):
            return "unknown"

    def _phases(self) -> set[object]:
        """Every phase that is complete, with when that was."""
        return {row for row in self._rounds() if row[2] == "complete"}

    def _rounds(self) -> list[tuple[object, ...]]:
        """Run, number, status and end of each phase; none while the file cannot be read."""
        path = self.stage.server.home / "registry.db"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(path)) as base:
            try:
                return list(base.execute("SELECT run_id, number, status, finished FROM rounds"))
            except sqlite3.DatabaseError:
                return []

    def _marks(self) -> dict[Path, int]:
        """How long each log is."""
        return {path: path.stat().st_size for path in self._logs()}

    def _logs(self) -> Iterator[Path]:
        for side in self.stage.sides.values():
            yield side.log
            yield from side.services.glob("*/log")

    def _words(self, marks: Mapping[Path, int]) -> str:
        """What was said since, in our own kind of sentence, else what the nodes' status says."""
        found = ""
        for path in self._logs():
            with contextlib.suppress(OSError), path.open("rb") as log:
                log.seek(marks.get(path, 0))
                lines = log.read().decode(errors="replace").splitlines()
                said = [line.strip() for line in lines if "Expected " in line]
                found = said[-1][:400] if said else found
        for side in self.stage.nodes():
            found = found or next(
                (one.reason for one in read_status(side.services) if one.reason), ""
            )
        with contextlib.suppress(FedlatentError, OSError):
            found = found or (self.stage.control.submission(self._run).reason if self._run else "")
        return found

    def _fails(self, what: str) -> None:
        self.violations.append(what)
        print(f"      VIOLATED: {what}", flush=True)
