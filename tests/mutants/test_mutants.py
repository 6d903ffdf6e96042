"""Every sabotage of the catalogue is seen by the test that is named for it."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS, ROOT, Mutant

#: What a tree needs to run tests in.
_PARTS = ("fedlatent", "client", "server", "shared", "simulations", "tests", "pyproject.toml")

Row = tuple[str, str, str, float]
Warm = Callable[[dict[str, str]], int]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """Rows of sabotage, catcher, outcome and seconds; printed after the last one."""
    rows: list[Row] = []
    yield rows
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\n\n| sabotage | caught by | outcome | seconds |\n|---|---|---|---|")
        for name, catcher, outcome, seconds in rows:
            print(f"| {name} | `{catcher}` | {outcome} | {seconds:.0f} |")


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    """Runs a test in another tree, by a process that loads the libraries once."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests/mutants/warm.py")],
        env=clean,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(job: dict[str, str]) -> int:
            stdin.write(json.dumps(job) + "\n")
            stdin.flush()
            return int(stdout.readline())

        yield ask
        stdin.close()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_patch_still_applies(mutant: Mutant) -> None:
    """The old text of each patch occurs once, and what comes of it is Python."""
    for path, text in _patched(mutant, ROOT).items():
        ast.parse(text, path)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_catcher_exists(mutant: Mutant) -> None:
    """The named test is a function of the named file."""
    path, _, name = mutant.catcher.partition("::")
    found = ast.parse((ROOT / path).read_text())
    functions = {node.name for node in ast.walk(found) if isinstance(node, ast.FunctionDef)}
    assert name.partition("[")[0] in functions


def test_names_are_unique() -> None:
    """Each sabotage has a name of its own, and there are at least the thirty of the review."""
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 30


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_sabotage_is_caught(
    mutant: Mutant, tmp_path: Path, table: list[Row], warm: Warm
) -> None:
    """In a tree with the patch the named test fails: an assertion, not a broken patch."""
    for part in _PARTS:
        source = ROOT / part
        if source.is_dir():
            unpaged = shutil.ignore_patterns("page")
            shutil.copytree(source, tmp_path / part, ignore=unpaged, symlinks=True)
        else:
            shutil.copy2(source, tmp_path / part)
    for path, text in _patched(mutant, ROOT).items():
        (tmp_path / path).write_text(text)
    start, log = time.monotonic(), tmp_path / "log"
    code = warm({"folder": str(tmp_path), "catcher": mutant.catcher, "log": str(log)})
    lines = log.read_text().strip().splitlines()
    caught = code == 1 and bool(lines) and "1 failed" in lines[-1]
    outcome = "caught" if caught else "SURVIVED"
    table.append((mutant.name, mutant.catcher, outcome, time.monotonic() - start))
    assert caught, "\n".join(lines[-60:])


def _patched(mutant: Mutant, root: Path) -> dict[str, str]:
    """Text of every patched file by path."""
    texts: dict[str, str] = {}
    for edit in mutant.edits:
        text = texts.get(edit.path) or (root / edit.path).read_text()
        texts[edit.path] = edit.applied(text)
    return texts
