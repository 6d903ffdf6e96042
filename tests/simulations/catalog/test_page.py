"""The page of data sets."""

from pathlib import Path

import pytest

from fedlatent.simulations.catalog.page import with_catalogue

PAGE = Path(__file__).resolve().parents[3] / "docs/data.md"


def test_the_page_holds_the_catalogue() -> None:
    """docs/data.md has the table of the catalogue; ``make docs`` writes it."""
    text = PAGE.read_text(encoding="utf-8")
    assert with_catalogue(text) == text, "run `make docs`"


def test_a_page_without_marks_is_refused() -> None:
    """A text that has no place for the table is no page."""
    with pytest.raises(ValueError, match="unpack"):
        with_catalogue("# Data\n")
