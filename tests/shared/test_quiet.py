"""No third party: dependencies that report their use are told not to before they are imported."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedlatent.shared.quiet import QUIET
from fedlatent.shared.supervisor import child_environment

ROOT = Path(__file__).resolve().parents[2]

# Says, at the first import of each dependency that reports its use, whether it was told not to.
WATCH = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, *_):
        if name in ("onnxruntime", "flwr", "ray") and name not in seen:
            seen[name] = {key: os.environ.get(key) for key in wanted}

wanted, module = eval(sys.argv[1]), sys.argv[2]
seen = {}
sys.meta_path.insert(0, Watch())
importlib.import_module(module)
assert seen, "it imports none of them"
for name, found in seen.items():
    assert found == wanted, (name, found)
"""


def loud() -> dict[str, str]:
    """Our environment as that of a stranger: nothing is kept quiet, and some say so."""
    kept = {key: value for key, value in os.environ.items() if key not in QUIET}
    return kept | {"ORT_DISABLE_TELEMETRY": "0", "FLWR_TELEMETRY_ENABLED": "1"}


def test_the_package_imports_shared_first() -> None:
    """So whatever is run or imported of ours, the variables are set before a dependency."""
    body = ast.parse((ROOT / "fedlatent" / "__init__.py").read_text()).body
    found = [one for one in body if isinstance(one, ast.Import | ast.ImportFrom)]
    names = [one.module if isinstance(one, ast.ImportFrom) else one.names[0].name for one in found]
    ours = [one for one in names if one not in sys.stdlib_module_names]
    assert ours == ["fedlatent.shared"]


@pytest.mark.parametrize("module", ["fedlatent.client.edge.runtime", "fedlatent.client.launcher"])
def test_the_variables_are_set_before_a_dependency_is_imported(module: str) -> None:
    """Even where the environment asked for reports."""
    command = [sys.executable, "-c", WATCH, repr(dict(QUIET)), module]
    done = subprocess.run(
        command, env=loud(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr


def test_onnx_runtime_leaves_no_identity_in_the_home(tmp_path: Path) -> None:
    """Neither a device id nor events lie in the home of whoever imported the edge runtime."""
    program = "import fedlatent.client.edge.runtime, onnxruntime; onnxruntime.SessionOptions()"
    environment = loud() | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, check=True, timeout=240
    )
    assert list(tmp_path.iterdir()) == []


def test_supervised_processes_are_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's variables of the environment are dropped for them, and ours are set."""
    for name, value in loud().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    assert child_environment().items() >= QUIET.items()


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("client/edge/deploy/Dockerfile", r"^ENV (.*\\\n)*.*\bORT_DISABLE_TELEMETRY=1\b"),
        ("client/edge/deploy/fedlatent-edge.service", r"^Environment=.*ORT_DISABLE_TELEMETRY=1\b"),
        (
            "client/edge/deploy/fedlatent-edge-update.service",
            r"^Environment=.*ORT_DISABLE_TELEMETRY=1\b",
        ),
        ("client/edge/deploy/check-aarch64.sh", r"^export .*\bORT_DISABLE_TELEMETRY\b"),
        ("client/edge/examples/cpp/score.cpp", r'^ *setenv\("ORT_DISABLE_TELEMETRY", "1", 1\);'),
        ("Makefile", r"^export ORT_DISABLE_TELEMETRY = 1$"),
    ],
)
def test_what_is_started_without_our_packages_is_quiet_too(path: str, pattern: str) -> None:
    """Units, container, scripts and the C++ example set the variable for themselves."""
    assert re.search(pattern, (ROOT / path).read_text(), re.MULTILINE)
