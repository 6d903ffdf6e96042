"""Calls in place of commands: read, train, simulate, export."""

import gc
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import fedlatent as fl
from fedlatent.api.runs import configured
from fedlatent.cli.main import app
from fedlatent.shared.config import RunConfig
from tests.api.conftest import HOSPITALS, patients


def test_files_frames_and_arrays_are_read_alike(inside: Path) -> None:
    """A path, a frame of the same content, and an array with labels beside it."""
    filed = fl.read("patients.csv", client="hospital", label="disease")
    framed = fl.read(patients(), client="hospital", label="disease")
    assert [one.name for one in filed.sites] == list(HOSPITALS)
    assert filed.schema.columns == framed.schema.columns
    for one, two in zip(filed.sites, framed.sites, strict=True):
        np.testing.assert_array_equal(one.train, two.train)
    table = patients()
    arrayed = fl.read(
        table[["age", "pressure", "cholesterol"]].to_numpy(),
        client=table["hospital"].to_numpy(),
        label=table["disease"].to_numpy(),
    )
    assert [len(one.train) for one in arrayed.sites] == [len(one.train) for one in filed.sites]
    assert filed.clients["anomalies"].sum() == patients()["disease"].sum()


@pytest.mark.parametrize(
    ("source", "arguments", "told"),
    [
        (patients(), {"client": "ward"}, "column 'ward' in table"),
        (patients(), {"client": np.zeros(3)}, "client to be the name of a column"),
        (patients(), {"delimiter": ";"}, "delimiter for a CSV file, got records in memory"),
        (np.zeros((30, 4)), {"client": "ward"}, "values for client beside an array"),
        (np.zeros(30), {}, "Expected records [N, ...]"),
        (np.array([["a", "b"]] * 60), {}, "records of numbers in arrays, got type"),
        ("patients.csv", {"schema": "none.toml"}, "none.toml"),
        ("none.csv", {}, "none.csv"),
    ],
)
def test_what_cannot_be_read_is_told(
    inside: Path, source: object, arguments: dict[str, object], told: str
) -> None:
    """One sentence that names what is wrong; always an error of ours."""
    with pytest.raises(fl.FedlatentError) as caught:
        fl.read(source, **arguments)  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_names_of_columns_need_not_be_texts() -> None:
    """Numbers and several levels become texts; a name that is there twice is told."""
    values = np.random.default_rng(0).normal(size=(60, 4))
    numbered = fl.read(pd.DataFrame(values))
    assert [one.name for one in numbered.schema.columns] == ["0", "1", "2", "3"]
    levels = pd.MultiIndex.from_product([["a", "b"], ["x", "y"]])
    leveled = fl.read(pd.DataFrame(values, columns=levels))
    assert [one.name for one in leveled.schema.columns] == ["a.x", "a.y", "b.x", "b.y"]
    with pytest.raises(fl.FedlatentError, match="'a' once in table, got it twice"):
        fl.read(pd.DataFrame(values[:, :2], columns=["a", "a"]))


