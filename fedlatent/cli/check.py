"""What a look at records found, for a person at the machine where they lie."""

from typing import TYPE_CHECKING

from fedlatent.cli.console import out, styled, table

if TYPE_CHECKING:
    from fedlatent.shared.data.checks import Check

_SHOWN = 40  # columns


def print_check(found: "Check") -> None:
    """Print a table of the columns, those with findings first, and all findings."""
    blamed = {one.column for one in found.findings}
    columns = sorted(found.columns, key=lambda one: one.name not in blamed)
    rows = table(
        f"{found.records} normal records, {found.distinct} distinct after preprocessing",
        *("column", "#beyond bounds", "#missing", "constant"),
    )
    for one in columns[:_SHOWN]:
        name = one.name or "all values"
        rows.add_row(name, _share(one.clipped), _share(one.missing), "yes" if one.constant else "")
    out.print(rows)
    if len(columns) > _SHOWN:
        out.print(f"and {len(columns) - _SHOWN} more columns; --json shows all")
    for finding in found.findings:
        style = "bold red" if finding.severity == "stop" else "yellow"
        out.print(styled(style, finding.severity, f": {finding.text}"))


def _share(value: float) -> str:
    return f"{100 * value:.2f} %" if value else "0"
