"""The node runs installed code only, whatever the server sends."""

import subprocess
import sys
from pathlib import Path

from shared.supervisor import child_environment

ATTACK = """
import sys
from pathlib import Path
import client.app
from client.launcher import forbid_code_below
folder = Path(sys.argv[1])
forbid_code_below(folder)
app = folder / "sent"
(app / "client").mkdir(parents=True)
(app / "client" / "__init__.py").write_text("print('SENT CODE RAN')")
(app / "client" / "app.py").write_text("print('SENT CODE RAN')")
(app / "evil.py").write_text("print('SENT CODE RAN')")
(app / "pyproject.toml").write_text("[project]")
sys.path.insert(0, str(app))
from flwr.clientapp import ClientApp
import importlib
assert isinstance(importlib.import_module("client.app").app, ClientApp)
assert (app / "pyproject.toml").read_text() == "[project]"
for attempt in (lambda: __import__("evil"), lambda: open(app / "evil.py").read(),
                lambda: open(app / "../sent/evil.py", "rb"), lambda: open(app / "evil.py", "r+")):
    try:
        attempt()
    except PermissionError as error:
        print(error)
"""


def test_sent_code_is_never_read(tmp_path: Path) -> None:
    """Flower may unpack an app at the node, but no module of it can be imported."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", ATTACK, str(tmp_path / "apps")],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["this node runs no code that a server sent"] * 4
