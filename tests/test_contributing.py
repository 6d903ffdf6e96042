"""The examples of docs/contributing.md, taken from the page and put to work."""

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlatent.client.home import ClientHome
from fedlatent.server.driver import drive
from fedlatent.server.home import ServerHome
from fedlatent.shared.data.readers import READERS, read
from fedlatent.shared.data.schema import Schema
from fedlatent.shared.errors import DataError
from fedlatent.shared.models import FAMILIES, build_model
from fedlatent.shared.schedule import phases
from fedlatent.shared.summaries import SUMMARIES
from fedlatent.simulations.audit.unit import summary_cases
from fedlatent.simulations.federation import datasets, make_node, open_policy, simulate
from fedlatent.simulations.grid import InProcessGrid
from tests.server.federation import tiny_config
from tests.server.test_own_strategy import driven, shifted
from tests.simulations import support

PAGE = Path(__file__).resolve().parents[1] / "docs/contributing.md"
FEDERATION = support.tiny_federation(2)


def example(heading: str) -> dict[str, Any]:
    """What the one snippet below a heading defines."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    (snippet,) = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(snippet, f"{PAGE.name}: {heading}", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that an example adds are gone after its test."""
    for table, name in ((FAMILIES, "shy"), (SUMMARIES, "outside"), (READERS, ".txt")):
        monkeypatch.setitem(table, name, None)
        monkeypatch.delitem(table, name)


def test_every_example_is_put_to_work() -> None:
    """The page has the five snippets that the tests here run, and every path that it names."""
    text = PAGE.read_text()
    assert text.count("```python\n") == 5
    for path in re.findall(r"`((?:shared|tests|server|client|fedlatent)/[\w/.]+)`", text):
        assert (PAGE.parents[1] / path).exists(), path


def test_a_family(tmp_path: Path) -> None:
    """A run names it, and trains it."""
    example("A family")
    tables: dict[str, object] = {"family": "shy", "options": {"hidden": [8], "latent_dim": 3}}
    run = support.tiny_run(FEDERATION, model=tables)
    assert type(build_model(run)).__name__ == "ShyVAE"
    result = simulate(run, datasets(FEDERATION), tmp_path, engine="stacked").result
    assert all(np.isfinite(value).all() for value in result.arrays.values())


def test_a_summary(tmp_path: Path) -> None:
    """A run asks for it, every site pays, and the audit's worst record is as bad as stated."""
    example("A summary")
    run = support.tiny_run(FEDERATION)
    assert [one.kind for one in phases(run)][-2:] == ["outside", "threshold"]  # which closes a run
    result = simulate(run, datasets(FEDERATION), tmp_path, engine="stacked").result
    facts: Any = result.facts
    assert facts["rounds"][-2]["kind"] == "outside"
    (case,) = (one for one in summary_cases(0) if one.kind == "outside")
    assert case.moved == pytest.approx(case.spec.sensitivity)


def test_a_reader(tmp_path: Path) -> None:
    """A file with its ending is read like any other, by the schema."""
    example("A reader")
    values = np.array([[1.0, 2.0], [3.0, 4.0]])
    np.savetxt(tmp_path / "beats.txt", values)
    schema = Schema(name="beats", shape=(2,), lower=0.0, upper=4.0)
    found = read(tmp_path / "beats.txt", schema)
    np.testing.assert_array_equal(found.records, schema.preprocess(values))
    with pytest.raises(DataError, match="Expected no names"):
        read(tmp_path / "beats.txt", schema, label_key="y")


def test_a_strategy(tmp_path: Path) -> None:
    """Of sites that move weights by 0.1, -0.2 and 0.3 it takes 0.05, in each of two rounds."""
    result = driven(tmp_path, example("A strategy")["strategy"])
    assert shifted(result.arrays, tiny_config()) == pytest.approx(0.1, abs=1e-5)


def test_a_transport(tmp_path: Path) -> None:
    """A run over it gives the numbers of the run in one process."""
    names = example("A transport")
    run, sites = support.tiny_run(FEDERATION), datasets(FEDERATION)
    paths: dict[int, Path] = {}
    for node, site in enumerate(sites, start=1000):
        home = ClientHome(tmp_path / site)
        made = make_node(site, sites[site], run, home, open_policy(run))
        paths[node] = tmp_path / f"{node}.sock"
        threading.Thread(target=names["listen"], args=(made, paths[node]), daemon=True).start()
    server = ServerHome(tmp_path / "server")
    server.create()
    grid = InProcessGrid(paths, names["over_sockets"](paths))
    got = drive(grid, run, server, run_id="simulated", sites=lambda: dict(enumerate(sites, 1000)))
    expected = simulate(run, sites, tmp_path / "here").result
    for key, value in expected.arrays.items():
        np.testing.assert_array_equal(got.arrays[key], value)
