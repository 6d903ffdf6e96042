"""Fixtures that every test may use."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

import fedlatent  # noqa: F401 - dependencies that would phone home are kept quiet from here on
from tests.exporting import keep_tables

os.environ.setdefault("OMP_NUM_THREADS", "1")

signal.signal(signal.SIGTERM, signal.default_int_handler)  # what tests have started ends too
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell has & behind us

REPOSITORY = Path(__file__).resolve().parent.parent

#: Folders whose tests share what is dear to make: one worker takes them whole.
TOGETHER = ("simulations/audit", "golden")
#: What takes longest, the longest first: begun last, one worker would end long after the others.
LONGEST = (
    "simulations/audit",
    "simulations/test_zoo.py",
    "simulations/test_three_grids.py",
    "server/test_hostile_site.py",
    "server/test_other_accounts.py",
    "shared/models/test_contract.py",
    "client/test_resident.py",
    "server/test_service.py",
    "server/test_export.py",
    "shared/export/test_bundling.py",
    "simulations/bench/test_measure.py",
    "simulations/study/test_run.py",
)


class WholeFiles(LoadScopeScheduling):
    """A worker takes whole files or folders, for what their tests share."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> WholeFiles:
    """Share tests out over workers by our own groups: marks are lost between pytest 9 and xdist."""
    return WholeFiles(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest."""
    items.sort(key=lambda item: [*LONGEST, _group(item.nodeid)].index(_group(item.nodeid)))


def _group(nodeid: str) -> str:
    file = nodeid.split("::")[0].removeprefix("tests/")
    return next((one for one in TOGETHER if file.startswith(one)), file)


@pytest.fixture(autouse=True, scope="session")
def quick_exports() -> None:
    """Exports as fast as they can be."""
    keep_tables()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: FEDLATENT_DATA, by default ../shared/data."""
    folder = Path(os.environ.get("FEDLATENT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}; set FEDLATENT_DATA to their folder")
    return folder


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
