"""Reports: one file that opens offline, escaped, and numbers that equal hand computation."""

import json
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.study import compare, figures
from fedlatent.simulations.study.report import report
from fedlatent.simulations.study.results import CELL, Results, Spread
from tests.simulations.study.tiny import tiny

VOID = {"meta", "br", "hr", "img", "path", "use", "rect", "circle", "line", "polygon", "stop"}


class Page(HTMLParser):
    """Reads a page: that its elements close in order, its addresses, identifiers and text."""

    def __init__(self, text: str) -> None:
        """Read ``text`` to its end."""
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.counts: dict[str, int] = {}
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the element and its attributes."""
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "poster"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element that closes itself, as in SVG."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        """The innermost open element closes."""
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect the text."""
        self.words += data


@pytest.fixture(scope="module")
def page(finished: Results) -> str:
    """The report of the tiny study."""
    return report(finished)


def edited(finished: Results, folder: Path, values: list[float]) -> Results:
    """A copy whose cells answer the second question with ``values``."""
    shutil.copytree(finished.folder, folder)
    for cell, value in zip(finished.study.cells, values, strict=True):
        path = folder / "cells" / cell.id / CELL
        content = json.loads(path.read_text())
        content["answers"]["absent"] = {"pooled": value, "site_mean": value / 2}
        path.write_text(json.dumps(content))
    return Results.load(folder)


def test_a_report_is_one_whole_page(page: str) -> None:
    """Every element closes, identifiers are unique, and all tables and plots are there."""
    read = Page(page)
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))
    assert read.counts["h1"] == 1
    assert read.counts["svg"] >= 4
    assert read.counts["figcaption"] == read.counts["svg"]
    assert read.counts["table"] >= 5
    for words in ("zero-out", "sigma", "not a release", "epsilon 4", "no privacy", "Mahalanobis"):
        assert words in read.words


def test_a_report_needs_no_network(page: str) -> None:
    """Nothing in the page names another place: no address but those of its own parts."""
    assert all(address.startswith("#") for address in Page(page).addresses)
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link", page, re.IGNORECASE)
    assert all(target.startswith("#") for target in re.findall(r"url\((.)", page))


def test_text_of_the_file_is_escaped(page: str) -> None:
    """A description with markup shows as it was written."""
    assert "Two patients &amp; &lt;friends&gt;" in page
    assert "<friends>" not in page
    assert "Two patients & <friends>" in Page(page).words


def test_references_inside_plots_are_there(page: str) -> None:
    """Clip paths and glyphs that a plot uses are defined in the page."""
    read = Page(page)
    used = {address[1:] for address in read.addresses} | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used
    assert used <= set(read.ids)


def test_an_unfinished_study_is_reported_as_such(finished: Results, tmp_path: Path) -> None:
    """With one cell missing the page says so; without any there is no page."""
    folder = tmp_path / "half"
    shutil.copytree(finished.folder, folder)
    (folder / "cells" / finished.study.cells[-1].id / CELL).unlink()
    assert "3 of 4 cells are done" in report(Results.load(folder))
    with pytest.raises(ConfigError, match="no finished cell"):
        report(Results.of(tiny(), tmp_path / "none"))


def test_plots_are_left_out_where_there_is_nothing_to_plot(
    finished: Results, tmp_path: Path
) -> None:
    """Without losses and curve, as on other grids, the report has fewer figures and no error."""
    folder = tmp_path / "bare"
    shutil.copytree(finished.folder, folder)
    for path in (folder / "cells").glob(f"*/{CELL}"):
        content = json.loads(path.read_text())
        for row in content["rounds"]:
            row |= {"loss": None, "loss_spread": None, "auroc": None, "auroc_sites": None}
        path.write_text(json.dumps(content))
    bare = Results.load(folder)
    assert figures.loss_figure(bare) is None
    assert figures.curve_figure(bare) is None
    assert figures.spread_figure(bare) is None
    assert Page(report(bare)).counts["svg"] == 2


def test_spread_is_the_sample_deviation() -> None:
    """Mean and deviation with n - 1; none for a single value, nothing without values."""
    found = Spread.of([1.0, 2.0, 4.0, None])
    assert found == Spread(
        mean=pytest.approx(7 / 3),
        deviation=pytest.approx(statistics.stdev([1.0, 2.0, 4.0])),
        count=3,
    )
    assert found.text(2) == "2.33 ± 1.53"
    assert (alone := Spread.of([1.0])) == Spread(mean=1.0, deviation=None, count=1)
    assert alone.text() == "1.000"
    assert Spread.of([None]) is None


def test_comparison_equals_hand_computation(finished: Results, tmp_path: Path) -> None:
    """Means and deviations over seeds stand side by side, setting by setting."""
    # Cells: epsilon 4 and no privacy of seed 0, then of seed 1.
    first = edited(finished, tmp_path / "first", [0.80, 0.90, 0.84, 0.96])
    second = edited(finished, tmp_path / "second", [0.70, 0.95, 0.70, 0.95])
    content = compare.to_json([first, second])
    rows = content["measures"]["auroc_absent"]  # type: ignore[index]
    assert [row["setting"] for row in rows] == ["epsilon 4", "no privacy"]
    private, plain = (row["values"] for row in rows)
    assert private[0]["mean"] == pytest.approx(0.82)
    assert private[0]["sd"] == pytest.approx(0.04 / 2**0.5)
    assert plain[0]["mean"] == pytest.approx(0.93)
    assert plain[0]["sd"] == pytest.approx(0.06 / 2**0.5)
    assert private[1] == {"mean": pytest.approx(0.7), "sd": pytest.approx(0.0), "n": 2}
    table = next(one for one in compare.compare([first, second]) if one.key == "auroc_absent")
    assert compare.table_rows(table) == [
        ["epsilon 4", "0.820 ± 0.028", "0.700 ± 0.000"],
        ["no privacy", "0.930 ± 0.042", "0.950 ± 0.000"],
    ]
    page = Page(text := compare.comparison_report([first, second]))
    assert page.open == []
    assert "0.820 ± 0.028" in page.words
    assert page.counts["svg"] == 1
    assert "http" not in text


def test_comparison_wants_different_finished_folders(finished: Results, tmp_path: Path) -> None:
    """One folder, the same one twice, or one without results are said in words."""
    empty = Results(folder=tmp_path, study=tiny(), cells=[])
    for parts, words in (
        ([finished], "at least two"),
        ([finished, finished], "twice"),
        ([finished, empty], "no finished cell"),
    ):
        with pytest.raises(ConfigError, match=words):
            compare.to_json(parts)
