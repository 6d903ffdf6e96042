"""Fixtures that every test may use."""

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fedlatent  # noqa: F401 - dependencies that would phone home are kept quiet from here on

os.environ.setdefault("OMP_NUM_THREADS", "1")

signal.signal(signal.SIGTERM, signal.default_int_handler)  # what tests have started ends too
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell has & behind us

REPOSITORY = Path(__file__).resolve().parent.parent
_REGISTRATION = "torch.onnx._internal.exporter._registration"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: FEDLATENT_DATA, by default ../shared/data."""
    folder = Path(os.environ.get("FEDLATENT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}; set FEDLATENT_DATA to their folder")
    return folder


def pytest_runtest_setup() -> None:
    """Read the exporter's table of operators once a process: each export would build it anew.

    Building it takes longer than the export of a tiny model. Nothing changes it between exports.
    """
    registration = sys.modules.get(_REGISTRATION)
    if registration is not None and _REGISTRATION not in _ONCE:
        _ONCE.add(_REGISTRATION)
        registry = registration.ONNXRegistry
        registry.from_torchlib = staticmethod(functools.lru_cache(registry.from_torchlib))


_ONCE: set[str] = set()


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """A test that leaves threads at work or a signal handler behind fails, and no later one.

    Threads in the background may wait for ever, but not those of a pool: Python waits for them at
    its end, and what they do, such as drawing random numbers, happens in other tests.
    """
    handlers, before = _handlers(), set(threading.enumerate())
    yield
    changed = [number for number, handler in _handlers().items() if handler != handlers[number]]
    for number in changed:
        signal.signal(number, handlers[number])
    deadline = time.monotonic() + 10.0
    while left := [one.name for one in threading.enumerate() if one not in before and _works(one)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert not changed, "a signal handler was left behind"
    assert not left, "threads were left behind"


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}


def _works(thread: threading.Thread) -> bool:
    return not thread.daemon or thread.name.startswith("ThreadPoolExecutor")
