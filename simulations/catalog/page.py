"""The table of the catalogue in docs/data.md, which ``make docs`` writes."""

import sys
from pathlib import Path

from fedlatent.shared.data.catalog import CATALOG
from fedlatent.simulations.study.shipped import readers

BEGIN, END = "<!-- catalogue -->\n", "<!-- end of catalogue -->\n"


def catalogue() -> str:
    """All data sets as Markdown: what each is, who reads it, its files and their SHA-256."""
    studies_of = readers()
    lines = ["| name | what | terms | size | studies |", "|---|---|---|---|---|"]
    for name, one in CATALOG.items():
        studies = ", ".join(f"`{study}`" for study in studies_of[name])
        about = f"[{one.about}]({one.origin})"
        lines.append(
            f"| `{name}` | {about} | {one.licence} | {one.size / 1e6:.2f} MB | {studies} |"
        )
    lines += ["", "| file | SHA-256 |", "|---|---|"]
    for one in CATALOG.values():
        lines += [f"| `{file.name}` | `{file.sha256}` |" for file in one.files]
    return "\n".join([*lines, ""])


def with_catalogue(text: str) -> str:
    """A page with the table of now between its marks.

    Raises:
        ValueError: The page has no marks.
    """
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{catalogue()}{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_catalogue(page.read_text(encoding="utf-8")), encoding="utf-8")
