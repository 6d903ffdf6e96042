"""The files for running on a device: units, container and scripts fit the command line."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import pytest

from fedlatent.client.edge.commands.common import print_json
from fedlatent.client.edge.main import build_parser
from fedlatent.client.edge.runtime import EdgeModel
from fedlatent.client.edge.serve import EdgeServer, ServeOptions, serve
from fedlatent.client.edge.stream import Stop
from fedlatent.shared import errors

EDGE = Path(__file__).parents[3] / "client/edge"
DEPLOY = EDGE / "deploy"
SCORING, UPDATE = "fedlatent-edge.service", "fedlatent-edge-update.service"
PROGRAM = "/opt/fedlatent-edge/bin/fedlatent-edge"
STATE = "/var/lib/fedlatent-edge"
EXIT_CODES = {
    kind.exit_code
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.FedlatentError)
}


def _unit(name: str) -> ConfigParser:
    """A unit file; only these few keys may occur twice, and none does here."""
    unit = ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((DEPLOY / name).read_text())
    return unit


def _settings() -> list[dict[str, str]]:
    """The settings of fedlatent-edge.env as they are, and with the commented lines in force."""
    text = (DEPLOY / "fedlatent-edge.env").read_text()
    pair = re.compile(r"^(#?)([A-Z_]+)=(.*)$", re.MULTILINE)
    found = pair.findall(text)
    plain = {name: value for mark, name, value in found if not mark}
    return [plain, {**plain, **{name: value for mark, name, value in found if mark}}]


def _words(command: str, settings: dict[str, str]) -> list[str]:
    """A command line as systemd splits it: a bare $NAME becomes as many words as it holds."""
    words: list[str] = []
    for word in command.split():
        words += settings[word[1:]].split() if word.startswith("$") else [word]
    return words


def _shell(command: str) -> str:
    """The script that systemd hands to sh in a line of the form /bin/sh -c '...'."""
    found = re.fullmatch(r"\+?/bin/sh -c '(.*)'", command)
    assert found is not None
    return found[1].replace("\\\\", "\0").replace('\\"', '"').replace("\0", "\\").replace("$$", "$")


@pytest.mark.parametrize("settings", _settings(), ids=["serve", "stream"])
def test_scoring_service_calls_the_command_line_rightly(settings: dict[str, str]) -> None:
    """Both sets of settings make a call that the parser takes, on the state folder of the unit."""
    service = _unit(SCORING)["Service"]
    program, *words = _words(service["ExecStart"], settings)
    args = build_parser()[0].parse_args(words)
    assert program == PROGRAM
    assert args.bundle == Path(STATE)
    assert service["StateDirectory"] == Path(STATE).name
    assert words[0] == settings["COMMAND"]


def test_settings_hold_every_variable_of_the_units() -> None:
    """No unit uses a variable that neither the settings nor systemd set."""
    known = set(_settings()[0]) | {"RUNTIME_DIRECTORY", "status"}
    for name in (SCORING, UPDATE):
        service = _unit(name)["Service"]
        used = set(re.findall(r"(?<!\$)\$(\w+)", service["ExecStart"]))
        assert used
        assert used <= known
        assert service["EnvironmentFile"] == "/etc/fedlatent-edge/fedlatent-edge.env"


def test_no_restart_after_errors_that_would_come_again() -> None:
    """Exit codes that prevent a restart are those of wrong settings and bad bundles."""
    service = _unit(SCORING)["Service"]
    codes = {int(code) for code in service["RestartPreventExitStatus"].split()}
    named = {errors.ConfigError, errors.BundleError, errors.UpdateRefused}
    assert codes == {kind.exit_code for kind in named} <= EXIT_CODES
    assert service["Restart"] == "on-failure"
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) >= 10


@pytest.mark.parametrize("name", [SCORING, UPDATE])
def test_services_are_confined(name: str) -> None:
    """Both services share one passing user, write to their own folders alone and have a limit."""
    service = _unit(name)["Service"]
    yes = ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "MemoryDenyWriteExecute")
    assert all(service[key] == "yes" for key in yes)
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert re.fullmatch(r"\d+M", service["MemoryMax"])
    other = _unit(UPDATE if name == SCORING else SCORING)["Service"]
    for key in ("User", "StateDirectory", "StateDirectoryMode"):
        assert service[key] == other[key]


def test_timer_spreads_a_fleet() -> None:
    """The timer starts the update service by name, at a random but fixed moment."""
    timer = _unit("fedlatent-edge-update.timer")["Timer"]
    assert (DEPLOY / UPDATE).exists()
    assert timer["RandomizedDelaySec"] == "1h"
    assert timer["FixedRandomDelay"] == timer["Persistent"] == "yes"


def test_update_service_reports_the_exit_code(tmp_path: Path) -> None:
    """The update's own exit code is the unit's, and its JSON reaches the journal."""
    program = tmp_path / "fedlatent-edge"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedlatent.client.edge.main "$@"\n')
    program.chmod(0o755)
    script = _shell(_unit(UPDATE)["Service"]["ExecStart"])
    script = script.replace(PROGRAM, shlex.quote(str(program)))
    script = script.replace(STATE, shlex.quote(str(tmp_path / "state")))
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=EDGE.parents[1],
        env={**os.environ, "UPDATE_FROM": "/nowhere", "RUNTIME_DIRECTORY": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    code = json.loads(done.stdout)["error"]["code"]
    assert done.stdout == (tmp_path / "result").read_text()
    kinds = {kind.code: kind.exit_code for kind in errors.FedlatentError.__subclasses__()}
    kinds |= {kind.code: kind.exit_code for kind in errors.BundleError.__subclasses__()}
    assert done.returncode == kinds[code] != 0


@pytest.mark.parametrize(
    ("result", "enabled", "restarts"),
    [("installed", 0, True), ("installed", 1, False), ("current", 0, False)],
)
def test_scoring_restarts_only_after_an_installation(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    result: str,
    enabled: int,
    restarts: bool,
) -> None:
    """The scoring service is restarted when something was installed and the service is enabled."""
    print_json({"result": result, "model": "hearts", "version": 3})
    (tmp_path / "result").write_text(capsys.readouterr().out)
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        f'#!/bin/sh\necho "$@" >>"{tmp_path}/calls"\n[ "$1" != is-enabled ] || exit {enabled}\n'
    )
    systemctl.chmod(0o755)
    script = _shell(_unit(UPDATE)["Service"]["ExecStartPost"])
    folder = _unit(UPDATE)["Service"]["RuntimeDirectory"]
    script = script.replace(f"/run/{folder}", str(tmp_path))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(["/bin/sh", "-c", script], env=environment, check=False).returncode == 0
    calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
    assert (f"--no-block restart {SCORING}" in calls) is restarts


def _instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their text, lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    return [(name, rest) for name, rest in pairs]


def test_container_starts_the_command_line_without_root() -> None:
    """The container's entry point and default command make a call that the parser takes."""
    found = dict(_instructions())  # the last of each name is the one in force
    assert json.loads(found["ENTRYPOINT"]) == ["fedlatent-edge"]
    args = build_parser()[0].parse_args(json.loads(found["CMD"]))
    assert args.bundle == Path(found["VOLUME"])
    assert str(args.port) == found["EXPOSE"]
    assert int(found["USER"]) >= 1000
    names = [name for name, _ in _instructions()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")


def test_container_health_check_tells_up_from_down(
    load: Callable[..., EdgeModel],
) -> None:
    """The health check succeeds while the server answers, and fails when it is gone."""
    text = dict(_instructions())["HEALTHCHECK"]
    python, *arguments = json.loads(text[text.index("[") :])
    assert python == "python"
    stop = Stop()
    with EdgeServer(load(), ServeOptions(host="127.0.0.1", port=0)) as server:
        command = [
            sys.executable,
            *(word.replace(":8711/", f":{server.server_port}/") for word in arguments),
        ]
        thread = threading.Thread(target=serve, args=(server, stop))
        thread.start()
        try:
            up = subprocess.run(command, capture_output=True, timeout=240, check=False)
        finally:
            stop.set()
            thread.join(30)
    down = subprocess.run(command, capture_output=True, timeout=240, check=False)
    assert up.returncode == 0, up.stderr
    assert down.returncode != 0


@pytest.mark.parametrize("name", ["deploy/check-aarch64.sh", "examples/cpp/get-header.sh"])
def test_scripts_parse_and_ask_for_arguments(name: str) -> None:
    """Each script is executable, has no syntax error, and says its usage when called bare."""
    path = EDGE / name
    assert os.access(path, os.X_OK)
    assert subprocess.run(["/bin/sh", "-n", str(path)], check=False).returncode == 0
    done = subprocess.run([str(path)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert f"usage: {path.name}" in done.stderr


@pytest.mark.parametrize("name", ["README.md", "deploy/README.md", "examples/cpp/README.md"])
def test_readmes_name_commands_that_exist(name: str) -> None:
    """Every call of fedlatent-edge in a README is one that the parser takes."""
    text = (EDGE / name).read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    call = re.compile(r"(?:^|/bin/)fedlatent-edge (?=[a-z])([^#]*)")
    calls = [found[1] for line in lines if (found := call.search(line))]
    assert calls
    for words in calls:
        assert build_parser()[0].parse_args(shlex.split(words)).run
