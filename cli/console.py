"""Printing: tables for people, JSON for scripts, progress for long work, errors for both."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from shared.errors import FedlatentError

if TYPE_CHECKING:
    from shared.supervisor import ServiceStatus

out = Console()
err = Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts.")]


def print_json(value: object) -> None:
    """One JSON value on standard output."""
    sys.stdout.write(json.dumps(value, allow_nan=False, ensure_ascii=False) + "\n")


def print_processes(found: "Sequence[ServiceStatus]") -> None:
    """A table of supervised processes."""
    rows = table("processes", "name", "state", "last contact", "#restarts", "why", "log")
    for one in found:
        cells = (one.name, one.state, ago(one.contact), str(one.restarts))
        rows.add_row(*cells, escaped(one.reason), one.log)
    out.print(rows)


def process_facts(found: "Sequence[ServiceStatus]") -> list[dict[str, object]]:
    """The same for scripts."""
    names = ("name", "state", "restarts", "reason", "contact")
    return [{name: getattr(one, name) for name in names} for one in found]


def stop_service(folder: Path, what: str) -> None:
    """End all that runs on a home's folder of services, and say what that was."""
    from shared.supervisor import stop_running

    words = {
        "supervisor": f"{what} stopped",
        "orphans": f"ended what a killed {what} had left behind",
        "": f"no {what} runs here",
    }
    out.print(words[stop_running(folder)])


def print_error(error: FedlatentError, *, as_json: bool) -> None:
    """Say what went wrong: a JSON object on standard output, or a sentence on standard error."""
    if as_json:
        facts = {"code": error.code, "message": str(error)} | error.details
        print_json({"error": facts})
    else:
        err.print(f"[bold red]error[/] ({error.code}): {escaped(str(error))}", soft_wrap=True)


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


@contextmanager
def progress(*, quiet: bool) -> Iterator["Stages"]:
    """A live line per stage of long work, on standard error; nothing when ``quiet``."""
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, disable=quiet) as bars:
        stages = Stages(bars)
        yield stages
        stages.close()


class Stages:
    """Progress of named stages, one after the other."""

    def __init__(self, bars: Progress) -> None:
        """Show stages in ``bars``."""
        self._bars = bars
        self._current = ""
        self._task: int | None = None

    def __call__(self, sentence: str, share: float) -> None:
        """Show that ``share`` (0 to 1) of the stage is done; its name ends at a colon."""
        name = sentence.split(":")[0]
        if name != self._current or self._task is None:
            self.close()
            self._task = int(self._bars.add_task(sentence, total=1.0))
            self._current = name
        self._bars.update(self._task, description=sentence, completed=share)  # type: ignore[arg-type]

    def close(self) -> None:
        """Mark the current stage as done."""
        if self._task is not None:
            self._bars.update(self._task, completed=1.0)  # type: ignore[arg-type]
            self._task = None


def escaped(text: str) -> str:
    """Text in which brackets are no markup."""
    return text.replace("[", r"\[")
