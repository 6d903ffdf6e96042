"""The table of epsilons in docs/privacy.md is what the code gives, and three accountants agree."""

from pathlib import Path

import pytest

from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.simulations.bench.accountants import (
    PRV_ERROR,
    Row,
    prv_bounds,
    rows,
    shipped_runs,
    table,
)

DOCS = Path(__file__).parents[3] / "docs" / "privacy.md"
#: The default, the tightest against RDP, and the shortest.
SAMPLE = ("run file of `server init`", "`simulate tokens`", "benchmark (MLP)")


def written() -> list[list[str]]:
    """Cells of the table in the docs."""
    text = DOCS.read_text().split("<!-- accountants -->")[1].split("<!-- end -->")[0]
    return cells(text)


def cells(text: str) -> list[list[str]]:
    """Cells of the rows of a Markdown table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def compare(found: list[str], stated: list[str]) -> None:
    """Words are equal, and figures to 1e-3."""
    assert found[1:3] == stated[1:3]
    for ours, theirs in zip(found[3:], stated[3:], strict=True):
        assert float(ours) == pytest.approx(float(theirs), abs=1e-3)


def check(plan: PrivacyPlan) -> None:
    """RDP is the largest, PLD at least 0.8 of it, and PRV's bounds hold PLD between them."""
    tight = plan.pld_epsilon()
    assert 0.8 * plan.epsilon() <= tight <= plan.epsilon()
    low, high = prv_bounds(plan.events(), plan.delta)
    assert high - low <= 2.2 * PRV_ERROR
    assert low <= tight <= high


@pytest.mark.parametrize("name", SAMPLE)
def test_the_docs_state_what_a_shipped_run_costs(name: str) -> None:
    """The row of the run has the figures of its plan, and the accountants agree on it."""
    run = next(run for known, run in shipped_runs() if known == name)
    row = Row(names=(name,), plan=PrivacyPlan.from_config(run))
    (stated,) = [one for one in written() if name in one[0].split("; ")]
    compare(cells(table([row]))[0], stated)
    check(row.plan)


def test_every_shipped_run_has_a_row() -> None:
    """No private run is left out of the docs, and no row is of a run that is gone."""
    private = {name for name, run in shipped_runs() if run.privacy.mechanism != "none"}
    assert {name for one in written() for name in one[0].split("; ")} == private


@pytest.mark.slow
def test_the_whole_table_is_what_the_code_gives() -> None:
    """Every row, in order."""
    found = rows()
    for row in found:
        check(row.plan)
    made, stated = cells(table(found)), written()
    assert [one[0] for one in made] == [one[0] for one in stated]
    for ours, theirs in zip(made, stated, strict=True):
        compare(ours, theirs)
