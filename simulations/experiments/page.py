"""The frame of an HTML report: one file that opens without a network."""

import html
from collections.abc import Iterable, Sequence

_CSS = """
:root { color-scheme: light; }
body { margin: 0; background: #f5f7fa; color: #1f2933;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Ubuntu, Cantarell, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 2rem 4rem; background: #fff;
  min-height: 100vh; box-sizing: border-box; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .9rem;
  border-top: 1px solid #e4e7eb; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0; }
.lead { font-size: 1.08rem; color: #3e4c59; }
.warn { background: #fff8e6; border-left: 4px solid #E69F00; padding: .5rem .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: .8rem; margin: 1.4rem 0; }
.card { background: #f5f7fa; border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.35rem; line-height: 1.25; }
.card span { color: #52606d; font-size: .86rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .3rem .38rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e7eb; }
thead th { border-bottom: 2px solid #9aa5b1; font-weight: 600;
  vertical-align: bottom; }
tbody th { font-weight: 500; }
th + th, th + td, td + td { padding-left: .8rem; }
.number { text-align: right; }
td.number { white-space: nowrap; }
td small, th small { color: #616e7c; display: block; }
tr.plain td, tr.plain th { color: #52606d; background: #f9fafb; }
figure { margin: 1.2rem 0 1.8rem; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .93rem; color: #3e4c59; max-width: 46rem; margin-top: .3rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: #f5f7fa; padding: 1rem; border-radius: .5rem; overflow-x: auto;
  font: .85rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
footer { margin-top: 3rem; color: #616e7c; font-size: .85rem; }
@media print { body, main { background: #fff; } h2 { break-after: avoid; }
  figure { break-inside: avoid; } }
"""


def document(title: str, body: Iterable[str]) -> str:
    """A whole page; the parts of ``body`` are HTML, the title is text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Text of any origin, escaped for the inside of elements and attributes."""
    return html.escape(str(value))


def heading(title: str) -> str:
    """A section's title."""
    return f"<h2>{text(title)}</h2>"


def paragraph(sentence: str, kind: str = "") -> str:
    """A paragraph of plain text; ``kind`` is "", "lead" or "warn"."""
    return f'<p class="{kind}">{text(sentence)}</p>' if kind else f"<p>{text(sentence)}</p>"


def cards(facts: Sequence[tuple[str, str]]) -> str:
    """Short facts, each a value with what it is."""
    made = "".join(
        f'<div class="card"><b>{text(value)}</b><span>{text(name)}</span></div>'
        for value, name in facts
    )
    return f'<div class="cards">{made}</div>'


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], plain: Sequence[int] = ()
) -> str:
    """A table of text.

    Args:
        columns: titles, all empty for none; one that starts with ``#`` holds numbers.
        rows: cells; a pair is a value with a smaller line below it.
        plain: numbers of the rows that are set back, such as baselines.
    """
    kinds = [' class="number"' if column.startswith("#") else "" for column in columns]
    head = "".join(
        f"<th{kind}>{text(column.lstrip('#'))}</th>"
        for column, kind in zip(columns, kinds, strict=True)
    )
    titles = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    body = []
    for number, row in enumerate(rows):
        cells = "".join(
            f"<{'td' if at else 'th'}{kind}>{_cell(value)}</{'td' if at else 'th'}>"
            for at, (value, kind) in enumerate(zip(row, kinds, strict=True))
        )
        body.append(f'<tr class="plain">{cells}</tr>' if number in plain else f"<tr>{cells}</tr>")
    return f'<div class="wide"><table>{titles}<tbody>{"".join(body)}</tbody></table></div>'


def figure(svg: str, caption: str) -> str:
    """A plot with what there is to see in it; ``svg`` is markup made here, not input."""
    picture = svg.replace("<svg", f'<svg role="img" aria-label="{text(caption)}"', 1)
    return f"<figure>{picture}<figcaption>{text(caption)}</figcaption></figure>"


def folded(title: str, inner: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{text(title)}</summary>{inner}</details>"


def code(source: str) -> str:
    """A file as it is."""
    return f"<pre>{text(source)}</pre>"


def footer(sentence: str) -> str:
    """The last line of a page."""
    return f"<footer>{text(sentence)}</footer>"


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        first, second = value
        return f"{text(first)}<small>{text(second)}</small>" if second else text(first)
    return text(value)
