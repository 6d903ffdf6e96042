"""Progress of a study on standard error: the cells, and the rounds of the current one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import Progress, TaskID, TextColumn

from fedlatent.cli.console import err, live_lines, time_left

if TYPE_CHECKING:
    from fedlatent.simulations.study.run import Step, Watch


_WIDTH = 32  # letters for the name of a cell


@contextmanager
def study_progress(*, quiet: bool) -> Iterator["Watch"]:
    """Two live lines, or in a file or a pipe one line for each step; nothing when ``quiet``."""
    facts = TextColumn("{task.fields[facts]}", markup=False)
    with live_lines(facts, quiet=quiet or not err.is_terminal, width=20) as bars:
        yield _Bars(bars, lines=not (quiet or err.is_terminal))


class _Bars:
    """Shows the steps of a study."""

    def __init__(self, bars: Progress, *, lines: bool) -> None:
        self._bars = bars
        self._lines = lines
        self._said = ("", "")
        self._started = time.monotonic()
        self._first: float | None = None  # share that was done before this process
        self._whole: TaskID | None = None
        self._task: TaskID | None = None
        self._cell = ""
        self._rate = Rate()

    def __call__(self, step: "Step") -> None:
        """Show one step."""
        if self._whole is None:
            self._whole = self._bars.add_task("study", total=1.0, facts="")
        words = f"{step.cell.label}, seed {step.cell.seed}".removeprefix(", ")
        if step.cell.id != self._cell:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._cell, self._rate = step.cell.id, Rate()
            short = words if len(words) <= _WIDTH else f"{words[: _WIDTH - 1]}…"
            self._task = self._bars.add_task(short, total=1.0, facts="")
        share = step.share
        done = (step.done + share) / step.cells
        self._first = done if self._first is None else self._first
        left = time_left(time.monotonic() - self._started, self._first, done)
        facts = f"cell {step.number} of {step.cells}{left}"
        self._bars.update(self._whole, completed=done, facts=facts)
        if self._task is not None:
            told = self._facts(step)
            self._bars.update(self._task, completed=share, facts=told)
            at = (step.cell.id, step.doing if step.phase is None else str(step.phase.phase))
            if self._lines and at != self._said:
                err.print(": ".join(filter(None, (facts, words, told))))
            self._said = at

    def _facts(self, step: "Step") -> str:
        phase = step.phase
        if phase is None:
            return step.doing
        where = f"round {phase.round}" if phase.kind == "train" else phase.kind
        parts = [where]
        if rate := self._rate(phase.phase, phase.answered):
            parts.append(f"{rate:,.0f} clients/s" if rate >= 10 else f"{rate:.1f} clients/s")
        if phase.loss is not None:
            parts.append(f"loss {phase.loss:.4g}")
        if phase.epsilon is not None:
            parts.append(f"epsilon {phase.epsilon:.2f}")
        return ", ".join(parts)


class Rate:
    """Answers a second since the first phase of a cell began."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._answers: dict[int, int] = {}

    def __call__(self, phase: int, answered: int) -> float:
        """Take the answers of a phase so far; the rate over all phases seen."""
        self._answers[phase] = answered
        seconds = time.monotonic() - self._started
        return self.answers / seconds if seconds > 0 else 0.0

    @property
    def answers(self) -> int:
        """Answers of all phases so far."""
        return sum(self._answers.values())
