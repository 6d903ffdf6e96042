"""The ServerApp: its settings, and a whole run with the real ClientApp in one process."""

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedlatent.client.app import app as client_app
from fedlatent.server.app import (
    admitted_records,
    admitted_sites,
    app,
    default_config,
    parse_config,
    read_settings,
)
from fedlatent.server.home import HOME_VARIABLE
from fedlatent.server.registry import Registry
from fedlatent.server.results import RunFolder
from fedlatent.shared.errors import ConfigError
from fedlatent.simulations.grid import InProcessGrid, by_handlers
from tests.server.federation import home_at, tiny_config


def context_of(node: int, run_config: dict[str, str], **node_config: int) -> Context:
    """What Flower hands to an app."""
    return Context(
        run_id=1,
        node_id=node,
        node_config=dict(node_config),
        state=RecordDict(),
        run_config=dict(run_config),
    )


def test_empty_settings_are_a_run_on_synthetic_hearts(tmp_path: Path) -> None:
    """Without a configuration the run is the default one, under a fresh name."""
    config, run_id, resume = read_settings(
        {"config": "", "run-id": "", "resume": ""}, home_at(tmp_path)
    )
    assert config == default_config()
    assert config.data.name == "heart-beat-128"
    assert run_id.startswith("hearts-")
    assert not resume


def test_toml_and_json_are_read() -> None:
    """Both texts of a configuration give the same run."""
    config = tiny_config()
    assert parse_config(config.to_json()) == config
    toml = 'name = "tiny"\n[data]\nname = "six"\nshape = [6]\n'
    assert parse_config(toml).data.shape == (6,)
    with pytest.raises(ConfigError, match="TOML"):
        parse_config("name = ")


def test_resume_reads_the_stored_configuration(tmp_path: Path) -> None:
    """A run is resumed by its name alone; an unknown or contradicting name is refused."""
    home = home_at(tmp_path)
    folder = home.run("tiny-1")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config().model_dump(mode="json")))
    settings = {"config": "", "run-id": "", "resume": "tiny-1"}
    assert read_settings(settings, home) == (tiny_config(), "tiny-1", True)
    with pytest.raises(ConfigError, match="stored configuration"):
        read_settings(settings | {"resume": "tiny-2"}, home)
    with pytest.raises(ConfigError, match="run-id"):
        read_settings(settings | {"run-id": "other"}, home)


def test_admitted_sites_come_from_the_operators_file(tmp_path: Path) -> None:
    """The table maps Flower's node ids to site names; without a file it is empty."""
    home = home_at(tmp_path)
    assert not admitted_sites(home)
    site = {"name": "north", "node_id": str(2**64 - 1), "fingerprint": "f"}
    home.sites.write_text(json.dumps([site | {"public_key": "k", "admitted": "now"}]))
    assert admitted_sites(home) == {2**64 - 1: "north"}
    assert admitted_records(home) == {}
    counted = site | {"public_key": "k", "admitted": "now", "records": 70}
    home.sites.write_text(json.dumps([counted]))
    assert admitted_records(home) == {"north": 70}


def test_real_apps_complete_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ServerApp and ClientApp, DP-SGD and ledger included, finish a run on two synthetic hearts."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "server"))
    monkeypatch.setenv("FEDLATENT_HOME", str(tmp_path / "clients"))
    config = default_config().model_dump(mode="json")
    config["training"] |= {"rounds": 2, "steps_per_round": 3}
    config["model"] = {"family": "gaussian", "options": {"latent_dim": 2, "hidden": [8]}}
    settings = {"config": json.dumps(config), "run-id": "hearts-1", "resume": ""}
    nodes = {
        100 + number: context_of(100 + number, settings, **{"partition-id": number})
        for number in range(2)
    }
    handlers = {
        node: lambda message, context=context: client_app(message=message, context=context)
        for node, context in nodes.items()
    }
    grid = InProcessGrid(handlers, by_handlers(handlers))
    app(grid=grid, context=context_of(1, settings))
    home = home_at(tmp_path / "server")
    result = RunFolder.load(home.run("hearts-1") / "result")
    plan = result.facts["plan"]
    assert isinstance(plan, dict)
    with Registry(home.registry) as registry:
        rows = registry.site_rounds("hearts-1")
    assert len(rows) == 2 * 4
    assert {row.status for row in rows} == {"ok"}
    spent = [row.epsilon for row in rows if row.site == "node-100"]
    assert spent == sorted(spent)
    sites = result.facts["sites"]
    assert isinstance(sites, dict)
    assert sites["node-100"]["epsilon"] == spent[-1]
    assert 0 < spent[-1] < plan["epsilon"] * 1.1


def test_a_run_that_stops_raises_for_flower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that cannot go on fails in Flower too, with its sentence in the log."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    settings = {"config": "", "run-id": "hearts-1", "resume": "hearts-2"}
    with pytest.raises(ConfigError):
        app(grid=InProcessGrid((), by_handlers({})), context=context_of(1, settings))
    assert "Expected run-id to be empty" in caplog.text
