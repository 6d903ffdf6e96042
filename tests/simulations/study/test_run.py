"""The runner: cells, resumption after ``kill -9``, folders and checks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fedlatent.shared.errors import ConfigError, ServiceError
from fedlatent.simulations.study.report import report
from fedlatent.simulations.study.results import Results
from fedlatent.simulations.study.run import Step, claimed, run_study
from fedlatent.simulations.study.spec import parse
from tests.simulations.study.tiny import TEXT, run, tiny

TIMES = {"seconds", "clients_per_second"}
REPOSITORY = Path(__file__).resolve().parents[3]


def untimed(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The rows without what differs between two equal runs."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_every_cell_has_answers_curve_and_costs(finished: Results) -> None:
    """A row a cell with all questions, baselines, privacy and bytes; a row a cell and phase."""
    assert finished.complete
    rows, rounds = finished.rows(), finished.rounds()
    assert [row["cell"] for row in rows] == [cell.id for cell in finished.study.cells]
    for row in rows:
        for question in ("seen", "absent", "new10", "pca_seen", "mahalanobis_absent"):
            assert 0.5 < row[f"auroc_{question}"] <= 1.0
        assert (row["participants"], row["absent"]) == (2, 1)
        assert row["bytes_up"] > 0
        assert row["clients_per_second"] > 0
    assert [row["epsilon"] for row in rows] == [4, None, 4, None]
    assert rows[0]["epsilon_spent"] == pytest.approx(4.0, abs=0.01)
    assert rows[1]["epsilon_spent"] is None
    assert rows[0]["sigma"] > 0
    assert rows[0]["auroc_pca_absent"] == rows[1]["auroc_pca_absent"]
    assert len(rounds) == 4 * len(rows)
    first = [row for row in rounds if row["cell"] == rows[0]["cell"]]
    assert [row["kind"] for row in first] == ["train", "train", "moments", "threshold"]
    assert [row["auroc"] is not None for row in first] == [True, True, False, False]
    assert first[-1]["epsilon"] > first[0]["epsilon"] > 0


def test_result_files_hold_the_same_rows(finished: Results) -> None:
    """Parquet for analysis and JSON for scripts are two forms of the same tables."""
    content = json.loads((finished.folder / "results.json").read_text())
    assert content["rows"] == finished.rows()
    assert pq.read_table(finished.folder / "results.parquet").to_pylist() == finished.rows()
    assert pq.read_table(finished.folder / "rounds.parquet").to_pylist() == finished.rounds()
    assert content["complete"]
    assert [one["label"] for one in content["summary"]] == ["epsilon 4", "no privacy"]


def test_done_cells_are_not_run_again(finished: Results) -> None:
    """The same command on a finished folder runs nothing and changes no cell."""
    files = [path for path in (finished.folder / "cells").rglob("*") if path.is_file()]
    before = [path.stat().st_mtime_ns for path in files]
    steps: list[Step] = []
    run_study(tiny(), finished.folder, data_dir=Path("none"), watch=steps.append)
    assert steps == []
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_killed_study_goes_on_to_the_same_result(finished: Results, tmp_path: Path) -> None:
    """SIGKILL in the second cell, then the same command: results equal those without a break."""
    (tmp_path / "tiny.toml").write_text(TEXT)
    out = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "fedlatent.cli.main",
        "simulate",
        "run",
        str(tmp_path / "tiny.toml"),
    ]
    command += ["--out", str(out), "--data-sets", str(tmp_path), "--json"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    second = finished.study.cells[1].id
    deadline = time.monotonic() + 60
    while not (out / "cells" / second / "curve.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    half = Results.load(out)
    assert 1 <= len(half.cells) < 4
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    content = json.loads(done.stdout)
    assert untimed(content["rows"]) == untimed(finished.rows())
    assert untimed(Results.load(out).rounds()) == untimed(finished.rounds())


@pytest.mark.parametrize("phase", [1, 2, 3, 4])
def test_a_study_stopped_in_any_phase_goes_on_to_the_same_result(
    finished: Results, tmp_path: Path, phase: int
) -> None:
    """Ctrl-C in a training round, the moments or the threshold loses and doubles nothing."""

    def stop(step: Step) -> None:
        if step.number == 2 and step.phase is not None and step.phase.phase == phase:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny(), out, data_dir=tmp_path, watch=stop)
    again = run(tiny(), out)
    assert untimed(again.rows()) == untimed(finished.rows())
    assert untimed(again.rounds()) == untimed(finished.rounds())


def test_the_folder_of_another_study_is_refused(finished: Results, tmp_path: Path) -> None:
    """Results of two files are never mixed, nor put among other files."""
    with pytest.raises(ConfigError, match="another file"):
        run(tiny("rounds = 2", "rounds = 3"), finished.folder)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="other files"):
        run(tiny(), tmp_path)


def test_a_folder_has_one_process(tmp_path: Path) -> None:
    """A second process in the same folder is sent away."""
    with (
        claimed(tiny(), tmp_path / "out"),
        pytest.raises(ServiceError, match="another process"),
        claimed(tiny(), tmp_path / "out"),
    ):
        pass


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("absent = 1", "absent = [1, 3]", 9, "at most 2"),
        ("clients = 3", "clients = [3, 2000000]", 8, "data.clients: .*2000000"),
        ("[run.training]", "[run.federation]\nquorum = [2, 3]\n[run.training]", 18, "at most 2"),
    ],
)
def test_all_cells_are_checked_before_anything_runs(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    """A mistake in the last cell is said first, and the corrected file may use the folder."""
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=rf"tiny.toml, line {line}: .*{words}"):
        run(tiny(old, new), out)
    assert not (out / "cells").exists()
    with claimed(tiny(), out):
        pass


def test_only_so_many_clients_are_rated(tmp_path: Path) -> None:
    """The cap draws clients on either side; without curve and baselines neither is there."""
    text = TEXT.replace("seeds = [0, 1]", "seeds = [0]").replace('[4, "none"]', "4")
    text = text[: text.index("questions")] + "clients = 1\nevery = 0\nbaselines = false"
    results = run(parse(text, "tiny.toml"), tmp_path / "out")
    assert results.cells[0]["data_facts"]["rated"] == {"seen": 1, "absent": 1}
    assert all(row["auroc"] is None for row in results.rounds())
    assert not any(key.startswith("auroc_pca") for key in results.rows()[0])
    assert "auroc_new100" in results.rows()[0]


def test_without_absent_clients_only_the_first_question_is_answered(tmp_path: Path) -> None:
    """The curve is then about the participants."""
    text = TEXT.replace("seeds = [0, 1]", "seeds = [0]").replace('[4, "none"]', "4")
    text = text[: text.index("[evaluate]")].replace("absent = 1\n", "")
    results = run(parse(text, "tiny.toml"), tmp_path / "out")
    (row,) = results.rows()
    assert row["auroc_seen"] > 0.5
    assert "auroc_absent" not in row
    assert row["cell"] == "seed-0"
    assert [one["auroc"] is not None for one in results.rounds()] == [True, True, False, False]


def test_settings_keep_the_order_of_the_file(tmp_path: Path) -> None:
    """Two sweeps are named in the order they stand in, in every table and the report."""
    text = TEXT.replace("seeds = [0, 1]", "seeds = [0]").replace('[4, "none"]', "[4]")
    text = text.replace("latent_dim = 3", "latent_dim = [3, 2]").replace('"seen", ', "")
    results = run(parse(text, "tiny.toml"), tmp_path / "out")
    labels = ["latent_dim 3, epsilon 4", "latent_dim 2, epsilon 4"]
    assert [one.label for one in results.summaries()] == labels
    assert list(results.rows()[0])[:4] == ["cell", "latent_dim", "epsilon", "seed"]
    page = report(results)
    assert page.index(labels[0]) < page.index(labels[1])
    assert "swept: latent_dim 3, 2" in page
