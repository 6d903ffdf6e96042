"""The page of all commands, docs/cli.md, from what the commands say of themselves.

``python -m fedlatent.cli.reference > docs/cli.md`` (``make docs``) writes it; a test holds it.
"""

import argparse
import re
from collections.abc import Iterator

import click
import typer.main

from fedlatent.cli import main
from fedlatent.client.edge.main import build_parser

_HEAD = """# Commands

Every command with its arguments and options, made by `make docs` from what `--help` says. How they
belong together: [guide](guide.md), [the edge](edge.md), [simulation](simulation.md). The commands
under `fedlatent edge` are those of `fedlatent-edge` on a device.
"""


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """Every command below ``command`` with its full name."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))
    else:
        yield " ".join(path), command


def reference() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for name, command in commands(typer.main.get_command(main.app)):
        if name == "edge":
            parsers = build_parser(f"fedlatent {name}")[1].parsers
            parts += [_section(f"{name} {key}", *_of_argparse(parsers[key])) for key in parsers]
        else:
            parts.append(_section(name, *_of_click(command)))
    return "\n".join(parts)


Row = tuple[str, str]


def _of_click(command: click.Command) -> tuple[str, list[Row], list[str]]:
    """What it does, its arguments and options with their meaning, and examples."""
    context, rows = click.Context(command, info_name="", resilient_parsing=True), []
    for one in command.params:
        if isinstance(one, click.Option):
            words = ", ".join(one.opts + one.secondary_opts)
            value = "" if one.is_flag else f" {one.make_metavar(context).removesuffix(' RANGE')}"
            default = one.get_help_extra(context).get("default")
            needed = "required" if one.required else f"default {default}" if default else ""
            rows.append((f"{words}{value}", _meaning(one.help or "", needed)))
        else:
            shown = one.make_metavar(context)
            rows.append((shown, _meaning(getattr(one, "help", None) or "", "")))
    example = re.sub(r"^Examples?: ", "", command.epilog or "")
    return command.help or "", rows, example.split(" | ")


def _of_argparse(parser: argparse.ArgumentParser) -> tuple[str, list[Row], list[str]]:
    """The same of a device's command, whose sentences state the defaults by themselves."""
    rows = []
    for one in parser._actions:
        if "--help" not in one.option_strings:
            value = "" if one.nargs == 0 else str(one.metavar or one.dest.upper())
            needed = "required" if one.required and one.option_strings else ""
            words = f"{', '.join(one.option_strings)} {value}".strip()
            rows.append((words, _meaning((one.help or "") % vars(one), needed)))
    lines = (parser.epilog or "").splitlines()[1:]
    return parser.description or "", rows, [line.strip() for line in lines]


def _meaning(words: str, needed: str) -> str:
    shown = words.replace("\\[", "[").replace("|", "\\|").strip()
    return f"{shown} ({needed})" if needed else shown


def _section(name: str, help_: str, rows: list[Row], examples: list[str]) -> str:
    lines = [f"## `fedlatent {name}`", "", re.sub(r"(?<!\n)\n(?!\n)", " ", help_.strip()), ""]
    if rows:
        lines += ["| | |", "|---|---|", *(f"| `{left}` | {right} |" for left, right in rows), ""]
    return "\n".join([*lines, "```sh", *examples, "```", ""])


if __name__ == "__main__":
    print(reference(), end="")
