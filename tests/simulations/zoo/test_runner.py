"""The runner of the zoo: what is written, printed and gathered."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.zoo import __main__ as runner
from fedlatent.simulations.zoo import report

FIGURES = {
    "loss": np.float32(0.5),
    "broken": float("nan"),
    "by method": {"ours": {"error": 1.0, "name": "a"}, "theirs": {"error": 2.0}},
    "steps": [{"step": 1, "value": 3.0}, {"step": 2, "value": 4.0}],
    "deep": {"one": {"x": {"error": 5.0}}, "curve": [1, 2, 3]},
    "picture": np.zeros(3),
}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic whose figures are known, 1 larger for each seed."""

    def experiment(data: Path, *, epsilon: float | None, seed: int, **_: object) -> dict[str, Any]:
        return {**FIGURES, "loss": 0.5 + seed, "budget": epsilon}

    module = ModuleType("fedlatent.simulations.zoo.toy")

    def picture(found: Any) -> bytes:  # noqa: ANN401
        return f"image of {len(found)}".encode()

    offered = {"TITLE": "A toy", "experiment": experiment, "picture": picture}
    vars(module).update(offered)
    monkeypatch.setitem(sys.modules, "fedlatent.simulations.zoo.toy", module)
    monkeypatch.setitem(runner.TOPICS, "toy", "a toy")


@pytest.mark.usefixtures("toy")
def test_run_writes_figures_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run leaves JSON with its origin and the picture, and prints the tables."""
    runner.main(["run", "toy", "--epsilon", "8", "--seed", "2", "--out", str(tmp_path)])
    assert "theirs" in capsys.readouterr().out
    written = json.loads((tmp_path / "toy-eps8-seed2.json").read_text())
    assert written["figures"]["loss"] == 2.5
    assert written["figures"]["broken"] is None
    assert "picture" not in written["figures"]
    assert written["seconds"] >= 0
    command = "python -m fedlatent.simulations.zoo run toy --epsilon 8 --seed 2"
    assert written["circumstances"]["command"] == command
    assert written["circumstances"]["commit"]
    assert (tmp_path / "toy-eps8-seed2.png").read_bytes() == b"image of 3"


@pytest.mark.usefixtures("toy")
def test_json_is_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the result is printed; quick runs have a file name of their own."""
    runner.main(["run", "toy", "--json", "--quick", "--out", str(tmp_path)])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "toy-none-seed0-quick.json").read_text())
    assert printed["figures"]["budget"] is None
    with pytest.raises(ConfigError, match="full runs"):
        runner.tables(tmp_path)


@pytest.mark.usefixtures("toy")
def test_tables_gather_seeds_and_epsilons(tmp_path: Path) -> None:
    """The Markdown has a part for each epsilon, the smallest first, and spreads over seeds."""
    for words in (["--seed", "0"], ["--seed", "1"], ["--epsilon", "8"]):
        runner.main(["run", "toy", *words, "--out", str(tmp_path)])
    made = runner.tables(tmp_path)
    assert made.index("### A toy, epsilon 8") < made.index("### A toy, without privacy")
    assert "| loss | 1 ± 0.7071 |" in made
    assert "| ours | 1 | a |" in made
    assert "seeds 0, 1" in made


@pytest.mark.parametrize("words", [["nosuch"], ["likelihood", "--epsilon", "-1"], []])
def test_wrong_arguments_stop_the_runner(words: list[str]) -> None:
    """Unknown topics and budgets are refused before anything runs."""
    with pytest.raises(SystemExit) as stop:
        runner.main(["run", *words])
    assert stop.value.code == 2


def test_list_names_every_topic(capsys: pytest.CaptureFixture[str]) -> None:
    """Topics are printed with a line each, and no experiment is imported."""
    runner.main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(runner.TOPICS)


def test_tables_follow_the_nesting() -> None:
    """Plain values, rows by name, rows by number and deeper parts are tables of their own."""
    figures = report.plain({key: value for key, value in FIGURES.items() if key != "picture"})
    found = dict(report.tables_of(figures))
    assert found[""] == {"loss": {"value": 0.5}, "broken": {"value": None}}
    assert found["by method"]["theirs"] == {"error": 2.0}
    assert found["steps"]["1"] == {"step": 2, "value": 4.0}
    assert found["deep"] == {"curve": {"value": [1, 2, 3]}}
    assert found["deep: one"] == {"x": {"error": 5.0}}
    json.dumps(figures, allow_nan=False)
