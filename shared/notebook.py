"""How objects show themselves in a notebook: small tables, everything escaped."""

import html
from collections.abc import Iterable, Mapping, Sequence


def facts(title: str, values: Mapping[str, object]) -> str:
    """HTML of a title with a line for each fact."""
    rows = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(str(value))}</td></tr>'
        for name, value in values.items()
    )
    return f"<table><caption><b>{html.escape(title)}</b></caption>{rows}</table>"


def rows(title: str, names: Sequence[str], cells: Iterable[Sequence[object]]) -> str:
    """HTML of a titled table with a header."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(one))}</td>" for one in row) + "</tr>"
        for row in cells
    )
    caption = f"<caption><b>{html.escape(title)}</b></caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
