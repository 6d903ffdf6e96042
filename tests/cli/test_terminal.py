"""What people see: sentences of other machines are text, and narrow terminals lose nothing."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from cli.console import table
from server.home import ServerHome
from server.registry import Registry

Run = Callable[..., tuple[int, str, str]]

SENTENCE = "Expected [data] as at the node, got [/data]; correct it."


def test_sentences_of_sites_are_shown_as_they_are(tmp_path: Path, run: Run) -> None:
    """A sentence with brackets is neither markup nor an error."""
    home = ServerHome(tmp_path)
    with Registry(home.registry) as registry:
        registry.start_run("hearts", name="hearts", digest="d", config="{}", phases=1)
        registry.set_status("hearts", "failed", SENTENCE)
    code, shown, _ = run("server", "status", "hearts", "--home", tmp_path)
    assert code == 0
    assert SENTENCE in " ".join(shown.split())
    assert run("server", "status", "--home", tmp_path)[0] == 0


def test_a_narrow_table_folds_words_and_cuts_none_off() -> None:
    """The state of an entry can be read on 80 columns, too."""
    console = Console(width=30, record=True)
    made = table("", "state", "time")
    made.add_row("reserved", "2026-11-30T15:12:53+00:00")
    console.print(made)
    assert "…" not in console.export_text()
