"""Runs tests of other trees in forks of one process that has loaded the heavy libraries.

Reads a line of JSON for each run: folder, node id of the test, file for the output. Answers with a
line that holds pytest's exit code. Nothing of this project is imported before the fork.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

_HEAVY = ("opacus.grad_sample", "opacus.accountants", "scipy.stats", "scipy.optimize", "pydantic")
_LIMIT_S = 300
_OPTIONS = ("-q", "--maxfail=1", "--tb=short", "-p", "no:cacheprovider")


def run(folder: str, catcher: str, log: str) -> int:
    """Exit code of one test in a fork; what it prints goes to ``log``."""
    child = os.fork()
    if not child:
        signal.alarm(_LIMIT_S)
        with Path(log).open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        os.chdir(folder)
        sys.path.insert(0, folder)
        code = int(pytest.main([*_OPTIONS, f"--rootdir={folder}", catcher]))
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for library in _HEAVY:
        importlib.import_module(library)
    for line in sys.stdin:
        print(run(**json.loads(line)), flush=True)
