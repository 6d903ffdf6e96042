"""The look at records before a node is made, and each time that it starts."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.export import export_site
from fedlatent.client.home import ClientHome
from fedlatent.client.local import open_node
from fedlatent.client.policy import NodeConfig
from fedlatent.shared.errors import DataError, RecordsRefused
from fedlatent.shared.toml import dumps
from tests.cli.conftest import Run
from tests.client.support import tiny_config, tiny_records, tiny_run

RNG = np.random.default_rng(0)
AGE, PRESSURE, CHOLESTEROL = (RNG.uniform(*ends, 264) for ends in ((29, 77), (94, 200), (126, 560)))
SHORT = '[data]\nname = "heart"\nshape = [3]\nlower = 0.0\nupper = 1.0\n'
COLUMNS = '[data]\nname = "heart"\n' + "".join(
    f'[[data.columns]]\nname = "{name}"\nlower = {low}\nupper = {high}\n'
    for name, low, high in (("age", 20, 90), ("pressure", 60, 240), ("cholesterol", 80, 650))
)


def write_table(path: Path, *columns: np.ndarray, header: str = "age,pressure,cholesterol") -> Path:
    """A CSV file of columns."""
    np.savetxt(path, np.stack(columns, 1), "%.6g", delimiter=",", header=header, comments="")
    return path


def asked(folder: Path, run: Run, data: Path, schema: str) -> list[object]:
    """The words of ``client init`` for a table and a schema."""
    if not (folder / "server").exists():
        assert run("server", "init", "--home", folder / "server", "--port", 0)[0] == 0
    (folder / "run.toml").write_text(schema)
    return [
        *("client", "init", "north", "--server", "127.0.0.1:9", "--data", data),
        *("--ca", folder / "server" / "tls" / "ca.crt", "--schema", folder / "run.toml"),
        *("--home", folder / "node"),
    ]


@pytest.mark.parametrize(
    ("schema", "factor", "words"),
    [
        (SHORT, 1.0, "100 % of the values of 'age'"),
        (COLUMNS, 100.0, "'age'"),
        (COLUMNS, 0.01, "'age'"),
    ],
)
def test_another_unit_stops_before_a_node_is_made(
    run: Run, tmp_path: Path, schema: str, factor: float, words: str
) -> None:
    """Wrong bounds, or rows a hundred times too large, end in a sentence and leave no home."""
    rows = (factor * one for one in (AGE, PRESSURE, CHOLESTEROL))
    words_of_init = asked(tmp_path, run, write_table(tmp_path / "t.csv", *rows), schema)
    status, out, err = run(*words_of_init)
    assert status == 3
    assert words in " ".join((out + err).split())
    assert "say --accept" in " ".join(err.split())
    status, out, _ = run(*words_of_init, "--json")
    error = json.loads(out)["error"]
    assert (status, error["reason"]) == (3, "clipped")
    assert error["check"]["records"] == 264
    assert not (tmp_path / "node").exists()


def test_a_right_table_is_told_and_accepted(run: Run, tmp_path: Path) -> None:
    """The report is printed, and part of what a script reads."""
    data = write_table(tmp_path / "t.csv", AGE, PRESSURE, CHOLESTEROL)
    status, out, _ = run(*asked(tmp_path, run, data, COLUMNS))
    assert status == 0
    assert "264 normal records, 264 distinct" in " ".join(out.split())
    status, out, _ = run(*asked(tmp_path, run, data, COLUMNS)[:-1], tmp_path / "b", "--json")
    assert json.loads(out)["check"]["findings"] == []


def test_accepted_findings_are_written_down(run: Run, tmp_path: Path) -> None:
    """``--accept`` keeps the names of what it accepts, and the node starts with no more."""
    data = write_table(tmp_path / "t.csv", AGE, PRESSURE, CHOLESTEROL * 100)
    assert run(*asked(tmp_path, run, data, COLUMNS), "--accept")[0] == 0
    home = ClientHome(tmp_path / "node")
    assert NodeConfig.load(home.config).data.accept == ("clipped:cholesterol",)
    assert len(open_node(home).records) == 264
    write_table(data, AGE * 100, PRESSURE, CHOLESTEROL * 100)
    with pytest.raises(RecordsRefused, match=r"clipped:cholesterol.*clipped:age.*node.toml"):
        open_node(home)
    status, _, err = run("client", "start", "--home", home.root)
    assert status == 3
    assert "'age'" in err


def test_a_copy_of_the_label_stops(run: Run, tmp_path: Path) -> None:
    """A column that says which records are anomalies is no input, whatever its name."""
    label = (np.arange(264) >= 200).astype(float)
    data = write_table(
        tmp_path / "t.csv", AGE, PRESSURE, CHOLESTEROL, label, 3 - label,
        header="age,pressure,cholesterol,sick,group",
    )  # fmt: skip
    schema = COLUMNS + '[[data.columns]]\nname = "group"\nupper = 4\n'
    status, _, err = run(*asked(tmp_path, run, data, schema), "--label", "sick")
    assert status == 3
    assert "copy of the label" in " ".join(err.split())
    named = schema.replace("group", "sick")
    status, _, err = run(*asked(tmp_path, run, data, named), "--label", "sick")
    assert status == 3
    assert "'sick' to hold the labels" in " ".join(err.split())


@pytest.mark.parametrize(("records", "label"), [(1, 0), (15, 0), (264, 1)])
def test_few_records_stop(run: Run, tmp_path: Path, records: int, label: float) -> None:
    """One record, fewer than a training step takes, or none that is normal: one sentence."""
    rows = [one[:records] for one in (AGE, PRESSURE, CHOLESTEROL)]
    header = "age,pressure,cholesterol,sick"
    data = write_table(tmp_path / "t.csv", *rows, np.full(records, label), header=header)
    status, _, err = run(*asked(tmp_path, run, data, COLUMNS), "--label", "sick")
    assert status == 3
    assert ("at least 16" if label == 0 else "got none among 264") in " ".join(err.split())


def test_a_node_and_an_export_need_the_least_records(tmp_path: Path) -> None:
    """Both say the same sentence, and nothing is computed on a single record."""
    config = tiny_config(tiny_run()).model_dump(mode="json", by_alias=True)
    home = ClientHome(tmp_path)
    home.config.write_text(dumps(config | {"data": config["data"] | {"accept": ["few"]}}))
    for records in (1, 15):
        np.savez(tmp_path / "records.npz", X=tiny_records(records))
        with pytest.raises(DataError, match=f"at least 16 .*got {records}"):
            open_node(home)
        with pytest.raises(DataError, match="at least 16"):
            export_site(home)


def test_a_proposed_schema_makes_a_node(run: Run, tmp_path: Path) -> None:
    """``data describe`` writes text that ``client init`` takes, and says that it must be edited."""
    data = write_table(tmp_path / "t.csv", AGE, PRESSURE, CHOLESTEROL)
    status, out, err = run("data", "describe", data, "-o", tmp_path / "heart.toml")
    assert status == 0
    assert "public knowledge" in " ".join(err.split())
    assert str(tmp_path / "heart.toml") in "".join(out.split())
    status, out, _ = run("data", "describe", data, "--json")
    assert json.loads(out)["text"] == (tmp_path / "heart.toml").read_text()
    assert run("data", "describe", data)[1] == json.loads(out)["text"]
    schema = (tmp_path / "heart.toml").read_text()
    assert run(*asked(tmp_path, run, data, schema))[0] == 0


def test_a_schema_is_proposed_for_a_table_of_another_dialect(run: Run, tmp_path: Path) -> None:
    """``data describe`` reads semicolons and decimal commas where it is told, and hints else."""
    path = tmp_path / "t.csv"
    path.write_text("".join(["größe;puls\n", *(f"1,{n};{n % 7 + 60},5\n" for n in range(40))]))
    status, _, err = run("data", "describe", path)
    assert (status, "delimiter=';'" in " ".join(err.split())) == (3, True)
    status, out, _ = run("data", "describe", path, "--delimiter", ";", "--decimal", ",", "--json")
    columns = json.loads(out)["data"]["columns"]
    assert status == 0
    assert [one["name"] for one in columns] == ["größe", "puls"]
    assert columns[1]["lower"] <= 60.5
    assert columns[1]["upper"] >= 66.5


def test_a_demo_of_an_own_file_looks_first(run: Run, tmp_path: Path) -> None:
    """``demo --data FILE`` stops at a copy of the label before any server starts."""
    label = (np.arange(264) >= 200).astype(float)
    rows = (AGE, PRESSURE, CHOLESTEROL, label, 1 - label)
    header = "age,pressure,cholesterol,sick,group"
    data = write_table(tmp_path / "t.csv", *rows, header=header)
    (tmp_path / "t.toml").write_text(COLUMNS + '[[data.columns]]\nname = "group"\n')
    data.write_text(data.read_text().replace(",", "\t").replace(".", ","))
    words = ("demo", "--data", data, "--label", "sick", "--schema", tmp_path / "t.toml")
    words += ("--delimiter", "tab", "--decimal", ",")
    status, out, err = run(*words, "--sites", 2, "--absent", 1)
    assert (status, "copy of the label" in " ".join(err.split())) == (3, True)
    assert "200 normal records" in " ".join(out.split())
