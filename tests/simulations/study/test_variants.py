"""Methods, data sets, parameters, changes and the work that is no federation."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedlatent.shared.errors import ConfigError
from fedlatent.shared.privacy.plan import PrivacyPlan
from fedlatent.simulations.study import layout
from fedlatent.simulations.study.job import Job
from fedlatent.simulations.study.report import markdown, report
from fedlatent.simulations.study.results import Results
from fedlatent.simulations.study.run import Step, run_study
from fedlatent.simulations.study.shipped import locate
from fedlatent.simulations.study.spec import Study, parse
from fedlatent.simulations.study.works import TOPICS
from fedlatent.simulations.zoo.topics import Topic
from tests.simulations.study.tiny import TEXT

METHODS = """
[datasets.few]
data.clients = 3
[datasets.many]
data.clients = 4

[methods]
plain = { run.privacy.epsilon = "none" }
long = { run.training.rounds = [3, 4] }
pca = { work = "own-baseline", parameters.fit = "pca", run.privacy.epsilon = "none" }
"""
TOPIC = """
name = "toys"
description = "A toy."
work = "zoo"
seeds = [0, 1]
[parameters]
topic = "columns"
epsilon = ["none", 8]
[quick]
parameters.quick = true
"""
FIGURES = {
    "loss": np.float32(0.5),
    "broken": float("nan"),
    "by method": {"ours": {"error": 1.0, "name": "a"}, "theirs": {"error": 2.0}},
    "steps": [{"step": 1, "value": 3.0}, {"step": 2, "value": 4.0}],
    "deep": {"one": {"x": {"error": 5.0}}, "curve": [1, 2, 3]},
    "picture": np.zeros(3),
}


def test_methods_and_data_sets_override_the_file() -> None:
    """Each pair of them has its own sweeps; what a method fixes is not swept."""
    study = parse(TEXT + METHODS, "tiny.toml")
    settings = [cell.setting for cell in study.cells if cell.seed == 0]
    assert [one for one in settings if one["data"] == "few"] == [
        {"data": "few", "method": "plain", "epsilon": "none", "rounds": 2},
        *(
            {"data": "few", "method": "long", "epsilon": epsilon, "rounds": rounds}
            for epsilon in (4, "none")
            for rounds in (3, 4)
        ),
        {"data": "few", "method": "pca", "epsilon": "none", "rounds": 2},
    ]
    assert study.keys["data"] == "datasets"
    assert study.sweeps["method"] == ["plain", "long", "pca"]
    assert len({cell.id for cell in study.cells}) == len(study.cells) == 24
    assert {cell.data.clients for cell in study.cells if cell.data} == {3, 4}


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("rounds = [3, 4]", "rounds = [0]", 31, "methods.long.run.training.rounds: expected"),
        ("data.clients = 4", "data.cliens = 4", 27, "datasets.many.data.cliens: .*mean 'clients'"),
        ("data.clients = 4", "dta.clients = 4", 27, "datasets.many.dta: .*mean 'data'"),
        ('"own-baseline"', '"own"', 32, "methods.pca.work: expected the name of a work"),
    ],
)
def test_a_mistake_in_an_override_has_its_own_line(
    old: str, new: str, line: int, words: str
) -> None:
    """The sentence names the method or data set that the key stands in."""
    with pytest.raises(ConfigError, match=rf"tiny.toml, line {line}: {words}"):
        parse((TEXT + METHODS).replace(old, new), "tiny.toml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('fit = "pca"', 'fit = "pc"', r"line 32: methods.pca.parameters.fit: expected 'pca'.*'pc'"),
        ('parameters.fit = "pca"', "parameters.fid = 1", r"parameters.fid: .*mean 'fit'"),
        ('parameters.fit = "pca", ', "", r"parameters.fit: expected a value, got none"),
    ],
)
def test_parameters_are_those_of_the_function(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    """They are checked against its signature before anything runs."""
    study = parse((TEXT + METHODS).replace(old, new), "tiny.toml")
    with pytest.raises(ConfigError, match=words):
        run_study(study, tmp_path, data_dir=tmp_path)
    assert not (tmp_path / "cells").exists()


def test_changes_and_the_quick_form_make_another_study(tmp_path: Path) -> None:
    """Values given beside the file replace its own, are written down, and change the digest."""
    (tmp_path / "toys.toml").write_text(TOPIC)
    whole = Study.load(tmp_path / "toys.toml")
    assert whole.text == TOPIC
    quick = Study.load(tmp_path / "toys.toml", ["seeds = [3]"], quick=True)
    assert [cell.seed for cell in quick.cells] == [3, 3]
    assert all(cell.parameters["quick"] for cell in quick.cells)
    assert parse(quick.text, "copy").digest() == quick.digest() != whole.digest()
    one = Study.load(tmp_path / "toys.toml", ["parameters.epsilon = 3"])
    assert one.sweeps["epsilon"] == [3]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic whose figures are known, 1 larger for each seed."""

    def experiment(data: Path, *, epsilon: float | None, seed: int, **_: object) -> dict[str, Any]:
        return {**FIGURES, "loss": 0.5 + seed, "budget": epsilon}

    def picture(found: Any) -> bytes:  # noqa: ANN401
        return f"image of {len(found)}".encode()

    module = ModuleType("fedlatent.simulations.zoo.columns")
    vars(module).update({"experiment": experiment, "picture": picture})
    monkeypatch.setitem(sys.modules, "fedlatent.simulations.zoo.columns", module)
    monkeypatch.setitem(TOPICS, "columns", ())  # it reads no data set


