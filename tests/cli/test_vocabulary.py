"""One vocabulary: a word means one thing in all commands, and a thing has one word."""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import click
import pytest
import typer.main

from fedlatent.cli import main as cli_main
from fedlatent.cli.reference import commands
from fedlatent.cli.renamed import RENAMED
from fedlatent.client.edge.commands.renamed import EDGE, renewed
from fedlatent.client.edge.main import build_parser
from fedlatent.client.edge.main import main as edge_main

#: What a word of several commands means, and what each of its sentences has to speak of.
MEANINGS = {
    "--absent": ("clients that take no part", r"that do not|left out"),
    "--accept": ("go on although the check of the records stops", r"although the check"),
    "--array": ("array of an NPZ that holds the records", r"array of an npz"),
    "--client": ("column that says whose record it is", r"column or array"),
    "--cohort": ("group of devices for rollouts", r"group"),
    "--column": ("column of a table, in record order", r"in record order"),
    "--data": ("one's own records", r"records|your csv"),
    "--decimal": ("mark before decimals of a CSV", r"decimals of a csv"),
    "--delimiter": ("mark between cells of a CSV", r"between the cells of a csv"),
    "--device-id": ("id of a device", r"id of"),
    "--encoding": ("encoding of a CSV", r"of a csv"),
    "--epsilon": ("privacy budget", r"epsilon"),
    "--header": ("whether a CSV begins with names", r"first line is names"),
    "--home": ("folder of a server or node", r"folder"),
    "--host": ("address to listen on", r"address to"),
    "--json": ("JSON for scripts", r"json.* for scripts"),
    "--key": ("public key that is trusted", r"public key"),
    "--label": ("column or array of labels", r"label|0 normal, 1 anomalous"),
    "--out": ("what is written", r"write|file|bundle|folder|here|there|csv"),
    "--person-cap": ("most records of one person", r"most records of one person"),
    "--port": ("port to listen on", r"port"),
    "--quantile": ("share of normal records below the threshold", r"threshold"),
    "--quick": ("the quick form", r"fewer|under a minute|quick form"),
    "--recentre": ("centre the latent space on given records", r"centre the latent space on"),
    "--records": ("number of records of a client", r"records"),
    "--run": ("name of a run", r"run"),
    "--set": ("KEY=VALUE in place of what a file says", r"key=value"),
    "--signing-key": ("private key that signs", r"key that signs|private key"),
}
SHORT = {"-k": "--key", "-o": "--out"}
#: Values that come once in one command and several times in another.
ONCE_OR_MORE = {"--key", "--signing-key", "--device-id"}

Use = tuple[str, str, str]


def uses() -> dict[str, list[Use]]:
    """Every option word with the command, the kind of value and the sentence of each use."""
    found: dict[str, list[Use]] = defaultdict(list)
    for name, command in commands(typer.main.get_command(cli_main.app)):
        for one in command.params:
            if isinstance(one, click.Option):
                kind = "flag" if one.is_flag else "repeated" if one.multiple else "value"
                for word in one.opts:
                    found[word].append((name, kind, (one.help or "").lower()))
    for name, parser in build_parser("fedlatent edge")[1].parsers.items():
        for action in parser._actions:
            kinds = {"_AppendAction": "repeated", "_StoreAction": "value"}
            kind = kinds.get(type(action).__name__, "flag")
            for word in action.option_strings:
                if word not in ("-h", "--help", "--no-header"):
                    found[word].append((f"edge {name}", kind, (action.help or "").lower()))
    return found


def test_a_word_means_one_thing() -> None:
    """Where its sentences differ, they speak of the same; its value is of one kind."""
    for word, found in uses().items():
        kinds = {kind for _, kind, _ in found}
        if SHORT.get(word, word) not in ONCE_OR_MORE:
            assert len(kinds) == 1, f"{word} is {kinds}"
        sentences = {sentence for _, _, sentence in found}
        if len(sentences) == 1:
            continue
        assert SHORT.get(word, word) in MEANINGS, f"{word} means several things: {sentences}"
        pattern = MEANINGS[SHORT.get(word, word)][1]
        for command, _, sentence in found:
            assert re.search(pattern, sentence), f"{word} of {command}: {sentence}"


def test_a_thing_has_one_word() -> None:
    """No two words have one sentence, and each short word belongs to one long one."""
    words = defaultdict(set)
    for word, found in uses().items():
        if word.startswith("--"):
            for _, _, sentence in found:
                words[re.sub(r"[^a-z0-9 ]", "", sentence)].add(word)
    assert not {sentence: found for sentence, found in words.items() if len(found) > 1}
    short = {word for word in uses() if not word.startswith("--")}
    assert short == set(SHORT)


def test_what_was_renamed_is_gone() -> None:
    """Each new word is an option of its command, and the old one is not."""
    known = {
        name: {word for word, found in uses().items() for one, _, _ in found if one == name}
        for found in uses().values()
        for name, _, _ in found
    }
    edge = {f"edge {name}": table for name, table in EDGE.items()}
    for command, table in {**RENAMED, **edge}.items():
        for old, new in table.items():
            assert new in known[command], f"{command} {new}"
            assert old not in known[command], f"{command} {old}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("data describe t.csv --output a.toml", "data describe t.csv --out a.toml"),
        ("data describe t.csv --output=a.toml", "data describe t.csv --out=a.toml"),
        ("demo --folder d --json", "demo --out d --json"),
        ("train t.csv --output a", "train t.csv --output a"),
        ("data describe -- --output", "data describe -- --output"),
        ("server run r.toml --run-id a", "server run r.toml --run a"),
    ],
)
def test_old_words_become_new_ones(words: str, expected: str) -> None:
    """By command, with or without an equals sign, and not behind a double dash."""
    assert renewed(words.split(), RENAMED) == expected.split()


def test_lists_with_commas_become_repeated_words() -> None:
    """What was one word with commas is one word for each."""
    found = renewed(["score", "b", "--columns", "a,b c", "--columns=d"], EDGE)
    assert found == ["score", "b", "--column", "a", "--column", "b c", "--column", "d"]
    assert renewed(["score", "b", "--columns"], EDGE) == ["score", "b", "--column"]


def test_an_old_word_works_and_says_so(tmp_path: Path) -> None:
    """Through the installed program: a note on standard error, JSON alone on standard output."""
    table, made = tmp_path / "t.csv", tmp_path / "t.toml"
    table.write_text("a,b\n" + "".join(f"{i},{i % 7}\n" for i in range(30)))
    command = [sys.executable, "-m", "fedlatent.cli.main", "data", "describe", str(table)]
    done = subprocess.run(
        [*command, "--output", str(made)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert made.exists()
    assert "--output of 'data describe' is now --out; --output works until 0.2" in done.stderr
    assert "now --out" not in done.stdout


def test_a_devices_old_word_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same where a device has no other command line."""
    words = ["score", str(tmp_path / "none"), "r.csv", "--key", "k", "--output", "o", "--json"]
    assert edge_main(words) != 0
    assert "--output of 'score' is now --out" in capsys.readouterr().err