@pytest.mark.parametrize(
    ("run", "arguments", "told"),
    [
        (None, {}, "a run, its file or tables of one, got a NoneType"),
        ({"privacy": 3}, {}, "a table for privacy, got 3"),
        ({"training": 3}, {}, "training"),
        ({}, {"engine": "gpu"}, "one of nodes, stacked, got 'gpu'"),
        ({}, {"absent": -1}, "got -1"),
        ({}, {"absent": 4}, "got 4"),
        ({}, {"device": "abacus"}, "device"),
    ],
)
def test_wrong_calls_are_told_and_leave_nothing(
    clients: fl.Federation,
    run: object,
    arguments: dict[str, object],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One sentence; no temporary folder stays behind."""
    Path("temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(Path("temporary").resolve()))
    with pytest.raises(fl.FedlatentError) as caught:
        fl.simulate(run, clients, progress=False, **arguments)  # type: ignore[arg-type]
    assert told in str(caught.value)
    assert not [*Path("temporary").iterdir()]


def test_what_is_no_federation_is_told() -> None:
    """A frame has to be read first."""
    with pytest.raises(fl.FedlatentError, match=r"as fedlatent\.read gives them, got a DataFrame"):
        fl.simulate({}, patients(), progress=False)  # type: ignore[arg-type]


def test_a_folder_is_no_bundle(clients: fl.Federation) -> None:
    """Told before anything is trained."""
    Path("place").mkdir()
    with pytest.raises(fl.FedlatentError, match="got the folder place"):
        fl.train(clients, "place", progress=False)
    assert not [*Path("place").iterdir()]


def test_a_look_at_the_records_stops(inside: Path) -> None:
    """Constant columns are most likely a mistake, until someone accepts them."""
    frame = patients().assign(age=1.0, pressure=2.0)
    with pytest.raises(fl.FedlatentError, match="pass accept=True"):
        fl.read(frame, client="hospital", label="disease")
    assert fl.read(frame, client="hospital", label="disease", accept=True).sites


def test_training_is_the_commands_twin(inside: Path) -> None:
    """Call and command make the same model and the same report of the same file."""
    words = "train patients.csv -o told.fedlatent --client hospital --label disease --absent 1"
    done = CliRunner().invoke(app, [*words.split(), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    clients = fl.read("patients.csv", client="hospital", label="disease")
    trained = fl.train(clients, "called.fedlatent", absent=1, progress=False)
    assert trained.report.auroc == told["auroc"]
    assert trained.report.absent == told["absent"]
    assert json.loads(Path("called.json").read_text())["clients"] == told["clients"]
    records = clients.sites[0].test
    other = fl.load("told.fedlatent", key="publisher.pem.pub")
    np.testing.assert_array_equal(trained.model.score(records).score, other.score(records).score)
    assert trained.report.by_client.loc[told["absent"][0], "took_part"] == np.False_
    assert list(trained.report.detectors.columns) == ["took part", "absent"]


def test_training_reads_what_it_is_given(inside: Path) -> None:
    """A file name in place of clients; a run in place of a family, and not beside it."""
    trained = fl.train("patients.csv", "one.fedlatent", progress=False)
    assert trained.report.note.startswith("Records of patients.csv")
    with pytest.raises(fl.FedlatentError, match="got both"):
        fl.train("patients.csv", "two.fedlatent", run=trained.run, epsilon=4.0, progress=False)
    assert not Path("two.fedlatent").exists()


def test_a_simulation_needs_three_lines(clients: fl.Federation) -> None:
    """The fast engine, private by a table of the run file, and equal for equal seeds."""
    private = {"privacy": fl.Privacy(epsilon=4.0), "training": {"rounds": 2}}
    one = fl.simulate(private, clients, absent=1, progress=False)
    two = fl.simulate(private, clients, absent=1, progress=False)
    assert one.epsilon is not None
    assert one.epsilon <= 4.0
    assert (one.rounds["kind"] == "train").sum() == 2
    assert [site.name for site in one.absent] == [site.name for site in two.absent]
    for name, value in one.simulation.result.arrays.items():
        np.testing.assert_array_equal(value, two.simulation.result.arrays[name])
    assert one.report().absent == [one.absent[0].name]
    assert one.report() is one.report()


@pytest.mark.parametrize(
    ("privacy", "epsilon"),
    [
        (fl.Privacy(), 4.0),
        (fl.Privacy(sample_rate=0.5), 4.0),
        (fl.Privacy(epsilon=2.0), 2.0),
        (fl.Privacy(mechanism="none"), None),
        ({"epsilon": 2.0}, 2.0),
        ({"epsilon": None}, None),
        ({"sample_rate": 0.5}, None),
        ({"mechanism": "dp-sgd"}, 4.0),
        ({"mechanism": "none", "epsilon": 2.0}, None),
    ],
)
def test_privacy_is_what_is_said(
    clients: fl.Federation, privacy: object, epsilon: float | None
) -> None:
    """An object has private defaults; a table is private where it says so."""
    run = configured({"privacy": privacy}, clients)
    assert (run.privacy.mechanism == "dp-sgd") == (epsilon is not None)
    if epsilon is not None:
        assert run.privacy.epsilon == epsilon
        plan = fl.privacy_plan(run)
        assert plan.epsilon is not None
        assert plan.epsilon <= epsilon


def test_both_engines_agree(clients: fl.Federation) -> None:
    """Stacked clients and real nodes give the same weights."""
    private = {"privacy": {"epsilon": 4.0}, "training": {"rounds": 1, "steps_per_round": 5}}
    one = fl.simulate(private, clients, progress=False)
    two = fl.simulate(private, clients, engine="nodes", progress=False)
    for name, value in one.simulation.result.arrays.items():
        np.testing.assert_allclose(value, two.simulation.result.arrays[name], atol=1e-5)


def test_a_temporary_folder_goes_with_the_result(clients: fl.Federation) -> None:
    """And a named one stays."""
    result = fl.simulate({"training": {"rounds": 1}}, clients, progress=False)
    folder = result.folder
    assert folder.is_dir()
    del result
    gc.collect()
    assert not folder.exists()
    kept = fl.simulate({"training": {"rounds": 1}}, clients, folder="kept", progress=False)
    del kept
    gc.collect()
    assert Path("kept").is_dir()


def test_results_export_like_deployed_runs(clients: fl.Federation) -> None:
    """The global bundle, and one for a site's own devices; both load by the public key."""
    result = fl.simulate({"privacy": {"epsilon": 4.0}}, clients, progress=False)
    records = clients.sites[0].test
    made = result.export("global.fedlatent")
    loaded = fl.load("global.fedlatent", key=["publisher.pem.pub"])
    np.testing.assert_array_equal(made.score(records).score, loaded.score(records).score)
    own = result.export("east.fedlatent", site="east", decoder=True)
    assert own.bundle.manifest.kind == "site"
    with pytest.raises(fl.FedlatentError, match="such as east, north"):
        result.export("none.fedlatent", site="ward")
    assert not Path("none.fedlatent").exists()


def test_runs_come_as_objects_files_and_tables(clients: fl.Federation) -> None:
    """All three say the same run."""
    made = fl.simulate({"training": {"rounds": 1}}, clients, progress=False).run
    Path("run.json").write_text(made.to_json())
    again = fl.simulate(RunConfig.from_json(made.to_json()), clients, progress=False)
    assert again.run == made
    with pytest.raises(fl.FedlatentError, match=r"training\.round"):
        fl.simulate({"training": {"round": 1}}, clients, progress=False)
    with pytest.raises(fl.FedlatentError, match="run file at"):
        fl.simulate("none.toml", clients, progress=False)


def test_exports_of_homes(inside: Path) -> None:
    """A folder that is neither a server nor a node is told."""
    with pytest.raises(fl.FedlatentError, match="folder of a server or node"):
        fl.export(inside)


def test_the_plan_is_that_of_the_command(clients: fl.Federation) -> None:
    """Numbers and warnings as ``fedlatent privacy plan --json`` prints them."""
    run = fl.simulate(
        {"privacy": {"epsilon": 2.0}, "training": {"rounds": 1}}, clients, progress=False
    ).run
    Path("run.toml").write_text(run.to_toml())
    assert RunConfig.load(Path("run.toml")) == run
    done = CliRunner().invoke(app, ["privacy", "plan", "run.toml", "--records", "40", "--json"])
    assert done.exit_code == 0, done.output
    plan = fl.privacy_plan("run.toml", records=40)
    assert json.loads(done.stdout) == json.loads(json.dumps(plan.facts))
    assert isinstance(plan.releases, pd.DataFrame)
    assert plan.warnings