@pytest.mark.usefixtures("toy")
def test_a_topic_of_the_zoo_is_a_cell_like_any_other(tmp_path: Path) -> None:
    """Figures, picture and origin are kept; tables give means over seeds; the report has all."""
    study = parse(TOPIC, "toys.toml")
    run_study(study, tmp_path, data_dir=tmp_path)
    results = Results.load(tmp_path)
    written = json.loads((tmp_path / "cells" / "epsilon-8_seed-1" / "cell.json").read_text())
    assert written["figures"]["loss"] == 1.5
    assert written["figures"]["broken"] is None
    assert "picture" not in written["figures"]
    assert written["circumstances"]["commit"]
    assert (tmp_path / "cells/epsilon-8_seed-1/picture.png").read_bytes() == b"image of 3"
    made = markdown(results)
    assert made.index("#### no privacy") < made.index("#### epsilon 8")
    assert "| loss | 1.000 ± 0.707 |" in made or "| 1 ± 0.7071 |" in made
    assert "| ours | 1 ± 0 | a |" in made
    assert "sample standard deviation" in made
    page = report(results)
    assert "data:image/png;base64," in page
    assert "theirs" in page
    assert results.rows()[0]["by method: ours: error"] == 1.0
    assert results.rows()[0]["steps: 1: value"] == 4.0


