"""What people see: sentences of other machines are text, and narrow terminals lose nothing."""

import ast
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fedlatent.cli.console import progress, table
from fedlatent.cli.reference import commands
from fedlatent.server.home import ServerHome
from fedlatent.server.registry import Registry
from fedlatent.shared.errors import ConfigError
from tests.cli.conftest import Run
from tests.cli.test_commands import edge_commands, tree

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = "Expected [data] as at the node, got [/data]; correct it."
#: A folder whose name is markup, an emoji's code, a control character, and too long for a line.
ODD = "[bold]a[/x] :key: \x1b[31m " + "long " * 20 + "é"

# Prints what a terminal of plain ASCII gets of every command's help.
HELP = """
import sys
from fedlatent.cli import main

for words in eval(sys.argv[1]):
    sys.argv = ["fedlatent", *words, "--help"]
    try:
        main.main()
    except SystemExit as end:
        assert not end.code, words
"""


def test_sentences_of_sites_are_shown_as_they_are(tmp_path: Path, run: Run) -> None:
    """A sentence with brackets is neither markup nor an error."""
    home = ServerHome(tmp_path)
    with Registry(home.registry) as registry:
        registry.start_run("hearts", name="hearts", digest="d", config="{}", phases=1)
        registry.set_status("hearts", "failed", SENTENCE)
    code, shown, _ = run("server", "status", "hearts", "--home", tmp_path)
    assert code == 0
    assert SENTENCE in shown
    assert run("server", "status", "--home", tmp_path)[0] == 0


def test_a_narrow_table_folds_words_and_cuts_none_off() -> None:
    """The state of an entry can be read on 80 columns, too."""
    console = Console(width=30, record=True)
    made = table("", "state", "time")
    made.add_row("reserved", "2026-11-30T15:12:53+00:00")
    console.print(made)
    assert "…" not in console.export_text()


def test_a_table_in_a_pipe_is_as_wide_as_it_needs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script finds each row in one line, whatever it holds; COLUMNS still narrows it."""
    name, sentence = "hearts-" + "x" * 60, "Expected " + "many words " * 30 + "in one line."
    with Registry(ServerHome(tmp_path).registry) as registry:
        registry.start_run(name, name="hearts", digest="d", config="{}", phases=1)
        registry.set_status(name, "failed", sentence)
    _, shown, _ = run("server", "status", "--home", tmp_path)
    assert [line for line in shown.splitlines() if name in line and sentence in line]
    monkeypatch.setenv("COLUMNS", "60")
    _, shown, _ = run("server", "status", "--home", tmp_path)
    tables = [line for line in shown.splitlines() if line.startswith("│")]
    assert tables
    assert max(map(len, tables)) <= 60


def test_progress_in_a_pipe_is_lines_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Each new sentence is one line as soon as it is said; how far it is alone makes none."""
    with progress(quiet=False) as stages:
        stages("training: waiting", 0.0)
        assert capsys.readouterr().err == "training: waiting\n"
        stages("training: waiting", 0.1)
        assert capsys.readouterr().err == ""
        stages("training: 1 of 2 phases", 0.5)
        assert re.fullmatch(r"training: 1 of 2 phases, \d\d:\d\d left\n", capsys.readouterr().err)
        stages("export: [one]", 0.0)
        assert capsys.readouterr().err == "export: [one]\n"
    assert capsys.readouterr() == ("", "")
    with progress(quiet=True) as stages:
        stages("training: waiting", 0.0)
    assert capsys.readouterr() == ("", "")


def test_rows_are_csv_for_scripts(run: Run, tmp_path: Path) -> None:
    """The rows of --json with a header of their names; nothing where there are none."""
    assert run("server", "init", "--home", tmp_path / "none", "--port", 0)[0] == 0
    assert run("server", "status", "--home", tmp_path / "none", "--csv") == (0, "", "")
    with Registry(ServerHome(tmp_path).registry) as registry:
        registry.start_run("hearts", name="hearts", digest="d", config="{}", phases=1)
        registry.set_status("hearts", "failed", 'Expected "a", got\nb.')
    _, shown, _ = run("server", "status", "--home", tmp_path, "--csv")
    (row,) = csv.DictReader(io.StringIO(shown))
    assert (row["id"], row["sentence"]) == ("hearts", 'Expected "a", got\nb.')


def test_paths_are_printed_as_they_are(run: Run, tmp_path: Path) -> None:
    """Markup, codes of emojis and spaces stay, no line is broken, and nothing moves the cursor."""
    home = tmp_path / ODD
    code, shown, _ = run("server", "init", "--home", home)
    assert code == 0
    assert f"server made in {home}".replace("\x1b", "\\x1b") in shown.splitlines()
    for words in (("server", "status"), ("server", "run", home / "no.toml"), ("client", "status")):
        code, shown, text = run(*words, "--home", home)
        assert code in (0, ConfigError.exit_code)
        assert "\x1b" not in shown + text
        assert code == 0 or ODD.replace("\x1b", "\\x1b") in text
    code, shown, _ = run("keys", "new", home / "new.pem", "--json")
    assert json.loads(shown)["private"] == str(home / "new.pem")


def test_no_markup_is_printed() -> None:
    """The terminal takes text as it is, so styles are given by `styled`, in no string."""
    for path in sorted((ROOT / "fedlatent/cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"\[/[a-z ]*\]", node.value), f"{path.name}: {node.value}"


def environment() -> dict[str, str]:
    """That of a terminal which has no locale and knows ASCII alone, without a home."""
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    return kept | {"LANG": "C", "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}


def ask(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in such a terminal."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_every_help_can_be_read_in_ascii(tmp_path: Path) -> None:
    """Neither boxes nor letters of a help end in a traceback."""
    names = [name for name, _ in commands(tree())] + [f"edge {name}" for name in edge_commands()]
    lines = repr([name.split() for name in names])
    done = ask(tmp_path, sys.executable, "-c", HELP, lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert done.stdout.lower().count("usage:") == len(names)


def test_letters_that_a_terminal_lacks_are_shown_by_number(tmp_path: Path) -> None:
    """A path that is no ASCII, or no text at all, is printed and is whole in JSON."""
    for name, shown in (("clé", "cl\\xe9"), (os.fsdecode(b"k\xff"), "k\\udcff")):
        call = [sys.executable, "-m", "fedlatent.cli.main", "keys"]
        made = ask(tmp_path, *call, "new", name)
        assert made.returncode == 0, made.stderr
        assert f"private {shown}" in made.stdout
        told = ask(tmp_path, *call, "new", f"{name}2", "--json")
        assert json.loads(told.stdout)["private"] == f"{name}2"
        missing = ask(tmp_path, *call, "show", f"{name}3")
        assert missing.returncode == ConfigError.exit_code
        assert f"{shown}3" in missing.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("model list", 0, "gaussian"),
        ("server status", ConfigError.exit_code, "set HOME"),
        ("client status", ConfigError.exit_code, "set HOME"),
        ("server init --home made", 0, "server made"),
    ],
)
def test_an_account_without_a_name_or_a_home_is_served(
    tmp_path: Path, words: str, code: int, told: str
) -> None:
    """As in a container: what needs no home works, and what does says what to set."""
    unshare = shutil.which("unshare")
    stranger = [unshare or "", "--user", "--map-user=12345", "--map-group=12345"]
    if unshare is None or ask(tmp_path, *stranger, "true").returncode:
        pytest.skip("this machine makes no user namespaces")
    done = ask(tmp_path, *stranger, sys.executable, "-m", "fedlatent.cli.main", *words.split())
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert told in done.stdout + done.stderr
