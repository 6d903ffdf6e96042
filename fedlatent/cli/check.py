"""What a look at records found, for a person at the machine where they lie."""

from typing import TYPE_CHECKING

from fedlatent.cli.console import out, styled, table

if TYPE_CHECKING:
    from fedlatent.shared.data.checks import Check

_SHOWN = 40  # columns


def judge(found: "Check | None", *, accept: bool, quiet: bool) -> None:
    """Print what a look at the records found, and stop where it stops.

    Args:
        found: of a user's own file; None where there was nothing to look at.
        accept: whether a person has said --accept.
        quiet: print nothing.

    Raises:
        RecordsRefused: it stops, and nobody accepted that.
    """
    if found is None:
        return
    if not quiet:
        print_check(found)
    if not accept:
        found.refuse("say --accept")


def print_check(found: "Check") -> None:
    """Print a table of the columns that have something to see, and all findings."""
    blamed = {one.column for one in found.findings}
    seen = [
        one
        for one in found.columns
        if one.name in blamed or one.clipped or one.missing or one.constant
    ]
    columns = sorted(seen, key=lambda one: one.name not in blamed)
    rows = table(
        f"{found.records} normal records, {found.distinct} distinct after preprocessing",
        *("column", "#beyond bounds", "#missing", "constant"),
    )
    for one in columns[:_SHOWN]:
        name = one.name or "all values"
        rows.add_row(name, _share(one.clipped), _share(one.missing), "yes" if one.constant else "")
    if columns:
        out.print(rows)
    else:
        out.print(str(rows.title))
    if rest := len(found.columns) - len(columns):
        out.print(f"{rest} columns without a finding" if rest > 1 else "no finding")
    if len(columns) > _SHOWN:
        out.print(f"and {len(columns) - _SHOWN} more columns; --json shows all")
    for finding in found.findings:
        style = "bold red" if finding.severity == "stop" else "yellow"
        out.print(styled(style, finding.severity, f": {finding.text}"))


def _share(value: float) -> str:
    return f"{100 * value:.2f} %" if value else "0"
