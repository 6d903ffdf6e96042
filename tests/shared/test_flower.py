"""What is changed in Flower: sockets, tokens, and processes that end."""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from flwr.common import constant
from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore import heartbeat
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.superexec.executor import SubprocessExecutor
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResultStatus
from flwr.supernode import fleet_http_connection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fedlatent.shared import flower
from fedlatent.shared.contact import FOLDER_VARIABLE, Contact
from fedlatent.shared.errors import ServiceError
from fedlatent.shared.supervisor import child_environment

TOKEN = "ab" * 128

TASK = """
import json, os, sys
from pathlib import Path
from fedlatent.shared.flower import read_token
token = read_token()
told = {"argv": sys.argv, "environment": dict(os.environ), "token": token}
Path("told.part").write_text(json.dumps(told))
Path("told.part").rename("told.json")
"""

RETURNS = """
import threading, time
from fedlatent.shared import flower
def gives_up():
    threading.Thread(target=time.sleep, args=(600,)).start()
flower._entry = lambda program: gives_up
flower.run("flower-supernode", [])
"""


@pytest.fixture(autouse=True)
def flower_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests replace comes back after each of them."""
    places: list[tuple[type, str]] = [
        (ProtobufClient, "from_server_address"),
        (uvicorn.Config, "__init__"),
        (SubprocessExecutor, "launch"),
        (InMemoryObjectStore, "preregister"),
        (SqlObjectStore, "preregister"),
    ]
    for owner, name in places:
        monkeypatch.setattr(owner, name, owner.__dict__[name])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """A server that Flower configures for TLS, on the socket that we bind for it."""
    flower.listen("flower-superlink")
    path = tmp_path / "link.sock"
    certificates = {"ssl_certfile": "absent.pem", "ssl_keyfile": "absent.key"}
    config = uvicorn.Config(
        _answer,
        host=flower.address_of(path),
        port=1,
        ws="none",
        lifespan="off",
        log_level="error",
        **certificates,  # type: ignore[arg-type]
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield path
    server.should_exit = True
    thread.join()


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    body = ListRunsResponse(now="served").SerializeToString()
    await Response(body)(scope, receive, send)


def test_client_and_server_meet_on_a_private_socket(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's client reaches Flower's server over a socket of mode 0600; both contacts show."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    flower.connect()
    assert served.stat().st_mode & 0o777 == 0o600
    client = ControlHttpClient.from_server_address(flower.address_of(served), True, None, [])
    contact = Contact(tmp_path)
    assert (contact.last_tried, contact.last_answered) == (None, None)
    with client:
        assert client.ListRuns(ListRunsRequest()).now == "served"
    assert contact.last_tried is not None
    assert contact.last_answered is not None


def test_tcp_is_refused() -> None:
    """Without sockets, neither a server nor a client is made."""
    flower.listen("flower-superlink")
    flower.connect()
    with pytest.raises(ServiceError, match=r"socket to listen on, got 127\.0\.0\.1"):
        uvicorn.Config(_answer, host="127.0.0.1")
    with pytest.raises(ServiceError, match="socket to connect to, got localhost:1"):
        ControlHttpClient.from_server_address("localhost:1", True, None, [])


def test_the_way_to_another_machine_is_never_plain() -> None:
    """With a TLS context for servers elsewhere, a plain connection is refused all the same."""
    flower.connect(lambda: pytest.fail("no context is wanted"))
    with pytest.raises(ServiceError, match="got fed:1"):
        ControlHttpClient.from_server_address("fed:1", True, None, [])


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    """What a killed process left behind does not stop the next one."""
    path = tmp_path / "link.sock"
    flower.bind_private(path).close()
    with flower.bind_private(path) as bound, socket.socket(socket.AF_UNIX) as peer:
        bound.listen()
        peer.connect(str(path))


def spec(task: TaskType) -> ExecutionSpec:
    """A task to start."""
    return ExecutionSpec(
        task_type=task,
        runtime_api_address="unix:/x.sock",
        token=TOKEN,
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=False,
        parent_pid=os.getpid(),
        suppress_output=True,
        task_id=1,
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nobody waits
def test_a_token_travels_in_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's process learns its token, which is in no argument and no variable of its."""
    (tmp_path / "given.py").write_text(TASK)
    packages = child_environment()["PYTHONPATH"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), packages]))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    flower.launch_tasks(TaskType.CLIENT_APP, "given", "clientapp")
    assert SubprocessExecutor().launch(spec(TaskType.CLIENT_APP)).status == "accepted"
    deadline = time.monotonic() + 120
    while not (tmp_path / "told.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["token"] == TOKEN
    assert TOKEN not in json.dumps([told["argv"], told["environment"]])
    assert told["argv"][1:3] == ["clientapp", "--insecure"]
    assert FOLDER_VARIABLE not in told["environment"]


@pytest.mark.parametrize("task", [TaskType.AGENT_APP, TaskType.SIMULATION, TaskType.SERVER_APP])
def test_other_tasks_are_not_started(task: TaskType, tmp_path: Path) -> None:
    """A run that names another kind of task would have a node load what was sent."""
    flower.launch_tasks(TaskType.CLIENT_APP, "absent", "clientapp")
    result = SubprocessExecutor().launch(spec(task))
    assert result.status == LaunchResultStatus.FAILED
    assert str(task) in str(result.message)


def test_a_program_that_returns_ends_its_process() -> None:
    """A thread with ten minutes to go keeps nothing alive, and the status is no success."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RETURNS],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "flower-supernode returned\n")
    assert time.monotonic() - started < 300


def test_another_flower_is_refused() -> None:
    """A place that is not there is named, and nothing is replaced."""
    module = SimpleNamespace(there=print)
    with pytest.raises(ServiceError, match="module with gone, got another; install the pinned"):
        flower.replace(module, {"there": id, "gone": id}, "module")  # type: ignore[arg-type]
    assert module.there is print


@pytest.mark.parametrize("kind", ["memory", "sql"])
def test_a_false_word_about_an_object_changes_no_message(kind: str) -> None:
    """What one message says that an object consists of is nothing to the others that have it."""
    flower.keep_objects_flat()
    store: ObjectStore = InMemoryObjectStore()
    if kind == "sql":
        store = SqlObjectStore(":memory:")
        store.initialize()
    shared, piece, nowhere = (character * 64 for character in "abc")
    store.preregister(1, tree("1" * 64, tree(shared, tree(nowhere))))
    honest = tree("2" * 64, tree("d" * 64, tree(shared, tree(piece)), tree(piece)))
    assert set(store.preregister(1, honest)) == {"2" * 64, "d" * 64, shared, piece}
    below = {one.object_id for one in store.get_object_tree("2" * 64).children}
    assert below == {"d" * 64, shared, piece}
    store.delete("1" * 64)
    assert shared in store
    assert nowhere not in store
    store.delete("2" * 64)
    assert not any(one in store for one in (shared, piece, "d" * 64))


def tree(name: str, *below: ObjectTree) -> ObjectTree:
    """An object and what it is said to consist of."""
    return ObjectTree(object_id=name, children=below)


def test_a_node_that_was_killed_is_let_in_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life come so often that two missing ones are noticed within 20 s."""
    name = "HEARTBEAT_DEFAULT_INTERVAL"
    for module in (heartbeat, fleet_http_connection):
        monkeypatch.setattr(module, name, getattr(module, name))
    flower.beat_often()
    assert heartbeat.HEARTBEAT_DEFAULT_INTERVAL * constant.HEARTBEAT_PATIENCE == 20
    assert fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL == 10
    monkeypatch.setattr(constant, "HEARTBEAT_MIN_INTERVAL", 30)
    with pytest.raises(ServiceError, match="HEARTBEAT_MIN_INTERVAL"):
        flower.beat_often()


def test_a_line_that_breaks_in_a_handshake_is_tried_again() -> None:
    """Flower gives up on errors that name TLS; what a server causes that starts again does not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closing = threading.Thread(target=lambda: listener.accept()[0].close())
        closing.start()
        client = flower._http_client(None, ssl.create_default_context())
        with client, pytest.raises(httpx.ConnectError) as caught:
            client.get(f"https://127.0.0.1:{listener.getsockname()[1]}")
        closing.join()
    assert not any(word in str(caught.value).lower() for word in ("ssl", "tls", "certificate"))
