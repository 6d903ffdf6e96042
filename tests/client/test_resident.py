"""The resident process: real processes, real kills.

They are forked from one that has done the imports; one test starts them as a deployment does.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from fedlatent.client.home import ClientHome
from fedlatent.client.ledger import Ledger
from fedlatent.client.link import ask
from fedlatent.client.resident import OVERRUN_STATUS, READY_LINE, main
from fedlatent.server.authority import create_authority
from fedlatent.server.home import ServerHome
from fedlatent.shared.config import RunConfig
from fedlatent.shared.errors import ServiceError
from fedlatent.shared.files import sha256_hex
from fedlatent.shared.keys import generate_node_key, load_node_key
from fedlatent.shared.privacy.noise import SecureNoise
from fedlatent.shared.schedule import Kind
from fedlatent.shared.signing import RequestSigner, check_reply, digest_of, request_name
from fedlatent.shared.toml import dumps
from fedlatent.shared.wire import (
    Delivery,
    ReplyHeader,
    RequestHeader,
    deliver,
    pack,
    parse_header,
    split,
    unpack,
)
from tests.client.support import request, tiny_node, tiny_records, tiny_run, weights_of
from tests.client.test_ledger import reference_epsilon
from tests.forks import processes

REPOSITORY = Path(__file__).resolve().parents[2]
START_S = 240.0  # a loaded machine takes a minute to start a process


def make_home(
    root: Path, run: RunConfig, step_s: float = 0.0, server: ServerHome | None = None
) -> ClientHome:
    """A client home with 200 records in an NPZ file, whose answers leave at steps of time.

    With a ``server`` it is deployed: it has a node key, and pins that server's authority.
    """
    home = ClientHome.find(root / "home")
    home.create()
    np.savez(home.root / "records.npz", X=tiny_records())
    node_file = {
        "site": "north",
        "data": {"path": "records.npz", "schema": run.data.to_dict()},
        "policy": {"max_epsilon": 5.0, "allow_simulation_rng": True},
        "limits": {"answer_step_s": step_s},
    }
    if server is not None:
        node_file["server"] = {"address": "127.0.0.1:1"}
        home.ca_certificate.write_bytes(server.ca_certificate.read_bytes())
        generate_node_key(home.node_key)
    home.config.write_text(dumps(node_file))
    return home


def _answer(home: ClientHome, output: Connection) -> None:
    """The resident of ``home`` as its process runs it; standard output goes to a pipe."""
    os.dup2(output.fileno(), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(main(["--home", str(home.root)]))


@contextlib.contextmanager
def resident(home: ClientHome) -> Iterator[BaseProcess]:
    """A running resident that is ready, forked; killed at the end if it still runs."""
    reading, writing = processes.Pipe(duplex=False)
    process = processes.Process(target=_answer, args=(home, writing))
    process.start()
    writing.close()
    try:
        with os.fdopen(os.dup(reading.fileno())) as lines:
            assert lines.readline().strip() == READY_LINE
        yield process
    finally:
        reading.close()
        process.kill()
        process.join()


@contextlib.contextmanager
def deployed_resident(home: ClientHome) -> Iterator[None]:
    """A running resident that is ready, in an interpreter of its own; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fedlatent.client.resident", "--home", str(home.root)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == READY_LINE
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, at most ``START_S``."""
    end = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.02)


def ask_node(
    home: ClientHome, header: RequestHeader, timeout_s: float
) -> tuple[ReplyHeader, dict[str, np.ndarray]]:
    """One request over the socket."""
    data = pack(header, weights_of(header.config))
    return unpack(ReplyHeader, split(ask(home.socket, data, timeout_s))[1])


def test_kill_in_training_costs_one_charge(tmp_path: Path) -> None:
    """A resident killed with -9 mid-round and restarted answers the same request for one charge."""
    run = tiny_run(training={"rounds": 2, "steps_per_round": 300}, privacy={"rng": "secure"})
    home = make_home(tmp_path, run)
    ledger = Ledger(home.ledger, "records", 5.0, 1e-5)
    replies: list[ReplyHeader] = []
    asked = request(run, 1)
    with resident(home) as first:
        asker = threading.Thread(target=lambda: replies.append(ask_node(home, asked, START_S)[0]))
        asker.start()
        wait_until(lambda: bool(ledger.entries()))
        first.kill()
        first.join()
    assert [entry.state for entry in ledger.entries()] == ["reserved"]
    assert home.socket.exists()
    assert not home.release_journal.exists()
    with resident(home) as second:
        asker.join(START_S)  # the asker never noticed
        again, _ = ask_node(home, asked, START_S)
        later, _ = ask_node(home, request(run, 2), START_S)
        second.terminate()
        second.join(60)
        assert second.exitcode == 0
    assert [reply.status for reply in (*replies, again, later)] == ["ok"] * 3
    assert replies == [again]
    entries = ledger.entries()
    assert [(entry.round, entry.steps, entry.state) for entry in entries] == [
        (1, 300, "released"),
        (2, 300, "released"),
    ]
    assert later.epsilon == pytest.approx(reference_epsilon(entries, 1e-5), abs=1e-6)
    assert not home.socket.exists()


def test_kill_in_training_repeats_the_very_same_draw(tmp_path: Path) -> None:
    """Killed with -9 mid-round, the node then answers what an undisturbed one with that key had."""
    run = tiny_run(training={"rounds": 2, "steps_per_round": 300}, privacy={"rng": "secure"})
    home = make_home(tmp_path, run)
    ledger = Ledger(home.ledger, "records", 5.0, 1e-5)
    data = pack(request(run, 1), weights_of(run))
    with resident(home) as first:
        answers: list[bytes] = []
        asker = threading.Thread(target=lambda: answers.append(ask(home.socket, data, START_S)))
        asker.start()
        wait_until(lambda: bool(ledger.entries()))
        first.kill()
        first.join()
    (entry,) = ledger.entries()
    key = ledger.sealed(entry)
    with resident(home):
        asker.join(START_S)

    def sealed(
        run: RunConfig, site: str, round: int, kind: Kind, other: bytes | None
    ) -> SecureNoise:
        assert other != key
        return SecureNoise(key)

    calm = tiny_node(tmp_path / "calm", run, sealed)
    assert answers == [deliver(calm.handle(request(run, 1), weights_of(run)).payload)]


def test_overrun_ends_the_process(tmp_path: Path) -> None:
    """A request that passes its deadline ends the process with status 75, and nothing leaves."""
    run = tiny_run(training={"rounds": 1, "steps_per_round": 100_000})
    home = make_home(tmp_path, run)
    with resident(home) as process:
        second = main(["--home", str(home.root)])
        with pytest.raises(ServiceError):
            ask_node(home, request(run, 1, deadline_s=4.0), 5.0)
        process.join(60)
        assert process.exitcode == OVERRUN_STATUS
    assert second == ServiceError.exit_code
    assert not home.release_journal.exists()
    entries = Ledger(home.ledger, "records", 5.0, 1e-5).entries()
    assert [entry.state for entry in entries] == ["reserved"]


def test_answers_leave_at_whole_steps(tmp_path: Path) -> None:
    """Little work, much work, a replay, a refusal and garbage: each answer leaves at a step."""
    step_s = 2.0
    run = tiny_run(training={"rounds": 2, "steps_per_round": 200})
    small = tiny_run(name="small", sharing="summary", privacy={"epsilon": 1.0})
    home = make_home(tmp_path, run, step_s)
    asked = [request(run, 1), request(run, 1), request(small, 1, "moments", run_id="small-1")]
    frames = [pack(header, weights_of(run)) for header in asked]
    greedy = request(tiny_run(privacy={"epsilon": 9.0}), 1, run_id="greedy-1")
    frames += [pack(greedy, weights_of(run)), b"garbage"]
    replies, ends = [], []
    with resident(home):
        for frame in frames:
            started = time.monotonic()
            replies.append(unpack(ReplyHeader, split(ask(home.socket, frame, START_S))[1])[0])
            ends.append((time.monotonic() - started) / step_s)
    assert [reply.code or reply.status for reply in replies] == [
        *("ok", "ok", "ok"),
        *("policy", "protocol"),
    ]
    assert replies[0] == replies[1]
    for end in ends:
        assert end >= 1.0
        assert end % 1.0 < 0.4, ends


def test_a_deadline_between_steps_tells_no_more_than_a_step(tmp_path: Path) -> None:
    """Work that ends within the step that its deadline falls into is answered."""
    run = tiny_run(training={"rounds": 1, "steps_per_round": 2})
    home = make_home(tmp_path, run, 5.0)
    with resident(home) as process:
        header, _ = ask_node(home, request(run, 1, deadline_s=0.001), START_S)
        assert process.is_alive()
    assert header.status == "ok"


def test_a_deployed_resident_answers_its_server_alone_and_signs(tmp_path: Path) -> None:
    """Forged requests end before a charge; a repeat after kill -9 gets the same arrays, signed."""
    server = ServerHome(tmp_path / "server")
    server.create()
    create_authority(server)
    run = tiny_run()
    home = make_home(tmp_path, run, server=server)
    signer = RequestSigner.load(server.requests_key, server.requests_certificate)
    ledger = Ledger(home.ledger, "records", 5.0, 1e-5)
    digest, now = digest_of(weights_of(run)), time.time()
    good = signer.sign(request(run, 1), digest, "north", now + 60)
    forged = [
        request(run, 1),
        signer.sign(request(run, 1), digest, "east", now + 60),
        signer.sign(request(run, 1), digest, "north", now - 3600),
        good.model_copy(update={"run_id": "tiny-2"}),
    ]
    key = load_node_key(home.node_key).public_key()

    def checked(header: RequestHeader) -> tuple[ReplyHeader, dict[str, np.ndarray], str]:
        """The reply, once it is known to be the node's to this request, and what it answers."""
        text, payload = split(ask(home.socket, pack(header, weights_of(run)), START_S))
        delivery = parse_header(Delivery, text)
        name = request_name(header, digest)
        assert check_reply(delivery, sha256_hex(payload), key, name) is None
        return *unpack(ReplyHeader, payload), delivery.request

    with deployed_resident(home):
        assert [checked(header)[0].code for header in forged] == ["signature"] * 4
        assert ledger.entries() == []
        first, arrays, answered = checked(good)
    with deployed_resident(home):
        second, again, other = checked(signer.sign(request(run, 1), digest, "north", now + 120))
    assert (first.status, second.status, len(ledger.entries())) == ("ok", "ok", 1)
    assert answered != other
    assert arrays.keys() == again.keys()
    assert all(np.array_equal(again[name], value) for name, value in arrays.items())


def test_bad_home_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A home without a node file ends the process with a sentence and the configuration status."""
    assert main(["--home", str(tmp_path)]) == 2
    assert "Expected a node at" in capsys.readouterr().err
