"""The page of all commands."""

import re
from pathlib import Path

from fedlatent.cli.reference import reference

PAGE = Path(__file__).resolve().parents[2] / "docs/cli.md"


def test_the_page_of_commands_is_current() -> None:
    """docs/cli.md is what the commands say of themselves; ``make docs`` writes it."""
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_commands_that_a_help_text_names_are_there() -> None:
    """What stands in quotes as a command has a section of its own."""
    page = reference()
    sections = set(re.findall(r"^## `(fedlatent[^`]*)`$", page, re.MULTILINE))
    named = set(re.findall(r"'(fedlatent(?: [a-z]+)+)'", page))
    assert named
    assert named <= sections
