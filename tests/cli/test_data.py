"""``fedlatent data``: list, get, check."""

import json
import shutil
from pathlib import Path

from fedlatent.shared.data.catalog import CATALOG
from tests.cli.conftest import Run


def test_list_get_and_check(run: Run, data_dir: Path, tmp_path: Path) -> None:
    """A data set is listed as absent, brought from a copy, listed as here, and checked."""
    where = ("--data-sets", tmp_path / "data")
    status, out, _ = run("data", "list", *where, "--json")
    listed = {one["name"]: one for one in json.loads(out)["datasets"]}
    assert (status, list(listed)) == (0, list(CATALOG))
    assert listed["mnist"]["here"] is False
    assert {"likelihood", "omniglot-epsilon"} <= set(listed["mnist"]["studies"])
    assert listed["esol"]["licence"] == "MIT"
    assert not (tmp_path / "data").exists()
    status, out, _ = run("data", "get", "heart_disease", "--from", data_dir, *where, "--json")
    assert status == 0
    assert json.loads(out)["files"] == [
        {"dataset": "heart_disease", "file": "heart_disease.csv.gz", "state": "same file"}
    ]
    status, out, _ = run("data", "list", *where)
    assert status == 0
    assert "heart" in out
    status, out, _ = run("data", "check", *where)
    assert status == 0
    assert "same file" in out


def test_get_without_names_takes_all_that_a_folder_has(
    run: Run, data_dir: Path, tmp_path: Path
) -> None:
    """``get --from FOLDER`` brings every data set whose files are there."""
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in ("esol.csv.gz", "heart_disease.csv.gz", "mnist_test10k.npz"):
        shutil.copy(data_dir / name, copies)
    status, _, _ = run("data", "get", "--from", copies, "--data-sets", tmp_path / "data")
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "esol.csv.gz",
        "heart_disease.csv.gz",
    ]


def test_check_tells_a_wrong_file(run: Run, data_dir: Path, tmp_path: Path) -> None:
    """A changed file, and an absent one that was named, end in one sentence with the command."""
    (tmp_path / "heart_disease.csv.gz").write_bytes(b"no gzip")
    status, out, err = run("data", "check", "--data-sets", tmp_path)
    assert status == 3
    assert "damaged" in out
    assert "run 'fedlatent data get heart_disease'" in " ".join(err.split())
    status, out, _ = run("data", "check", "mnist", "--data-sets", tmp_path, "--json")
    error = json.loads(out)["error"]
    assert (status, error["code"], error["reason"]) == (3, "data", "absent")
    empty = tmp_path / "empty"
    status, out, _ = run("data", "check", "--data-sets", empty)
    assert (status, out.split()[:3]) == (0, ["no", "data", "sets"])


def test_get_says_what_it_needs(run: Run, tmp_path: Path) -> None:
    """No names and no place, and a name that is none, are told apart and traceback-free."""
    status, _, err = run("data", "get", "--data-sets", tmp_path)
    assert status == 2
    assert "Expected names of data sets or --from" in " ".join(err.split())
    status, _, err = run("data", "get", "mnits", "--data-sets", tmp_path)
    assert status == 2
    assert "got 'mnits'" in " ".join(err.split())
