"""No third party learns that these programs run.

Some of our dependencies report their use to their makers by default, and write an identity of the
machine below the user's home. Each reads a variable of the environment at its own import or at the
start of a process, so the variables are set when the first of our packages is imported: `shared`
sets them, and every other package of ours imports `shared` first. A program that imports such a
dependency before anything of ours sets them itself.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

QUIET: Mapping[str, str] = {
    "FLWR_DISABLE_UPDATE_CHECK": "1",  # Flower asks its maker for newer versions
    "FLWR_TELEMETRY_ENABLED": "0",  # and reports the start and the end of its programs
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.29 and later: a device id, events, look-ups
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray reports its use while a cluster runs
    "npm_config_update_notifier": "false",  # npm, which may fetch ONNX Runtime for a page
}
"""What keeps each dependency quiet, whatever the environment said before."""


def keep_quiet() -> None:
    """Set the variables for this process and its children."""
    os.environ.update(QUIET)


def cache_folder() -> Path:
    """Where our own commands keep what they can make again.

    ``fedlatent`` in the user's cache folder, or in a folder of its own below the system's temporary
    one for an account without a home.
    """
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedlatent"
    return Path(tempfile.gettempdir()) / f"fedlatent-{os.getuid()}" / "cache"
