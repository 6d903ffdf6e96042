"""The server runs installed code only, and only for runs of its own."""

import hashlib
import importlib
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from flwr.app import Context, RecordDict

from fedlatent.server import app as installed
from fedlatent.server import launcher
from fedlatent.server.control import RunState, Submission
from fedlatent.server.home import HOME_VARIABLE, ServerHome
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ServiceError
from fedlatent.shared.files import write_json
from tests.client.test_launcher import hostile_app

OURS = 7
"""Flower's number of the run that a submission names."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerHome:
    """A server's home, in the environment; Flower's own folder and work are beside it."""
    made = ServerHome(tmp_path / "server")
    made.create()
    (tmp_path / "flower").mkdir()
    monkeypatch.setenv(HOME_VARIABLE, str(made.root))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "_PATIENCE_S", 0.2)
    return made


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Flower's ServerApp runtime; its functions come back after the test."""
    module = importlib.import_module(launcher.RUNTIME)
    for name in (
        "install_from_fab",
        "install_app_dependencies",
        "get_fab_metadata",
        "get_project_dir",
        "get_project_config",
        "get_fused_config_from_dir",
        "run_",
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    return module


def submit(
    home: ServerHome, *, state: RunState = "open", flower_runs: tuple[str, ...] = (str(OURS),)
) -> Submission:
    """Write a submission as the operator's commands do."""
    submission = Submission(
        run_id="ours",
        config=RunConfig.parse({"name": "x", "data": {"name": "d", "shape": [2]}}, "t").to_json(),
        state=state,
        reason="",
        flower_runs=flower_runs,
        submitted="2026-01-01",
    )
    write_json(home.run("ours") / "submission.json", asdict(submission))
    return submission


def run_as_flower_does(runtime: ModuleType, sent: bytes, flower_run: int = OURS) -> Context:
    """The calls of Flower's runtime between a task's input and its output."""
    context = Context(
        run_id=flower_run, node_id=0, node_config={}, state=RecordDict(), run_config={}
    )
    runtime.install_from_fab(sent, skip_prompt=True)
    fab_id, version = runtime.get_fab_metadata(sent)
    folder = str(runtime.get_project_dir(fab_id, version, hashlib.sha256(sent).hexdigest()))
    config = runtime.get_project_config(folder)
    attribute = config["tool"]["flwr"]["app"]["components"]["serverapp"]
    context.run_config = runtime.get_fused_config_from_dir(Path(folder), {})
    returned: Context = runtime.run_(
        grid=None, server_app_dir=folder, server_app_attr=attribute, context=context
    )
    return returned


def test_our_run_gets_the_installed_app_and_our_settings(
    home: ServerHome, runtime: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The settings are the submission's, the code is ours, and nothing that was sent lands."""
    submission = submit(home)
    calls = []
    monkeypatch.setattr(installed, "app", lambda grid, context: calls.append(context.run_config))
    launcher.use_own_code(runtime)
    before = sorted(tmp_path.rglob("*"))
    context = run_as_flower_does(runtime, hostile_app("app", "1.0.0", "evil:app"))
    expected = {"config": submission.config, "run-id": "ours", "resume": ""}
    assert calls == [expected]
    assert context.run_config == expected
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "version", "component"),
    [
        ("app", "1.0.0", "evil:app"),
        ("app", "1.0.0/../../../out", "evil:app"),
        ("../../out", "1.0.0", "evil:app"),
        ("fedlatent", "1.0.0", "fedlatent.server.app:app"),
    ],
)
def test_sent_code_neither_runs_nor_lands(
    home: ServerHome,
    runtime: ModuleType,
    tmp_path: Path,
    name: str,
    version: str,
    component: str,
) -> None:
    """A run that no submission names is refused; its app is not unpacked and not loaded."""
    submit(home)
    launcher.use_own_code(runtime)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ServiceError, match="run 8, which no submission names"):
        run_as_flower_does(runtime, hostile_app(name, version, component), flower_run=OURS + 1)
    with pytest.raises(ServiceError, match="installations"):
        runtime.install_app_dependencies(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("home")
def test_the_attack_works_on_plain_flower(
    runtime: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without our launcher the sent code is unpacked and runs: the tests above bite."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    with pytest.raises(Exception, match="evil:app is not of type"):
        run_as_flower_does(runtime, hostile_app("app", "1.0.0", "evil:app"))
    assert list((tmp_path / "flower").rglob("evil.py"))
    assert (tmp_path / "SENT-CODE-RAN").exists()


@pytest.mark.parametrize("state", ["completed", "failed", "stopped"])
def test_a_run_that_is_over_is_refused(home: ServerHome, state: RunState) -> None:
    """A submission that is no longer open carries no further run."""
    submit(home, state=state)
    with pytest.raises(ServiceError, match="no submission names"):
        launcher.settings_of(home, OURS, 0.0)


def test_only_the_newest_run_of_a_submission_goes_on(home: ServerHome) -> None:
    """A resumed run has the settings of a resumption; the run before it has none any more."""
    submit(home, flower_runs=(str(OURS), "9"))
    assert launcher.settings_of(home, 9, 0.0)["resume"] == "ours"
    with pytest.raises(ServiceError, match="no submission names"):
        launcher.settings_of(home, OURS, 0.0)


def test_another_flower_is_refused() -> None:
    """When the runtime lacks one of the functions, the server's apps do not start."""
    with pytest.raises(ServiceError, match="pinned version"):
        launcher.use_own_code(SimpleNamespace(install_from_fab=print))  # type: ignore[arg-type]
