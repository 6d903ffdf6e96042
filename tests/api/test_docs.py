"""The snippets of README and docs/python.md, the notebooks, and the pages of the API."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import fedlatent as fl
from tests.api.conftest import patients

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
MOST_BYTES = 6000  # of README.md


def fences(page: str, language: str) -> list[str]:
    """The snippets of a page in one language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_the_readme_is_one_page() -> None:
    """What, a picture, two commands, claims, ten lines of Python, and links that lead somewhere."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= MOST_BYTES
    (code,) = fences("README.md", "python")
    assert len(code.splitlines()) <= 10
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / target).exists(), target


def headings(page: Path) -> set[str]:
    """What links into a page may name, as web pages of repositories make it of its headings."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    texts = [re.sub(r"[`*]", "", line.lstrip("# ")).strip().lower() for line in lines]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


def test_links_of_the_documents_lead_somewhere() -> None:
    """Each file and each heading that a page of this repository links to is there."""
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"]
    lost = []
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for link in re.findall(r"\]\(((?!http)[^)\s]+)\)", text):
            file, _, heading = link.partition("#")
            target = page.parent / file if file else page
            if not target.exists() or (heading and heading not in headings(target)):
                lost.append(f"{page.name}: {link}")
    assert not lost


@pytest.mark.filterwarnings("ignore::UserWarning")  # few records
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_snippets_run(page: str, inside: Path) -> None:
    """All of a page's, one after the other, beside a file of one's own."""
    names: dict[str, object] = {}
    for code in fences(page, "python"):
        exec(compile(code, page, "exec"), names)
    assert isinstance(names["detector"], fl.Detector)
    assert Path("patients.fedlatent").exists()


def test_shell_lines_of_the_readme_run(inside: Path) -> None:
    """Own CSV to scores by README alone."""
    patients(seed=1).drop(columns="disease").to_csv("new.csv", index=False)
    _, lines = fences("README.md", "sh")
    for line in lines.splitlines():
        words = line.split()
        assert words[0] == "fedlatent"
        done = subprocess.run(
            [sys.executable, "-m", "fedlatent.cli.main", *words[1:]],
            capture_output=True,
            text=True,
            check=False,
            env=_environment(),
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert "240 records" in done.stdout or "240" in done.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[one.stem for one in NOTEBOOKS])
def test_notebooks_run(notebook: Path, tmp_path: Path) -> None:
    """From the first cell to the last, in an empty folder, without data from elsewhere."""
    code = (
        "import sys, nbclient, nbformat\n"
        "content = nbformat.read(sys.argv[1], as_version=4)\n"
        "nbclient.NotebookClient(content, timeout=300).execute()\n"
        "nbformat.write(content, 'done.ipynb')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(notebook)],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cells = nbformat.read(tmp_path / "done.ipynb", as_version=4).cells
    code_cells = [cell for cell in cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code_cells)
    assert any(cell.outputs for cell in code_cells)


def test_there_are_four_notebooks_without_outputs() -> None:
    """They are kept without outputs, so that a change shows what was changed."""
    assert len(NOTEBOOKS) == 4
    for one in NOTEBOOKS:
        cells = nbformat.read(one, as_version=4).cells
        assert not [cell for cell in cells if cell.get("outputs")], one.name
        assert f"notebooks/{one.name}" in (ROOT / "docs/python.md").read_text(encoding="utf-8")


def test_pages_of_the_api_are_made(tmp_path: Path) -> None:
    """`make api` writes a page that has every public name."""
    done = subprocess.run(
        [sys.executable, "-m", "pdoc", "fedlatent", "!fedlatent.cli", "-o", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "fedlatent.html").read_text(encoding="utf-8")
    for name in fl.__all__:
        assert f'id="{name}"' in page, name


def _environment() -> dict[str, str]:
    """This checkout before any installed one, and a quiet kernel."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