@pytest.mark.usefixtures("toy")
def test_only_the_chosen_cells_are_run(tmp_path: Path) -> None:
    """The folder stays that of the whole study, which goes on with the others later."""
    study = parse(TOPIC, "toys.toml")
    steps: list[Step] = []
    chosen = {"epsilon": ["none"], "seed": ["1"]}
    run_study(study, tmp_path, data_dir=tmp_path, only=chosen, watch=steps.append)
    assert {step.cell.id for step in steps} == {"epsilon-none_seed-1"}
    assert not Results.load(tmp_path).complete
    with pytest.raises(ConfigError, match="axis of toys"):
        run_study(study, tmp_path, data_dir=tmp_path, only={"method": ["x"]})
    run_study(study, tmp_path, data_dir=tmp_path)
    assert Results.load(tmp_path).complete


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Cells on processes of their own have the same results as one after another."""
    text = TEXT.replace("seeds = [0, 1]", "seeds = [0]").replace("[run.privacy]", WORK)
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        run_study(parse(text, "t.toml"), out, data_dir=out, processes=processes)
        found.append(Results.load(out).rows())
    assert found[0] == found[1]


WORK = """[methods]
own = { work = "own-baseline", parameters.fit = "pca" }
first = { work = "untrained" }
private = { work = "dp-mahalanobis", run.summaries.data_radius = 9.0 }
[run.privacy]"""


def test_tables_nest_as_the_figures_do() -> None:
    """Plain values, rows by name, rows by number and deeper parts are tables of their own."""
    figures = {key: value for key, value in FIGURES.items() if key != "picture"}
    found = dict(layout.tables_of(figures))
    assert found[""]["loss"] == {"value": 0.5}
    assert found["by method"]["theirs"] == {"error": 2.0}
    assert found["steps"]["1"] == {"step": 2, "value": 4.0}
    assert found["deep"] == {"curve": {"value": [1, 2, 3]}}
    assert found["deep: one"] == {"x": {"error": 5.0}}


LAID_OUT = """name = "laid-out"
work = "attacked"
seeds = [0, 1]
[parameters]
attack = ["honest alone", "zero"]
[datasets]
a = { data.source = "hearts" }
b = { data.source = "digits" }
[report]
rows = "attack"
over = "data"
against = { attack = "honest alone" }
accepted = { auroc = 0.1 }
"""


def _answered(study: Study, values: dict[str, list[float]]) -> Results:
    """Results whose one measure is given by attack and seed."""
    cells = [
        {
            **cell.facts(),
            "answers": {},
            "figures": {"auroc": values[str(cell.parameters["attack"])][cell.seed]},
            "rounds": [],
        }
        for cell in study.cells
    ]
    return Results(folder=Path(), study=study, cells=cells)


def test_tables_hold_means_spreads_and_changes() -> None:
    """Means with the sample deviation; then the change seed by seed, marked if it is too much."""
    values = {"honest alone": [0.9, 0.8], "zero": [0.5, 0.7]}
    found = {one.title: one for one in layout.tables(_answered(parse(LAID_OUT, "t"), values))}
    assert found["a"].rows == [
        ["attack honest alone", "0.850 ± 0.071"],
        ["attack zero", "0.600 ± 0.141"],
    ]
    assert found["mean over data"].rows[1] == ["attack zero", "0.600"]
    (change,) = found["change from attack honest alone, b"].rows
    assert change == ["attack zero", "-0.250 (worst -0.400) !"]
    borne = parse(LAID_OUT.replace("0.1 }", "0.3 }"), "t")
    found = {one.title: one for one in layout.tables(_answered(borne, values))}
    assert found["change from attack honest alone, b"].rows[0][1] == "-0.250 (worst -0.400)"


@pytest.mark.parametrize("key", ["rows", "columns", "over"])
def test_tables_are_laid_out_by_what_is_swept(key: str) -> None:
    """A report by an axis that is not there is refused."""
    with pytest.raises(ConfigError, match=rf"report.{key}: expected one of epsilon, got 'x'"):
        parse(f'{TEXT}[report]\n{key} = "x"\n', "tiny.toml")


@pytest.mark.parametrize("name", ["utility", "utility-levers"])
def test_every_method_is_a_run_whose_noise_can_be_solved(name: str, data_dir: Path) -> None:
    """The settings of each method make a valid run that spends its epsilon and no more."""
    study = Study.load(locate(name))
    cells = [
        cell
        for cell in study.cells
        if cell.seed == 0
        and cell.run["privacy"].get("epsilon") == 4
        and cell.setting["data"] in ("heart_disease", "mitbih")
    ]
    assert len(cells) >= 14
    for cell in sorted(cells, key=lambda cell: str(cell.setting["data"])):
        run = Job(study=study, cell=cell, data_dir=data_dir, folder=Path()).run()
        assert 3.9 < PrivacyPlan.from_config(run).epsilon() <= 4.0


def test_combined_scores_answer_every_question(tmp_path: Path, data_dir: Path) -> None:
    """A run with a released density of parts rates them combined, beside the distance alone."""
    study = Study.load(locate("utility"), quick=True)
    (cell,) = (
        cell
        for cell in study.cells
        if (cell.setting["data"], cell.setting["method"]) == ("heart_disease", "full+data")
    )
    found = Job(study=study, cell=cell, data_dir=data_dir, folder=tmp_path).work().answers
    questions = ("seen", "absent", "new10", "new30", "new100")
    assert set(found) == {*questions, *(f"combined_{question}" for question in questions)}


def test_every_topic_has_a_study() -> None:
    """Each topic of the zoo is the study of its name."""
    for topic in Topic.__args__:
        study = Study.load(locate(topic.replace("_", "-")))
        assert {cell.parameters["topic"] for cell in study.cells} == {topic}
        quick = Study.load(locate(topic.replace("_", "-")), quick=True)
        assert [cell.parameters["quick"] for cell in quick.cells] == [True]
