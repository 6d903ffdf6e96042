"""The page of all commands."""

from pathlib import Path

from fedlatent.cli.reference import reference

PAGE = Path(__file__).resolve().parents[2] / "docs/cli.md"


def test_the_page_of_commands_is_current() -> None:
    """docs/cli.md is what the commands say of themselves; ``make docs`` writes it."""
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `make docs`"
