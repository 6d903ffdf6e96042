"""A server killed with SIGKILL, at any point, loses nothing and counts nothing twice.

A clean helper process with the imports done forks the servers to kill, so that a crash is cheap.
"""

import json
import os
import random
import signal
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlatent.server.driver import drive
from fedlatent.server.exchange import Pace
from fedlatent.server.registry import Registry
from fedlatent.server.results import RunFolder
from fedlatent.shared.arrays import Arrays
from fedlatent.shared.files import sha256_hex
from fedlatent.shared.wire import ReplyHeader
from tests.forks import processes
from tests.server.federation import grid_of, home_at, three_sites, tiny_config

RUN = "tiny-1"
PHASES = 3
#: Durable writes of an uninterrupted run: config, two a checkpoint, the four of the result.
WRITES = 1 + 2 * (PHASES + 1) + 4


def serve(path: Path, die_at_write: int = 0, pause_s: float = 0.0) -> None:
    """Drive the run in ``path`` to its end; die at a durable write, or be slow in every reply."""
    if die_at_write:
        _die_at(die_at_write)

    def edit(header: ReplyHeader, arrays: Arrays) -> tuple[ReplyHeader, Arrays]:
        pace.sleep(pause_s)
        line = {"site": header.site, "round": header.round, "kind": header.kind}
        line["sha256"] = sha256_hex(b"".join(arrays[key].tobytes() for key in sorted(arrays)))
        with (path / "replies.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        return header, arrays

    sites, pace = three_sites(), Pace(poll_s=0.01, retry_pause_s=0.0)
    for site in sites.values():
        site.edit = edit
    config = tiny_config(
        privacy={"mechanism": "none", "rng": "simulation"},
        training={"rounds": PHASES - 2, "steps_per_round": 1},
    )
    drive(grid_of(sites), config, home_at(path), run_id=RUN, resume=True, pace=pace)


def _die_at(number: int) -> None:
    """Kill this process at its ``number``-th fsync, before it happens."""
    real: Callable[[int], None] = os.fsync
    count = 0

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


def run_server(path: Path, kill_after_s: float | None = None, **options: float) -> int:
    """Run one server process, to its end or until it is killed; its exit code."""
    process = processes.Process(target=serve, args=(path,), kwargs=options)
    process.start()
    process.join(kill_after_s)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The facts of an uninterrupted run."""
    path = tmp_path_factory.mktemp("calm")
    assert run_server(path) == 0
    return RunFolder.load(path / "runs" / RUN / "result").facts


def check(path: Path, calm: dict[str, object]) -> None:
    """The run in ``path`` ended as the calm one did, with every phase there once."""
    facts = RunFolder.load(path / "runs" / RUN / "result").facts
    for part in ("model", "density", "thresholds", "sites"):
        assert facts[part] == calm[part]
    with Registry(path / "registry.db") as registry:
        rounds = [(row.number, row.status, row.good) for row in registry.rounds(RUN)]
        assert rounds == [(number, "complete", 3) for number in range(1, PHASES + 1)]
        assert len(registry.site_rounds(RUN)) == 3 * PHASES
        run = registry.run(RUN)
    assert run is not None
    assert run.status == "complete"
    answers = defaultdict(set)
    for line in (path / "replies.jsonl").read_text().splitlines():
        reply = json.loads(line)
        answers[reply["site"], reply["round"], reply["kind"]].add(reply["sha256"])
    assert len(answers) == 3 * PHASES
    assert all(len(hashes) == 1 for hashes in answers.values())


def test_death_at_every_durable_write(tmp_path: Path, calm: dict[str, object]) -> None:
    """Killed in each durable write in turn, the run resumes to the same encoder, bit by bit.

    Nodes are asked again for what the checkpoint lacks, with the same request each time. A write
    is two fsyncs: of the new file, before it takes its name, and of the folder; we die before
    the first, when all earlier files have their names and this one has not.
    """
    deaths = 0
    for number in range(1, 2 * WRITES + 10, 2):
        path = tmp_path / str(number)
        if run_server(path, die_at_write=number) == 0:
            break
        deaths += 1
        assert run_server(path) == 0
        check(path, calm)
    assert deaths == WRITES


def test_death_at_random_moments(tmp_path: Path, calm: dict[str, object]) -> None:
    """Killed again and again at random moments, the same run still ends as if undisturbed."""
    draw = random.Random(7)
    deaths, reach = 0, 0.5
    while run_server(tmp_path, kill_after_s=draw.uniform(0.05, reach), pause_s=0.1) != 0:
        deaths, reach = deaths + 1, reach * 1.05
        assert deaths < 100
    assert deaths >= 2
    check(tmp_path, calm)
