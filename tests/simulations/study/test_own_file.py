"""A study of one's own file."""

import json
from pathlib import Path

import pytest

from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.study.results import Results
from fedlatent.simulations.study.run import run_study
from fedlatent.simulations.study.shipped import OWN
from fedlatent.simulations.study.spec import Study
from tests.simulations.test_train import table


def changes(path: Path, schema: Path) -> list[str]:
    """Lines that name the file, and make the study short."""
    keys = {"path": str(path), "schema": str(schema), "client": "place", "label": "bad"}
    return [
        *(f"data.{key} = {json.dumps(value)}" for key, value in keys.items()),
        *("data.absent = 1", "run.privacy.epsilon = [4]"),
    ]


def test_a_study_runs_on_a_file(tmp_path: Path) -> None:
    """The file's clients take part or stay away, and are rated beside the baselines."""
    path, schema = table(tmp_path)
    study = Study.load(OWN, changes(path, schema), quick=True)
    run_study(study, tmp_path / "out", data_dir=tmp_path)
    results = Results.load(tmp_path / "out")
    facts = results.cells[0]["data_facts"]
    assert (facts["participants"], facts["absent"]) == (2, 1)
    assert set(facts["absent_names"]) < {"north", "south", "west"}
    methods = {row["method"] for row in results.rows()}
    assert methods == {"federated", "dp-mahalanobis"}


def test_a_path_and_the_source_file_go_together(tmp_path: Path) -> None:
    """A named source has no path, and a file needs one."""
    path, _ = table(tmp_path)
    with pytest.raises(ConfigError, match='source "file" and a path together'):
        Study.load(OWN, ["data.path = ''"])
    with pytest.raises(ConfigError, match='source "file" and a path together'):
        Study.load(OWN, [f"data.path = {json.dumps(str(path))}", "data.source = 'hearts'"])
