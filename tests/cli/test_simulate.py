"""``fedlatent simulate``: run, list, report and compare."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedlatent.cli.console import time_left
from fedlatent.cli.progress import Rate
from fedlatent.simulations.study.results import Results
from tests.cli.conftest import Run
from tests.simulations.study.tiny import TEXT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An experiment of two cells."""
    path = tmp_path / "tiny.toml"
    path.write_text(TEXT.replace("[0, 1]", "[0]"))
    return path


def test_run_report_list_and_compare(run: Run, file: Path, tmp_path: Path) -> None:
    """An experiment is run twice under two names, listed, reported and compared."""
    runs = tmp_path / "runs"
    for name, rounds in (("short", 1), ("long", 2)):
        file.write_text(file.read_text().replace("rounds = 2", f"rounds = {rounds}"))
        status, out, err = run(
            "simulate", "run", file, "--out", runs / name, "--data-sets", tmp_path, "--json"
        )
        content = json.loads(out)
        assert (status, err) == (0, "")
        assert [row["cell"] for row in content["rows"]] == [
            "epsilon-4_seed-0",
            "epsilon-none_seed-0",
        ]
        assert Path(content["report"]).read_text().startswith("<!doctype html>")
        file.write_text(file.read_text().replace("rounds = 1", "rounds = 2"))
    listed = json.loads(run("simulate", "list", "--results", runs, "--json")[1])
    assert {one["name"] for one in listed["shipped"]} >= {"first-look", "mitbih-epsilon"}
    assert [(one["experiment"], one["state"], one["done"]) for one in listed["folders"]] == [
        ("tiny", "finished", 2)
    ] * 2
    status, out, _ = run("simulate", "report", runs / "long", "-o", tmp_path / "long.html")
    assert status == 0
    assert "no privacy" in out
    assert "2 of 2 cells" in out
    assert "</html>" in (tmp_path / "long.html").read_text()
    both = (runs / "short", runs / "long")
    status, out, _ = run("simulate", "compare", *both, "-o", tmp_path / "both.html", "--json")
    compared = json.loads(out)
    assert [one["name"] for one in compared["experiments"]] == ["short", "long"]
    assert [row["setting"] for row in compared["measures"]["auroc_seen"]] == [
        "epsilon 4",
        "no privacy",
    ]
    assert "</html>" in (tmp_path / "both.html").read_text()
    status, out, _ = run("simulate", "compare", *both)
    assert status == 0
    assert "AUROC: took no part" in out


def test_progress_and_a_table_are_for_people(run: Run, file: Path, tmp_path: Path) -> None:
    """Without --json the table goes to standard output and progress to standard error."""
    status, out, err = run(
        "simulate", "run", file, "--out", tmp_path / "out", "--data-sets", tmp_path
    )
    assert status == 0
    assert "took no part" in out
    assert "report.html" in out
    lines = err.splitlines()
    assert [one for one in lines if one.startswith("cell 2 of 2")]
    assert [one for one in lines if re.search(r": round 2\b.*, loss ", one)]
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "first-lok"), "did you mean 'first-look'?"),
        (("run", "nowhere.toml"), "nowhere.toml"),
        (("report", "nowhere"), "nowhere"),
        (("compare", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_one_sentence(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    """A wrong name ends with exit code 2, in words and as JSON, and leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    status, _, text = run("simulate", *arguments)
    assert status == 2
    assert words in text.replace("\n", " ")
    error = json.loads(run("simulate", *arguments, "--json")[1])["error"]
    assert error["code"] == "config"
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_file_names_its_line(run: Run, file: Path, tmp_path: Path) -> None:
    """The message has the file, the line, the key and what to write."""
    file.write_text(file.read_text().replace("rounds = 2", "rouds = 2"))
    status, out, _ = run("simulate", "run", file, "--out", tmp_path / "out", "--json")
    assert status == 2
    message = json.loads(out)["error"]["message"]
    assert message.startswith(f"{file}, line 18: run.training.rouds: ")
    assert message.endswith("did you mean 'rounds'?")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_read_is_listed(run: Run, tmp_path: Path) -> None:
    """A damaged experiment file makes one line, not an error."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "experiment.toml").write_text("name = ")
    status, out, _ = run("simulate", "list", "--results", tmp_path, "--json")
    (found,) = json.loads(out)["folders"]
    assert (status, found["state"]) == (0, "unreadable")
    assert "line 1" in found["problem"]
    assert "unreadable" in run("simulate", "list", "--results", tmp_path)[1]


def test_time_left_is_told_from_the_work_of_this_process() -> None:
    """Half of what was left took 30 s, so 30 s are left; nothing is said before any work."""
    assert time_left(30.0, 0.5, 0.75) == ", 00:30 left"
    assert time_left(3600.0, 0.0, 0.25) == ", 3:00:00 left"
    assert time_left(1.0, 0.5, 0.5) == ""
    assert time_left(1.0, 0.0, 1.0) == ""


def test_rate_counts_answers_of_all_phases_once() -> None:
    """More answers of the same phase replace the earlier count."""
    rate = Rate()
    for phase, answered in ((1, 1), (1, 3), (2, 2)):
        value = rate(phase, answered)
    assert value > 0
    assert rate.answers == 5


def test_all_that_is_said_of_a_file_reaches_the_study(run: Run, tmp_path: Path) -> None:
    """Array, client and label are those of the command; without a file they are refused."""
    rng = np.random.default_rng(0)
    records = rng.normal(0, 1, (120, 4))
    owner, bad = np.array(["a", "b", "c"] * 40), (np.arange(120) % 10 == 0).astype(np.uint8)
    np.savez(tmp_path / "own.npz", beats=records, who=owner, bad=bad, X=np.zeros((120, 2)))
    where = ["--client", "who", "--label", "bad", "--array", "beats"]
    short = [
        "--set",
        "run.privacy.epsilon=['none']",
        "--quick",
        "--json",
        "--out",
        tmp_path / "out",
    ]
    code, said, _ = run("simulate", "run", "--data", tmp_path / "own.npz", *where, *short)
    assert code == 0, said
    facts = Results.load(tmp_path / "out").cells[0]["data_facts"]
    assert facts["schema"]["shape"] == [4]
    assert (facts["participants"], facts["absent"]) == (2, 1)
    code, _, said = run("simulate", "run", "first-look", "--label", "bad")
    assert (code, "--data to name a file" in said) == (2, True)
    code, _, said = run("simulate", "run")
    assert (code, "--data to name a file" in said) == (2, True)


def test_a_study_of_a_table_takes_its_columns(run: Run, tmp_path: Path) -> None:
    """Only the named columns make a record, whatever the dialect of the table."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(0, 1, (90, 3)), columns=["u", "v", "w"])
    frame.assign(bad=np.arange(90) % 9 == 0).to_csv(
        tmp_path / "own.csv", index=False, sep="\t", decimal=",", encoding="utf-16"
    )
    written = ["--delimiter", "tab", "--decimal", ",", "--encoding", "utf-16", "--header"]
    where = [
        *written,
        "--label",
        "bad",
        "--normal-label",
        "False",
        "--column",
        "u",
        "--column",
        "w",
    ]
    short = [
        "--set",
        "run.privacy.epsilon=['none']",
        "--quick",
        "--json",
        "--out",
        tmp_path / "out",
    ]
    code, said, _ = run("simulate", "run", "--data", tmp_path / "own.csv", *where, *short)
    assert code == 0, said
    schema = Results.load(tmp_path / "out").cells[0]["data_facts"]["schema"]
    assert [one["name"] for one in schema["columns"]] == ["u", "w"]
