"""Printing: tables for people, JSON and CSV for scripts, progress of long work, errors."""

import csv
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console, ConsoleOptions
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from fedlatent.shared.errors import FedlatentError

if TYPE_CHECKING:
    from fedlatent.shared.supervisor import ServiceStatus

_WIDE = 10_000  # letters of a line that goes to a file or a program
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Terminal(Console):
    """Prints text as it is, wherever it comes from.

    Brackets and colons in it are no markup, control characters are shown by their number, and a
    line is not broken to fit the screen, so that a path can be copied. Tables fit a screen; in a
    file or a pipe they are as wide as they need, unless ``COLUMNS`` says otherwise.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        """Write to standard output, or to standard error."""
        super().__init__(stderr=stderr, markup=False, emoji=False)

    @property
    def options(self) -> ConsoleOptions:
        """How wide a line may be, among others."""
        found = super().options
        if self.is_terminal:
            return found
        named = os.environ.get("COLUMNS", "")
        return found.update_width(int(named) if named.isdigit() and int(named) else _WIDE)

    @property
    def _bounded(self) -> bool:
        """Whether lines end at a width: that of a screen, or one that somebody has named."""
        return self.is_terminal or bool(os.environ.get("COLUMNS"))

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 - as Console has it
        """Print ``objects``; text keeps its lines."""
        options.setdefault("soft_wrap", all(isinstance(one, str | Text) for one in objects))
        options.setdefault("crop", self._bounded)
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - as Console has it
        """Text of a line, a cell or a title."""
        return super().render_str(visible(text), **options)

    @property
    def spinner(self) -> str:
        """A spinner that this terminal can show."""
        return "line" if self.options.ascii_only else "dots"

    @property
    def tick(self) -> Text:
        """What stands in the place of the spinner of finished work."""
        return Text("+" if self.options.ascii_only else "✓", style="green")

    def status(self, status: Any, **options: Any) -> Any:  # noqa: ANN401 - as Console has it
        """A live line while work is done."""
        options.setdefault("spinner", self.spinner)
        return super().status(status, **options)


out = Terminal()
err = Terminal(stderr=True)


def visible(text: str) -> str:
    """Text without control characters: each is shown by its number."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def styled(style: str, words: str, rest: object = "", *, before: str = "") -> Text:
    """A line with some words in a style; the others are printed as they are."""
    return Text.assemble(before, (visible(words), style), visible(str(rest)))


def print_json(value: object) -> None:
    """One JSON value on standard output, in ASCII, which every terminal and script takes."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def print_csv(rows: Sequence[Mapping[str, object]]) -> None:
    """Rows on standard output as CSV, under the names that ``--json`` has; nothing where none are.

    What is absent is an empty cell, and what is no single value is JSON.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)


def _cell(value: object) -> object:
    return json.dumps(value, allow_nan=False) if isinstance(value, dict | list | tuple) else value


def print_processes(found: "Sequence[ServiceStatus]") -> None:
    """A table of supervised processes."""
    rows = table("processes", "name", "state", "last contact", "#restarts", "why", "log")
    for one in found:
        cells = (one.name, one.state, ago(one.contact), str(one.restarts))
        rows.add_row(*cells, one.reason, one.log)
    out.print(rows)


def process_facts(found: "Sequence[ServiceStatus]") -> list[dict[str, object]]:
    """The same for scripts."""
    names = ("name", "state", "restarts", "reason", "contact")
    return [{name: getattr(one, name) for name in names} for one in found]


def stop_service(folder: Path, what: str) -> None:
    """End all that runs on a home's folder of services, and say what that was."""
    from fedlatent.shared.supervisor import stop_running

    words = {
        "supervisor": f"{what} stopped",
        "orphans": f"ended what a killed {what} had left behind",
        "": f"no {what} runs here",
    }
    out.print(words[stop_running(folder)])


def print_error(error: FedlatentError, *, as_json: bool) -> None:
    """Say what went wrong: a JSON object on standard output, or a sentence on standard error."""
    if as_json:
        print_json({"error": error.facts})
    else:
        err.print(styled("bold red", "error", f" ({error.code}): {error}"))


def table(title: str, *columns: str) -> Table:
    """A plain table; columns whose name starts with ``#`` are numbers.

    Where the terminal is narrow, long words are folded, and nothing is cut off.
    """
    made = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        number = column.startswith("#")
        justify: Literal["left", "right"] = "right" if number else "left"
        made.add_column(column.lstrip("#"), justify=justify, overflow="fold")
    return made


def figure(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def size(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def ago(moment: float | None) -> str:
    """How long ago a time since 1970 was, for a table; a dash for never."""
    if moment is None:
        return "-"
    seconds = max(0.0, time.time() - moment)
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"


def time_left(elapsed: float, first: float, done: float) -> str:
    """``, 0:42 left`` from the seconds that the shares between ``first`` and ``done`` took."""
    if done <= first or done >= 1:
        return ""
    seconds = round(elapsed / (done - first) * (1 - done))
    hours, rest = divmod(seconds, 3600)
    clock = f"{rest // 60:02d}:{rest % 60:02d}"
    return f", {hours}:{clock} left" if hours else f", {clock} left"


def live_lines(*more: ProgressColumn, quiet: bool, width: int = 24) -> Progress:
    """Lines on standard error: spinner, words, a bar of ``width`` letters, time, and ``more``."""
    columns = (
        SpinnerColumn(err.spinner, finished_text=err.tick),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=width),
        TimeElapsedColumn(),
    )
    return Progress(*columns, *more, console=err, disable=quiet)


@contextmanager
def progress(*, quiet: bool) -> Iterator["Stages"]:
    """A live line per stage of long work, on standard error; nothing when ``quiet``.

    In a file or a pipe each new sentence is a line of its own, as soon as it is said.
    """
    with live_lines(quiet=quiet or not err.is_terminal) as bars:
        stages = Stages(bars, lines=not (quiet or err.is_terminal))
        yield stages
        stages.close()


class Stages:
    """Progress of named stages, one after the other."""

    def __init__(self, bars: Progress, *, lines: bool = False) -> None:
        """Show stages in ``bars``; with ``lines``, also each new sentence in a line."""
        self._bars = bars
        self._lines = lines
        self._said = ""
        self._current = ""
        self._task: int | None = None
        self._started, self._first = 0.0, 0.0

    def __call__(self, sentence: str, share: float) -> None:
        """Show that ``share`` (0 to 1) of the stage is done; its name ends at a colon."""
        name = sentence.split(":")[0]
        if name != self._current or self._task is None:
            self.close()
            self._task = int(self._bars.add_task(sentence, total=1.0))
            self._current = name
            self._started, self._first = time.monotonic(), share
        told = sentence + time_left(time.monotonic() - self._started, self._first, share)
        self._bars.update(self._task, description=told, completed=share)  # type: ignore[arg-type]
        if self._lines and sentence != self._said:
            err.print(told)
        self._said = sentence

    def note(self, sentence: str) -> None:
        """Say something that stays above the live line; nothing when quiet."""
        if self._lines or not self._bars.disable:
            err.print(sentence)

    def close(self) -> None:
        """Mark the current stage as done."""
        if self._task is not None:
            self._bars.update(self._task, completed=1.0)  # type: ignore[arg-type]
            self._task = None
