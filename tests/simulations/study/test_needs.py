"""Every shipped study, source and topic says which data sets it needs before it starts."""

from pathlib import Path
from typing import get_args

import pytest

from fedlatent.cli.bench import BENCHES
from fedlatent.shared.data.catalog import CATALOG, absent
from fedlatent.simulations.partition import NAMES, Partition, named_federation, source_needs
from fedlatent.simulations.study.shipped import shipped
from fedlatent.simulations.study.tables import Source
from fedlatent.simulations.study.works import TOPICS, WORKS
from fedlatent.simulations.zoo.topics import Topic
from tests.cli.conftest import Run, run
from tests.simulations.support import folder_of

__all__ = ["run"]

STUDIES = {study.name: study for study in shipped()}
MADE = {"hearts", "digits"}  # by a program, or brought by scikit-learn


def test_every_need_is_in_the_catalogue() -> None:
    """Sources, topics and works name data sets of the catalogue, and no shipped study is left."""
    assert set(TOPICS) == set(get_args(Topic))
    needs = [name for topic in TOPICS.values() for name in topic]
    needs += [name for work in WORKS.values() for name in work.reads]
    needs += [name for source in NAMES for name in source_needs(source)]
    assert set(needs) <= set(CATALOG)
    assert {source for source in NAMES if not source_needs(source)} == MADE
    assert set(NAMES) <= set(get_args(Source))
    idle = {study.name for study in STUDIES.values() if not study.needs}
    assert idle == {"first-look", "disentangle"}


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if study.needs])
def test_a_study_without_its_data_says_which_command_brings_them(
    name: str, run: Run, tmp_path: Path
) -> None:
    """In an empty folder a study ends in one sentence with all that it needs, and runs nothing."""
    empty = tmp_path / "empty"
    empty.mkdir()
    status, out, err = run(
        "simulate", "run", name, "--data-sets", empty, "--out", tmp_path / "runs"
    )
    wanted = " ".join(STUDIES[name].needs)
    assert (status, out) == (3, "")
    assert f"run 'fedlatent data get {wanted}'" in " ".join(err.split())
    assert f"for study {name}" in " ".join(err.split())
    assert err.count("Expected") == 1
    assert list(empty.iterdir()) == []
    assert not any((tmp_path / "runs").glob("*.toml"))


@pytest.mark.parametrize("arguments", [("demo", "--data", "mitbih")])
def test_the_demo_without_its_data_says_so(
    arguments: tuple[str, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo on real beats names the command before anything starts."""
    monkeypatch.setenv("FEDLATENT_DATA", str(tmp_path / "none"))
    status, out, err = run(*arguments, "--out", tmp_path / "demo")
    assert (status, out) == (3, "")
    assert "run 'fedlatent data get mitbih'" in " ".join(err.split())
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("name", ["edge", "aarch64"])
def test_a_benchmark_without_its_data_says_so(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmarks on real records name the command before they train."""
    assert name in BENCHES
    monkeypatch.setenv("FEDLATENT_DATA", str(tmp_path))
    status, _, err = run("simulate", "bench", name)
    assert status == 3
    assert "run 'fedlatent data get ecg5000 mnist'" in " ".join(err.split())


def test_the_data_folder_has_what_studies_need(data_dir: Path) -> None:
    """A data folder that was filled satisfies every shipped study."""
    assert absent(data_dir, [name for study in STUDIES.values() for name in study.needs]) == {}


@pytest.mark.parametrize("source", sorted(set(NAMES) - MADE))
def test_a_source_reads_what_it_says(source: str, data_dir: Path, tmp_path: Path) -> None:
    """A federation loads from a folder of what it needs alone."""
    folder = folder_of(data_dir, source_needs(source), tmp_path)
    pooled = source in {"mnist", "mnist_one", "fashion"}
    partition = Partition(kind="iid", clients=2) if pooled else Partition()
    assert len(named_federation(source, folder, partition, 0).sites) >= 2
