"""``fedlatent client`` for a node that knows persons."""

import json
from pathlib import Path

import pytest

from fedlatent.client.home import ClientHome
from fedlatent.client.policy import NodeConfig
from fedlatent.server.authority import create_authority
from fedlatent.server.home import ServerHome
from fedlatent.shared.privacy.person import person_epsilon
from fedlatent.shared.privacy.plan import PrivacyPlan
from tests.cli.conftest import Run
from tests.client.support import request, tiny_run, weights_of
from tests.client.test_persons import CAP, USED, config_of, node_of, write_csv


def test_ledger_says_what_a_person_has_spent(run: Run, tmp_path: Path) -> None:
    """Beside the record's epsilon, by the same entries, in words and as JSON."""
    asked = tiny_run()
    path = write_csv(tmp_path)
    node = node_of(tmp_path / "home", config_of(asked, path, max_person_epsilon=60.0))
    node.handle(request(asked, 1), weights_of(asked))
    event = PrivacyPlan.from_config(asked).required("train")
    spent = person_epsilon([event], node.ledger.delta, CAP)
    status, out, _ = run("client", "ledger", "--home", tmp_path / "home")
    assert status == 0
    assert f"per person (at most {CAP} records): epsilon {spent:.4f} of 60 at the same" in out
    _, out, _ = run("client", "ledger", "--home", tmp_path / "home", "--json")
    facts = json.loads(out)
    wanted = {"records": CAP, "epsilon": pytest.approx(spent), "max_epsilon": 60.0}
    assert facts["person"] == wanted
    assert facts["records"] == USED


def test_init_takes_persons(run: Run, tmp_path: Path) -> None:
    """The options reach node.toml, and the number of records is that after the cap."""
    schema = tmp_path / "run.toml"
    schema.write_text('[data]\nname = "tiny"\nshape = [12]\nlower = -3.0\nupper = 3.0\n')
    server = ServerHome(tmp_path / "server")
    server.create()
    create_authority(server)
    options = {
        "--server": "fl.example:8443",
        "--ca": server.ca_certificate,
        "--data": write_csv(tmp_path),
        "--schema": schema,
        "--home": tmp_path / "home",
        "--person": "patient",
    }
    asked = [word for pair in options.items() for word in pair]
    status, out, err = run("client", "init", "north", *asked)
    assert status == 2
    assert "person_key and max_records_per_person together" in " ".join((out + err).split())
    status, out, _ = run("client", "init", "north", *asked, "--person-cap", CAP)
    assert status == 0
    assert f"{USED} records" in out
    assert f"at most {CAP} records of each person, by the column 'patient'" in out
    data = NodeConfig.load(ClientHome(tmp_path / "home").config).data
    assert (data.person_key, data.max_records_per_person) == ("patient", CAP)
